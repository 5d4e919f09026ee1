"""Scores, counts and images that are no numbers are refused in one line, whatever they lie in."""

import numpy as np
import pytest
import torch

from vireid_lite import metrics
from vireid_lite.errors import InputError
from vireid_lite.metrics.likeness import psnr, ssim


@pytest.mark.parametrize(
    "wrong",
    ["abc", list("abcd"), None, 1.0, np.ones(4) + 1j, [np.inf] * 4, [[1], 2, 3, 4], torch.ones(4, device="meta")],
)
def test_scores_and_counts_are_real_numbers(wrong):
    people = np.arange(4)
    for call in (
        lambda: metrics.bootstrap(wrong, people),
        lambda: metrics.bootstrap(people, people, [1] if wrong is None else wrong),
        lambda: metrics.paired_bootstrap(wrong, people, people),
    ):
        with pytest.raises(InputError, match="metrics"):
            call()


def test_scores_that_a_network_gave_are_taken():
    scores, people = [0.0, 0.25, 0.5, 1.0], np.arange(4)
    wanted = metrics.bootstrap(scores, people, repeats=9)
    for kind in (torch.float32, torch.bfloat16):
        assert metrics.bootstrap(torch.tensor(scores, dtype=kind, requires_grad=True), people, repeats=9) == wanted


@pytest.mark.parametrize("measure", [ssim, psnr])
def test_likeness_is_of_two_tensors_of_floats(measure):
    images = torch.rand(2, 3, 16, 16)
    for wrong in (images.numpy(), images.tolist(), None, (images * 255).byte()):
        for pair in ((wrong, images), (images, wrong)):
            with pytest.raises(InputError, match="alike"):
                measure(*pair)
