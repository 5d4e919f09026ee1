import draws
import numpy as np
import pytest
import torch
from contract import facts, same_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vireid_lite import models
from vireid_lite.attacks import UniversalPerturbation, budget, frozen, load_perturbation
from vireid_lite.data import ImageStore, Modality
from vireid_lite.data.batches import Batches
from vireid_lite.errors import InputError


def eight_bit(seed, count=3, size=(8, 6)):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, *size)) / 255).float()


def some_delta(eps, seed=0, size=(8, 6)):
    return eps * (2 * torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) - 1)


@settings(deadline=None, max_examples=draws.of(60))
@given(
    eps=st.one_of(st.integers(1, 32).map(lambda n: n / 255), st.floats(0.004, 1.0)),
    seed=st.integers(0, 2**31),
    scale=st.floats(0.1, 3.0),
)
def test_rounding_to_8_bits_keeps_budget_range_and_equal_channels(eps, seed, scale):
    clean = eight_bit(seed)
    clean[0] = clean[0, :1]  # an infrared image
    shift = budget.tie(some_delta(scale, seed)).contiguous()
    adversarial = budget.project(clean + shift, clean, eps)
    rounded = budget.to_8_bits(adversarial, clean, eps)
    assert (rounded - clean).abs().max() <= eps + 5e-6, "a thousandth of a level"
    assert 0 <= rounded.min() <= rounded.max() <= 1
    assert torch.allclose(255 * rounded, (255 * rounded).round(), atol=1e-4)
    assert torch.equal(rounded[0, 0], rounded[0, 1])
    assert torch.equal(rounded[0, 0], rounded[0, 2])
    assert (rounded - adversarial).abs().max() <= 1 / 255, "the nearest level, or the one beside it"


def test_rounding_uses_the_whole_of_a_whole_budget():
    """8/255 in float32 is not quite eight levels; the eighth must not be lost to that."""
    clean = torch.full((1, 3, 2, 2), 100 / 255)
    for sign in (-1, 1):
        rounded = budget.to_8_bits(budget.project(clean + sign * 8 / 255, clean, 8 / 255), clean, 8 / 255)
        assert ((rounded * 255).round() == 100 + 8 * sign).all()


def test_clips_differ_in_what_they_pass_on_outside_only():
    values = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1])
    for masked, expected in ((False, [1, 1, 1, 1, 1]), (True, [0, 1, 1, 1, 0])):
        leaf = values.clone().requires_grad_()
        clipped = budget.clip(leaf, masked=masked)
        assert torch.equal(clipped.detach(), values.clamp(0, 1))
        assert torch.autograd.grad(clipped.sum(), leaf)[0].tolist() == expected


def test_tied_channels_are_the_mean_on_infrared_alone():
    delta = some_delta(0.1)
    mixed = budget.tie_infrared(delta.expand(2, -1, -1, -1), torch.tensor([0, 1]))
    assert torch.equal(mixed[0], delta)
    assert torch.equal(mixed[1], budget.tie(delta))
    assert torch.allclose(mixed[1, 0], delta.mean(0))


def test_luma_is_the_published_sum_and_leaves_grey_alone():
    images = eight_bit(1)
    grey = budget.luma(images)
    assert torch.allclose(grey[:, 2], 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2])
    assert torch.allclose(budget.luma(grey), grey, atol=1e-6)
    chosen = budget.luma(images, torch.tensor([True, False, False]))
    assert torch.equal(chosen[1:], images[1:])
    assert torch.equal(chosen[0], grey[0])
    assert budget.luma(torch.ones(1, 3, 4, 4)).max() <= 1


def test_pillow_luma_is_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    grey = budget.pillow_luma(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    assert np.array_equal((grey[0, 1] * 255).round().numpy(), np.array(Image.fromarray(pixels).convert("L")))


def test_l1_normalised_has_length_one_and_zero_stays_zero():
    assert budget.l1_normalised(torch.randn(3, 4)).abs().sum() == pytest.approx(1, abs=1e-6)
    assert not budget.l1_normalised(torch.zeros(3, 4)).any()


def test_frozen_puts_everything_back_even_after_an_error():
    model = models.build("agw", 4, "lite").train()
    model.bottleneck.eval()
    before = facts(model)
    assert not model.bottleneck.bias.requires_grad, "frozen from the start"

    def interrupted():
        with frozen.frozen(model):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same_facts(before, facts(model))


def test_batches_cover_an_epoch_once_and_depend_on_seed_and_step_alone():
    rows = np.arange(100, 123)
    batches = Batches(rows, 5, seed=1)
    drawn = [batches.at(step) for step in range(batches.per_epoch)]
    assert len(np.unique(np.concatenate(drawn))) == 20
    assert set(np.concatenate(drawn)) <= set(rows)
    assert np.array_equal(Batches(rows, 5, seed=1).at(7), batches.at(7))
    assert not np.array_equal(Batches(rows, 5, seed=2).at(7), batches.at(7))
    assert np.array_equal(np.sort(Batches(rows[:3], 32, seed=1).at(9)), rows[:3]), "cut to what there is"
    assert np.array_equal(Batches(rows, 5, 1, shuffle=False).at(5), rows[5:10])


@pytest.mark.parametrize("kind", ["one", "each", "lattice"])
def test_a_saved_perturbation_comes_back_and_does_the_same(tmp_path, kind):
    eps = 8 / 255
    delta = {m: some_delta(eps, m) for m in Modality} if kind == "each" else some_delta(eps)
    lattice = 0.1 * torch.rand(3, 4, 4, 4) if kind == "lattice" else None
    made = UniversalPerturbation(delta, eps, True, [{"step": 0, "loss": 1.5}], lattice, made_by={"name": "cmps"})
    made.save(tmp_path / "p.safetensors")
    found = load_perturbation(tmp_path / "p.safetensors")
    images = eight_bit(3)
    for modality in (*Modality, torch.tensor([0, 1, 1])):
        assert torch.equal(found.apply(images, modality), made.apply(images, modality))
        assert (found.apply(images, modality) - images).abs().max() <= eps + 1e-6
    assert (found.history, found.made_by, found.tied) == (made.history, made.made_by, True)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_files_that_are_no_perturbation_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.safetensors").write_text("<html>")
    UniversalPerturbation(some_delta(0.5), 8 / 255).save(tmp_path / "loud.safetensors")
    for name, said in (("no", "no such"), ("text", "not a pert"), ("loud", "budget")):
        with pytest.raises(InputError, match=said) as caught:
            load_perturbation(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)


def test_images_of_another_size_or_range_are_refused():
    made = UniversalPerturbation(some_delta(0.03), 0.03)
    with pytest.raises(InputError, match="8x6 pixels, got 16x6"):
        made.apply(eight_bit(0, size=(16, 6)), Modality.VISIBLE)
    for bad in (eight_bit(0) * 255, eight_bit(0) - 0.5, eight_bit(0) * torch.nan, (eight_bit(0) * 255).byte()):
        with pytest.raises(InputError):
            made.apply(bad, Modality.VISIBLE)


@pytest.mark.parametrize("eps", [0, -1, 8, "8/255", True, None, float("nan")])
def test_a_budget_off_the_pixel_range_is_refused(eps):
    with pytest.raises(InputError, match="8/255"):
        budget.check_eps(eps)


def test_training_images_come_from_a_data_set_or_a_store_and_may_be_limited(tiny):
    assert len(frozen.training_store(tiny)) == len(tiny.train)
    few = frozen.training_store(tiny, identities=5)
    assert len({record.identity for record in few.records}) == 5
    assert len(few) == 5 * 8
    assert isinstance(frozen.training_store(few), ImageStore)
    with pytest.raises(InputError, match="reader"):
        frozen.training_store(tiny.train)
