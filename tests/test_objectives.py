"""The loop around an objective: the weights of `training.train` bit for bit, and a resumed run those of a whole one."""

import pytest
import torch

from vireid_lite import losses, models, training
from vireid_lite.errors import InputError
from vireid_lite.models import AGW, two_stream
from vireid_lite.training import TrainSettings, train

SETTINGS = TrainSettings(epochs=3, identities=4, images=2, optimiser="adamw", learning_rate=1e-3, label_smoothing=0.1)


class Plain(AGW):
    """AGW that brings AGW's own losses."""

    calls = 0

    def objective(self, batch):
        self.calls += 1
        output = self(batch.images, batch.modality)
        identity = losses.identity_loss(output.logits, batch.labels, batch.settings.label_smoothing)
        triplet = losses.weighted_regularised_triplet(output.pooled, batch.labels)
        return two_stream.Objective({"identity": identity, "triplet": triplet}, output.logits, batch.labels)


def network(kind):
    torch.manual_seed(0)
    return kind(12, "lite")


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_objective_of_agws_losses_gives_agws_weights(tiny, shuffle):
    settings = TrainSettings(**{**SETTINGS.__dict__, "shuffle_labels": shuffle})
    plain, agw = network(Plain), network(AGW)
    found = training.train_by_objective(plain, tiny, settings, seed=3, progress=False)
    expected = train(agw, tiny, settings, seed=3, progress=False)
    for name, value in agw.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    timeless = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in expected]
    assert [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in found] == timeless


def test_a_run_that_stops_after_an_epoch_resumes(tiny, tmp_path):
    class Stopping(Plain):
        def objective(self, batch):
            if len(batch.history) == 2:
                raise KeyboardInterrupt
            return super().objective(batch)

    whole, stopped, resumed = network(Plain), network(Stopping), network(Plain)
    training.train_by_objective(whole, tiny, SETTINGS, progress=False)
    note = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        training.train_by_objective(stopped, tiny, SETTINGS, state_path=note, progress=False)
    history = training.train_by_objective(resumed, tiny, SETTINGS, state_path=note, progress=False)
    assert [epoch["epoch"] for epoch in history] == [0, 1, 2]
    assert resumed.calls == whole.calls // 3
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_loss_that_is_not_finite_is_one_line(tiny):
    class Broken(Plain):
        def objective(self, batch):
            found = super().objective(batch)
            return found._replace(losses={"identity": found.losses["identity"] * torch.inf})

    with pytest.raises(InputError, match="not finite in epoch 0; lower"):
        training.train_by_objective(network(Broken), tiny, SETTINGS, progress=False)


def test_networks_without_an_objective_are_not_meant(tiny):
    with pytest.raises(AttributeError, match="objective"):
        training.train_by_objective(models.build("agw", 12, "lite"), tiny, SETTINGS, progress=False)
