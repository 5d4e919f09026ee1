"""Images and feature maps in the frequency domain: amplitude and phase, and where the energy sits.

Every transform is the orthonormal FFT over the last two dimensions, so that energy is the same on both sides. Maps are
float32 or float64, (..., H, W); anything else raises InputError. Source of amplitude, phase and recombination: Yang et
al., NeurIPS 2024, section 3.2, which writes arctan where only atan2 gives the maps back.
"""

from numbers import Real

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vireid_lite.errors import MANY, InputError, whole


def decompose(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return amplitude and phase in (-pi, pi], each (..., H, W), in fft2's order; it can be differentiated once.

    Where the amplitude is 0, or below the smallest normal number, the phase is 0 and so is the gradient.
    """
    return _Polar.apply(_spectrum(maps))


def recombine(amplitude: Tensor, phase: Tensor) -> Tensor:
    """Return maps (..., H, W): the real part of the orthonormal inverse transform of amplitude * exp(1j * phase)."""
    _check_maps(amplitude, phase)
    leading = zip(amplitude.shape[-3::-1], phase.shape[-3::-1], strict=False)
    if amplitude.shape[-2:] != phase.shape[-2:] or any(a != b and 1 not in (a, b) for a, b in leading):
        both = f"{tuple(amplitude.shape)} and {tuple(phase.shape)}"
        raise InputError(f"frequency: amplitude and phase must be of one shape (..., H, W), got {both}")
    # Not torch.polar, whose gradient by an amplitude of 0 is 0.
    spectrum = torch.complex(amplitude * phase.cos(), amplitude * phase.sin())
    return torch.fft.ifft2(spectrum, norm="ortho").real


def amplitude_only(images: Tensor) -> Tensor:
    """Return (..., H, W) images whose phase is replaced by 0. Not clipped; all waves peak at the top left pixel."""
    amplitude, _ = decompose(images)
    return recombine(amplitude, torch.zeros_like(amplitude))


def phase_only(images: Tensor) -> Tensor:
    """Return (..., H, W) images whose amplitude is its root mean square, so a map keeps its energy. Not clipped."""
    amplitude, phase = decompose(images)
    return recombine(amplitude.square().mean((-2, -1), keepdim=True).sqrt().expand_as(phase), phase)


def swap(amplitude_of: Tensor, phase_of: Tensor) -> Tensor:
    """Return (..., H, W) images with the amplitude of one and the phase of the other. Not clipped."""
    return recombine(decompose(amplitude_of)[0], decompose(phase_of)[1])


def for_show(images: Tensor) -> Tensor:
    """Return (..., C, H, W) or (H, W) images in [0, 1], each rescaled from its 1st to 99th percentile, for figures."""
    _check_maps(images)
    values = images.flatten(-min(images.ndim, 3))
    low, high = (values.quantile(share, -1)[(...,) + (None,) * min(images.ndim, 3)] for share in (0.01, 0.99))
    return ((images - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def radial_frequency(height: int, width: int) -> Tensor:
    """Return (H, W) float64, distances from DC in fft2's order: 1 at Nyquist along an axis, sqrt(2) at most."""
    height, width = whole("frequency", "height", height, 1, MANY), whole("frequency", "width", width, 1, MANY)
    # Whole numbers over the size, so that a bin on the edge of a ring lies exactly there.
    down, across = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64).round() * 2 / n for n in (height, width))
    return torch.hypot(down[:, None], across)


def band_energy(maps: Tensor, bands: int = 8) -> Tensor:
    """Return (..., bands), each map's share of energy where b <= bands * radius < b + 1; corners are in the last."""
    energy, bands = _spectrum(maps).abs().square(), whole("frequency", "bands", bands, 1, 10**5)
    # Rounded, so that a bin on an edge falls to the ring above it however its radius was computed.
    ring = (radial_frequency(*maps.shape[-2:]) * bands).round(decimals=9).long().clamp(max=bands - 1)
    energy = energy.flatten(-2) @ torch.nn.functional.one_hot(ring.flatten(), bands).to(energy)
    return energy / energy.sum(-1, keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)


def band_pass(maps: Tensor, low: float, high: float) -> Tensor:
    """Return (..., H, W) maps with only the bins low <= radius < high, so that disjoint bands sum to the whole."""
    numbers = all(isinstance(bound, Real) and not isinstance(bound, bool) for bound in (low, high))
    if not numbers or not low <= high:
        raise InputError(f"frequency: low and high must be numbers, low at most high; got {low!r} and {high!r}")
    spectrum, radius = _spectrum(maps), radial_frequency(*maps.shape[-2:])
    kept = ((low <= radius) & (radius < high)).to(maps.device)
    return torch.fft.ifft2(spectrum * kept, norm="ortho").real


def _check_maps(*several: Tensor) -> None:
    for maps in several:
        if not isinstance(maps, Tensor):
            raise InputError(f"frequency: maps must be a tensor of floats, got {type(maps).__name__}")
        dense = maps.dtype in (torch.float32, torch.float64) and maps.layout == torch.strided
        if not dense or maps.ndim < 2 or 0 in maps.shape[-2:]:
            found = f"{str(maps.dtype).removeprefix('torch.')} of shape {tuple(maps.shape)}, {maps.layout}"
            raise InputError(f"frequency: maps must be dense, float32 or float64 of shape (..., H, W), got {found}")


def _spectrum(maps: Tensor) -> Tensor:
    _check_maps(maps)
    return torch.fft.fft2(maps, norm="ortho")


class _Polar(torch.autograd.Function):
    """Complex numbers to amplitude and phase, in as few passes as the chain rule needs."""

    @staticmethod
    def forward(ctx, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = spectrum + 0.0  # -0.0 becomes 0.0; the phase of -1 - 0.0j would be -pi
        amplitude = spectrum.abs()
        ctx.save_for_backward(spectrum, amplitude)
        return amplitude, spectrum.angle()

    @staticmethod
    @once_differentiable
    def backward(ctx, by_amplitude: Tensor, by_phase: Tensor) -> Tensor:
        spectrum, amplitude = ctx.saved_tensors
        inverse = amplitude.reciprocal().masked_fill_(amplitude < torch.finfo(amplitude.dtype).tiny, 0)
        return torch.complex(by_amplitude, by_phase * inverse) * (spectrum * inverse)
