"""Every file the product reads, with one thing of it changed: it is refused in one line, or gives the very same result.

A kind of file is a line of `KINDS`: how a valid one is made, the product's own reader, and what may differ. A new kind
is a new line. The sample here takes seconds; `VIREID_MUTATIONS=whole` runs all, `=note` notes the counts in
`tests/data/mutations.json` too.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from kinds import ASKED, MORE, OTHER, a_copy, crops, digest, embedded
from miniatures import make_llcm, make_pairs, make_regdb, make_sysu
from mutations import BYTES, FORMS, TREES, Kind, mutated
from rewritten import OTHER_IMAGES, REWRITTEN, WRONG_IMAGES
from test_checkpoints import OfficialLayout

from _make import claims
from vireid_lite import behaviour, cli, models
from vireid_lite.attacks import GeneratorPerturbation, UniversalPerturbation, load_perturbation
from vireid_lite.attacks.dmr import Generator
from vireid_lite.chapters.costs import Costs
from vireid_lite.data import Modality, load_dataset
from vireid_lite.errors import InputError
from vireid_lite.files import UNSEALED, sealed
from vireid_lite.models.checkpoints import save_checkpoint
from vireid_lite.models.official import load_official
from vireid_lite.study.campaign import Results, read_campaign
from vireid_lite.study.grids import FOLDER as GRIDS
from vireid_lite.study.grids import read_grid
from vireid_lite.training import note, resume

ROOT, SEED, WHOLE = Path(__file__).parents[1], 15, os.environ.get("VIREID_MUTATIONS", "")
RESULTS, REPORT = ROOT / "book" / "results", Path(__file__).parent / "data" / "mutations.json"
TALLY: dict[str, Counter] = {}


def save_perturbation(folder: Path) -> Path:
    delta = {modality: 0.03 * crops(1)[0] - 0.015 for modality in Modality}
    lattice = torch.full((3, 4, 4, 4), 0.01)
    made = UniversalPerturbation(delta, 0.03, True, [{"step": 0, "loss": 1.5}], lattice, made_by={"name": "x"})
    made.save(folder / "perturbation.safetensors")
    return folder / "perturbation.safetensors"


def save_generator(folder: Path) -> Path:
    torch.manual_seed(0)
    weights = torch.nn.utils.parameters_to_vector(Generator(8).parameters()).detach()
    GeneratorPerturbation(weights, (32, 16), 0.03, 8, True).save(folder / "perturbation.safetensors")
    return folder / "perturbation.safetensors"


def applied(path: Path) -> object:
    made = load_perturbation(path)
    return type(made), made.eps, made.tied, digest(*(made.apply(crops(), modality) for modality in Modality))


def save_victim(folder: Path) -> Path:
    torch.manual_seed(0)
    model = models.build("agw", 7, "lite", gem_p=2.0)
    card = {"key": "k", "dataset": {"name": "synthetic", "size": [32, 16]}, "history": [{"epoch": 0, "seconds": 1.0}]}
    save_checkpoint(folder / "victim.safetensors", model, card)
    return folder / "victim.safetensors"


def victim(path: Path) -> object:
    options = [("num_identities", 2), ("val_identities", 2), ("test_identities", 2)]
    model, _, data = cli._victim(
        path, None, None, 0, torch.device("cpu"), "lite", "synthetic", None, None, options, False
    )
    return embedded(model), data.size


def save_official(folder: Path) -> Path:
    torch.manual_seed(0)
    layout = OfficialLayout("resnet18", (0, 0, 0, 0), 3)
    for part in (layout.visible_module.visible, layout.thermal_module.thermal):
        del part.layer1, part.layer2, part.layer3, part.layer4
    torch.save({"net": layout.state_dict(), "epoch": 3}, folder / "agw.t")
    return folder / "agw.t"


def official(path: Path) -> object:
    model, card = load_official(path)
    return embedded(model), card["dataset"]


def save_note(folder: Path) -> Path:
    model, tensor = torch.nn.Linear(2, 2), torch.ones(3)
    note(folder / "state.pt", "key", {"model": model, "delta": tensor}, [{"step": 0}])
    return folder / "state.pt"


def noted(path: Path) -> object:
    state = {"model": torch.nn.Linear(2, 2), "delta": torch.zeros(3)}
    history = resume(path, "key", state)
    return history, digest(state["delta"], *state["model"].state_dict().values())


def a_sealed_card(folder: Path) -> Path:
    path = Path(shutil.copy(min(RESULTS.glob("attack-cmps-*")), folder))
    path.write_bytes(sealed(path.read_bytes().replace(b"{", b'{"seal":"' + UNSEALED + b'",\n', 1)))
    return path


def a_card(path: Path) -> object:
    results = Results(path.parent)
    results.plan([])
    return {name: value for name, value in results.cards[0].items() if name not in FREE_OF_CARDS.split()}


FREE_OF_CARDS = (
    "anatomy history made_with date wall_seconds craft_seconds train_seconds peak_memory_mib device threads versions"
)


def records(name: str, place: str, maker: Callable, **options: object) -> Kind:
    """Return the kind of a file under a small copy of a data set."""

    def make(folder: Path) -> Path:
        maker(folder)
        return folder / place

    def read(path: Path) -> object:
        data = load_dataset(name, path.parents[place.count("/")], **options)
        return sorted(
            map(repr, [*data.train, *data.val, *(r for trial in data.trials() for side in trial for r in side)])
        )

    form = "json" if place.endswith("json") else "lines"
    # That a list ends early, or names other people, is told by its counts (`data check`).
    return Kind(make, read, form, other="drop permuted truncated flipped out-of-range empty value")


CAMPAIGN = """
[[run]]
name = "attack"
tier = "lite"
seeds = [0, 1]
anatomy = true
dataset = { name = "synthetic", difficulty = "easy", size = [64, 32] }
victim = { model = "agw", backbone = "lite", options = { gem_p = 2.0 } }
train = { epochs = 2, learning_rate = 0.01, augmentation = { pad = 2 } }
attack = { name = "cmps", gradients = 40, eps = "8/255", tied = true }
surrogate = { seed = 9 }
grid = { "attack.momentum" = [0.5, 1.0] }
"""


def save_campaign(folder: Path) -> Path:
    (folder / "own.toml").write_text(CAMPAIGN)
    return folder / "own.toml"


def costs(folder: Path) -> Path:
    one = {"minutes": 1.5, "memory_gib": 2.0, "device": "a GPU", "gpu_gib": 9.5}
    (folder / "costs.json").write_text(json.dumps({"01": {"lite": one, "full": one}}))
    return folder / "costs.json"


def ledger(path: Path) -> object:
    found = claims.read_ledger(path)
    quoted = [claim for claim in found.claims if claim.evidence["kind"] in ("code", "text")]
    return repr(found), repr([claims.find(claim, found, []) for claim in quoted])


def entries(path: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behaviour, "FILE", path)
        behaviour.entries.cache_clear()
        try:
            return [behaviour.differs(part, found) for part, found in behaviour.entries().items()]
        finally:
            behaviour.entries.cache_clear()


def an_image(path: Path) -> object:
    data = load_dataset("paired_folder", path.parents[1], size=(16, 8))
    return digest(*map(data.read, data.test))


# An older run card has no seal: a share that is another share, or a list of people shorter or in another order, passes.
KINDS = {
    "perturbation": Kind(save_perturbation, applied, "tensors", "history made_by", "permuted"),
    "generator": Kind(save_generator, applied, "tensors", "history made_by", "permuted"),
    "checkpoint": Kind(save_victim, victim, "tensors", "key history name", "permuted"),
    "published": Kind(save_official, official, "pickle", "epoch", "permuted"),
    "state note": Kind(save_note, noted, "sealed"),
    "run card": Kind(
        a_copy(min(RESULTS.glob("attack-cmps-*"))),
        a_card,
        "card",
        FREE_OF_CARDS,
        "extra flipped drop permuted twice out-of-range",
    ),
    "sealed card": Kind(a_sealed_card, a_card, "card"),
    "campaign": Kind(save_campaign, lambda path: [run.key for run in read_campaign(path)], "toml", other=ASKED),
    "grid": Kind(a_copy(GRIDS / "smoke.toml"), lambda path: list(map(str, read_grid(path).rows)), "toml", other=ASKED),
    "boxes": records("paired_folder", "boxes.json", make_pairs),
    "image": Kind(
        lambda folder: make_pairs(folder) / "visible/set00_V000_I00019.png",
        an_image,
        "bytes",
        other=" ".join(OTHER_IMAGES),
    ),
    "sysu list": records("sysu", "exp/test_id.txt", make_sysu),
    "regdb list": records("regdb", "idx/test_visible_1.txt", make_regdb),
    "llcm list": records("llcm", "idx/train_vis.txt", make_llcm),
    "costs": Kind(costs, lambda path: repr(Costs("01", path)), other=OTHER),
    "claims": Kind(a_copy(ROOT / "book" / "claims.toml"), ledger, "toml", "printed selection evidence", OTHER),
    "behaviour": Kind(a_copy(behaviour.FILE), entries, other=OTHER),
    **MORE,
}


def snapshot(folder: Path) -> dict[str, tuple]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    made: dict[str, tuple] = {}

    def get(name: str) -> tuple[Path, bytes, object]:
        if name not in made:
            path = KINDS[name].make(tmp_path_factory.mktemp(name.replace(" ", "-")))
            made[name] = path, path.read_bytes(), KINDS[name].read(path)
            assert KINDS[name].read(path) == made[name][2], "reading it twice gives the same"
        return made[name]

    return get


QUICK = ("wrong-type", "nan", "drop", "twice", "truncated")  # of what takes a second to read
ALL = [(name, change) for name, kind in KINDS.items()
       for change in (*TREES * (kind.form in FORMS), *BYTES, *REWRITTEN[kind.form])]  # fmt: skip
PAIRS = [(name, change) for name, change in ALL if WHOLE or name != "published" or change in QUICK]


@pytest.mark.parametrize(("name", "change"), PAIRS)
def test_a_changed_file_is_refused_in_one_line_or_reads_the_same(valid, name, change):
    kind, (path, data, right) = KINDS[name], valid(name)
    slow = name in ("published", "checkpoint", "modified victim")
    kept = change in REWRITTEN[kind.form] and change not in WRONG_IMAGES
    count = (1 if slow else 2) * (5 if kept and WHOLE else 1)

    @seed(SEED)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def one(drawn) -> None:
        if (new := mutated(kind, data, change, drawn.draw)) is None:
            return
        path.write_bytes(new)
        before, got = snapshot(path.parents[1]), None
        try:
            found = "same" if (got := kind.read(path)) == right else "other"
        except InputError as error:
            found = "refused" if "\n" not in str(error) and len(str(error)) < 1000 else f"too much said: {error}"
        finally:
            after = snapshot(path.parents[1])
            path.write_bytes(data)
        assert after == before
        allowed = ("same", *["refused"] * (not kept), *["other"] * (change in kind.other))
        assert found in allowed, f"{found}: {new[:2000]!r}\nread as {got!r:.2000}\nnot {right!r:.2000}"
        TALLY.setdefault(f"{name}: {change}", Counter())[found] += 1

    one()


INTEGERS, WORDS = ("x", "-1", "1.5", "", "1e9", "nan", "2**70", str(2**70)), ("", "AGW ", "0", "None")
PAIRED = ("x", "=1", "x=", "a=1 a=2", "surplus=1")
# The options of a command, each with values that it cannot have; what follows a command in its name is always given.
CALLS: dict[str, dict[str, tuple]] = {
    "train": {"--seed": INTEGERS, "--epochs": (*INTEGERS, "0"), "--tier": WORDS, "--dataset": WORDS, "--model": WORDS,
              "--triplet": WORDS[:3], "--backbone": WORDS, "--learning-rate": ("x", "-1", "0", "nan", "inf", "1e400"),
              "-o": PAIRED, "--set": PAIRED[:2], "--size": ("96", "x48", "96x", "0x0", "9x9x9", "-1x2", "99999x99999"),
              "--device": ("gpu", "cuda:-1", "", "CPU"), "--data-root": ("/nowhere", "")},
    "evaluate": {"--seed": INTEGERS, "--tier": WORDS, "--dataset": WORDS, "--split": WORDS, "--query-modality": WORDS,
                 "-o": PAIRED, "--size": ("96", "x48", "96x", "0x0", "9x9x9", "-1x2", "99999x99999"),
                 "--device": ("gpu", "cuda:-1", "", "CPU"), "--checkpoint": ("/nowhere", ""), "--model": ("agw", "x"),
                 "--official": ("/nowhere", ""), "--perturbation": ("/nowhere", "")},
    "attack uap": {"--seed": INTEGERS, "--eps": ("9", "-1", "nan", "1/0", "x", "inf", "8/", "0"), "--tier": WORDS,
                   "--gradients": (*INTEGERS, "0"), "--identities": (*INTEGERS, "1"), "--set": (*PAIRED, "eps=1"),
                   "--split": WORDS, "--checkpoint": ("/nowhere", ""), "--device": ("gpu", "cuda:-1", "", "CPU")},
    "bench smoke --dry-run": {"--workers": (*INTEGERS, "0"), "--threads": (*INTEGERS, "0"), "--tier": WORDS,
                              "--seeds": ("x", "-1", "1,", "1.5", ","), "--set": ("x", "=1", "a=1", "train.surplus=1"),
                              "--data-root": ("sysuu=/x", "sysu", "=/x", "SYSU=/x", "synthetic=/x"), "--only": ("?",)},
    "data check sysu": {"--root": ("/nowhere", "", __file__)},
}  # fmt: skip
WRONG = [(call, option, value) for call, options in CALLS.items() for option in options for value in options[option]]


@pytest.mark.parametrize(("call", "option", "value"), WRONG if WHOLE else WRONG[::5])
def test_a_wrong_call_is_refused_in_one_line_and_writes_nothing(call, option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place in ("victims", "study.run"):
        monkeypatch.setattr(f"vireid_lite.{place}.load_or_train", lambda *_, **__: pytest.fail("it ran"))
    given = [word for each in value.split(" ") for word in (option, each)] if "=" in value else [option, value]
    monkeypatch.setattr("sys.argv", ["vireid-lite", *call.split(), *given])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2, said
    assert said.err.count("\n") == 1, said.err
    assert not list(tmp_path.iterdir())


def test_the_campaign_is_as_large_as_its_report_says():
    """Runs last: notes what was tried, where asked, and holds the report to the promise."""
    if WHOLE == "note":
        found = {"seed": SEED, "wrong calls": len(WRONG), "files": {name: dict(seen) for name, seen in TALLY.items()}}
        REPORT.write_text(json.dumps(found, indent=1) + "\n")
    noted = json.loads(REPORT.read_text())
    tried = {name: sum(seen.values()) for name, seen in noted["files"].items()}
    assert sum(tried.values()) >= 300
    assert noted["wrong calls"] == len(WRONG) >= 200
    for kind in KINDS:
        own = [(name.split(": ")[1], seen) for name, seen in noted["files"].items() if name.split(": ")[0] == kind]
        counts = sum((Counter(seen) for _, seen in own), Counter())
        assert len(own) >= 10
        half = counts.total() <= 2 * (counts["same"] + counts["other"])
        assert half or not REWRITTEN[KINDS[kind].form], (kind, counts)
    assert {name.split(": ")[0] for name in tried} == set(KINDS)
