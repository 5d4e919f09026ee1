"""CMPS once more, naively: the reference that tests hold vireid_lite.attacks.cmps against.

Written from the specification alone, one image at a time, and shares no code with the attacks. The caller draws the
batches, says which images are greyed, and gives the centroids; nothing here is random. Use float64 and a model in eval
mode. `eta` is the paper's name for the perturbation.
"""

import math

import numpy as np
import torch
from PIL import Image

from vireid_lite.data import Modality


def paper_steps(model, batches, banks, *, eps, step_size, margin=0.5, momentum=1.0, start=None):
    """Return eta (3, H, W) after every iteration of the intended algorithm, equations 4 to 9 with descent.

    batches: one dict for each iteration: "visible", "infrared": (N, 3, H, W) in [0, 1], "grey_visible" and
    "grey_infrared": N booleans each, which images are greyed. banks: dict of centroids of clean `embed` features,
    (k, D) each, not re-normalised: "visible", "grey" and "infrared". start: eta before the first; None for zero.
    """
    assert not model.training
    eta = torch.zeros_like(batches[0]["visible"][0]) if start is None else start.clone()
    delta = torch.zeros_like(eta)  # Delta of the step before, whichever modality it was
    etas = []
    for batch in batches:
        # Equation 4: push visible features from the infrared cluster they resemble, pull to a grey one.
        gradient = _paper_gradient(
            model,
            batch["visible"],
            batch["grey_visible"],
            Modality.VISIBLE,
            eta,
            banks["infrared"],
            banks["grey"],
            margin,
        )
        delta = momentum * delta + _l1_normalised(gradient)  # equation 5
        eta = _clamped(eta - step_size * delta.sign(), eps)  # equation 6, descending
        # Equation 7: push infrared features from the grey cluster they resemble, pull to a visible one.
        gradient = _paper_gradient(
            model,
            batch["infrared"],
            batch["grey_infrared"],
            Modality.INFRARED,
            eta,
            banks["grey"],
            banks["visible"],
            margin,
        )
        delta = momentum * delta + _l1_normalised(gradient)  # equation 8
        eta = _clamped(eta - step_size * delta.sign(), eps)  # equation 9, descending
        etas.append(eta.clone())
    return etas


def _paper_gradient(model, images, greyed, modality, eta, push_bank, pull_bank, margin):
    """Return the gradient to eta of the mean over images of [|C_n - f| - |C_p - f| + margin]_+."""
    total = torch.zeros_like(eta)
    for image, grey_it in zip(images, greyed, strict=True):
        with torch.no_grad():
            clean = model.embed(image[None], modality)[0]
        push = push_bank[_most(_cosines(push_bank, clean))]  # C_p, the most similar
        pull = pull_bank[_most([-c for c in _cosines(pull_bank, clean)])]  # C_n, the least similar
        attacked = ((_grey(image) if grey_it else image) + eta).clamp(0, 1).requires_grad_()
        feature = model.embed(attacked[None], modality)[0]
        hinge = (pull - feature).square().sum().sqrt() - (push - feature).square().sum().sqrt() + margin
        if hinge > 0:
            # Straight through the clip: the derivative to the attacked image is the derivative to eta.
            total += torch.autograd.grad(hinge, attacked)[0] / len(images)
    return total


def released_steps(model, batches, first_bank, second_bank, *, eps, margin=0.5, start=None):
    """Return eta (3, H, W) after every step of the released algorithm.

    batches: one dict for each step: "images": (N, 3, H, W) in [0, 1], of both modalities, all sent through the visible
    stem; "greyed": N booleans; "epoch": from 0, not falling. first_bank, second_bank: (k, D) centroids of clean pooled
    features, for the greyed and for the ungreyed copy of the batch. start: eta before the first step; None for zero.
    """
    assert not model.training
    eta = torch.zeros_like(batches[0]["images"][0]) if start is None else start.clone()
    moment = torch.zeros_like(eta)
    epoch, saturated = None, None
    etas = []
    for batch in batches:
        if batch["epoch"] != epoch:
            before, saturated = saturated, (eta.abs() >= eps - 1e-9).double().mean().item()
            if before is not None and saturated > 0.5 and abs(saturated - before) < 1e-5:
                eta = eta / 2
            epoch = batch["epoch"]
        alpha = eps / 10 * math.exp(-0.01 * (epoch + 1))
        images, greyed = batch["images"], batch["greyed"]

        # The look-ahead on the greyed copy; its u is not kept.
        first = _released_gradient(model, images, greyed, eta, first_bank, margin)
        u = moment + _l1_normalised(first)
        unclamped = eta - alpha * u.sign()
        ahead = _clamped(unclamped, eps)

        # The gradient at the look-ahead on the plain copy, as it arrives at eta through the clip to the budget.
        second = _released_gradient(model, images, [False] * len(images), ahead, second_bank, margin)
        second = second * ((unclamped >= -eps) & (unclamped <= eps))
        moment = moment + _l1_normalised(first + second)
        eta = _clamped(eta - alpha * moment.sign(), eps)
        etas.append(eta.clone())
    return etas


def _released_gradient(model, images, greyed, eta, bank, margin):
    """Return the gradient to eta of the mean over images of [|f - c_far| - |f - c_near| + margin]_+."""
    total = torch.zeros_like(eta)
    for image, grey_it in zip(images, greyed, strict=True):
        with torch.no_grad():
            clean = model((pillow_grey(image) if grey_it else image)[None], Modality.VISIBLE).pooled[0]
        # Centroids keep their lengths in the score, so long ones are favoured.
        scores = [(centroid @ clean / clean.norm()).item() for centroid in bank]
        positive, negative = bank[_most([-score for score in scores])], bank[_most(scores)]
        shifted = (pillow_grey(image) if grey_it else image) + eta
        attacked = shifted.clamp(0, 1).requires_grad_()
        feature = model(attacked[None], Modality.VISIBLE).pooled[0]
        # torch.nn.TripletMarginLoss adds 1e-6 to each difference.
        far = (feature - positive + 1e-6).square().sum().sqrt()
        hinge = far - (feature - negative + 1e-6).square().sum().sqrt() + margin
        if hinge > 0:
            inside = (shifted >= 0) & (shifted <= 1)  # the clip's gradient, 1 on the boundary
            total += torch.autograd.grad(hinge, attacked)[0] * inside / len(images)
    return total


def _grey(image):
    """Return .299 R + .587 G + .114 B of an image (3, H, W) in all three channels (equations 2 and 3)."""
    luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    return torch.stack([luma, luma, luma])


def pillow_grey(image):
    """Return what Pillow's convert("L") makes of an image (3, H, W) of 8 bits, in all three channels."""
    pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    grey = torch.from_numpy(np.array(Image.fromarray(pixels).convert("L"))).to(image) / 255
    return torch.stack([grey, grey, grey])


def _clamped(eta, eps):
    return torch.minimum(torch.maximum(eta, torch.full_like(eta, -eps)), torch.full_like(eta, eps))


def _l1_normalised(gradient):
    length = gradient.abs().sum()
    return gradient / length if length > 0 else gradient


def _cosines(bank, feature):
    """Return the cosine of each centroid (k, D) and a feature (D,) of length 1."""
    return [(centroid @ feature / centroid.norm()).item() for centroid in bank]


def _most(scores):
    """Return the place of the largest score, the first one of equals."""
    return max(range(len(scores)), key=scores.__getitem__)
