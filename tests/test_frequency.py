"""The frequency domain against plain NumPy loops, against what is known in closed form, and where it used to break."""

import cmath
import math
from itertools import pairwise

import draws
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vireid_lite.errors import InputError
from vireid_lite.frequency import (
    amplitude_only,
    band_energy,
    band_pass,
    decompose,
    for_show,
    phase_only,
    radial_frequency,
    recombine,
    swap,
)

SIZES = st.integers(1, 13), st.integers(1, 13)
EXACT = {torch.float32: 1e-6, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", EXACT)


def maps_of(seed, *shape, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loops(image):
    """The orthonormal transform of an (H, W) array as its definition has it: a sum over all pixels for every bin."""
    height, width = image.shape
    return np.array(
        [
            [
                sum(
                    image[h, w] * cmath.exp(-2j * cmath.pi * (u * h / height + v * w / width))
                    for h in range(height)
                    for w in range(width)
                )
                for v in range(width)
            ]
            for u in range(height)
        ]
    ) / math.sqrt(height * width)


def loops_radius(u, v, height, width):
    """The distance of bin (u, v) from DC; a bin above the middle stands for a negative frequency."""
    down, across = (min(k, size - k) / (size / 2) for k, size in ((u, height), (v, width)))
    return math.hypot(down, across)


@DTYPES
@settings(max_examples=draws.of(30), deadline=None)
@given(height=SIZES[0], width=SIZES[1], seed=st.integers(0, 2**31))
def test_round_trip(dtype, height, width, seed):
    maps = maps_of(seed, 2, 3, height, width, dtype=dtype)
    amplitude, phase = decompose(maps)
    back = recombine(amplitude, phase)
    assert amplitude.dtype == phase.dtype == back.dtype == dtype
    assert (back - maps).abs().max() <= EXACT[dtype]
    assert amplitude.min() >= 0
    assert phase.abs().max() <= torch.tensor(torch.pi, dtype=dtype)


@pytest.mark.parametrize("size", [(288, 144), (48, 24), (37, 19)])
@DTYPES
def test_round_trip_at_real_sizes(size, dtype):
    maps = maps_of(0, 2, 3, *size, dtype=dtype)
    assert (recombine(*decompose(maps)) - maps).abs().max() <= EXACT[dtype]


@settings(max_examples=draws.of(15), deadline=None)
@given(height=st.integers(1, 7), width=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_equals_the_definition(height, width, seed):
    image = maps_of(seed, height, width)
    amplitude, phase = decompose(image)
    expected = loops(image.numpy())
    np.testing.assert_allclose(amplitude, np.abs(expected), atol=1e-12)
    np.testing.assert_allclose(torch.polar(amplitude, phase), expected, atol=1e-12)


@DTYPES
@pytest.mark.parametrize("size", [(4, 6), (5, 8), (7, 3)])
def test_real_negative_bins_have_phase_pi(size, dtype):
    # Bins that are their own mirror image are real, and atan2 of -0.0 would put a negative one at -pi.
    height, width = size
    mirrored = [(u, v) for u in {0, height / 2} for v in {0, width / 2} if u % 1 == v % 1 == 0]
    for seed in range(20):
        maps = maps_of(seed, *size, dtype=dtype)
        for image in (maps, -maps, maps - 0.5, maps - maps.mean()):
            phase = decompose(image)[1]
            for u, v in mirrored:
                assert phase[int(u), int(v)] in (0, torch.tensor(torch.pi, dtype=dtype))
    assert (decompose(torch.zeros(size, dtype=dtype))[1] == 0).all()
    assert (decompose(-torch.zeros(size, dtype=dtype))[1] == 0).all()


def test_the_phase_of_a_shift_is_a_ramp():
    height, width, down, across = 12, 9, 5, 2
    image = maps_of(0, height, width)
    amplitude, phase = decompose(image)
    shifted_amplitude, shifted_phase = decompose(image.roll((down, across), (0, 1)))
    u, v = torch.arange(height)[:, None], torch.arange(width)
    ramp = -2 * torch.pi * (u * down / height + v * across / width)
    assert torch.allclose(shifted_amplitude, amplitude, atol=1e-12)
    turn = torch.polar(torch.ones_like(phase), shifted_phase - phase - ramp)
    assert torch.allclose(turn, torch.ones_like(turn), atol=1e-9)


@DTYPES
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_a_constant_image_is_its_mean_alone(size, dtype):
    amplitude, phase = decompose(torch.full((3, *size), 0.5, dtype=dtype))
    tolerance = EXACT[dtype]
    assert torch.allclose(amplitude[:, 0, 0], amplitude.new_tensor(0.5 * math.sqrt(math.prod(size))), atol=tolerance)
    assert (phase[:, 0, 0] == 0).all()
    assert amplitude.flatten(1)[:, 1:].max() <= tolerance
    assert torch.allclose(band_energy(torch.full(size, 0.5, dtype=dtype)), amplitude.new_tensor([1.0] + [0.0] * 7))


def test_gradcheck():
    # Noise on 4 x 5 pixels has no bin near zero amplitude, and phases away from the cut at pi.
    image = maps_of(3, 2, 4, 5).requires_grad_()
    assert decompose(image)[0].min() > 0.01
    assert torch.autograd.gradcheck(lambda maps: decompose(maps)[0], image)
    assert torch.autograd.gradcheck(lambda maps: torch.sin(decompose(maps)[1]), image)
    other = maps_of(4, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(recombine, (other, image))
    assert torch.autograd.gradcheck(swap, (other, image))
    for function in (amplitude_only, phase_only, band_energy, lambda maps: band_pass(maps, 0.3, 0.9)):
        assert torch.autograd.gradcheck(function, image)


@DTYPES
def test_gradient_at_zero_amplitude_is_zero(dtype):
    smallest = torch.finfo(dtype).tiny
    for image in (torch.zeros(4, 6, dtype=dtype), torch.full((4, 6), smallest / 64, dtype=dtype)):
        image.requires_grad_()
        amplitude, phase = decompose(image)
        gradient = torch.autograd.grad((amplitude + phase).sum(), image)[0]
        assert (gradient == 0).all()
    for value in (0.0, 0.5, 1.0):  # most bins are zero but for rounding, as behind a ReLU
        image = torch.full((2, 8, 6), value, dtype=dtype, requires_grad=True)
        amplitude, phase = decompose(image)
        recombine(amplitude, 0.9 * phase).square().sum().backward()
        assert image.grad.isfinite().all()


def test_the_identity_in_polar_form_passes_gradients_unchanged():
    image, weights = maps_of(5, 3, 12, 7).requires_grad_(), maps_of(6, 3, 12, 7)
    gradient = torch.autograd.grad((weights * recombine(*decompose(image))).sum(), image)[0]
    assert torch.allclose(gradient, weights, atol=1e-12)


@settings(max_examples=draws.of(20), deadline=None)
@given(height=st.integers(1, 7), width=st.integers(1, 7), bands=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_band_energy_equals_loops(height, width, bands, seed):
    image = maps_of(seed, height, width)
    expected = np.zeros(bands)
    spectrum = loops(image.numpy())
    for u in range(height):
        for v in range(width):
            # Rounding must not decide on which side of an edge a bin falls.
            ring = math.floor(round(loops_radius(u, v, height, width) * bands, 9))
            expected[min(ring, bands - 1)] += abs(spectrum[u, v]) ** 2
    assert expected.sum() == pytest.approx((image**2).sum().item())  # Parseval
    np.testing.assert_allclose(band_energy(image, bands), expected / expected.sum(), atol=1e-12)


@settings(max_examples=draws.of(30), deadline=None)
@given(height=SIZES[0], width=SIZES[1], bands=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_bands_are_a_partition(height, width, bands, seed):
    # A radius that equals an edge but for rounding goes up in band_energy, and in band_pass where float64 puts it.
    radius = radial_frequency(height, width)
    edge = (radius * bands).round() / bands
    assume(not ((radius != edge) & ((radius - edge).abs() < 1e-9)).any())
    maps = maps_of(seed, 2, height, width) - 0.3
    shares = band_energy(maps, bands)
    assert shares.shape == (2, bands)
    assert torch.allclose(shares.sum(-1), torch.ones(2, dtype=maps.dtype))
    edges = [*(band / bands for band in range(bands)), 2]
    pieces = torch.stack([band_pass(maps, *between) for between in pairwise(edges)])
    assert torch.allclose(pieces.sum(0), maps, atol=1e-12)
    # The pieces are orthogonal, and hold the energies that band_energy reports.
    energy = pieces.square().sum((-2, -1)).T
    assert torch.allclose(energy / maps.square().sum((-2, -1))[:, None], shares, atol=1e-12)


@settings(max_examples=draws.of(30), deadline=None)
@given(height=SIZES[0], width=SIZES[1])
def test_radial_frequency(height, width):
    radius = radial_frequency(height, width)
    expected = [[loops_radius(u, v, height, width) for v in range(width)] for u in range(height)]
    np.testing.assert_allclose(radius, expected, atol=1e-12)
    assert radius[0, 0] == 0
    if height % 2 == width % 2 == 0:
        assert radius[height // 2, 0] == radius[0, width // 2] == 1
        assert radius.max() == math.sqrt(2)


def test_band_energy_of_nothing_is_zero():
    assert torch.equal(band_energy(torch.zeros(2, 4, 4), 3), torch.zeros(2, 3))


def test_swap():
    one, two = maps_of(0, 3, 8, 5), maps_of(1, 3, 8, 5)
    assert torch.allclose(swap(one, one), one, atol=1e-12)
    mixed = decompose(swap(one, two))
    assert torch.allclose(mixed[0], decompose(one)[0], atol=1e-9)
    assert torch.allclose(torch.polar(*mixed), torch.polar(decompose(one)[0], decompose(two)[1]), atol=1e-9)


def test_what_is_replaced_is_gone_and_what_is_kept_is_kept():
    image = maps_of(0, 3, 8, 5)
    amplitude, phase = decompose(image)
    without_phase, without_amplitude = decompose(amplitude_only(image)), decompose(phase_only(image))
    assert torch.allclose(without_phase[0], amplitude, atol=1e-12)
    assert without_phase[1].abs().max() < 1e-9
    constant = without_amplitude[0].flatten(1)
    assert torch.allclose(constant, constant[:, :1].expand_as(constant))
    assert torch.allclose(
        torch.polar(torch.ones_like(phase), without_amplitude[1] - phase).real, torch.ones(()).double()
    )
    assert torch.allclose(phase_only(image).square().sum((1, 2)), image.square().sum((1, 2)))
    # Brightness and contrast are the amplitude's alone, one channel at a time.
    assert torch.allclose(decompose(3 * image)[1], phase)


def test_for_show():
    images = 7 * maps_of(0, 2, 3, 40, 20) - 2
    images[0] *= 100
    shown = for_show(images)
    assert shown.shape == images.shape
    assert shown.amin((1, 2, 3)).tolist() == [0, 0]
    assert shown.amax((1, 2, 3)).tolist() == [1, 1]
    assert torch.allclose(for_show(images[1]), shown[1])
    assert for_show(images[0, 0]).shape == (40, 20)
    assert for_show(torch.ones(3, 4, 4)).isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(4, 4).byte(), torch.zeros(4, 4).half(), torch.zeros(4), torch.zeros(4, 4).to(torch.cfloat)],
)
@pytest.mark.parametrize(
    "function",
    [
        *(decompose, amplitude_only, phase_only, for_show, band_energy),
        lambda maps: band_pass(maps, 0, 1),
        lambda maps: recombine(maps, torch.zeros(4, 4)),
        lambda maps: recombine(torch.zeros(4, 4), maps),
        lambda maps: swap(maps, torch.zeros(4, 4)),
    ],
)
def test_errors(function, wrong):
    with pytest.raises(InputError, match=r"float32 or float64 of shape \(..., H, W\), got"):
        function(wrong)
