"""CAJ: each visible image twice, its losses against naive ones, the collapse of its triplet, trained and attacked."""

import copy
import math

import pytest
import torch
from contract import attack_and_check

from vireid_lite import losses, models
from vireid_lite.data import Augmentation, Modality
from vireid_lite.data.augment import channel_or_grey
from vireid_lite.errors import InputError
from vireid_lite.losses import adp_triplet, weighted_regularised_triplet
from vireid_lite.models.checkpoints import load_checkpoint, save_checkpoint
from vireid_lite.models.insertion import block_channels, staged
from vireid_lite.models.two_stream import Batch
from vireid_lite.training import TrainSettings, train

MODALITY = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
LABELS = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])


def settings(triplet):
    return TrainSettings(
        epochs=2,
        identities=4,
        images=2,
        optimiser="adamw",
        learning_rate=1e-3,
        backbone_factor=1.0,
        schedule="cosine",
        label_smoothing=0.1,
        triplet=triplet,
        augmentation=Augmentation(pad=2, erasing=0.5),
    )


def build(name="caj", num_identities=3, backbone="lite", **options):
    torch.manual_seed(0)
    return models.build(name, num_identities, backbone, **options)


def batch(triplet="adp", seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(8, 3, 32, 16, generator=generator, dtype=torch.float64)
    images[4:] = images[4:, :1]
    return Batch(images.to(dtype), MODALITY, LABELS, 0.1, losses.TRIPLETS[triplet], [], generator)


def test_it_is_agws_network():
    ours, theirs = build().state_dict(), build("agw").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with torch.device("meta"):
        model = models.build("caj", 395)
    count = sum(p.numel() for p in model.parameters())
    assert count == 23_550_351 + 2048 * 395  # test_models holds the first
    assert f"{count:,}" in models.CAJ.__doc__
    assert block_channels(model) == [64, 256, 512, 1024, 2048]


def entered(model, given):
    """Return the images and modality that an objective sends through the network, and the objective."""
    seen = []
    handle = model.stages[0].register_forward_pre_hook(lambda module, arguments: seen.extend(arguments))
    found = model.objective(given)
    handle.remove()
    return *seen, found


def test_visible_images_enter_twice():
    model, given = build().double(), batch()
    kept, drawn = given.images.clone(), torch.get_rng_state()
    images, modality, found = entered(model, given)
    assert torch.equal(given.images, kept)
    assert torch.equal(torch.get_rng_state(), drawn), "every draw comes from the batch's generator"
    assert modality.tolist() == [0] * 8 + [1] * 4
    assert found.labels.tolist() == [0, 0, 1, 1] * 3
    assert found.logits.shape == (12, 3)
    assert torch.equal(torch.cat([images[:4], images[8:]]), kept)
    for plain, exchanged in zip(kept[:4], images[4:8], strict=True):
        assert any(all(torch.equal(channel, chosen) for channel in exchanged) for chosen in plain)
    assert torch.equal(entered(model, batch())[0], images)
    other = entered(model, batch()._replace(generator=torch.Generator().manual_seed(9)))[0]
    assert not torch.equal(other[4:8], images[4:8])


def test_published_channels_are_chosen_after_normalisation_of_infrared_too():
    model, seen = build(published_channels=True).double(), []
    model.stages[0].visible.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.stages[0].infrared.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    changed = []
    for seed in range(40):
        seen.clear()
        given = batch(seed=seed)
        model.objective(given)
        visible, infrared = seen  # as the stems see them: normalised
        equal = [(each - each[:, :1]).abs().amax((1, 2, 3)) < 1e-9 for each in (visible, infrared)]
        assert equal[0][4:].all()  # every exchanged copy has one channel, as the network sees it
        clean = (given.images[4:] - model.stages[0].mean) / model.stages[0].std
        kept = (infrared - clean).abs().amax((1, 2, 3)) < 1e-9
        assert (kept | equal[1]).all()
        changed.append((~kept).double().mean().item())
    assert sum(changed) / 40 == pytest.approx(7 / 8, abs=0.06)


def soft_extremes_by_loops(features, labels):
    """Each anchor's delta: positives weighted by softmax(d), itself included, negatives by softmax(-d)."""
    deltas = []
    for anchor, own in zip(features, labels, strict=True):
        distances = [(anchor - other).square().sum().sqrt().item() for other in features]
        positive = [d for d, label in zip(distances, labels, strict=True) if label == own]
        negative = [d for d, label in zip(distances, labels, strict=True) if label != own]
        up, down = [math.exp(d) for d in positive], [math.exp(-d) for d in negative]
        furthest = sum(w * d for w, d in zip(up, positive, strict=True)) / sum(up)
        deltas.append(furthest - sum(w * d for w, d in zip(down, negative, strict=True)) / sum(down))
    return deltas


TRIPLETS = {
    "wrt": lambda delta: math.log1p(math.exp(delta)),
    "adp": lambda delta: math.log1p(math.exp(math.copysign(min(delta**2, 88), delta))),
}


@pytest.mark.parametrize("triplet", [*TRIPLETS, "none"])
def test_objective_is_the_naive_sum(triplet):
    model = build().double().train()
    same = copy.deepcopy(model)
    images, modality, found = entered(model, batch(triplet))
    output = same(images, modality)
    labels = [0, 0, 1, 1] * 3
    identity = 0.0
    for row, label in zip(output.logits.tolist(), labels, strict=True):
        log_sum = math.log(sum(map(math.exp, row)))
        identity -= sum((0.1 / 3 + 0.9 * (k == label)) * (value - log_sum) for k, value in enumerate(row)) / 12
    assert found.losses["identity"].item() == pytest.approx(identity)
    torch.testing.assert_close(found.logits, output.logits)
    if triplet == "none":
        assert set(found.losses) == {"identity"}
    else:
        deltas = soft_extremes_by_loops(output.pooled, labels)
        assert min(map(abs, deltas)) > 1e-6
        expected = sum(map(TRIPLETS[triplet], deltas)) / 12
        assert found.losses["triplet"].item() == pytest.approx(expected)


def equally_far(distance):
    """Four images of two identities, every pair at the same distance; softmax weights of 0 and distance are 0 and 1."""
    return (torch.eye(4, dtype=torch.float64) * distance / math.sqrt(2)).requires_grad_(), torch.tensor([0, 0, 1, 1])


def test_the_collapsed_state_is_flat_for_adp_and_not_for_wrt():
    features, labels = equally_far(40.0)
    for loss, flat in ((adp_triplet, True), (weighted_regularised_triplet, False)):
        value = loss(features, labels)
        assert value.item() == pytest.approx(math.log(2), abs=1e-15)
        gradient = torch.autograd.grad(value, features)[0]
        assert gradient.any() != flat
        moved = (features - 0.1 * gradient).detach()
        # One step of descent leaves adp where it was, to the bit, and takes wrt below log 2.
        assert torch.equal(moved, features) == flat
        assert (loss(moved, labels).item() == value.item()) == flat
        assert flat or gradient.abs().max() > 0.1


def test_adp_is_flat_beyond_its_clamp_as_well():
    # Positives 20 apart, the other identity's images closer: delta is 20 - sqrt(200), and twice that at twice the size.
    corners = torch.tensor([[-10.0, 0.0], [10.0, 0.0], [0.0, -10.0], [0.0, 10.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    for scale, flat in ((1.0, False), (2.0, True)):
        features = (scale * corners).requires_grad_()
        delta = soft_extremes_by_loops(features, labels.tolist())[0]
        assert delta == pytest.approx(scale * (20 - math.sqrt(200)))
        assert (delta > math.sqrt(88)) == flat
        assert torch.autograd.grad(adp_triplet(features, labels), features)[0].any() != flat
        assert torch.autograd.grad(weighted_regularised_triplet(features, labels), features)[0].any()


def test_infrared_channel_choice_changes_erased_boxes_alone():
    """What the recipe leaves out: on three equal channels it is the identity, up to the luma weights' sum of .9999."""
    images, generator = batch().images[4:], torch.Generator().manual_seed(0)
    for _ in range(4):
        torch.testing.assert_close(channel_or_grey(images, generator), images, rtol=2e-4, atol=0)


@pytest.fixture(scope="module", params=["wrt", "adp"])
def trained(request, tiny):
    """Two epochs on `tiny`, then modes and requires_grad mixed on purpose."""
    model = build(num_identities=12)
    history = train(model, tiny, settings(request.param), progress=False)
    model.train()
    model.stages[0].eval()
    next(model.parameters()).requires_grad_(False)
    return model, history


def test_training_notes_its_losses_and_lowers_them(trained):
    _, history = trained
    assert [list(epoch) for epoch in history] == [["epoch", "identity_loss", "triplet_loss", "accuracy", "seconds"]] * 2
    assert history[1]["identity_loss"] < history[0]["identity_loss"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cmps", {"steps": 2}),
        ("uap", {"steps": 2}),
        ("feature-level", {"steps": 2, "blocks": (0, 4)}),
        ("m-fgsm", {"steps": 2}),
    ],
)
def test_attacks_run_and_leave_the_victim_alone(trained, store, name, options):
    attack_and_check(trained[0], store, name, **options)


def test_the_papers_modules_fit(trained):
    heads, _ = staged(trained[0], "fsam", (0, 4), sfm=True)
    assert sorted(heads) == [0, 4]


def test_checkpoints_come_back_as_they_were(trained, tmp_path):
    model, images = trained[0], batch(dtype=torch.float32).images
    save_checkpoint(tmp_path / "victim.safetensors", model, {})
    loaded, card = load_checkpoint(tmp_path / "victim.safetensors")
    assert (type(loaded), card["model"]["name"]) == (models.CAJ, "caj")
    assert torch.equal(loaded.embed(images, Modality.VISIBLE), model.embed(images, Modality.VISIBLE))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gem_p": 0}, "gem_p must be"), ({"triplet": "adp"}, "no option 'triplet'; it has non_local_channels, gem_p")],
)
def test_other_options_are_refused(options, message):
    with pytest.raises(InputError, match=message) as caught:
        build(**options)
    assert "\n" not in str(caught.value)
