"""Image-specific attacks: the contract of each, the formulas one by one, guides, and crafting a whole store."""

import json

import draws
import numpy as np
import pytest
import torch
from contract import check_attacked, facts, rows_of, same_facts, stem_counts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vireid_lite import models
from vireid_lite.attacks.budget import to_8_bits
from vireid_lite.attacks.frozen import frozen, generator_for, images_of
from vireid_lite.attacks.image_specific import (
    AREA,
    ASPECT,
    FGSM,
    FNA,
    IMAGE_SPECIFIC,
    LTA,
    MFGSM,
    ODFA,
    PGD,
    SMA,
    GuideBank,
    Guides,
    MetricFGSM,
    Target,
    craft,
    locally_grey,
)
from vireid_lite.attacks.perturbation import UniversalPerturbation
from vireid_lite.data import ImageStore, Modality, cached
from vireid_lite.errors import InputError
from vireid_lite.metrics.evaluation import embed_store

EVERY = pytest.mark.parametrize("kind", IMAGE_SPECIFIC.values(), ids=IMAGE_SPECIFIC)
ITERATIVE = pytest.mark.parametrize("kind", [kind for kind in IMAGE_SPECIFIC.values() if kind is not FGSM])
SIZE = (16, 8)
CHANNELS = 192  # of the lite trunk


@pytest.fixture(scope="module")
def model():
    """A lite victim in float64, as unlike its start as training would leave it: no part of it is dead or equal."""
    torch.manual_seed(0)
    model = models.build("agw", 12, "lite").double().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand_like(value)
                value.copy_(0.5 + noise if "running_var" in name else value + 0.2 * (noise - 0.5))
    return model


def images_for(modality, count=3, seed=0, fill=None):
    """Crops of 256 levels in float64; the infrared ones have three equal channels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, *SIZE), generator=generator).double() / 255
    if fill is not None:
        images.fill_(fill)
    return images[:, :1].expand_as(images).clone() if modality == Modality.INFRARED else images


def guides_for(count=3, seed=1):
    features = torch.randn(count, 5, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Guides(F.normalize(features[:, :4], dim=2), F.normalize(features[:, 4], dim=1))


def gradient_of(objective, images):
    images = images.clone().requires_grad_(True)
    return torch.autograd.grad(objective(images, 0).sum(), images)[0]


# The contract


@EVERY
@settings(max_examples=draws.of(8), deadline=None)
@given(
    modality=st.sampled_from(Modality),
    eps=st.one_of(st.sampled_from([1 / 255, 8 / 255, 1.0]), st.floats(1e-4, 1)),
    tied=st.booleans(),
    training=st.booleans(),
    fill=st.sampled_from([None, 0.0, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_contract(model, kind, modality, eps, tied, training, fill, seed):
    attack = kind(eps=eps, tied=tied, **({} if kind is FGSM else {"steps": 2}))
    images = images_for(modality, 2, seed, fill)
    given_images, guides = images.clone(), guides_for(2)
    model.train(training)
    model.bottleneck.eval()  # a mixed mode must come back mixed
    model.stages[0].requires_grad_(not training)
    before = facts(model)
    try:
        found = attack(model, images, modality, guides, seed=seed)
        assert same_facts(before, facts(model)), "the victim must be bit-identical"
        again = attack(model, images, modality, guides, seed=seed)
    finally:
        model.eval().requires_grad_(True)
        model.bottleneck.bias.requires_grad_(False)
    assert not found.requires_grad
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert torch.equal(images, given_images), "the input must stay as it is"
    assert torch.equal(found, again), "the same seed must give the same bits"
    check_attacked(found, images, eps + 1e-6, tied and modality == Modality.INFRARED)
    rounded = to_8_bits(found, images, eps)
    check_attacked(rounded, images, eps + 5e-6, tied and modality == Modality.INFRARED)  # a thousandth of a level
    assert torch.equal((rounded * 255).round() / 255, rounded)


@EVERY
def test_tied_leaves_visible_images_and_free_infrared_channels_alone(model, kind):
    free, tied = (
        [kind(tied=tied)(model, images_for(modality), modality, guides_for()) for modality in Modality]
        for tied in (False, True)
    )
    assert torch.equal(free[Modality.VISIBLE], tied[Modality.VISIBLE])
    infrared = free[Modality.INFRARED]
    assert not torch.equal(infrared, infrared[:, :1].expand_as(infrared))


@EVERY
@pytest.mark.parametrize("fill", [0.0, 1.0], ids=["black", "white"])
def test_black_and_white_images_get_a_gradient(model, kind, fill):
    images, attack = images_for(Modality.VISIBLE, fill=fill), kind()
    start = attack.start(images, Modality.VISIBLE, 0)
    with frozen(model):
        objective = attack.objective(Target(model, images, Modality.VISIBLE, guides_for()))
        assert (gradient_of(objective, start) != 0).double().mean() > 0.99
    found = attack(model, images, Modality.VISIBLE, guides_for())
    assert ((found != start).flatten(1).double().mean(1) > 0.2).all(), "the walk must leave its start"


@EVERY
@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_images_out_of_range_are_refused(model, kind, value):
    images = images_for(Modality.VISIBLE)
    images[1, 2, 3, 4] = value
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        kind()(model, images, Modality.VISIBLE, guides_for())


@EVERY
def test_an_image_is_attacked_alone_as_in_a_batch(model, kind):
    images, guides = images_for(Modality.VISIBLE), guides_for()
    together = kind()(model, images, Modality.VISIBLE, guides)
    alone = kind()(model, images[:1], Modality.VISIBLE, Guides(guides.same[:1], guides.far[:1]))
    assert torch.allclose(together[:1], alone, rtol=0, atol=1e-12)


@EVERY
@pytest.mark.parametrize("modality", Modality)
def test_images_go_through_their_own_stem(model, kind, modality):
    with stem_counts(model) as counts:
        kind()(model, images_for(modality, 1), modality, guides_for(1))
    clean = {MetricFGSM: 0, MFGSM: 0, FNA: 0, LTA: 10}.get(kind, 1)  # forward passes without a gradient
    assert counts == {modality: kind().steps + clean, Modality(1 - modality): 0}


@EVERY
def test_mixed_batch_equals_one_modality_at_a_time(model, kind):
    images = torch.cat([images_for(modality, 1) for modality in Modality])
    guides, attack = guides_for(2), kind(tied=True)
    mixed = attack(model, images, torch.tensor([0, 1]), guides)
    visible = attack(model, images[:1], Modality.VISIBLE, Guides(guides.same[:1], guides.far[:1]))
    assert torch.allclose(mixed[:1], visible, rtol=0, atol=1e-12)
    assert torch.equal(mixed[1], mixed[1, :1].expand_as(mixed[1]))


@ITERATIVE
@pytest.mark.parametrize("modality", Modality)
def test_objective_rises(model, kind, modality):
    attack, images = kind(), images_for(modality)
    found = attack(model, images, modality, guides_for())
    with frozen(model), torch.no_grad():
        objective = attack.objective(Target(model, images, modality, guides_for()))
        start, end = (objective(x, 0) for x in (attack.start(images, modality, 0), found))
    assert (end > start + 1e-4).all()


# The formulas


@pytest.mark.parametrize("modality", Modality)
def test_m_fgsm_equals_its_formula(model, modality):
    eps, steps, step_size = 6 / 255, 4, 1.7 / 255
    images, guides = images_for(modality), guides_for()
    found = MFGSM(eps=eps, steps=steps, step_size=step_size)(model, images, modality, guides)
    metric = MetricFGSM(eps=eps, steps=steps, step_size=step_size)(model, images, modality, guides)
    for mu, attacked in ((1.0, found), (0.0, metric)):
        for image, same, expected in zip(images, guides.same, attacked, strict=True):
            x, m = image.clone(), torch.zeros_like(image)
            for _ in range(steps):
                x = x.clone().requires_grad_(True)
                embedding = model(x[None], modality).embedding[0]
                feature = embedding / embedding.pow(2).sum().sqrt()
                loss = sum(((feature - guide) ** 2).sum() for guide in same)
                (g,) = torch.autograd.grad(loss, x)
                m = mu * m + g / g.abs().mean()
                x = x.detach() + step_size * m.sign()
                x = torch.maximum(torch.minimum(x, image + eps), image - eps).clamp(0, 1)
            assert torch.allclose(expected, x, rtol=0, atol=1e-12)
    assert not torch.equal(found, metric)


def test_momentum_is_normalised_image_by_image(model):
    """Scaling one image's gradient in one step must not change how it weighs against the other steps."""

    class Scaled(MFGSM):
        def objective(self, target):
            plain = super().objective(target)
            return lambda x, step: plain(x, step) * (1000.0 if step == 1 else 1.0)

    images = images_for(Modality.VISIBLE)
    plain, scaled = (kind()(model, images, Modality.VISIBLE, guides_for()) for kind in (MFGSM, Scaled))
    assert torch.allclose(plain, scaled, rtol=0, atol=1e-12)


def test_fgsm_is_one_step_of_eps_up_the_cross_entropy_of_the_predicted_class(model):
    images = images_for(Modality.INFRARED).requires_grad_(True)
    logits = model(images, Modality.INFRARED).logits
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1), reduction="sum"), images)
    found = FGSM(eps=4 / 255)(model, images.detach(), Modality.INFRARED)
    assert torch.allclose(found, (images.detach() + 4 / 255 * gradient.sign()).clamp(0, 1), rtol=0, atol=1e-12)
    with pytest.raises(TypeError):
        FGSM(steps=2)


def test_sma_needs_its_random_start(model):
    class Published(SMA):
        random_start = False

    images = images_for(Modality.VISIBLE)
    with frozen(model):
        objective = SMA().objective(Target(model, images, Modality.VISIBLE))
        at_start = gradient_of(objective, images)
        nearby = gradient_of(objective, SMA().start(images, Modality.VISIBLE, 0))
    assert at_start.abs().max() < 1e-12 * nearby.abs().max()
    assert torch.equal(Published()(model, images, Modality.VISIBLE), images), "nothing to climb: the image stays"
    assert not torch.equal(SMA()(model, images, Modality.VISIBLE), images)


@pytest.mark.parametrize("modality", Modality)
def test_odfa_turns_the_feature_and_is_sma_on_normalised_features(model, modality):
    images = images_for(modality)
    clean, start, found = (
        model.embed(x, modality).detach()
        for x in (images, ODFA().start(images, modality, 0), ODFA()(model, images, modality))
    )
    assert ((found * clean).sum(1) < (start * clean).sum(1) - 0.01).all()
    assert torch.allclose(ODFA()(model, images, modality), SMA()(model, images, modality), rtol=0, atol=1e-12)


def test_lta_is_sma_with_momentum_on_infrared_images_and_on_no_others(model):
    """A rectangle of a grey image turned grey changes nothing but the last digit of a luma."""

    class Momentum(SMA):
        momentum = 1.0

    for modality in Modality:
        images = images_for(modality)
        found = LTA(), Momentum(), LTA(momentum=0.0), SMA()
        local, plain, without, usual = (attack(model, images, modality) for attack in found)
        for one, other in ((local, plain), (without, usual)):
            assert torch.allclose(one, other, rtol=0, atol=1e-12) == (modality == Modality.INFRARED)
        assert not torch.allclose(plain, usual, rtol=0, atol=1e-12)
    for kind in (MFGSM, LTA):
        with pytest.raises(InputError, match="momentum must be a number"):
            kind(momentum=-0.1)
    with pytest.raises(TypeError):
        PGD(momentum=0.5)


# From a delta


def delta_for(eps=8 / 255, tied=False):
    drawn = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return UniversalPerturbation(eps * (2 * drawn - 1).sign(), eps, tied)


@EVERY
@pytest.mark.parametrize("modality", Modality)
def test_a_walk_begins_where_it_is_told_and_keeps_the_budget(model, kind, modality):
    images, guides = images_for(modality), guides_for()
    begin = delta_for(tied=True).apply(images, modality)
    found = kind(tied=True)(model, images, modality, guides, begin=begin)
    check_attacked(found, images, 8 / 255 + 1e-6, modality == Modality.INFRARED)
    assert torch.equal(found, kind(tied=True)(model, images, modality, guides, begin=begin, seed=9)) or kind is LTA
    if kind is not FGSM:
        short = kind(tied=True, steps=1, step_size=1e-6)
        assert (short(model, images, modality, guides, begin=begin) - begin).abs().max() <= 1.001e-6
        # Beyond the budget it is projected first.
        far = short(model, images, modality, guides, begin=images + 0.5)
        check_attacked(far, images, 8 / 255 + 1e-6)


@EVERY
def test_what_both_ends_gained_is_told_on_the_same_images(model, tiny, kind):
    store = cached(tiny, tiny.val, False)
    attack, begin = (
        kind(**({} if kind is FGSM else {"steps": 3})),
        UniversalPerturbation(torch.full((3, 32, 16), 0.03), 8 / 255),
    )
    usual, found = (craft(attack, model, store, begin=each, batch_size=9, seed=2) for each in (None, begin))
    assert usual.gained == {}
    assert [len(values) for values in found.gained.values()] == [len(store)] * 3
    rows = rows_of(store, Modality.VISIBLE)[:9]  # the first batch
    images, seed = images_of(store, rows, model), generator_for(2, 0, 0).initial_seed()
    guides = None
    if attack.needs:
        bank = GuideBank(model, store, Modality.VISIBLE, 9)
        guides = bank.guides(model.embed(images, Modality.VISIBLE).detach(), [store.records[r].identity for r in rows])
    points = usual.images[rows], begin.apply(images, Modality.VISIBLE), found.images[rows]
    for (name, values), point in zip(found.gained.items(), points, strict=True):
        with frozen(model), torch.no_grad():
            objective = attack.objective(Target(model, images, Modality.VISIBLE, guides, seed))
            expected = objective(point.double(), attack.steps)
        torch.testing.assert_close(values[rows].double(), expected, rtol=1e-4, atol=1e-5, msg=name)
    if kind is not FGSM:
        assert (found.gained["from delta"] > found.gained["delta"]).float().mean() > 0.8


def test_a_start_that_is_no_point_of_the_problem_is_refused(model, tiny):
    store = cached(tiny, tiny.val, False)
    for attack, begin in ((SMA(), delta_for(9 / 255)), (SMA(tied=True), delta_for())):
        with pytest.raises(InputError, match="a delta of its own eps, tied as it is, or from a smaller one"):
            craft(attack, model, store, begin=begin)


def test_fna_trades_the_same_person_for_the_farthest_other(model):
    images, guides = images_for(Modality.VISIBLE), guides_for()
    away, trade = (kind()(model, images, Modality.VISIBLE, guides) for kind in (MetricFGSM, FNA))
    far = [(model.embed(x, Modality.VISIBLE) - guides.far).norm(dim=1) for x in (images, away, trade)]
    assert (far[2] < far[0]).all()
    assert (far[2] < far[1]).all()


def test_random_starts_fill_the_budget_and_differ_with_the_seed(model):
    images = torch.full((2, 3, *SIZE), 0.5)
    for kind in (PGD, SMA, ODFA, LTA):
        first, second = (kind(eps=0.1).start(images, Modality.VISIBLE, seed) - images for seed in (0, 1))
        assert not torch.equal(first, second)
        for noise in (first, second):
            assert noise.abs().max() == pytest.approx(0.1, abs=1e-3)
            assert abs(noise.mean()) < 0.01
    for kind in (FGSM, MetricFGSM, MFGSM, FNA):
        assert torch.equal(kind().start(images, Modality.VISIBLE, 0), images)


@pytest.mark.parametrize("kind", [PGD, SMA, LTA])
def test_of_several_starts_each_image_keeps_the_walk_that_gains_most(model, kind):
    """The walks have seeds of their own, the first the attack's, so more restarts cost no image anything."""
    images = images_for(Modality.VISIBLE, count=6)
    with frozen(model):
        objective = kind().objective(Target(model, images, Modality.VISIBLE, seed=3))
        gained, found = [], []
        for restarts in (1, 2, 4):
            attacked = kind(steps=2, restarts=restarts)(model, images, Modality.VISIBLE, seed=3)
            gained.append(objective(attacked, 2).detach())
            found.append(attacked)
    assert (gained[0] <= gained[1]).all()
    assert (gained[1] <= gained[2]).all()
    kept = [torch.equal(*pair) for pair in zip(found[0], found[2], strict=True)]
    assert not all(kept), "another start is the better one for some image"
    assert (found[2] - images).abs().max() <= 8 / 255 + 1e-12
    for other in (FGSM, FNA, MetricFGSM, MFGSM):
        with pytest.raises(InputError, match="no random start"):
            other(restarts=2)
    with pytest.raises(InputError, match="restarts must be a whole number"):
        kind(restarts=0)


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (16, 8)])
def test_local_grey_is_one_rectangle_of_the_stated_shape(size):
    images = torch.rand(64, 3, *size, generator=torch.Generator().manual_seed(0))
    found = locally_grey(images, torch.Generator().manual_seed(1))
    changed = (found != images).any(1)
    assert changed.flatten(1).any(1).all()
    grey = torch.einsum("c,nchw->nhw", torch.tensor((0.299, 0.587, 0.114)), images)
    assert torch.allclose(
        found[changed[:, None].expand_as(found)], grey[:, None].expand_as(found)[changed[:, None].expand_as(found)]
    )
    shares = []
    for mask in changed:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        tall, wide = (int(edge.max() - edge.min()) + 1 for edge in (rows, columns))
        assert mask.sum() == tall * wide, "a full rectangle"
        assert (tall - 0.5) * (wide - 0.5) <= AREA[1] * mask.numel()
        assert (tall + 0.5) * (wide + 0.5) >= AREA[0] * mask.numel()
        assert (tall + 0.5) / (wide - 0.5) >= ASPECT[0]
        assert (tall - 0.5) / (wide + 0.5) <= ASPECT[1]
        shares.append(tall * wide / mask.numel())
    assert max(shares) - min(shares) > 0.2
    infrared = images[:, :1].expand_as(images)
    assert torch.allclose(locally_grey(infrared, torch.Generator().manual_seed(1)), infrared, atol=1e-6)


def test_lta_draws_its_rectangle_anew_each_step(model):
    images = images_for(Modality.VISIBLE)
    with frozen(model), torch.no_grad():
        objective = LTA().objective(Target(model, images, Modality.VISIBLE, seed=3))
        first, second, again = (objective(images, step) for step in (0, 1, 0))
    assert (first > 0).all(), "on visible images the target differs from the clean feature"
    assert not torch.allclose(first, second)
    assert torch.equal(first, again)


def test_every_attack_says_what_it_is():
    assert list(IMAGE_SPECIFIC) == ["fgsm", "pgd", "metric-fgsm", "m-fgsm", "sma", "fna", "odfa", "lta"]
    for name, kind in IMAGE_SPECIFIC.items():
        described = kind(eps=0.1).describe()
        assert json.loads(json.dumps(described)) == described
        assert described["name"] == name
        assert described["steps"] == (1 if kind is FGSM else 10)
        assert described["step_size"] == pytest.approx(0.1 if kind is FGSM else 0.025)
        assert kind.knows.startswith("the victim's weights")
    assert MFGSM().describe()["momentum"] == 1


# Guides and stores


@pytest.fixture(scope="module")
def victim():
    torch.manual_seed(3)
    return models.build("agw", 12, "lite").eval()


@pytest.fixture(scope="module")
def uneven(tiny):
    """Test crops, shuffled, with two crops of the first identity left in each modality and four of each other."""
    records = list(dict.fromkeys(record for m in Modality for trial in tiny.trials(m) for record in trial.query))
    first = min(record.identity for record in records)
    own = [[r for r in records if (r.identity, r.modality) == (first, modality)] for modality in Modality]
    kept = [record for record in records if record.identity != first] + own[0][:2] + own[1][:2]
    order = np.random.default_rng(0).permutation(len(kept))
    return cached(tiny, [kept[place] for place in order], progress=False)


@pytest.mark.parametrize("modality", Modality)
def test_guides_are_the_persons_images_and_the_farthest_other(victim, uneven, modality):
    features = embed_store(victim, uneven, progress=False)
    rows = rows_of(uneven, modality)
    identities = np.array([record.identity for record in uneven.records])
    guides = GuideBank(victim, uneven, modality, 5).guides(features[rows], identities[rows].tolist())
    assert guides.same.shape == (len(rows), 4, CHANNELS)
    assert not guides.same.requires_grad
    for place, row in enumerate(rows):
        own = [other for other in rows if identities[other] == identities[row]]
        expected = features[[own[i % len(own)] for i in range(4)]]
        assert torch.allclose(guides.same[place], expected, atol=1e-5)
        others = {identities[other] for other in rows} - {identities[row]}
        means = [features[[r for r in rows if identities[r] == other]].mean(0) for other in sorted(others)]
        far = max(means, key=lambda mean: (features[row] - mean).norm().item())
        assert torch.allclose(guides.far[place], far, atol=1e-5)


def test_the_farthest_other_is_never_the_person(victim, uneven):
    bank = GuideBank(victim, uneven, Modality.VISIBLE)
    apart = bank.means - bank.means.mean(0)
    opposite = -1e3 * torch.linalg.pinv(apart).T  # nothing lies farther from it than the person's own mean
    assert torch.equal(torch.cdist(opposite, bank.means).argmax(1), torch.arange(len(bank.means)))
    far = bank.guides(opposite, list(bank.number)).far
    assert (torch.cdist(far, bank.means).argmin(1) != torch.arange(len(bank.means))).all()


def test_craft_attacks_each_crop_in_its_row_with_its_guides(victim, uneven):
    attack = FNA(steps=2)
    crafted = craft(attack, victim, uneven, batch_size=7)
    clean = uneven.batch(np.arange(len(uneven)))
    assert torch.equal(crafted.clean, clean)
    assert crafted.images.dtype == torch.float32
    assert len(crafted) == len(uneven)
    assert (crafted.images - clean).abs().max() <= attack.eps + 1e-6
    assert ((crafted.images - clean).abs().flatten(1).mean(1) > attack.eps / 4).all(), "every crop was attacked"
    for row in (0, len(uneven) - 1):
        record = uneven.records[row]
        bank = GuideBank(victim, uneven, record.modality)
        guides = bank.guides(victim.embed(clean[row : row + 1], record.modality).detach(), [record.identity])
        alone = attack(victim, clean[row : row + 1], record.modality, guides)
        # Float rounding may turn the sign of a gradient next to zero, never of more than a few pixels.
        assert ((alone[0] - crafted.images[row]).abs() > 1e-6).double().mean() < 0.02


def test_craft_is_repeatable_and_seeds_each_batch_apart(victim, uneven):
    first, second, other = (craft(SMA(steps=1), victim, uneven, batch_size=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)
    records = sorted(uneven.records, key=lambda record: record.modality)
    constant = ImageStore(np.full_like(uneven.images, 128), records)
    starts = craft(SMA(steps=1, step_size=1e-9), victim, constant, batch_size=8).images
    assert not torch.allclose(starts[:8], starts[8:16]), "two batches must not share their random start"


def test_an_attacked_store_is_ranked_like_any_other(victim, tiny, uneven):
    attack = MFGSM(eps=8.6 / 255, steps=4, tied=True)  # rounding to the nearest level would break this budget
    crafted = craft(attack, victim, uneven)
    rounded = crafted.rounded(attack.eps)
    assert rounded.records == crafted.records == uneven.records
    assert torch.equal((rounded.images * 255).round() / 255, rounded.images)
    assert (rounded.images - rounded.clean).abs().max() <= attack.eps + 1e-6
    infrared = rounded.batch(rows_of(uneven, Modality.INFRARED))
    assert torch.equal(infrared, infrared[:, :1].expand_as(infrared))
    features = embed_store(victim, rounded, progress=False)
    record = uneven.records[3]
    assert crafted.row[record] == 3
    assert torch.allclose(features[3], victim.embed(rounded.images[3:4], record.modality)[0], atol=1e-5)


@pytest.mark.parametrize("kind", [MetricFGSM, MFGSM, SMA, FNA])
def test_damage_grows_with_eps_and_without_a_budget_no_rank_is_left(victim, tiny, kind):
    """Even an untrained network finds a person's other images within a modality; that gives something to lose."""
    store = cached(tiny, [record for record in tiny.train if record.modality == Modality.VISIBLE], progress=False)
    names = torch.tensor([record.identity for record in store.records])
    clean = embed_store(victim, store, progress=False)

    def rank1(features):
        nearest = torch.cdist(features, clean).fill_diagonal_(torch.inf).argmin(1)
        return (names[nearest] == names).double().mean().item()

    weak, strong, free = (
        rank1(embed_store(victim, craft(kind(eps=eps, steps=5), victim, store), progress=False))
        for eps in (0.5 / 255, 8 / 255, 1.0)
    )
    assert rank1(clean) > 3 * 3 / (len(store) - 1), "three times chance"
    assert rank1(clean) >= weak > strong >= free
    assert free <= 3 / (len(store) - 1), "chance or below"


def test_missing_guides_are_refused_in_one_line(model, victim, uneven, tiny):
    for attack, guides, words in (
        (MFGSM(), None, r"guides\.same must hold one row for each of the 3 images"),
        (FNA(), Guides(guides_for().same), r"guides\.far"),
        (MFGSM(), guides_for(2), "one row"),
    ):
        with pytest.raises(InputError, match=words):
            attack(model, images_for(Modality.VISIBLE), Modality.VISIBLE, guides)
    held, visible = tiny.val, [record for record in tiny.val if record.modality == Modality.VISIBLE]
    held, seen = (cached(tiny, records, progress=False) for records in (held, visible))
    with pytest.raises(InputError, match="no image of identity"):
        craft(MFGSM(), victim, uneven, guide_store=held)
    with pytest.raises(InputError, match="no infrared image in the guide store"):
        craft(MFGSM(), victim, held, guide_store=seen)
    one = cached(tiny, [record for record in visible if record.identity == visible[0].identity], progress=False)
    assert len(craft(MFGSM(steps=1), victim, one)) == len(one)
    with pytest.raises(InputError, match="two or more identities"):
        craft(FNA(steps=1), victim, one)


def test_craft_reports_progress(victim, uneven, capsys):
    craft(FGSM(), victim, uneven, progress=True)
    assert f"{len(uneven)}/{len(uneven)}" in capsys.readouterr().err
