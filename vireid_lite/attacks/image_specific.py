"""Attacks that make one perturbation for each image: FGSM, PGD, and those on the ranked feature.

All walk `project(x + step_size * sign(m))` with m = momentum * m + g / mean|g|, one mean an image; they differ in the
objective whose gradient is g. f is `model.embed`, the L2-normalised BNNeck feature, through the image's own stem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from vireid_lite.attacks.budget import EPS, ModalityLike, check_eps, luma, project, tie_infrared, to_8_bits
from vireid_lite.attacks.frozen import frozen, generator_for, images_of
from vireid_lite.data.records import Modality, Record
from vireid_lite.data.store import ImageStore
from vireid_lite.errors import InputError
from vireid_lite.models.two_stream import check_images

Objective = Callable[[Tensor, int], Tensor]  # (images, step) -> (N,), what an attack maximises for each image

AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)  # LTA's rectangle: share of the image, height / width


class Guides(NamedTuple):
    """Features an attacker has beside the image itself, L2-normalised and detached.

    same: (N, G, D) features of images of the same person. far: (N, D) mean feature of the farthest other identity.
    """

    same: Tensor
    far: Tensor | None = None


class Problem(NamedTuple):
    """What is attacked, with what and how, in one batch."""

    model: nn.Module
    images: Tensor
    modality: ModalityLike
    guides: Guides | None = None
    seed: int = 0

    def features(self, images: Tensor) -> Tensor:
        """Return the features that are ranked, (N, D), each image through its own modality's stem."""
        return self.model.embed(images, self.modality)

    def logits(self, images: Tensor) -> Tensor:
        """Return the scores of the training identities, (N, num_identities)."""
        return self.model(images, self.modality).logits


@dataclass(frozen=True, kw_only=True)
class ImageAttack:
    """What every image-specific attack shares: its parameters and the loop.

    eps: budget in [0, 1] pixels. steps: gradient evaluations an image; 10 is what int(min(eps + 4, 1.25 eps)), the
    usual rule (Kurakin et al. 2017), gives for eps 8. step_size: in [0, 1] pixels; None is eps / 4, so that 10 steps
    can cross the budget and turn back (Madry et al. 2018 take 2 for eps 8). tied: what infrared images receive has
    three equal channels, as they have. Raises InputError for values out of range.
    """

    name: ClassVar[str]
    knows: ClassVar[str] = "the victim's weights; the query alone"
    momentum: ClassVar[float] = 0.0
    random_start: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()  # fields of Guides

    eps: float = EPS
    steps: int = 10
    step_size: float | None = None
    tied: bool = False

    def __post_init__(self) -> None:
        check_eps(self.eps)
        if type(self.steps) is not int or self.steps < 1:
            raise InputError(f"{self.name}: steps must be a whole number of at least 1, got {self.steps!r}")
        size = self.step_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size <= 1):
            raise InputError(f"{self.name}: step_size must lie above 0 and at most at 1, got {size!r}; None is eps / 4")
        if type(self.tied) is not bool:
            raise InputError(f"{self.name}: tied must be true or false, got {self.tied!r}")

    @property
    def rate(self) -> float:
        """The step size that is taken, in [0, 1] pixels."""
        return self.eps / 4 if self.step_size is None else self.step_size

    def describe(self) -> dict:
        """Return the attack's name and every parameter as plain values, for run cards and keys."""
        fixed = {"step_size": self.rate, "momentum": self.momentum, "random_start": self.random_start}
        return {"name": self.name, **asdict(self), **fixed}

    def objective(self, problem: Problem) -> Objective:
        """Return the function of (images, step) that the attack maximises, one value an image (N,)."""
        raise NotImplementedError

    def __call__(
        self, model: nn.Module, images: Tensor, modality: ModalityLike, guides: Guides | None = None, seed: int = 0
    ) -> Tensor:
        """Return adversarial images (N, 3, H, W) in [0, 1] within eps of the images, which are left as they are.

        images: (N, 3, H, W) float in [0, 1]. modality: one Modality for the batch, or int64 (N,). guides: see `Guides`,
        for the attacks that need them; others ignore them. seed: of every draw. The victim is left bit-identical.
        Raises InputError for bad images and for guides that are missing or of another number.
        """
        check_images(images)
        for part in self.needs:
            given = getattr(guides, part, None)
            if given is None or len(given) != len(images):
                raise InputError(
                    f"{self.name}: guides.{part} must hold one row for each of the {len(images)} images; pass "
                    f"Guides(same, far), or let `craft` take them from a store with two or more identities"
                )
        images = images.detach()
        with frozen(model), torch.enable_grad():
            objective = self.objective(Problem(model, images, modality, guides, seed))
            adversarial = self.start(images, modality, seed)
            velocity = torch.zeros_like(images)
            for step in range(self.steps):
                adversarial.requires_grad_(True)
                (gradient,) = torch.autograd.grad(objective(adversarial, step).sum(), adversarial)
                if self.tied:
                    gradient = tie_infrared(gradient, modality)
                size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
                velocity = self.momentum * velocity + gradient / size
                # The gradient is taken at an image already clipped, so no clip stands in its way.
                adversarial = project(adversarial.detach() + self.rate * velocity.sign(), images, self.eps)
        return adversarial

    def start(self, images: Tensor, modality: ModalityLike, seed: int) -> Tensor:
        """Return where the walk begins: the images, or uniform noise of +-eps on them."""
        if not self.random_start:
            return images.clone()
        noise = torch.rand(images.shape, generator=generator_for(seed)).to(images).mul(2).sub(1).mul(self.eps)
        return project(images + (tie_infrared(noise, modality) if self.tied else noise), images, self.eps)


@dataclass(frozen=True, kw_only=True)
class PGD(ImageAttack):
    """Projected gradient ascent of the cross-entropy to the class the victim itself predicts, so no label is needed.

    The classes are the training identities; a query shows none of them. Source: Madry et al. 2018, equation 3.
    """

    name = "pgd"
    knows = "the victim's weights and its classifier; the query alone"
    random_start = True

    def objective(self, problem: Problem) -> Objective:
        predicted = problem.logits(problem.images).argmax(1)
        return lambda x, step: F.cross_entropy(problem.logits(x), predicted, reduction="none")


@dataclass(frozen=True, kw_only=True)
class FGSM(PGD):
    """One step of eps up the cross-entropy to the predicted class: steps is 1 and step_size eps, by definition.

    Source: Goodfellow et al. 2015; with the predicted class as in U_turn, generate_attack_query.py:136-144.
    """

    name = "fgsm"
    random_start = False

    steps: int = field(default=1, init=False)
    step_size: float | None = field(default=None, init=False)

    @property
    def rate(self) -> float:
        return self.eps


@dataclass(frozen=True, kw_only=True)
class MetricFGSM(ImageAttack):
    """Iterative Metric-FGSM: away from the features of the same person, sum over guides of |f(x') - f_guide|^2.

    Source: Bai et al., "Adversarial Metric Attack and Defense for Person Re-identification" (there on the gallery).
    """

    name = "metric-fgsm"
    knows = "the victim's weights; other images of the same person"
    needs = ("same",)

    def objective(self, problem: Problem) -> Objective:
        return lambda x, step: (problem.features(x)[:, None] - problem.guides.same).square().sum((1, 2))


@dataclass(frozen=True, kw_only=True)
class MFGSM(MetricFGSM):
    """Metric-FGSM with momentum 1 (MI-FGSM's rule), M-FGSM in the tables of CMPS."""

    name = "m-fgsm"
    momentum = 1.0


@dataclass(frozen=True, kw_only=True)
class SMA(ImageAttack):
    """Self metric attack: away from the image's own clean feature, |f(x') - f(x)|^2.

    Its gradient is zero at x' = x, hence the random start. Source: Bouniot et al. 2020 (adv-reid, gen_adv.py:116).
    """

    name = "sma"
    random_start = True

    def objective(self, problem: Problem) -> Objective:
        clean = problem.features(problem.images).detach()
        return lambda x, step: (problem.features(x) - clean).square().sum(1)


@dataclass(frozen=True, kw_only=True)
class FNA(ImageAttack):
    """Furthest-negative attack: away from the same person, towards the farthest other: sum|f - same|^2 - |f - far|^2.

    Source: Bouniot et al. 2020 (adv-reid, adv_evaluation.py:596-604, 667-701).
    """

    name = "fna"
    knows = "the victim's weights; other images of the same person and of others, with their identities"
    needs = ("same", "far")

    def objective(self, problem: Problem) -> Objective:
        def away_and_to(x: Tensor, step: int) -> Tensor:
            features = problem.features(x)
            away = (features[:, None] - problem.guides.same).square().sum((1, 2))
            return away - (features - problem.guides.far).square().sum(1)

        return away_and_to


@dataclass(frozen=True, kw_only=True)
class ODFA(ImageAttack):
    """Opposite-direction feature attack: towards minus the clean feature, -MSE(f(x'), -f(x)).

    On features of length 1, |f' + f|^2 = 4 - |f' - f|^2: the same ascent as SMA's, with the same zero gradient at the
    start, which the published code leaves to rounding noise; hence the random start. Source: Zheng et al., "U-turn",
    generate_attack_query.py:199-229.
    """

    name = "odfa"
    random_start = True

    def objective(self, problem: Problem) -> Objective:
        opposite = -problem.features(problem.images).detach()
        return lambda x, step: -(problem.features(x) - opposite).square().mean(1)


@dataclass(frozen=True, kw_only=True)
class LTA(ImageAttack):
    """Local transformation attack: away from the clean image with one rectangle turned grey, drawn anew each step.

    Published without a random start. Infrared images are grey already, so there the target is the clean feature, the
    gradient at the start zero, and LTA is SMA with momentum. The target costs a forward pass a step on top.
    Source: Gong et al. (LTA.py:68-114); its bounds check swaps height and width, which is put right here.
    """

    name = "lta"
    momentum = 1.0
    random_start = True

    def objective(self, problem: Problem) -> Objective:
        def away(x: Tensor, step: int) -> Tensor:
            with torch.no_grad():
                target = problem.features(locally_grey(problem.images, generator_for(problem.seed, 1 + step)))
            return (problem.features(x) - target).square().sum(1)

        return away


IMAGE_SPECIFIC: dict[str, type[ImageAttack]] = {
    attack.name: attack for attack in (FGSM, PGD, MetricFGSM, MFGSM, SMA, FNA, ODFA, LTA)
}


def locally_grey(images: Tensor, generator: torch.Generator, attempts: int = 20) -> Tensor:
    """Return images (N, 3, H, W) with one rectangle of each turned grey; where no attempt fits, an image stays."""
    height, width = images.shape[-2:]
    area, aspect, down, right = torch.rand(len(images), attempts, 4, generator=generator, dtype=torch.float64).unbind(2)
    area = (AREA[0] + (AREA[1] - AREA[0]) * area) * height * width
    aspect = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * aspect
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    chosen = ((tall <= height) & (wide <= width)).int().argmax(1, keepdim=True)  # the first that fits
    tall, wide, down, right = (value.gather(1, chosen)[..., None] for value in (tall, wide, down, right))
    top, left = (down * (height - tall + 1)).floor(), (right * (width - wide + 1)).floor()
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    inside &= (tall <= height) & (wide <= width)
    return torch.where(inside[:, None].to(images.device), luma(images), images)


class GuideBank:
    """Clean features of one modality of a store, by identity, from which guides are taken.

    Raises InputError where the store has no image of the modality.
    """

    def __init__(self, model: nn.Module, store: ImageStore, modality: Modality, batch_size: int = 64) -> None:
        rows = np.flatnonzero(store.modalities.numpy() == modality)
        if not len(rows):
            raise InputError(f"guides: no {modality.name.lower()} image in the guide store; guides share the modality")
        with frozen(model), torch.no_grad():
            chunks = (rows[first : first + batch_size] for first in range(0, len(rows), batch_size))
            self.features = torch.cat([model.embed(images_of(store, chunk, model), modality) for chunk in chunks])
        members: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            members.setdefault(store.records[row].identity, []).append(place)
        most = max(len(places) for places in members.values())
        self.number = {identity: number for number, identity in enumerate(members)}
        self.places = torch.tensor([[places[i % len(places)] for i in range(most)] for places in members.values()])
        self.means = torch.stack([self.features[places].mean(0) for places in members.values()])

    def guides(self, features: Tensor, identities: Sequence[int]) -> Guides:
        """Return the guides of N images with these clean features (N, D) and identities.

        same: every feature of the bank with the image's identity, the image's own included if it is in the bank,
        repeated in turn up to the largest identity's number. far: the mean that lies farthest from the image's feature,
        of the other identities; None if there is no other.
        Raises InputError for an identity that the bank lacks.
        """
        lacking = sorted(set(identities) - set(self.number))
        if lacking:
            raise InputError(f"guides: no image of identity {lacking[0]} in this modality of the guide store")
        own = torch.tensor([self.number[identity] for identity in identities])
        same = self.features[self.places[own].to(self.features.device)]
        if len(self.means) < 2:
            return Guides(same)
        distance = torch.cdist(features, self.means).scatter(1, own[:, None].to(features.device), -1.0)
        return Guides(same, self.means[distance.argmax(1)])


class AdversarialStore:
    """Attacked crops, read like an ImageStore but held in memory.

    images, clean: (N, 3, H, W) float32 in [0, 1] on the CPU, in the records' order.
    """

    def __init__(self, records: Sequence[Record], images: Tensor, clean: Tensor) -> None:
        self.records, self.images, self.clean = list(records), images, clean
        self.modalities = torch.tensor([int(record.modality) for record in self.records], dtype=torch.int64)
        self.row = {record: index for index, record in enumerate(self.records)}

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, indices: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Return attacked crops (n, 3, H, W) on the device."""
        return self.images[torch.as_tensor(indices)].to(device)

    def rounded(self, eps: float) -> AdversarialStore:
        """Return the store as image files would hold it: 8 bits, still within eps of the clean crops."""
        return AdversarialStore(self.records, to_8_bits(self.images, self.clean, eps), self.clean)


def craft(
    attack: ImageAttack,
    model: nn.Module,
    store: ImageStore,
    *,
    guide_store: ImageStore | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> AdversarialStore:
    """Attack every crop of a store, in batches of one modality, on the model's device.

    guide_store: where guides come from, images of the crop's own modality and identity; None stands for the store
    itself, as in adv-reid, and then a crop is one of its own guides. An attack that needs none ignores it. Give an
    identity more than one image there: a lone crop guided by itself starts at a zero gradient.
    seed: of every draw, with the batch's number. Same seed and batch size, same bits.
    Raises InputError as the attack and `GuideBank` do.
    """
    images, clean = (torch.empty(len(store), 3, *store.images.shape[1:3]) for _ in range(2))
    with tqdm(total=len(store), unit="crop", desc=attack.name, disable=not progress) as bar:
        for modality in Modality:
            rows = np.flatnonzero(store.modalities.numpy() == modality)
            bank = None
            if attack.needs and len(rows):
                bank = GuideBank(model, store if guide_store is None else guide_store, modality, batch_size)
            for number, first in enumerate(range(0, len(rows), batch_size)):
                chunk = rows[first : first + batch_size]
                batch = images_of(store, chunk, model)
                guides = None
                if bank is not None:
                    with torch.no_grad():
                        features = model.embed(batch, modality)
                    guides = bank.guides(features, [store.records[row].identity for row in chunk])
                batch_seed = generator_for(seed, modality, number).initial_seed()
                attacked = attack(model, batch, modality, guides, batch_seed)
                images[chunk], clean[chunk] = attacked.float().cpu(), batch.float().cpu()
                bar.update(len(chunk))
    return AdversarialStore(store.records, images, clean)
