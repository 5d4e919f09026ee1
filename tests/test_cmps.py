import copy
import json
import math

import draws
import numpy as np
import pytest
import torch
from contract import check_applied, check_resumes, facts, only, rows_of, same_facts, stem_counts
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_cmps import paper_steps, pillow_grey, released_steps
from sklearn.cluster import KMeans

from vireid_lite import models
from vireid_lite.attacks import CMPS, IMAGE_SPECIFIC, UniversalPerturbation, budget, build_attack, cmps_switches, frozen
from vireid_lite.attacks.cmps_switches import NUMBERS, SWITCHES, SwitchedCMPS, erasing
from vireid_lite.attacks.features import extremes
from vireid_lite.chapters.costs import COSTS
from vireid_lite.data import ImageStore, Modality
from vireid_lite.errors import InputError
from vireid_lite.study.campaign import ASIDE
from vireid_lite.study.cards import read_cards

SEED = 5


@pytest.fixture(scope="module")
def model():
    """A network whose stems and statistics differ, so that neither can stand in for the other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.build("agw", 12, "lite").eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        torch.nn.init.normal_(network.stages[0].infrared.conv1.weight, 0, 0.2)
    return network


@pytest.fixture(scope="module")
def exact(model):
    """The same network in float64."""
    return copy.deepcopy(model).double()


def fit_states(attack, model, store, seed=SEED):
    """Return delta after every step."""
    seen = []
    attack.fit(model, store, seed, watch=lambda step, found: seen.append(found.delta.clone()))
    return seen


def batch_of(model, store, rows):
    return frozen.images_of(store, rows, model)


def problem_of(model, store, **options):
    attack = SwitchedCMPS(batch_size=6, **options)
    with frozen.frozen(model):
        return attack, attack.prepare(model, store, SEED)


def coins(seed, step, turn, count, probability=0.2):
    return (torch.rand(count, generator=frozen.generator_for(seed, 4, step, turn)) < probability).tolist()


def one_by_one(model, images, modality, feature="embedding"):
    read = model.embed if feature == "embedding" else lambda *given: model(*given).pooled
    with torch.no_grad():
        return torch.cat([read(image[None], modality) for image in images])


def kmeans(features, clusters, seed=SEED):
    found = KMeans(min(clusters, len(features)), n_init=1, max_iter=20, random_state=seed).fit(features.numpy())
    return torch.from_numpy(found.cluster_centers_)


def test_paper_mode_equals_its_naive_derivation(exact, store):
    steps, eps = 10, 8 / 255
    attack = CMPS(steps=steps, batch_size=4, eps=eps)
    with frozen.frozen(exact):
        batches = attack.prepare(exact, store, SEED).batches
    everything = {m: batch_of(exact, store, rows_of(store, m)) for m in Modality}
    grey = torch.stack([(0.299 * r + 0.587 * g + 0.114 * b).expand(3, -1, -1) for r, g, b in everything[0]])
    banks = {
        "visible": kmeans(one_by_one(exact, everything[0], Modality.VISIBLE), 12),
        "infrared": kmeans(one_by_one(exact, everything[1], Modality.INFRARED), 12),
        "grey": kmeans(one_by_one(exact, grey, Modality.VISIBLE), 12),
    }
    given = [
        {
            "visible": batch_of(exact, store, batches[Modality.VISIBLE].at(step)),
            "infrared": batch_of(exact, store, batches[Modality.INFRARED].at(step)),
            "grey_visible": coins(SEED, step, 0, 4),
            "grey_infrared": coins(SEED, step, 1, 4),
        }
        for step in range(steps)
    ]
    assert any(any(batch["grey_visible"]) for batch in given), "the case must grey something"
    expected = paper_steps(exact, given, banks, eps=eps, step_size=eps / 12)
    found = fit_states(attack, exact, store)
    assert expected[-1].abs().max() == pytest.approx(eps), "the budget must bind within the case"
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("steps", "eps"), [(16, 8 / 255), (20, 1e-6)])
def test_released_mode_equals_its_naive_derivation(exact, store, steps, eps):
    few, size = store, 10
    if eps < 1e-3:  # the same batch every step lets delta stand still, so that it is halved
        few, size = only(store, np.array([0, 1, 4, 5, *rows_of(store, 1)[:4]])), 8
        few.images = few.images // 2 + 50
    attack = CMPS(mode="released", steps=steps, batch_size=size, eps=eps, clusters=5)
    with frozen.frozen(exact):
        batches = attack.prepare(exact, few, SEED).batches
    images = batch_of(exact, few, np.arange(len(few)))
    greyed = torch.rand(len(few), generator=frozen.generator_for(SEED, 2)) < 0.2
    luma = torch.stack([pillow_grey(image) for image in images])
    stems = exact.stages[0]
    raw = [i * stems.std + stems.mean for i in (torch.where(greyed.view(-1, 1, 1, 1), luma, images), images)]
    first, second = (kmeans(one_by_one(exact, i, Modality.VISIBLE, "pooled"), 5) for i in raw)
    given = [
        {
            "images": batch_of(exact, few, batches.at(step)),
            "greyed": coins(SEED, step, 0, len(batches.at(step))),
            "epoch": step // batches.per_epoch,
        }
        for step in range(steps)
    ]
    assert eps < 1e-3 or {len(batch["images"]) for batch in given} == {size, len(few) % size}, "no crop is left out"
    expected = released_steps(exact, given, first, second, eps=eps)
    found = fit_states(attack, exact, few)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12 * min(1, eps * 1e3))
    assert expected[-1].abs().max() == pytest.approx(eps, rel=0.6), "the budget must be near within the case"


@settings(max_examples=draws.of(12), deadline=None)
@given(
    mode=st.sampled_from(["paper", "released"]),
    eps=st.sampled_from([1 / 255, 8 / 255, 0.3]),
    tied=st.booleans(),
    seed=st.integers(0, 2**40),
    training=st.booleans(),
)
def test_the_contract_holds_in_both_modes(model, store, mode, eps, tied, seed, training):
    model.train(training)
    model.bottleneck.weight.requires_grad_(training)
    before = facts(model)
    attack = CMPS(mode=mode, eps=eps, tied=tied, steps=3, batch_size=6)
    found, again = (attack.fit(model, store, seed) for _ in range(2))
    assert same_facts(before, facts(model))
    model.eval()
    assert torch.equal(found.delta, again.delta)
    assert 0 < found.delta.abs().max() <= eps * (1 + 1e-6)
    check_applied(found, again, store)


@pytest.mark.parametrize("mode", ["paper", "released"])
@pytest.mark.parametrize("value", [0, 255])
def test_a_black_or_white_image_still_gets_a_gradient(model, store, mode, value):
    flat = ImageStore(np.array(store.images), store.records)
    flat.images[1::2] = value
    attack, problem = problem_of(model, flat, mode=mode, margin=10.0)
    with frozen.frozen(model):
        for modality in Modality:
            rows = rows_of(flat, modality)[1::2]
            assert (flat.images[rows] == value).all()
            gradient, _, active = attack.gradient(model, problem, torch.zeros(3, *flat.images.shape[1:3]), rows)
            assert active == 1
            assert gradient.abs().sum() > 0


def test_the_released_loss_is_torchs_triplet_margin_loss(model, store):
    """The published line is 10 triplet_margin_loss(anchor, farthest, nearest, .5); ten vanishes with the sign."""
    attack, problem = problem_of(model, store, mode="released")
    rows, delta = np.arange(10), torch.zeros(3, *store.images.shape[1:3])
    with frozen.frozen(model):
        loss, _ = attack.objective(model, problem, delta, rows)
        features = attack.features(model, store.batch(rows), store.modalities[rows])
    pull, push = (problem.centroids[index[0, rows]] for index in (problem.pull, problem.push))
    expected = torch.nn.functional.triplet_margin_loss(features, pull, push, 0.5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_greyed_crop_is_compared_by_its_grey_feature_as_released(model, store):
    attack, problem = problem_of(model, store, mode="released", score="cosine")
    visible = rows_of(store, 0)
    with frozen.frozen(model), torch.no_grad():
        grey = attack.features(model, budget.pillow_luma(store.batch(visible)), Modality.VISIBLE)
    bank = torch.nn.functional.normalize(problem.centroids[: len(problem.centroids) // 2])
    nearest = (grey @ bank.T).argmax(1)
    assert torch.equal(problem.push[2, visible], nearest)
    assert not torch.equal(problem.push[2, visible], problem.push[0, visible])


def test_a_single_centroid_is_refused(model, store):
    one = only(store, lambda record: record.identity == store.records[0].identity)
    for crops, options in ((store, {"clusters": 1}), (one, {"centroids": "identity"}), (one, {"clusters": 1})):
        with pytest.raises(InputError, match="1 centroid"):
            CMPS(**options).fit(model, crops)


def test_every_image_goes_through_its_own_stem_except_as_released(model, store):
    def counts(**options):
        with stem_counts(model) as seen:
            CMPS(steps=2, batch_size=4, **options).fit(model, store, 0)
        return list(seen.values())

    images = [int((store.modalities == m).sum()) for m in Modality]
    assert counts() == [2 * images[0] + 2 * 4, images[1] + 2 * 4], "grey is visible"
    assert counts(mode="released")[1] == 0
    assert counts(mode="released", stem="own")[1] > 0
    assert counts(stem="visible")[1] == 0


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_a_killed_fit_resumes_bit_for_bit(model, store, mode, tmp_path, monkeypatch):
    attack = CMPS(mode=mode, steps=7, batch_size=5)
    check_resumes(attack, model, store, tmp_path, monkeypatch, after=4, every=2)


# One case for every switch: what it changes, on inputs that show it.


def test_bank_cross_pulls_and_pushes_as_equation_1(model, store):
    _, problem = problem_of(model, store)
    visible, infrared = rows_of(store, 0), rows_of(store, 1)
    assert len(problem.centroids) == 3 * 12  # visible, infrared, grey
    for turn, (rows, pull, push) in enumerate(((visible, 2, 1), (infrared, 0, 2), (visible, 1, 0))):
        assert set((problem.pull[turn, rows] // 12).tolist()) == {pull}  # the last turn is the grey anchor's term
        assert set((problem.push[turn, rows] // 12).tolist()) == {push}
    _, same = problem_of(model, store, bank="same")
    assert torch.equal(same.pull[0, infrared] // 12, torch.ones(len(infrared), dtype=torch.int64))
    _, mixed = problem_of(model, store, bank="mixed")
    assert set((mixed.push[0] // 12).tolist()) == {0}
    assert set((mixed.push[1] // 12).tolist()) == {1}


def test_choice_by_identity_pushes_from_the_own_and_never_pulls_to_it(model, store):
    identities = np.array([record.identity for record in store.records])
    names = np.unique(identities)
    _, problem = problem_of(model, store, centroids="identity", choice="identity")
    visible = rows_of(store, 0)
    assert (names[problem.push[0, visible] % 12] == identities[visible]).all()
    assert (names[problem.pull[0, visible] % 12] != identities[visible]).all()
    with pytest.raises(InputError, match="identity"):
        CMPS(choice="identity")


def test_score_dot_favours_long_centroids():
    clean = torch.tensor([[1.0, 0.0]])
    bank = torch.tensor([[0.9, 0.1], [5.0, 5.0]])
    assert extremes(clean, bank, score="cosine")[1].item() == 0
    assert extremes(clean, bank, score="dot")[1].item() == 1


def test_feature_and_centroid_input(model, store):
    images = store.batch(rows_of(store, 0)[:3])
    given = images, Modality.VISIBLE
    assert torch.equal(CMPS(feature="pooled").features(model, *given), model(*given).pooled)
    assert torch.equal(SwitchedCMPS().features(model, *given), model.embed(*given))
    _, raw = problem_of(model, store, centroid_input="raw", centroids="identity")
    stems = model.stages[0]
    mean, std = stems.mean.clone(), stems.std.clone()
    try:
        stems.mean.zero_(), stems.std.fill_(1)
        _, plain = problem_of(model, store, centroids="identity")
    finally:
        stems.mean.copy_(mean), stems.std.copy_(std)
    assert torch.allclose(raw.centroids, plain.centroids, atol=1e-5)
    _, normalised = problem_of(model, store, centroids="identity")
    assert not torch.allclose(raw.centroids, normalised.centroids, atol=1e-2)


def spied_greys(model, store, **options):
    """Return for every gradient the share of crops that were replaced by their luma."""
    attack, seen = SwitchedCMPS(steps=2, batch_size=4, grey_probability=1.0, **options), []
    original = SwitchedCMPS.objective

    def spy(self, model, problem, delta, rows, turn=0, chosen=None):
        seen.append(0.0 if chosen is None else chosen.float().mean().item())
        return original(self, model, problem, delta, rows, turn, chosen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SwitchedCMPS, "objective", spy)
        attack.fit(model, store, 0)
    return seen


def test_grey_stands_in_every_pass_or_in_the_first_only(model, store):
    assert spied_greys(model, store) == [1, 1, 1, 1]
    assert spied_greys(model, store, grey="first") == [1, 0, 1, 0]
    assert spied_greys(model, store, mode="released") == [1, 0, 1, 0]


def test_grey_changes_visible_gradients_and_not_infrared_ones(model, store):
    attack, problem = problem_of(model, store)
    delta, chosen = torch.zeros(3, *store.images.shape[1:3]), torch.ones(6, dtype=torch.bool)
    with frozen.frozen(model):
        for modality, alike in ((Modality.VISIBLE, False), (Modality.INFRARED, True)):
            rows = rows_of(store, modality)[:6]
            plain, grey = (attack.gradient(model, problem, delta, rows, modality, c)[0] for c in (None, chosen))
            assert torch.allclose(plain, grey, atol=1e-3 * plain.abs().max().item()) == alike
        anchor = CMPS(batch_size=6, grey_anchor=True)
        rows = rows_of(store, 0)[:6]
        own, middle = (each.objective(model, problem, delta, rows, 0, chosen)[0] for each in (attack, anchor))
        assert not torch.isclose(own, middle), "a grey anchor takes the middle term of equation 1"
        own, middle = (each.objective(model, problem, delta, rows)[0] for each in (attack, anchor))
        assert torch.equal(own, middle)


def test_initial_uniform_is_rand_of_255_levels_and_non_negative():
    start = CMPS(initial="uniform").start((3, 8, 8), 0)["delta"]
    assert 0 <= start.min() < start.max() <= 1 / 255
    assert not CMPS().start((3, 8, 8), 0)["delta"].any()


def test_clip_masks_the_gradient_of_what_left_the_range_only_as_released(model, store):
    black = ImageStore(np.zeros_like(store.images), store.records)
    delta = torch.full((3, *store.images.shape[1:3]), -1 / 255)
    for clip, gets in (("straight-through", True), ("masked", False)):
        attack, problem = problem_of(model, black, clip=clip, margin=10.0)
        with frozen.frozen(model):
            gradient, _, active = attack.gradient(model, problem, delta, rows_of(black, 0)[:4])
        assert active == 1
        assert bool(gradient.abs().sum() > 0) == gets


def test_without_shuffling_crops_are_grouped_by_identity_then_camera(model, store):
    _, problem = problem_of(model, store, shuffle=False)
    mixed, shuffled = problem.batches["mixed"], problem_of(model, store)[1].batches["mixed"]
    rows = np.concatenate([mixed.at(step) for step in range(mixed.per_epoch)])
    keys = [(store.records[row].identity, store.records[row].camera) for row in rows]
    assert keys == sorted(keys)
    assert np.array_equal(mixed.at(0), mixed.at(mixed.per_epoch))
    assert not np.array_equal(shuffled.at(0), mixed.at(0))


SHARES = [({}, 2 / 12), ({"step_share": 0.3}, 0.6), ({"decay": 1.0}, 2 / 12 / math.e)]


@pytest.mark.parametrize(("options", "share"), [*SHARES, ({"mode": "released"}, 0.1 * math.exp(-0.01))])
def test_step_size_and_decay(model, store, options, share):
    """Two updates of one sign, or the single one as released, move a pixel by so many steps."""
    found = CMPS(steps=1, batch_size=6, **options).fit(model, store, 0)
    assert found.delta.abs().max().item() == pytest.approx(share * 8 / 255, rel=1e-4)


def test_updates_and_modalities_differ_in_what_is_computed_where(model, store):
    asked = []
    original = SwitchedCMPS.gradient

    def spy(self, model, problem, delta, rows, turn=0, chosen=None):
        asked.append((set(problem.store.modalities[rows].tolist()), delta.clone()))
        return original(self, model, problem, delta, rows, turn, chosen)

    def run(**options):
        asked.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SwitchedCMPS, "gradient", spy)
            SwitchedCMPS(steps=1, batch_size=6, **options).fit(model, store, 0)
        return [modalities for modalities, _ in asked], torch.equal(asked[0][1], asked[1][1])

    assert run() == ([{0}, {1}], False), "the infrared step starts where the visible one ended"
    assert run(update="joint") == ([{0}, {1}], True)
    modalities, same = run(update="look-ahead", bank="mixed")
    assert modalities[0] == modalities[1]
    assert not same
    assert run(modalities="infrared")[0] == [{1}, {1}]
    assert run(modalities="visible")[0] == [{0}, {0}]


def test_clusters_are_as_many_as_identities_or_as_asked(model, store):
    assert len(problem_of(model, store)[1].centroids) == 3 * 12
    assert len(problem_of(model, store, clusters=4)[1].centroids) == 3 * 4
    assert len(problem_of(model, store, mode="released")[1].centroids) == 2 * len(store), "206, cut to what there is"


@pytest.mark.parametrize("mode", ["paper", "released"])
@pytest.mark.parametrize("options", [{}, {"tied": True}, {"grey_probability": 0.0, "decay": 0.5, "clusters": 3}])
def test_with_nothing_switched_the_class_of_switches_is_cmps_to_the_bit(model, store, mode, options):
    """On fewer infrared crops, so that an epoch is not of one length; neither class knows the other's step."""
    uneven = only(store, np.concatenate([rows_of(store, 0), rows_of(store, 1)[::2]]))
    one, other = (kind(mode=mode, steps=9, batch_size=10, **options) for kind in (CMPS, SwitchedCMPS))
    assert not isinstance(one, SwitchedCMPS)
    assert not isinstance(other, CMPS)
    assert one.describe() == other.describe()
    made, expected = (attack.fit(model, uneven, 1) for attack in (one, other))
    assert torch.equal(made.delta, expected.delta)
    assert made.history == expected.history


@pytest.mark.parametrize(("mode", "other"), [("paper", "released"), ("released", "paper")])
def test_every_difference_between_the_modes_is_a_switch(model, store, mode, other):
    """One mode with all values of the other is the other, to the bit, but for the three details that go by the mode.

    A switch makes CMPS the class that has them.
    """
    thrown = {name: position[other] for name, position in {**SWITCHES, **NUMBERS}.items()}
    walked = CMPS(mode=mode, steps=3, batch_size=6, **thrown)
    assert isinstance(walked, SwitchedCMPS)
    plain = CMPS(mode=other, steps=3, batch_size=6)
    assert {**walked.describe(), "mode": other} == plain.describe()
    object.__setattr__(walked, "mode", other)
    assert torch.equal(walked.fit(model, store, 1).delta, plain.fit(model, store, 1).delta)


def test_the_other_stem_is_the_one_of_the_other_modality(model, store):
    attack = CMPS(stem="other", steps=1, batch_size=8)
    with frozen.frozen(model):
        problem, state = attack.begin(model, store, 0)
        rows = problem.batches[Modality.VISIBLE].at(0)
        with stem_counts(model) as counts:
            attack.gradient(model, problem, state["delta"], rows, 0)
        images = store.batch(rows).to(next(model.parameters()))
        for modality in Modality:
            crossed = model.embed(images, modality.other)
            each = torch.full((len(rows),), int(modality))
            for given in (modality, each):
                torch.testing.assert_close(attack.features(model, images, given), crossed)
    assert counts == {Modality.VISIBLE: 0, Modality.INFRARED: len(rows)}


@pytest.mark.parametrize("tied", [False, True])
def test_an_erased_rectangle_takes_no_part_in_a_gradient_and_moves(model, store, tied, monkeypatch):
    kept = erasing(40, torch.zeros(3, 32, 16), 1, 2)
    assert torch.equal(kept, erasing(40, torch.zeros(3, 32, 16), 1, 2))
    assert not torch.equal(kept, erasing(40, torch.zeros(3, 32, 16), 1, 3))
    for mask in kept[:, 0] == 0:
        rows, columns = (mask.any(axis).sum().item() for axis in (1, 0))
        assert mask.sum() == rows * columns, "one rectangle"
        assert 0.03 <= mask.float().mean() <= 0.40
    assert len(np.unique(kept.numpy(), axis=0)) > 30
    found = {}
    for name, rows in (("none", 32), ("upper", 9), ("whole", 0)):
        mask = torch.ones(1, 32, 16)
        mask[:, :rows] = 0
        monkeypatch.setattr(cmps_switches, "erasing", lambda count, *_, mask=mask: mask.expand(count, 1, 32, 16))
        found[name] = CMPS(erased=True, steps=2, batch_size=8, tied=tied).fit(model, store, 0).delta
    assert not found["none"].any()
    assert not found["upper"][:, :9].any()
    assert found["upper"][:, 9:].any()
    assert torch.equal(found["whole"], CMPS(stem="own", steps=2, batch_size=8, tied=tied).fit(model, store, 0).delta)


def test_every_committed_card_describes_its_attack():
    asked = [card["attack"] for card in read_cards(COSTS.parent) if card["attack"]]
    distinct = {json.dumps({**attack, "identities": 0}, sort_keys=True) for attack in asked}
    assert len(distinct) == 81
    for attack in map(json.loads, distinct):
        options = {name: value for name, value in attack.items() if name not in ASIDE}
        fixed = ("random_start",) if attack["name"] in IMAGE_SPECIFIC else ()
        fixed += ("momentum",) if attack["name"] in IMAGE_SPECIFIC.keys() - {"m-fgsm", "lta"} else ()
        fixed += ("steps", "step_size") if attack["name"] == "fgsm" else ()
        built = build_attack(**{name: value for name, value in options.items() if name not in fixed})
        assert json.loads(json.dumps(built.describe())) == options


def test_the_loss_falls(model, store):
    attack = CMPS(steps=12, batch_size=12)
    history = attack.fit(model, store, 0).history
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["second_loss"] < history[0]["second_loss"]
    assert len(history) == 12


def test_one_modality_missing_or_a_list_of_records_is_refused(model, store, tiny):
    with pytest.raises(InputError, match="infrared"):
        CMPS(steps=1).fit(model, only(store, rows_of(store, 0)))
    with pytest.raises(InputError, match="reader"):
        CMPS(steps=1).fit(model, tiny.train)
    assert isinstance(CMPS(steps=1).fit(model, tiny), UniversalPerturbation)
