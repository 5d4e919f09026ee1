"""Calls from Python that a person gets wrong: each works, or is refused in one line; none gives another result."""

import numpy as np
import pytest
import torch

from vireid_lite import losses, metrics, models
from vireid_lite.attacks import ATTACKS, IMAGE_SPECIFIC, UniversalPerturbation, build_attack, craft
from vireid_lite.attacks.budget import tie_infrared
from vireid_lite.attacks.frozen import training_store
from vireid_lite.attacks.image_specific import GuideBank, Guides
from vireid_lite.data import Augmentation, ImageStore, Modality, Record, load_dataset
from vireid_lite.data.batches import Batches, IdentityBatches, MixedBatches, PKSampler
from vireid_lite.data.records import all_against_all
from vireid_lite.errors import InputError
from vireid_lite.frequency import band_energy, decompose
from vireid_lite.machine import pick_device
from vireid_lite.metrics.anatomy import anatomy
from vireid_lite.metrics.evaluation import direction_name, embed_store, evaluate, ranked
from vireid_lite.metrics.likeness import psnr, ssim
from vireid_lite.models.attention import build_attention
from vireid_lite.models.deen import centre_pair_mining
from vireid_lite.study.run import trials_of
from vireid_lite.training import TrainSettings, train

NAMES = [
    "infrared",
    "visible",
    "INFRARED",
    "1",
    ["infrared"],
    [1],
    [0, 1, 1],
    (1, 1, 1),
    np.array([1, 1, 1]),
    2,
    -1,
    1.0,
]
NAMES += [True, None, {"infrared"}, torch.tensor(1), torch.tensor([1]), torch.tensor([0, 1]), torch.tensor([0, 2, 1])]
NAMES += [torch.tensor([0, -1, 1]), torch.tensor([0.0, 1.0, 1.0]), torch.tensor([False, True, True])]
NAMES += [torch.tensor([[0], [1], [1]])]
ONE = [name for name in NAMES if not isinstance(name, torch.Tensor)]
EVERY = pytest.mark.parametrize("modality", NAMES, ids=repr)


class Blind(torch.nn.Module):
    """A victim that never asks for the modality."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def embed(self, images, modality):
        return torch.nn.functional.normalize(images.mean((2, 3)) * self.weight + 0.1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.build("agw", 12, "lite").eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 16, generator=torch.Generator().manual_seed(0))


# A word where a modality is meant


@EVERY
def test_no_attack_takes_a_word_for_a_modality(modality, images):
    deltas = {each: torch.full((3, 32, 16), 0.01) for each in Modality}
    for delta in (deltas, deltas[Modality.VISIBLE]):
        for tied in (False, True):
            made = UniversalPerturbation(delta, 8 / 255, tied)
            for apply in (made.apply, made.apply_rounded):
                with pytest.raises(InputError, match=r"(?i)modality"):
                    apply(images, modality)
    if not isinstance(modality, list | set | np.ndarray | torch.Tensor):  # what no dictionary can be asked for
        with pytest.raises(InputError, match=r"(?i)modality"):
            UniversalPerturbation({modality: deltas[0], Modality.INFRARED: deltas[1]}, 8 / 255).apply(images, 1)
    guides = Guides(torch.rand(3, 2, 3), torch.rand(3, 3))
    for name in ("sma", "fna", "m-fgsm"):
        with pytest.raises(InputError, match=r"(?i)modality"):
            build_attack(name, steps=1)(Blind(), images, modality, guides)
    with pytest.raises(InputError, match=r"(?i)modality"):
        tie_infrared(images, modality)


@EVERY
def test_no_network_or_attention_takes_a_word_for_a_modality(modality, images, model):
    attention = build_attention("se", 3)
    for call in (model, model.embed, model.feature_map, model.stages[0], attention, attention.weights):
        with pytest.raises(InputError, match="modality"):
            call(images, modality)


@pytest.mark.parametrize("modality", [each for each in ONE if each is not None], ids=repr)
def test_no_data_or_metric_takes_a_word_for_a_modality(modality, images, model, tiny, store):
    calls = [
        lambda: tiny.trials(modality),
        lambda: tiny.val_trial(modality),
        lambda: trials_of(tiny, modality, "test"),
        lambda: all_against_all(tiny.train, modality),
        lambda: Augmentation(channels=True, grey=1.0)(images, modality, torch.Generator()),
        lambda: direction_name(modality),
        lambda: evaluate(model, tiny, modality, trials=tiny.trials(), progress=False),
        lambda: anatomy(model, tiny, modality),
        lambda: GuideBank(model, store, modality),
        lambda: Record("a.png", 1, 1, modality),
    ]
    for call in calls:
        with pytest.raises(InputError, match="modality"):
            call()


@EVERY
def test_no_loss_takes_a_word_for_a_modality(modality):
    features, labels = torch.rand(3, 4), torch.tensor([0, 0, 1])
    for loss in (losses.hetero_centre_loss, losses.class_centres):
        with pytest.raises(InputError, match="modality"):
            loss(features, labels, modality)
    with pytest.raises(InputError, match="modality"):
        centre_pair_mining(features, features, labels, modality)


def test_what_is_a_modality_is_taken(images, model):
    for one in (Modality.INFRARED, 1, np.int64(1), torch.tensor([1, 1, 1])):
        assert torch.equal(model.embed(images, one), model.embed(images, Modality.INFRARED))


def test_another_split_is_no_validation(tiny):
    for split in ("train", "Test", "validation", None):
        with pytest.raises(InputError, match="split"):
            trials_of(tiny, Modality.VISIBLE, split)


# Numbers and arrays


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_another_precision_are_attacked(kind, images, model):
    images = (images * 255).round().div(255).to(kind)
    delta = torch.full((3, 32, 16), 0.02)
    attacked = UniversalPerturbation(delta, 8 / 255).apply(images, Modality.VISIBLE)
    assert model.embed(attacked, Modality.VISIBLE).isfinite().all()
    guides = Guides(torch.rand(3, 2, 192), torch.rand(3, 192))
    for name in IMAGE_SPECIFIC:
        found = build_attack(name)(model, images, Modality.VISIBLE, guides)
        assert found.dtype == kind
        assert (found != images).any()
    if kind == torch.float64:
        assert torch.allclose(model.embed(images, Modality.VISIBLE), model.embed(images.float(), Modality.VISIBLE))
        assert torch.allclose(ssim(images, images.float()), torch.ones(3, dtype=kind))


def test_attacks_within_inference_mode(model, store, tiny):
    chosen = ImageStore(store.images[::4], store.records[::4])
    for name in ATTACKS:
        options = {} if name in ("fgsm", "uniform-noise", "sign-noise") else {"steps": 2}
        attack = build_attack(name, **options)

        def made(attack=attack):
            if hasattr(attack, "fit"):
                return attack.fit(model, store, seed=1)
            return craft(attack, model, chosen, guide_store=store, seed=1)

        outside = made()
        with torch.inference_mode():
            inside = made()
            assert torch.is_inference_mode_enabled()
        if hasattr(attack, "fit"):
            for name, tensor in outside.tensors().items():
                assert torch.equal(tensor, inside.tensors()[name])
                assert not inside.tensors()[name].is_inference()
        else:
            assert torch.equal(outside.images, inside.images)
            assert outside.moved == inside.moved == len(chosen)
    with torch.inference_mode():
        images = store.batch(np.arange(3))
        guides, sides = Guides(torch.rand(3, 2, 192), torch.rand(3, 192)), torch.tensor([0, 1, 1])
        for name in IMAGE_SPECIFIC:
            assert (build_attack(name)(model, images, sides, guides) != images).any()
        sma = build_attack("sma", steps=1)
        scored = evaluate(model, tiny, perturb=lambda x, modality: sma(model, x, modality), progress=False)
        assert scored.moved == len(scored.query)


def test_networks_made_within_inference_mode(images, tiny):
    with torch.inference_mode():
        model = models.build("agw", 12, "lite").eval()
        train(model, tiny, TrainSettings(epochs=1, identities=4, images=2), progress=False)
    assert (build_attack("fgsm")(model, images, Modality.VISIBLE) != images).any()
    with torch.inference_mode():
        foreign = Blind()
    with pytest.raises(InputError, match="inference_mode"):
        build_attack("sma")(foreign, images, Modality.VISIBLE)


FEATURES = np.random.default_rng(0).normal(size=(12, 5))
PEOPLE = np.arange(12) % 4


@pytest.mark.parametrize(
    "way",
    [
        lambda x: x[::-1][::-1],
        lambda x: x[:, ::-1],
        lambda x: np.flip(x, (0, 1))[::-1],
        lambda x: x.astype(">f8"),
        lambda x: x.astype(">f4"),
        lambda x: x.astype(np.longdouble),
        lambda x: np.asfortranarray(x),
        lambda x: x.tolist(),
        lambda x: np.broadcast_to(x, (1, *x.shape))[0],
    ],
)
def test_features_lie_in_memory_as_they_like(way):
    laid, plain = way(FEATURES), np.array(way(FEATURES), dtype=np.float64)
    people = PEOPLE.astype(">i4")[::-1][::-1]
    found, wanted = (metrics.evaluate_features(x[:4], x[4:], PEOPLE[:4], PEOPLE[4:]) for x in (laid, plain))
    assert found.mAP == pytest.approx(wanted.mAP)
    assert (found.cmc == wanted.cmc).all()
    distance = np.linalg.norm(plain[:4, None] - plain[4:], axis=2)
    scored = metrics.evaluate(way(distance), people[:4], people[4:])
    assert scored.mAP == metrics.evaluate(np.array(way(distance), float), PEOPLE[:4], PEOPLE[4:]).mAP


def test_features_that_are_no_numbers_are_refused():
    for wrong in (
        FEATURES + 1j,
        FEATURES.astype(str),
        FEATURES.astype(object),
        [[1, 2], [3]],
        torch.tensor(FEATURES + 1j),
    ):
        with pytest.raises(InputError, match="metrics"):
            metrics.evaluate_features(wrong, FEATURES, PEOPLE, PEOPLE)
        with pytest.raises(InputError, match="metrics"):
            metrics.evaluate(wrong, PEOPLE[: len(wrong)], PEOPLE)


@pytest.mark.parametrize("wrong", [None, 0, -1, 2.5, "20", True, float("nan"), 2**70, 10**12])
def test_ranks_and_repeats_are_whole_numbers(wrong):
    distance, people = np.arange(16.0).reshape(4, 4), np.arange(4)
    calls = [
        lambda: metrics.evaluate(distance, people, people, max_rank=wrong),
        lambda: metrics.evaluate_features(distance, distance, people, people, max_rank=wrong),
        lambda: metrics.chance(people, people, max_rank=wrong),
        lambda: metrics.chance(people, people, repeats=wrong),
        lambda: metrics.bootstrap(people, people, repeats=wrong),
        lambda: metrics.paired_bootstrap(people, people, people, repeats=wrong),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"max_rank|repeats"):
            call()


@pytest.mark.parametrize("wrong", [0, -1, None, 2.5, "8", True])
def test_batch_sizes_are_whole_numbers_from_1(wrong, model, store, tiny):
    calls = [
        lambda: embed_store(model, store, batch_size=wrong, progress=False),
        lambda: evaluate(model, tiny, batch_size=wrong, progress=False),
        lambda: craft(build_attack("fgsm"), model, store, batch_size=wrong),
        lambda: GuideBank(model, store, Modality.VISIBLE, wrong),
        lambda: next(store.batches(wrong)),
        lambda: Batches(np.arange(4), wrong, 0),
        lambda: ranked(model, tiny, tiny.trials()[0], wrong),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"size|queries"):
            call()


@pytest.mark.parametrize("seed", [-1, -(2**40), 2**64, 1.5, "1", None, True])
def test_a_seed_is_a_whole_number_from_0(seed, model, store, tiny, images):
    people, settings = np.arange(4), TrainSettings(epochs=1)
    calls = [
        lambda: build_attack("pgd")(model, images, Modality.VISIBLE, seed=seed),
        lambda: build_attack("lta")(model, images, Modality.VISIBLE, seed=seed),
        lambda: craft(build_attack("fgsm"), model, store, seed=seed),
        lambda: metrics.chance(people, people, seed=seed),
        lambda: metrics.bootstrap(people, people, seed=seed),
        lambda: metrics.paired_bootstrap(people, people, people, seed=seed),
        lambda: load_dataset("synthetic", num_identities=4, seed=seed),
        lambda: Batches(np.arange(4), 2, seed),
        lambda: MixedBatches(store, 4, seed),
        lambda: IdentityBatches(store, 4, seed),
        lambda: PKSampler(store.records, 2, 2, seed),
        lambda: train(model, tiny, settings, seed=seed, progress=False),
    ]
    calls += [lambda name=name: build_attack(name).fit(model, store, seed) for name in ("uniform-noise", "uap", "dmr")]
    for call in calls:
        with pytest.raises(InputError, match="seed"):
            call()
    assert build_attack("uniform-noise").fit(model, store, np.int64(3)).made_by["seed"] == 3


@pytest.mark.parametrize("device", ["tpu", "gpu", "cuda:99", "cuda:x", "", None, 0, "meta", torch.device("meta")])
def test_an_unknown_device_is_refused(device, model, store, tiny):
    calls = [
        lambda: pick_device(device),
        lambda: embed_store(model, store, device=device, progress=False),
        lambda: evaluate(model, tiny, device=device, progress=False),
        lambda: anatomy(model, tiny, device=device),
        lambda: ranked(model, tiny, tiny.trials()[0], device=device),
        lambda: store.batch(np.arange(2), device),
        lambda: train(model, tiny, TrainSettings(epochs=1), device=device, progress=False),
    ]
    for call in calls:
        with pytest.raises(InputError, match="DEVICE"):
            call()


def test_no_image_is_no_crash(model, store, images):
    for modality in (Modality.INFRARED, torch.zeros(0, dtype=torch.int64)):
        assert len(model(images[:0], modality).embedding) == 0
        with pytest.raises(InputError, match="shape"):
            build_attack("fgsm")(model, images[:0], modality)
    with pytest.raises(InputError, match="no image"):
        embed_store(model, ImageStore(store.images[:0], []), progress=False)
    for size in (None, 1, 2.5):
        for batches in (MixedBatches, IdentityBatches):
            with pytest.raises(InputError, match="size"):
                batches(store, size, 0)


SHORT = torch.rand(3, 3, 32, 16).to(torch.float8_e4m3fn)
WRONG_IMAGES = [(torch.rand(3, 3, 32, 16) * 255).byte(), torch.rand(3, 3, 32, 16) > 0.5, torch.rand(3, 32, 16), SHORT]
WRONG_IMAGES += [torch.rand(3, 2, 32, 16), torch.rand(3, 3, 32, 16).to_sparse(), torch.rand(3, 3, 32, 16).numpy(), None]
WRONG_IMAGES += [torch.rand(3, 3, 32, 16).to(torch.complex64)]


@pytest.mark.parametrize("wrong", WRONG_IMAGES, ids=lambda x: str(getattr(x, "dtype", x)))
def test_what_is_no_batch_of_images_is_refused_by_every_door(wrong, model):
    made = UniversalPerturbation(torch.full((3, 32, 16), 0.01), 8 / 255)
    fgsm = build_attack("fgsm")
    for door in (model, model.embed, model.feature_map, made.apply, lambda x, modality: fgsm(model, x, modality)):
        with pytest.raises(InputError, match="images"):
            door(wrong, Modality.VISIBLE)


def test_floats_of_8_bits_are_no_perturbation_and_are_ranked_as_they_are():
    with pytest.raises(InputError, match="16 bits or more"):
        UniversalPerturbation(SHORT[0], 8 / 255)
    distance = torch.rand(4, 4).to(torch.float8_e4m3fn)
    assert metrics.evaluate(distance, np.arange(4), np.arange(4)) is not None
    with pytest.raises(InputError, match="alike"):
        ssim(SHORT, SHORT)
    with pytest.raises(InputError, match="features"):
        metrics.evaluate_features(np.ones((4, 0)), np.ones((4, 0)), np.arange(4), np.arange(4))


def test_what_is_no_map_is_refused():
    maps = torch.rand(2, 8, 8)
    for wrong in (maps.numpy(), maps.tolist(), None):
        with pytest.raises(InputError, match="frequency"):
            decompose(wrong)
    for bands in (0, -1, None, 2.5, "8"):
        with pytest.raises(InputError, match="bands"):
            band_energy(maps, bands)
    for measure in (ssim, psnr):
        for pair in ((maps[None], maps[None, :1]), ((maps[None] * 255).byte(),) * 2, (maps, maps)):
            with pytest.raises(InputError, match="alike"):
                measure(*pair)


def test_a_store_holds_bytes(store):
    for images in (store.images / 255.0, store.images.astype(np.float32) / 255, store.images[:3]):
        with pytest.raises(InputError, match="uint8"):
            ImageStore(images, store.records)


@pytest.mark.parametrize("identities", [0, -1, 1.5, True])
def test_identities_to_learn_from_are_counted_from_1(identities, tiny):
    with pytest.raises(InputError, match="identities"):
        training_store(tiny, identities)


# An attack that did nothing


class Quantised(torch.nn.Module):
    """A coarse quantiser in front of a network: no gradient comes through."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, modality):
        return self.model((images * 4).round() / 4, modality)

    def embed(self, images, modality):
        return self.model.embed((images * 4).round() / 4, modality)


def test_what_an_attack_moved_is_counted(model, store, tiny):
    lone = {record.identity: row for row, record in enumerate(store.records) if record.modality == Modality.VISIBLE}
    rows = np.array([*lone.values(), next(iter(lone.values())) - 1])  # one image of each person, and two of the first
    few = ImageStore(store.images[rows], [store.records[row] for row in rows])
    assert craft(build_attack("m-fgsm"), model, few).moved == 2
    assert craft(build_attack("m-fgsm"), model, few, guide_store=store).moved == len(few)
    assert craft(build_attack("pgd"), model, few).moved == len(few)
    plain, slight = (
        craft(build_attack("fgsm"), Quantised(model), few),
        craft(build_attack("fgsm", eps=1e-3), model, few),
    )
    assert plain.moved == plain.rounded(8 / 255).moved == slight.rounded(1e-3).moved == 0
    assert slight.moved == len(few)


def test_scores_say_how_many_queries_were_moved(model, tiny):
    clean = evaluate(model, tiny, progress=False)
    assert clean.moved is None
    trial, still = tiny.trials()[0], UniversalPerturbation(torch.zeros(3, 32, 16), 8 / 255)
    first = iter([True])
    ways = {
        len(trial.query): lambda x, m: x.add_(0.01).clamp_(0, 1),  # in place
        0: still.apply,
        1: lambda x, m: torch.cat([1 - x[:1], x[1:]]) if next(first, False) else x,
    }
    for count, perturb in ways.items():
        assert evaluate(model, tiny, perturb=perturb, clean=clean, progress=False).moved == count
