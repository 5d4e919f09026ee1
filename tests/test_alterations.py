"""Controls made of a learned delta, noise of low frequency, and the rows of a campaign that ask for them."""

import math

import draws
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vireid_lite.attacks import CMPS, UniversalAttack, build_attack
from vireid_lite.attacks.alterations import ALTERATIONS, phase_scrambled
from vireid_lite.attacks.universal import SignNoise, UniformNoise
from vireid_lite.data import Modality, SyntheticVI, people
from vireid_lite.errors import InputError
from vireid_lite.study import campaign, cards, workers

CHANGES = {name: change for name, change in ALTERATIONS.items() if change}
EPS = 8 / 255


def hoops(height=48, width=24):
    """A delta as they are learned: hoops on the body, hardly any of them outside, all on the budget."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    waves = torch.sin(2 * math.pi * 6 * y + torch.tensor([0.0, 0.4, 2.0])[:, None, None])
    drawn = waves * torch.exp(-(((x - 0.5) / 0.25) ** 2)) + 0.3 * torch.randn(3, height, width, generator=generator)
    return EPS * drawn.sign()


def amplitudes(delta):
    return torch.fft.fft2(delta.double()).abs()


@settings(max_examples=draws.of(30), deadline=None)
@given(
    name=st.sampled_from(sorted(CHANGES)),
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    seed=st.integers(0, 2**31),
    saturated=st.booleans(),
)
def test_every_value_of_a_channel_is_kept_and_with_them_every_norm(name, size, seed, saturated):
    delta = torch.empty(3, *size).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(seed % 1000))
    delta = EPS * delta.sign() if saturated else delta
    changed, before = CHANGES[name](delta, seed), delta.clone()
    assert torch.equal(delta, before)
    assert changed.dtype == delta.dtype
    assert torch.equal(changed.flatten(1).sort(1).values, delta.flatten(1).sort(1).values)
    assert torch.equal(changed, CHANGES[name](delta, seed)), "the same seed gives the same bits"


@pytest.mark.parametrize("size", [(48, 24), (33, 17)])
def test_the_spectrum_stays_and_the_place_does_not(size):
    delta = hoops(*size)
    for name in ("mirrored", "shifted"):
        found = amplitudes(CHANGES[name](delta, 0))
        found = torch.cat([found[..., :1], found[..., 1:].flip(-1)], -1) if name == "mirrored" else found
        torch.testing.assert_close(found, amplitudes(delta), rtol=1e-6, atol=1e-9)
        assert (CHANGES[name](delta, 0) * delta).sum() < 0.5 * delta.square().sum()
    assert torch.equal(CHANGES["mirrored"](CHANGES["mirrored"](delta, 0), 0), delta)


def test_scrambled_phases_leave_the_spectrum_nearly_and_nothing_of_the_picture():
    delta, off = hoops(), {}
    shuffled = delta.flatten(1)[:, torch.randperm(delta[0].numel(), generator=torch.Generator().manual_seed(1))]
    for name, other in (("scrambled", phase_scrambled(delta, 0)), ("shuffled", shuffled.view_as(delta))):
        off[name] = ((amplitudes(other) - amplitudes(delta)).norm() / amplitudes(delta).norm()).item()
    assert off["scrambled"] < 0.5 * off["shuffled"]
    scrambled = phase_scrambled(delta, 0)
    assert not torch.equal(scrambled, phase_scrambled(delta, 1))
    # Nor is it the same picture at another place: the largest correlation over all shifts.
    crossed = torch.fft.ifft2(torch.fft.fft2(delta.double()) * torch.fft.fft2(scrambled.double()).conj()).real.sum(0)
    assert crossed.abs().max() < 0.5 * delta.double().square().sum()


def test_scrambled_phases_keep_the_relation_of_the_channels():
    """What falls on an infrared image where channels are tied is their mean: a control must not lose it."""
    delta = hoops()
    assert phase_scrambled(delta, 0).mean(0).norm() == pytest.approx(delta.mean(0).norm().item(), rel=0.15)
    grey = delta[:1].expand(3, -1, -1)
    assert torch.equal(*phase_scrambled(grey, 0)[:2]), "equal channels stay equal"
    flat = torch.full((3, 6, 4), EPS)
    assert torch.equal(phase_scrambled(flat, 0), flat)


@pytest.mark.parametrize("name", CHANGES)
def test_a_fit_ends_with_the_alteration_of_what_it_learned(store, victim, name):
    how = {"steps": 3, "batch_size": 8}
    learned, altered = CMPS(**how).fit(victim, store, 4), CMPS(**how, altered=name).fit(victim, store, 4)
    assert torch.equal(altered.delta, CHANGES[name](learned.delta, 4))
    assert not torch.equal(altered.delta, learned.delta)
    assert altered.made_by == {**learned.made_by, "altered": name}
    assert altered.history == learned.history
    both = SignNoise(tied=True, altered=name).fit(victim, store, 4).delta
    plain = SignNoise(tied=True).fit(victim, store, 4).delta
    assert all(torch.equal(both[m], CHANGES[name](plain[m], 4)) for m in Modality)


def test_what_is_more_than_a_delta_is_not_altered():
    for name in ("col-del", "dmr"):
        with pytest.raises(InputError, match="altered 'mirrored' is unknown; choose from no"):
            build_attack(name, altered="mirrored")
    with pytest.raises(InputError, match="choose from no, phase-scrambled"):
        build_attack("cmps", altered="upside-down")
    with pytest.raises(InputError, match="cells"):
        build_attack("sign-noise", cells=-1)


@pytest.mark.parametrize("tied", [False, True])
def test_noise_on_a_grid_is_of_low_frequency_and_of_one_cell_a_colour(store, victim, tied):
    def low(made):
        """The share of power in the lowest frequencies, an eighth of each axis, the mean left out."""
        delta = made.delta[Modality.INFRARED] if tied else made.delta
        power = amplitudes(delta).square()
        power[:, 0, 0] = 0
        height, width = (torch.fft.fftfreq(side).abs() <= 1 / 8 for side in delta.shape[-2:])
        return float(power[:, height][:, :, width].sum() / power.sum())

    for kind in (SignNoise, UniformNoise):
        white, coarse = (kind(tied=tied, cells=cells).fit(victim, store, 3) for cells in (0, 4))
        assert low(coarse) > 2 * low(white)
        colour = kind(tied=tied, cells=1).fit(victim, store, 3).delta
        for each in colour.values() if tied else [colour]:
            assert (each - each[:, :1, :1]).abs().max() < 1e-6
            assert 0 < each.abs().max() <= EPS
    assert (SignNoise(cells=4).fit(victim, store, 3).delta.abs() == torch.tensor(EPS)).all(), "the whole budget"
    drawn = {tuple(SignNoise(cells=1).fit(victim, store, seed).delta[:, 0, 0].sign().tolist()) for seed in range(12)}
    assert len(drawn) > 2


ROWS = """
train = { epochs = 1, identities = 4, images = 2 }
attack = { name = "cmps", gradients = 4 }
[dataset]
size = [32, 16]
num_identities = 8
images_per_modality = 2
val_identities = 4
test_identities = 4
traffic_identities = 6
[[run]]
attack = {}
[[run]]
name = "control"
attack = {}
grid = { "attack.altered" = ["phase-scrambled", "mirrored", "shifted"] }
[[run]]
name = "start"
attack = { name = "sma", steps = 2, start = { name = "cmps", gradients = 4 } }
[[run]]
name = "control"
attack = { learn_from = "traffic", identities = 5 }
[[run]]
name = "control"
attack = {}
surrogate = { seed = "next" }
[[run]]
name = "control"
attack = { stem = "other", erased = true }
surrogate = { seed = "next" }
"""


def test_a_campaign_asks_for_every_control_and_learns_once_what_several_need(tmp_path, monkeypatch):
    file, out = tmp_path / "c.toml", tmp_path / "out"
    file.write_text(ROWS)
    monkeypatch.setenv("VIREID_CACHE", str(tmp_path / "cache"))
    learned_from, fit = [], UniversalAttack.fit

    def fitting(self, model, store, *given, **more):
        learned_from.append((model.people, people(store.dataset, store.records)))
        return fit(self, model, store, *given, **more)

    monkeypatch.setattr(UniversalAttack, "fit", fitting)
    workers.run_campaign(file, out, progress=False)
    runs, found = campaign.read_campaign(file), campaign.Results(out)
    assert len({run.key for run in runs}) == len(runs) == 8
    assert len(learned_from) == 4, "altered deltas, and the start, are made of one that is learned once"
    own, strangers, *others = learned_from
    assert own[0] == own[1]
    assert strangers[0] == own[0]
    assert len(strangers[1]) == 5
    assert not strangers[1] & own[1]
    assert all(victim == taught == own[0] for victim, taught in others), "another victim of the same recipe"
    told = [found.card(run) for run in runs]
    assert all(card["key"] == run.key for card, run in zip(told, runs, strict=True))
    rank = {}
    for card in told:
        attack = card["attack"]
        rank[attack["name"], attack.get("altered"), attack.get("learn_from"), "surrogate" in card] = card
    assert rank["cmps", "no", None, True]["surrogate"]["seed"] == 1
    start = rank["sma", None, None, False]
    assert start["attack"]["start"]["eps"] == start["attack"]["eps"]
    assert "attack/cmps" in start["made_with"]
    for gained in start["gained"].values():
        assert set(gained) == {"own start", "delta", "from delta", "delta ahead"}
        assert gained["from delta"] > gained["delta"]
        assert 0 <= gained["delta ahead"] <= 1


def test_what_a_control_leaves_out_names_the_card_as_before():
    """Every option at its default: nothing is said, and the key is that of a run that does not know it."""
    plain = {"attack": {"name": "cmps", "gradients": 8}, "dataset": {"size": [32, 16]}}
    said = {**plain["attack"], "altered": "no", "learn_from": "train", "stem": "own", "erased": False}
    (one,), (other,) = (campaign.parse({**plain, "attack": attack}) for attack in (plain["attack"], said))
    assert one.key == other.key
    assert not {"learn_from", "start"} & one.configuration["attack"].keys()
    image = {"attack": {"name": "sma", "start": {"name": "cmps"}}}
    (run,) = campaign.parse(image)
    assert cards.completed(
        short := cards.shortened(run.configuration, usual := cards.defaults(run.configuration)), usual
    )
    assert short["attack"]["start"] == {"name": "cmps", "mode": "paper"}
    for attack in ({**image["attack"], "identities": 7}, {"name": "sma", "start": {"name": "cmps", "identities": 7}}):
        (run,) = campaign.parse({"attack": attack})
        assert run.identities == run.configuration["attack"]["identities"] == 7


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ({"name": "cmps", "start": {"name": "uap"}}, "made for one image each"),
        ({"name": "sma", "start": {"name": "pgd"}}, "makes no delta"),
        ({"name": "sma", "start": {"gradients": 4}}, "attack.start needs a name"),
        ({"name": "sma", "start": "cmps"}, "start must be of type dict"),
        ({"name": "cmps", "learn_from": "test"}, "learn_from 'test' is unknown; choose from train, traffic"),
    ],
)
def test_a_control_that_makes_no_sense_is_one_line(attack, said):
    with pytest.raises(InputError, match=said) as error:
        campaign.parse({"attack": attack})
    assert "\n" not in str(error.value)


def test_strangers_who_are_not_there_are_refused():
    data = SyntheticVI(4, 2, size=(32, 16), val_identities=2, test_identities=2)
    with pytest.raises(InputError, match="0 people to learn from in traffic"):
        campaign.taught(data, None, "traffic")


def test_a_perturbation_may_have_a_seed_of_its_own(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(ROWS[: ROWS.index("[[run]]")] + "[[run]]\nseeds = [2]\nattack = { name = 'sign-noise' }\n"
                    "grid = { 'attack' = [{}, { seed = 7 }, { seed = 2 }] }\n")  # fmt: skip
    report = workers.run_campaign(path, tmp_path / "out", progress=False)
    usual, other, same = (cards.read_card(tmp_path / "out" / name) for name in report["ran"])
    assert [card["attack"].get("seed") for card in (usual, other, same)] == [None, 7, 2]
    assert {card["seed"] for card in (usual, other, same)} == {2}
    assert usual["clean"] == other["clean"]
    assert usual["scores"] == same["scores"] != other["scores"]
    with pytest.raises(InputError, match="seed must be a whole number of at least 0, got -1"):
        campaign.parse({"attack": {"name": "sign-noise", "seed": -1}})
