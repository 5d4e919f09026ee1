"""Values from Python that mean nothing: each is refused in one line; none gives another result, or a traceback."""

import math
import os
import pwd

import numpy as np
import pytest
import torch
from test_options import vireid  # noqa: F401 (a fixture)

from vireid_lite import files, frequency, losses, metrics, models, options
from vireid_lite.data import SyntheticVI
from vireid_lite.errors import InputError
from vireid_lite.metrics.evaluation import evaluate
from vireid_lite.metrics.likeness import psnr, ssim
from vireid_lite.models.deen import centre_pair_mining
from vireid_lite.training import TrainSettings

MAPS, ROWS = torch.rand(2, 8, 6), torch.rand(4, 3)
PEOPLE, SIDES = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
HIDDEN = np.ma.masked_array(np.arange(4.0), [True, False, False, False])


def refused(call, *given, **options):
    with pytest.raises(InputError) as found:
        call(*given, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    "ids",
    [
        [[1], [2, 3], 4, 5],
        torch.arange(4).to_sparse(),
        torch.zeros(4, dtype=torch.int64, device="meta"),
        HIDDEN.astype(int),
        [0, np.ma.masked, 2, 3],
        torch.arange(4).bfloat16(),
        "0123",
        None,
    ],
)
def test_people_are_whole_numbers_with_one_for_each(ids):
    square = np.ones((4, 4))
    for call in (metrics.evaluate, metrics.evaluate_features):
        for both in ((ids, PEOPLE), (PEOPLE, ids)):
            refused(call, square, *([square] * (call is not metrics.evaluate)), *both)
    refused(metrics.chance, ids, PEOPLE)
    refused(metrics.bootstrap, np.ones(4), ids)


@pytest.mark.parametrize(
    "values",
    [
        torch.rand(4, 4).to_sparse(),
        torch.zeros(4, 4, device="meta"),
        np.ma.masked_less(np.arange(16.0).reshape(4, 4), 3),
        [HIDDEN, np.ones(4), np.ones(4), np.ones(4)],
        [[1.0, 2.0], [3.0]],
    ],
)
def test_what_is_ranked_has_a_number_in_every_place(values):
    refused(metrics.evaluate, values, PEOPLE, PEOPLE)
    for pair in ((values, np.ones((4, 4))), (np.ones((4, 4)), values)):
        refused(metrics.evaluate_features, *pair, PEOPLE, PEOPLE)


def test_masked_scores_are_refused_and_a_mask_of_nothing_is_taken():
    refused(metrics.bootstrap, HIDDEN, np.arange(4))
    whole = np.ma.masked_array(np.arange(4.0), False)
    assert metrics.bootstrap(whole, np.arange(4), repeats=9) == metrics.bootstrap(whole.data, np.arange(4), repeats=9)


@pytest.mark.parametrize(
    ("amplitude", "phase"), [((3, 8, 6), (2, 8, 6)), ((8, 6), (8, 5)), ((8, 1), (8, 6)), ((8, 6), (1, 1))]
)
def test_maps_of_unlike_shapes_are_not_joined(amplitude, phase):
    for call in (frequency.recombine, frequency.swap):
        assert "shape" in refused(call, torch.rand(amplitude), torch.rand(phase))


def test_one_amplitude_serves_several_phases():
    found = frequency.recombine(MAPS[:1], MAPS)
    assert torch.equal(found[1:], frequency.recombine(MAPS[:1], MAPS[1:]))


@pytest.mark.parametrize("maps", [torch.rand(2, 0, 6), torch.rand(8, 0), torch.rand(8, 6).to_sparse()])
def test_maps_without_a_pixel_are_refused(maps):
    calls = [frequency.decompose, frequency.for_show, frequency.band_energy, frequency.phase_only]
    for call in (*calls, lambda x: frequency.swap(x, x), lambda x: frequency.band_pass(x, 0, 1)):
        refused(call, maps)


@pytest.mark.parametrize(
    ("low", "high"), [(None, 1), ("0", 1), (0, "1"), (math.nan, 1), (0, math.nan), (1, 0.5), (False, True), ([0], 1)]
)
def test_a_band_lies_between_two_numbers(low, high):
    assert "low" in refused(frequency.band_pass, MAPS, low, high)


def test_bands_that_are_taken():
    assert torch.equal(frequency.band_pass(MAPS, np.float32(0.5), math.inf), frequency.band_pass(MAPS, 0.5, 2))
    assert not frequency.band_pass(MAPS, 1, 1).any()


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4), (2.5, 4), ("8", 4), (None, 4), (True, 4)])
def test_frequencies_are_of_a_size(size):
    assert "frequency" in refused(frequency.radial_frequency, *size)


TRIPLETS = [losses.hard_triplet, losses.adp_triplet, losses.weighted_regularised_triplet]


@pytest.mark.parametrize(
    "features", [ROWS.numpy(), ROWS.tolist(), (9 * ROWS).long(), HIDDEN, None, ROWS[:0], ROWS[0], ROWS.to(torch.cfloat)]
)
def test_losses_take_floats(features):
    for loss in (*TRIPLETS, losses.identity_loss):
        assert "floats" in refused(loss, features, PEOPLE)
    for loss in (losses.hetero_centre_loss, losses.class_centres):
        assert "floats" in refused(loss, features, PEOPLE, SIDES)
    refused(losses.quadruple_loss, *[features] * 4)


@pytest.mark.parametrize("labels", [PEOPLE.tolist(), PEOPLE.numpy(), PEOPLE.float(), PEOPLE[:0], PEOPLE[:3], None, "x"])
def test_losses_take_whole_numbers_as_labels(labels):
    for loss in (*TRIPLETS, losses.identity_loss):
        assert "labels" in refused(loss, ROWS, labels)
    for loss in (losses.hetero_centre_loss, losses.class_centres):
        assert "labels" in refused(loss, ROWS, labels, SIDES)
    if labels is not None:
        assert "labels" in refused(losses.quadruple_loss, *[ROWS] * 4, labels)


def test_centres_of_nothing():
    none = torch.zeros(0, dtype=torch.int64)
    assert "class_centres" in refused(losses.class_centres, ROWS[:0], none, none)


@pytest.mark.parametrize("wrong", [-1, 3, -100])
def test_a_label_has_its_column(wrong):
    assert "from 0 to 2" in refused(losses.identity_loss, ROWS, torch.tensor([0, 1, 2, wrong]))
    assert losses.identity_loss(ROWS, PEOPLE.int()) == losses.identity_loss(ROWS, PEOPLE)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "0.2", None, True, [0.2]])
def test_margins_are_numbers(wrong):
    assert "margin" in refused(losses.hard_triplet, ROWS, PEOPLE, wrong)
    assert "margin" in refused(centre_pair_mining, ROWS, ROWS, PEOPLE, SIDES, wrong)
    assert "alpha" in refused(losses.quadruple_loss, *[ROWS] * 4, alpha=wrong)
    assert "smoothing" in refused(losses.identity_loss, ROWS, PEOPLE, wrong)


def test_margins_of_other_kinds_are_taken():
    for taken in (np.float32(0.5), np.int64(2)):
        assert losses.hard_triplet(ROWS, PEOPLE, taken) == losses.hard_triplet(ROWS, PEOPLE, taken.item())


@pytest.mark.parametrize("wrong", ["false", "true", 0, 1, None, np.bool_(True)])
def test_to_normalise_is_true_or_false(wrong):
    for loss in (losses.quadruple_loss, losses.quadruple_terms):
        assert "normalise" in refused(loss, *[ROWS] * 4, normalise=wrong)


@pytest.mark.parametrize("measure", [ssim, psnr])
def test_likeness_is_of_pixels_from_0_to_1(measure):
    images = torch.rand(2, 3, 16, 16)
    for wrong in (255 * images, 2 * images - 1, images - 0.01 - images.amin(), images.log(), images * math.nan):
        for pair in ((wrong, images), (images, wrong)):
            assert "[0, 1]" in refused(measure, *pair)
    assert measure(images, torch.full_like(images, 1 + 1e-7)).isfinite().all()


@pytest.mark.parametrize("wrong", [0, "", {}, [], False, "None", "WRT", 1.0])
def test_a_triplet_is_a_name_or_none(wrong):
    assert "triplet" in refused(TrainSettings, triplet=wrong)


def test_clean_scores_are_of_the_same_records(tiny):
    torch.manual_seed(0)
    model, how = models.build("agw", 12, "lite").eval(), {"progress": False}
    first, second = (SyntheticVI(12, 4, size=(32, 16), val_identities=6, test_identities=6, seed=n) for n in (0, 1))
    clean = evaluate(model, first, **how)
    assert "other trials" in refused(evaluate, model, second, clean=clean, **how)
    trial = first.trials()[0]
    fewer = [trial._replace(gallery=[trial.gallery[1], trial.gallery[0], *trial.gallery[2:]])]
    assert "other trials" in refused(evaluate, model, first, clean=clean, trials=fewer, **how)
    same = SyntheticVI(12, 4, size=(32, 16), val_identities=6, test_identities=6, seed=0)
    assert evaluate(model, same, clean=clean, trials=same.trials(), **how).mAP == clean.mAP


def test_no_home_folder_is_one_line(monkeypatch, tmp_path):
    def nobody(_):
        raise KeyError

    monkeypatch.delenv("VIREID_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "vireid_lite")
    assert os.path.expanduser("~") == "~"
    assert "VIREID_CACHE" in refused(files.cache_folder)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("3 / 2", 1.5), ("-1/2", -0.5), ("8/0", "8/0"), ("a/b", "a/b"), ("/x", "/x"), ("0.5", 0.5),
     ("8/", "8/"), ("true", True), ("None", None), ("1_0", "1_0")],
)  # fmt: skip
def test_every_value_of_a_name_may_be_a_quotient(text, value):
    assert options._plain(text) == value
    assert type(options._plain(text)) is type(value)


def test_a_step_size_may_be_a_quotient(vireid, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    code, _, said = vireid("attack", "pgd", "--set", "step_size=8/0", "--seed", "0")
    assert (code, "step_size" in said[0]) == (2, True)
    code, _, said = vireid("attack", "pgd", "--set", "step_size=8/255", "--device", "cuda:99")
    assert (code, len(said)) == (2, 1)
    assert "cuda" in said[0]


@pytest.mark.parametrize(
    "given",
    [
        ["train", "--size", "x" * 9000],
        ["train", "-o", "difficulty=" + "x y " * 3000],
        ["train", "--tier", "x" * 9000],
        ["attack", "pgd", "--set", "step_size=" + "x" * 9000],
        ["evaluate", "--checkpoint", "x/" * 2000],
    ],
)
def test_what_was_given_is_shortened(vireid, monkeypatch, tmp_path, given):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    code, _, said = vireid(*given)
    assert (code, len(said)) == (2, 1)
    assert len(said[0]) < 1100
    assert said[0].startswith("vireid-lite: ")
    assert " ... " in said[0]
