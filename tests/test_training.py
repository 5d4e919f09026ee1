from dataclasses import replace

import pytest
import torch

from vireid_lite import models
from vireid_lite.data import Augmentation
from vireid_lite.errors import InputError
from vireid_lite.training import Muon, TrainSettings, contiguous_labels, learning_rate_factor, optimiser_for, train
from vireid_lite.victims import Recipe

QUICK = TrainSettings(
    epochs=3,
    identities=4,
    images=2,
    optimiser="adamw",
    learning_rate=1e-3,
    backbone_factor=1.0,
    schedule="cosine",
    augmentation=Augmentation(pad=2),
)


def fresh(num_identities=12):
    torch.manual_seed(0)
    return models.build("agw", num_identities, "lite")


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


class Watched(models.AGW):
    """AGW that counts its steps and can be told how to end."""

    steps, ends = 0, None

    def objective(self, batch):
        self.steps += 1
        found = super().objective(batch)
        if self.ends == "infinite":
            return found._replace(losses={"identity": found.losses["identity"] * torch.inf})
        if self.ends and len(batch.history) == 2:
            raise self.ends
        return found


def watched(ends=None):
    torch.manual_seed(0)
    model = Watched(12, "lite")
    model.ends = ends
    return model


@pytest.mark.parametrize("settings", [QUICK, replace(QUICK, optimiser="muon", schedule="linear", half=True)])
def test_interrupted_training_ends_with_the_same_bits(tiny, tmp_path, settings):
    whole, resumed, path = watched(), watched(), tmp_path / "state.pt"
    expected = train(whole, tiny, settings, progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(watched(KeyboardInterrupt), tiny, settings, state_path=path, progress=False)
    history = train(resumed, tiny, settings, state_path=path, progress=False)
    assert same(weights(whole), weights(resumed))
    assert [{**epoch, "seconds": 0} for epoch in history] == [{**epoch, "seconds": 0} for epoch in expected]
    assert resumed.steps == whole.steps // 3


def test_training_lowers_the_loss_and_the_seed_decides(tiny):
    settings = replace(QUICK, epochs=8, augmentation=Augmentation(pad=0, flip=0))
    runs = {}
    for seed in (0, 1):
        model = fresh()
        history = train(model, tiny, settings, seed=seed, progress=False)
        assert history[-1]["identity_loss"] < 0.8 * history[0]["identity_loss"]
        assert not model.training
        runs[seed] = weights(model)
    assert not same(runs[0], runs[1])


def test_a_note_of_another_run_is_refused(tiny, tmp_path):
    path = tmp_path / "state.pt"
    train(fresh(), tiny, replace(QUICK, epochs=1), state_path=path, progress=False)
    with pytest.raises(InputError, match="other settings"):
        train(fresh(), tiny, replace(QUICK, epochs=2), state_path=path, progress=False)


def test_shuffled_labels_keep_their_counts_and_lose_their_meaning(tiny):
    from vireid_lite.data import Modality, cached
    from vireid_lite.training import _shuffled_within_modality

    store = cached(tiny, tiny.train, progress=False)
    labels = contiguous_labels(store.records)
    shuffled = _shuffled_within_modality(labels, store.modalities.numpy(), 0)
    for modality in Modality:
        rows = store.modalities.numpy() == modality
        assert sorted(labels[rows]) == sorted(shuffled[rows])
        assert (labels[rows] == shuffled[rows]).mean() < 0.5


def test_agw_schedule_is_the_published_one():
    published = [(0, 0.1), (8, 0.9), (9, 1.0), (19, 1.0), (20, 0.1), (49, 0.1), (50, 0.01), (80, 0.01)]
    for epoch, factor in published:
        assert learning_rate_factor(TrainSettings(), epoch) == pytest.approx(factor)


def test_deens_schedule_is_the_published_one():
    for epoch, factor in [(0, 0.1), (10, 1.0), (19, 1.0), (20, 0.1), (50, 0.1), (79, 0.1), (80, 0.01), (150, 0.01)]:
        assert learning_rate_factor(TrainSettings(schedule="deen"), epoch) == pytest.approx(factor)


def test_muon_steps_along_the_momentum_made_orthogonal():
    """Held against singular values: the published polynomial three times on each, by Nesterov's momentum."""
    torch.manual_seed(0)
    for shape in ((8, 4, 3, 3), (12, 2, 1, 1)):
        weight, moving = torch.nn.Parameter(torch.randn(shape)), torch.zeros(shape)
        optimiser = Muon([{"params": [weight], "momentum": 0.9, "lr": 0.1, "weight_decay": 0.5}])
        for _ in range(3):
            before, gradient = weight.detach().clone(), torch.randn(shape)
            weight.grad = gradient.clone()
            optimiser.step()
            moving = 0.9 * moving + gradient
            left, values, right = torch.linalg.svd((gradient + 0.9 * moving).flatten(1), full_matrices=False)
            values = values / values.square().sum().sqrt()
            for _ in range(3):
                values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
            turned = (left * values @ right).view(shape) * max(1, shape[0] / weight[0].numel()) ** 0.5
            assert torch.allclose(weight, before * 0.95 - 0.1 * turned, atol=1e-5)


def test_muon_moves_the_weights_of_convolutions_alone():
    model = fresh()
    *rest, matrices = optimiser_for(model, TrainSettings(optimiser="muon")).param_groups
    assert matrices["base_lr"] == pytest.approx(50 * rest[0]["base_lr"])
    assert all(weight.ndim == 4 and min(weight.shape[:2]) > 1 for weight in matrices["params"])
    assert not any(weight.ndim == 4 and min(weight.shape[:2]) > 1 for group in rest for weight in group["params"])


def test_half_rounds_weights_and_statistics_at_the_end(tiny):
    rounded, exact = fresh(), fresh()
    for model, half in ((rounded, True), (exact, False)):
        train(model, tiny, replace(QUICK, epochs=1, half=half), progress=False)
    assert same(weights(rounded), {name: value.half().float() for name, value in weights(exact).items()})
    assert not same(weights(rounded), weights(exact))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_of_any_length_warm_up_and_end_at_zero(schedule):
    settings = replace(QUICK, schedule=schedule)
    factors = [learning_rate_factor(settings, epoch / 100) for epoch in range(1, 301)]
    assert max(factors) == pytest.approx(1.0, abs=1e-2)
    assert factors[0] < 0.15
    assert factors[-1] == pytest.approx(0.0, abs=1e-6)


def test_bnneck_and_classifier_train_at_the_full_rate_the_rest_at_a_tenth():
    model = fresh()
    body, head = optimiser_for(model, TrainSettings()).param_groups
    assert body["base_lr"] == pytest.approx(0.01)
    assert head["base_lr"] == 0.1
    assert {id(p) for p in head["params"]} == {id(model.bottleneck.weight), id(model.classifier.weight)}
    assert len(body["params"]) + 2 == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("wrong", [{"optimiser": "lion"}, {"schedule": "step"}, {"triplet": "quad"}, {"epochs": 0}])
def test_settings_that_make_no_run_are_refused(wrong):
    with pytest.raises(InputError):
        TrainSettings(**wrong)


@pytest.mark.parametrize("name", ["ddag", "deen", "ide", "pcb"])
def test_a_network_with_losses_of_its_own_takes_no_triplet(tiny, name):
    settings = replace(QUICK, triplet="hard")
    with pytest.raises(InputError, match="takes no triplet; leave 'hard' out") as refusal:
        Recipe(name, settings=settings)
    assert "\n" not in str(refusal.value)
    assert "triplet" not in Recipe(name, settings=QUICK).describe()["settings"]
    with pytest.raises(InputError, match="takes no triplet"):
        train(models.build(name, 12, "lite"), tiny, settings, progress=False)


@pytest.mark.parametrize("name", ["agw", "caj"])
def test_unless_told_the_triplet_is_wrt_and_keys_say_so(name):
    told, untold = (Recipe(name, settings=replace(QUICK, triplet=triplet)) for triplet in ("wrt", None))
    assert told.describe() == untold.describe()
    assert list(untold.describe()["settings"]) == list(TrainSettings.__dataclass_fields__)
    assert Recipe(name, settings=replace(QUICK, triplet="adp")).describe()["settings"]["triplet"] == "adp"


def test_a_loss_that_explodes_is_one_line(tiny):
    with pytest.raises(InputError, match="not finite in epoch 0; lower"):
        train(watched("infinite"), tiny, QUICK, progress=False)
    with pytest.raises(InputError, match="not finite"):
        train(fresh(), tiny, replace(QUICK, optimiser="sgd", learning_rate=1e12), progress=False)
