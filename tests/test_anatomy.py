import json
import math

import numpy as np
import pytest
import torch

from vireid_lite import models
from vireid_lite.data import ImageStore, Modality, Record, Trial, cached
from vireid_lite.errors import InputError
from vireid_lite.metrics.anatomy import anatomy, hubs, shift_and_spread, unshifted, within_modality
from vireid_lite.metrics.evaluation import evaluate, identities_and_cameras
from vireid_lite.metrics.likeness import psnr, ssim
from vireid_lite.metrics.ranking import evaluate_features


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.build("agw", 12, "lite").eval()


def features(count, width=8, seed=0):
    return torch.nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def trial_of(query_ids, gallery_ids, query_cameras=None, gallery_cameras=None):
    def side(ids, cameras, modality):
        cameras = [1] * len(ids) if cameras is None else cameras
        return [Record(f"{modality}/{i}", *who, modality) for i, who in enumerate(zip(ids, cameras, strict=True))]

    query = side(query_ids, query_cameras, Modality.VISIBLE)
    return Trial(query, side(gallery_ids, gallery_cameras, Modality.INFRARED))


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize("query_modality", Modality)
def test_no_attack_changes_nothing(model, tiny, query_modality):
    result = anatomy(model, tiny, query_modality)
    assert result.attacked == result.clean
    assert (result.displacement, result.ssim, result.psnr) == (0, 1, math.inf)
    assert result.cosine == pytest.approx(1)
    scores = evaluate(model, tiny, query_modality, progress=False)
    assert (result.clean.rank1, result.clean.mAP) == pytest.approx((scores.rank1, scores.mAP))


def test_queries_attacked_alike_collapse_into_one_hub(model, tiny):
    result = anatomy(model, tiny, Modality.INFRARED, perturb=lambda images, modality: torch.full_like(images, 0.5))
    queries = len(tiny.trials(Modality.INFRARED)[0].query)
    assert (result.attacked.hub_image, result.attacked.hub_identity) == (1, 1)
    assert result.attacked.distinct == 1 / queries
    assert result.attacked.spread == pytest.approx(0, abs=1e-4)
    assert result.clean.hub_image < 1
    assert result.clean.spread > 0.1
    assert result.attacked.within_rank1 < result.clean.within_rank1
    assert result.displacement > 0
    assert result.cosine < 1
    # |a - b|^2 = 2 - 2 cos, so a mean length is at most the root of the mean square.
    assert result.displacement <= math.sqrt(2 - 2 * result.cosine) + 1e-6


def test_crafted_queries_are_taken_apart_as_the_same_change_made_on_the_fly(model, tiny):
    (trial,) = tiny.trials(Modality.VISIBLE)
    clean = cached(tiny, trial.query, progress=False)
    crafted = ImageStore(255 - clean.images[::-1], trial.query[::-1])
    stored = anatomy(model, tiny, Modality.VISIBLE, query_store=crafted)
    on_the_fly = anatomy(model, tiny, Modality.VISIBLE, perturb=lambda images, modality: 1 - images)
    assert np.allclose(stored[2:], on_the_fly[2:], atol=1e-5)
    assert np.allclose(stored.attacked, on_the_fly.attacked, atol=1e-5)
    assert np.allclose(stored.clean, on_the_fly.clean, atol=1e-5)
    scores = evaluate(model, tiny, Modality.VISIBLE, query_store=crafted, progress=False)
    assert (stored.attacked.rank1, stored.attacked.mAP) == pytest.approx((scores.rank1, scores.mAP))
    images = clean.batch(np.arange(len(clean)))
    assert stored.psnr == pytest.approx(-10 * math.log10(((1 - 2 * images) ** 2).mean().item()), abs=1e-3)
    with pytest.raises(InputError, match="lacks 1 of"):
        anatomy(model, tiny, query_store=ImageStore(clean.images[1:], trial.query[1:]))
    with pytest.raises(InputError, match="pass one of them"):
        anatomy(model, tiny, query_store=crafted, perturb=lambda images, modality: images)


def test_the_attack_sees_the_queries_of_the_trial_alone_and_may_ask_for_gradients(model, tiny):
    (trial,) = tiny.trials(Modality.VISIBLE)
    part = Trial(trial.query[:6], trial.gallery)
    seen = []

    def note(images, modality):
        seen.append((len(images), modality, torch.is_grad_enabled()))
        return images

    anatomy(model, tiny, perturb=note, trial=part)
    assert {(modality, grad) for _, modality, grad in seen} == {(Modality.VISIBLE, True)}
    assert sum(count for count, *_ in seen) == 12, "once to be embedded, once to be looked at"


def test_a_card_holds_plain_json(model, tiny):
    one_each = {record.identity: record for record in tiny.trials(Modality.VISIBLE)[0].query}
    trial = Trial(list(one_each.values()), tiny.trials(Modality.VISIBLE)[0].gallery)
    card = anatomy(model, tiny, trial=trial).describe()
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert card["psnr"] is None, "infinite for untouched images"
    assert card["clean"]["within_rank1"] is None, "no second image of anyone"
    assert card["clean"]["rank1"] is not None


# ---------------------------------------------------------------- within a modality


def test_identical_copies_of_each_identity_find_each_other():
    identities = np.arange(6).repeat(3)
    clean = features(6)[identities]
    assert within_modality(clean, clean, identities) == (1, 1)


def test_an_image_never_finds_itself():
    # Each feature's only close neighbour is itself; its double stands on the far side, behind everyone else.
    half = features(5)
    clean, identities = torch.cat([half, -half]), np.tile(np.arange(5), 2)
    rank1, mAP = within_modality(clean, clean, identities)
    assert rank1 == 0
    assert mAP == pytest.approx(1 / 9), "the one match is last of nine others"


def test_an_identity_with_one_image_leaves_the_mean_but_stays_in_the_gallery():
    clean = torch.tensor([[1.0, 0], [0.8, 0.6], [0.96, 0.28]])  # the third lies between the two of identity 7
    rank1, mAP = within_modality(clean, clean, np.array([7, 7, 8]))
    assert (rank1, mAP) == (0, pytest.approx(0.5))
    assert all(math.isnan(score) for score in within_modality(clean, clean, np.array([7, 8, 9])))


def test_attacked_queries_are_ranked_against_clean_images():
    identities = np.arange(4).repeat(2)
    clean = features(4)[identities]
    swapped = clean.roll(2, 0)  # every query looks like the next identity
    assert within_modality(swapped, clean, identities)[0] == 0
    assert within_modality(clean, swapped, identities)[0] == 0
    assert within_modality(swapped, swapped, identities)[0] == 1


# ---------------------------------------------------------------- shift, spread, hubs


def test_a_translation_raises_the_shift_and_leaves_the_spread():
    query, gallery = features(40).double(), features(30, seed=1).double()
    direction = (query.mean(0) - gallery.mean(0)) / (query.mean(0) - gallery.mean(0)).norm()
    shift, spread = shift_and_spread(query, query, gallery)
    width = [((cloud - cloud.mean(0)) ** 2).sum(1).mean() for cloud in (query, gallery)]
    for length in (0.1, 1.0):
        moved, same = shift_and_spread(query + length * direction, query, gallery)
        assert moved - shift == pytest.approx(length / math.sqrt(sum(width) / 2), rel=1e-9)
        assert same == pytest.approx(spread, rel=1e-9)


def test_shift_ignores_scale_and_shrinking():
    query, gallery = features(40).double(), features(30, seed=1).double()
    shift, spread = shift_and_spread(query, query, gallery)
    assert np.allclose(shift_and_spread(3 * query, 3 * query, 3 * gallery), (shift, spread))
    shrunk = query.mean(0) + (query - query.mean(0)) / 4
    assert np.allclose(shift_and_spread(shrunk, query, gallery), (shift, spread / 4))


def test_hubs_of_a_perfect_ranking():
    identities = [0, 0, 0, 1, 2, 3]
    gallery = features(4)
    assert hubs(gallery[identities], gallery, trial_of(identities, range(4))) == (0.5, 0.5, 4 / 6)


def test_one_person_may_be_a_hub_without_one_image_being_one():
    gallery = features(4)
    assert hubs(gallery, gallery, trial_of(range(4), [5, 5, 5, 6])) == (0.25, 0.75, 1)


def test_images_that_the_protocol_drops_are_no_hubs():
    gallery = features(3)
    query = gallery[:1].repeat(2, 1)
    trial = trial_of([4, 5], [4, 5, 6], [3, 1], [2, 2, 1])
    for protocol, images in (("regdb", 1), ("sysu", 2), ("llcm", 1)):
        assert hubs(query, gallery, trial, protocol)[2] == images / 2
    # In llcm it is one's own image of the same camera that goes.
    assert hubs(query, gallery, trial_of([4, 5], [4, 5, 6], [2, 1], [2, 2, 1]), "llcm")[2] == 1


# ---------------------------------------------------------------- the shift, taken out


class Blocks(torch.nn.Module):
    """A network whose feature is a picture's means over blocks, so that what is added to pixels is added to it."""

    people = None

    def embed(self, images, modality):
        return torch.nn.functional.adaptive_avg_pool2d(images, (4, 2)).flatten(1)


def test_a_shift_that_all_people_share_is_taken_out_whole(tiny):
    added = torch.zeros(3, 32, 16)
    added[0, :8] = 3
    for modality in Modality:
        clean = evaluate(Blocks(), tiny, modality, progress=False)
        attacked = evaluate(Blocks(), tiny, modality, perturb=lambda x, _: x + added, clean=clean, progress=False)
        assert attacked.mAP < clean.mAP - 0.02
        found = unshifted(Blocks(), tiny, clean, attacked, lambda x, _: x + added, tiny.val)
        (trial,) = tiny.trials(modality)
        bare = torch.nn.functional.normalize(clean.query)
        expected = evaluate_features(bare, clean.gallery, *identities_and_cameras(trial))
        assert found["attacked"] == pytest.approx([expected.rank1, expected.mAP], abs=1e-5)
        assert found["clean"][1] < found["attacked"][1], "clean queries lose what attacked ones gain"


def test_where_nothing_shifts_nothing_comes_back(model, tiny):
    clean = evaluate(model, tiny, Modality.VISIBLE, progress=False)
    white = lambda x, _: torch.ones_like(x)  # noqa: E731
    attacked = evaluate(model, tiny, Modality.VISIBLE, perturb=white, clean=clean, progress=False)
    found = unshifted(model, tiny, clean, attacked, lambda x, _: x, tiny.val)
    for name, scores in (("clean", clean), ("attacked", attacked)):
        assert found[name] == pytest.approx([scores.rank1, scores.mAP], abs=1e-5)


# ---------------------------------------------------------------- SSIM and PSNR


def ssim_by_hand(x, y):
    """One image, window by window, in plain loops (Wang et al. 2004, equations 13 to 16)."""
    weight = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)])
    weight /= weight.sum()
    values = []
    for channel in range(x.shape[0]):
        for row in range(x.shape[1] - 10):
            for column in range(x.shape[2] - 10):
                a, b = (image[channel, row : row + 11, column : column + 11] for image in (x, y))
                mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
                var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
                joint = (weight * (a - mean_a) * (b - mean_b)).sum()
                luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
                values.append(luminance * (2 * joint + 9e-4) / (var_a + var_b + 9e-4))
    return np.mean(values)


def test_ssim_equals_a_loop_over_windows():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 16, 13, generator=generator, dtype=torch.float64)
    y = (x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    y[2] = 1 - x[2]
    expected = [ssim_by_hand(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    assert np.allclose(ssim(x, y), expected, atol=1e-12)
    assert np.allclose(ssim(x.float(), y.float()), expected, atol=1e-5)
    assert ssim(x, y)[2] < 0, "a negative is unlike its image"


def test_ssim_is_one_for_equal_images_and_falls_with_noise(tiny):
    images = cached(tiny, tiny.val, progress=False).batch(np.arange(8))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert (ssim(images, images) == 1).all()
    weak, strong = (ssim((images + size * noise).clamp(0, 1), images) for size in (0.02, 0.2))
    assert (strong < weak).all()
    assert (weak < 1).all()
    noisy = (images + 0.02 * noise).clamp(0, 1)
    assert torch.allclose(ssim(images, noisy), ssim(noisy, images), atol=1e-6)


def test_ssim_refuses_what_the_window_does_not_fit():
    assert ssim(torch.zeros(2, 3, 11, 11), torch.zeros(2, 3, 11, 11)).tolist() == [1, 1]
    with pytest.raises(InputError, match="16x8 are smaller than the 11x11 window"):
        ssim(torch.zeros(2, 3, 16, 8), torch.zeros(2, 3, 16, 8))
    with pytest.raises(InputError, match="alike"):
        ssim(torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16))


def test_psnr_of_a_constant_error():
    images = torch.zeros(3, 3, 4, 4, dtype=torch.float64)
    changed = torch.stack([images[0], images[1] + 0.1, images[2] + 8 / 255])
    assert psnr(changed, images).tolist() == pytest.approx([math.inf, 20, -20 * math.log10(8 / 255)])
