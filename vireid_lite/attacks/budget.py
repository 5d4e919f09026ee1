"""The pixel-space contract of every attack: budget, projection, clipping, 8 bits, tied channels."""

import torch
from torch import Tensor

from vireid_lite.data.records import Modality, check_modality
from vireid_lite.errors import InputError

EPS = 8 / 255  #: the papers' budget, of pixels in [0, 1]

ModalityLike = Modality | Tensor  #: one modality for the batch, or int64 (N,) of 0 (visible) and 1 (infrared)


def clip(values: Tensor, low: float = 0.0, high: float = 1.0, *, masked: bool = False) -> Tensor:
    """Clip to [low, high]; the gradient passes straight through, as torch versions differ at the boundary.

    Masked, that of what lies outside is 0 and on the boundary 1, as in the torch that CMPS was published with.
    """
    passing = values * ((values >= low) & (values <= high)) if masked else values
    return values.detach().clamp(low, high) + (passing - passing.detach())


def check_eps(eps: float) -> None:
    """Raise InputError unless eps is a number in (0, 1], a share of the pixel range."""
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps <= 1:
        raise InputError(f"eps {eps!r}: a number above 0 and at most 1 is needed, as pixels lie in [0, 1]; try 8/255")


def tie(delta: Tensor) -> Tensor:
    """Return delta (..., 3, H, W) with the mean of its channels in all three: what a one-channel sensor can deliver."""
    return delta.mean(-3, keepdim=True).expand_as(delta)


def tie_infrared(delta: Tensor, modality: ModalityLike, tied: bool = True) -> Tensor:
    """Return delta, (3, H, W) or (N, 3, H, W), tied where it falls on infrared images; as it is where `tied` is not."""
    check_modality(modality, len(delta) if delta.ndim == 4 else None)
    if tied and isinstance(modality, Tensor):
        infrared = (modality == Modality.INFRARED).view(-1, 1, 1, 1).to(delta.device)
        return torch.where(infrared, tie(delta), delta)
    return tie(delta) if tied and modality == Modality.INFRARED else delta


def project(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return the adversarial images moved into [images - eps, images + eps] and [0, 1]."""
    return (images + (adversarial - images).clamp(-eps, eps)).clamp(0, 1)


def to_8_bits(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return the adversarial images as a file holds them: the nearest of 256 levels that keeps the budget.

    The clean images are themselves of 8 bits. The budget is kept to a thousandth of a level.
    """
    # A level may lie on the budget itself; the slack absorbs float32's rounding of 255 * eps, never a whole level.
    low, high = ((images - eps) * 255 - 1e-3).ceil(), ((images + eps) * 255 + 1e-3).floor()
    return (adversarial * 255).round().clamp(low, high).clamp(0, 255) / 255


def luma(images: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Return images (N, 3, H, W), those chosen, (N,) bool, or all as their luma, equations 2 and 3 of CMPS."""
    red, green, blue = images.unbind(1)
    return _greyed((0.299 * red + 0.587 * green + 0.114 * blue).clamp(0, 1), images, chosen)


def pillow_luma(images: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Return `luma` in whole levels of 8 bits, as Pillow's "L" has it and the released code of CMPS with it."""
    red, green, blue = (images.detach() * 255).round().long().unbind(1)
    return _greyed(((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(images) / 255, images, chosen)


def _greyed(grey: Tensor, images: Tensor, chosen: Tensor | None) -> Tensor:
    grey = grey[:, None].expand_as(images)
    return grey if chosen is None else torch.where(chosen.view(-1, 1, 1, 1).to(images.device), grey, images)


def l1_normalised(gradient: Tensor) -> Tensor:
    """Return `gradient / |gradient|_1` over the whole tensor; zero stays zero."""
    return gradient / gradient.abs().sum().clamp(min=torch.finfo(gradient.dtype).tiny)
