"""How alike two images are: SSIM and PSNR."""

import torch
from torch import Tensor

from vireid_lite.errors import InputError

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian window, in pixels (Wang et al. 2004, section III-C)
C1, C2 = 0.01**2, 0.03**2  # of its equation 13, K1 and K2, for pixels in [0, 1]


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity of images (N, C, H, W) in [0, 1], (N,), in [-1, 1], 1 only for equal images.

    Mean over channels and over the positions where the Gaussian window fits.
    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), eq. 13.

    Raises:
        InputError: for unlike shapes or images below 11 pixels.
    """
    images, reference = _alike("ssim", images, reference)
    height, width = images.shape[2:]
    if min(height, width) < WINDOW:
        raise InputError(f"ssim: images of {height}x{width} are smaller than the {WINDOW}x{WINDOW} window; load larger")
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.softmax(-offsets.square() / (2 * SIGMA**2), 0)

    def band(length: int) -> Tensor:
        """Return the matrix (length, length - 10) that takes weighted means of neighbours."""
        matrix = images.new_zeros(length, length - WINDOW + 1)
        for place, column in enumerate(matrix.T):
            column[place : place + WINDOW] = weights
        return matrix

    def local_mean(maps: Tensor) -> Tensor:
        return down @ maps @ along

    # A Gaussian window is a product of two: down the columns, then along the rows.
    down, along = band(height).T, band(width)
    mean_x, mean_y = local_mean(images), local_mean(reference)
    variances = local_mean(images * images) - mean_x**2 + (local_mean(reference * reference) - mean_y**2)
    covariance = local_mean(images * reference) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return (likeness / ((mean_x**2 + mean_y**2 + C1) * (variances + C2))).mean((1, 2, 3))


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, (N,), of images (N, C, H, W) in [0, 1]; infinite for equal ones."""
    images, reference = _alike("psnr", images, reference)
    return decibels((images - reference).square().mean((1, 2, 3)))


def _alike(what: str, images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return two batches of floats of one shape, in the precision of the first."""
    both = images, reference
    dense = all(isinstance(x, Tensor) and x.ndim == 4 and x.layout == torch.strided for x in both)
    floats = dense and all(x.is_floating_point() and x.dtype.itemsize > 1 and not x.is_meta for x in both)
    if not floats or images.shape != reference.shape:
        got = ", ".join(f"{getattr(x, 'dtype', type(x).__name__)} {tuple(getattr(x, 'shape', ()))}" for x in both)
        raise InputError(f"{what}: two batches of floats (N, C, H, W) alike are needed, got {got}")
    if not all(((x >= -1e-6) & (x <= 1 + 1e-6)).all() for x in both):  # but for rounding; refuses NaN too
        raise InputError(f"{what}: pixels must lie in [0, 1]; divide those of 8 bits by 255, clip what an attack adds")
    return images, reference.to(images)


def decibels(error: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of a mean squared error, peak 1."""
    return -10 * error.log10()
