import draws
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vireid_lite.data import Augmentation, Modality, augment

EVERYTHING = Augmentation(pad=6, flip=0.5, erasing=1.0, grey=0.5, channels=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def crops(count=8, height=32, width=16, seed=0):
    return torch.rand(count, 3, height, width, generator=seeded(seed))


@settings(max_examples=draws.of(20), deadline=None)
@given(st.integers(1, 5), st.integers(8, 40), st.integers(8, 24), st.sampled_from(Modality), st.integers(0, 99))
def test_shape_range_and_input_survive_and_the_seed_decides(count, height, width, modality, seed):
    images = crops(count, height, width)
    before = images.clone()
    first, second = (EVERYTHING(images, modality, seeded(seed)) for _ in range(2))
    assert first.shape == images.shape
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, second)
    assert torch.equal(images, before)


def test_each_image_draws_its_own():
    same = crops(1).expand(32, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in augment.pad_crop(same, 4, seeded())}) > 8


def test_crop_is_a_window_of_the_padded_image():
    images = crops(4)
    padded = torch.nn.functional.pad(images, [3] * 4)
    windows = padded.unfold(2, 32, 1).unfold(3, 16, 1)  # (N, 3, 7, 7, 32, 16)
    for image, own in zip(augment.pad_crop(images, 3, seeded()), windows, strict=True):
        assert (own == image[:, None, None]).all((0, 3, 4)).any()


def test_flip_mirrors_or_keeps():
    images = crops(64)
    flipped = augment.flip(images, 0.5, seeded())
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


def test_erased_area_is_a_filled_box_of_the_stated_size():
    images = crops(200, 64, 32)
    changed = (augment.erase(images, 1.0, seeded()) != images).any(1)
    for mask in changed:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        height, width = (int(x.max() - x.min()) + 1 for x in (rows, columns))
        assert mask.sum() == height * width
        assert 0.015 < height * width / (64 * 32) < 0.45
    fill = torch.tensor(augment.ERASED)
    erased = augment.erase(images, 1.0, seeded())
    assert torch.allclose(erased.permute(0, 2, 3, 1)[changed], fill)


@pytest.mark.parametrize("box", augment.BOXES)
def test_published_boxes_are_twice_as_high_and_fit(box):
    low, high, colour = augment.BOXES[box]
    images = crops(400, 72, 36)
    erased = augment.erase(images, 1.0, seeded(), box)
    changed, sides = (erased != images).any(1), []
    for mask in changed:
        height, width = (int(mask.any(axis).sum()) for axis in (1, 0))
        assert mask.sum() == height * width
        assert height < 72
        assert width < 36
        assert low - 0.02 < height * width / (72 * 36) < high + 0.02
        sides.append(height / width)
    # Half as wide as high, an image holds boxes up to twice as wide; the median of 400 uniform ratios lies at 1.8.
    assert 1.6 < sorted(sides)[len(sides) // 2] < 2.4
    assert torch.allclose(erased.permute(0, 2, 3, 1)[changed], torch.tensor(colour))
    tall = crops(8, 4, 200)
    assert torch.equal(augment.erase(tall, 1.0, seeded(), "deen-sysu"), tall)  # no box of a fifth fits a hundred times


@pytest.mark.parametrize("function", [augment.channel_exchange, augment.channel_or_grey])
def test_channel_augmentations_give_one_of_the_published_choices(function):
    images = crops(100)
    luma = (images * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    choices = [images[:, c : c + 1].expand_as(images) for c in range(3)]
    choices += [luma.expand_as(images), images] if function is augment.channel_or_grey else []
    result = function(images, seeded())
    hits = torch.stack([(result - choice).abs().amax((1, 2, 3)) < 1e-3 for choice in choices])
    assert hits.any(0).all(), "an image is none of the choices"
    assert hits.any(1).all(), "a choice never occurs in 100 draws"


def test_default_is_agw_and_leaves_infrared_grey():
    images = crops(6)[:, :1].expand(-1, 3, -1, -1)
    result = Augmentation()(images, Modality.INFRARED, seeded())
    assert torch.equal(result[:, 0], result[:, 1])
    assert torch.equal(result[:, 0], result[:, 2])
