"""A chapter's parameters: what is read as what, and one line for everything else."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from miniatures import make_regdb

from vireid_lite.chapters.costs import Costs
from vireid_lite.chapters.parameters import check_parameters, check_values, read_parameters
from vireid_lite.errors import TIERS, InputError
from vireid_lite.victims import TIERS as VICTIM_TIERS

SIX = {"TIER": "lite", "DATASET": None, "DATA_ROOT": None, "SEED": 0, "DEVICE": "cpu", "OUT_DIR": "_build/chapters"}


def refusal(values: dict, **own) -> str:
    """Return the line that `values` are refused with."""
    with pytest.raises(InputError) as caught:
        check_values({**SIX, **values}, own)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TAKEN = {
    "fraction": {"4/255": 4 / 255, " 4 / 255 ": 4 / 255, "0.0157": 0.0157, 4 / 255: 4 / 255, 0: 0.0},
    "int": {"12": 12, 12.0: 12, -3: -3, 2**63 - 1: 2**63 - 1, "9007199254740993": 9007199254740993},
    "float": {"4/255": 4 / 255, "1e-3": 1e-3, 2: 2.0},
    "whole": {"0": 0},
    "bool": {"false": False, True: True},
    "str": {"abc": "abc"},
    "one_of[a, b]": {"b": "b"},
    "Optional[int]": {"none": None, None: None, "7": 7},
    "Optional[fraction]": {"1/2": 0.5},
}
REFUSED = {
    "fraction": ["8/0", "8/255/2", "8", "-1/255", "a/b", math.nan, True, None],
    "int": ["1.5", 1.5, True, "inf", [1]],
    "float": ["1e999", "fast", "nan"],
    "whole": [-1],
    "bool": [1, "yes"],
    "str": [3, ""],
    "one_of[a, b]": ["c"],
    "Optional[int]": ["some"],
    "number": [1],
}


@pytest.mark.parametrize("kind", TAKEN)
def test_values_arrive_as_what_they_should_be(kind):
    for given, read in TAKEN[kind].items():
        value = check_values({**SIX, "OWN": given}, {"OWN": kind})["OWN"]
        assert value == read
        assert type(value) is type(read)


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_refused_by_name(kind):
    for given in REFUSED[kind]:
        line = refusal({"OWN": given}, OWN=kind)
        assert line.startswith("OWN: expected ")
        assert repr(given) in line


def test_standard_parameters_are_refused_by_name():
    assert refusal({"EPZ": 1}, EPS="fraction").startswith("EPZ: no such parameter; this chapter has DATASET, DATA_ROOT")
    assert refusal({"TIER": "huge"}).startswith("TIER: expected one of lite, standard, full")
    assert refusal({"DATASET": "market"}).startswith("DATASET: expected one of")
    assert refusal({"SEED": "one"}).startswith("SEED: expected a whole number")
    assert refusal({"DEVICE": 0}).startswith("DEVICE: ")
    assert refusal({"DATASET": "sysu"}).startswith("DATA_ROOT: sysu")
    assert refusal({"TIER": "full"}).startswith("DATA_ROOT: sysu")
    with pytest.raises(InputError, match="EPS: missing"):
        check_values(SIX, {"EPS": "fraction"})


def test_tiers_and_their_data_are_those_of_the_victims():
    assert set(VICTIM_TIERS) == set(TIERS)


def test_settings_are_ready_to_use(tmp_path, capsys):
    root = make_regdb(tmp_path)
    names = {**SIX, "EPS": "4/255", "DATA_ROOT": str(root), "DATASET": "regdb"}
    cells = ["import math", "broken(", "SEED: int = 0\nEPS: 'fraction' = '8/255'"]
    settings = check_parameters({**names, "In": cells})  # in a notebook
    assert settings == check_parameters({**names, "__annotations__": {"SEED": int, "EPS": "fraction"}})  # in a script
    assert (settings.tier, settings.dataset, settings.seed) == ("lite", "regdb", 0)
    assert settings.eps == pytest.approx(4 / 255)
    assert settings.device == torch.device("cpu")
    assert settings.data_root == root
    assert settings.out_dir == Path("_build/chapters")
    assert capsys.readouterr().out.startswith("Tier lite on ")
    assert check_parameters(dict(SIX)).data_root is None
    assert check_parameters(dict(SIX)).dataset == "synthetic"


def test_what_this_machine_lacks_is_missed_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for tier in ("standard", "full"):
        names = {**SIX, "TIER": tier, "DATASET": "synthetic"}
        assert check_parameters(names).tier == tier  # DEVICE cpu asks for it
        with pytest.raises(InputError, match=f"^TIER: {tier} is sized for a GPU, and there is none here; use lite, or"):
            check_parameters({**names, "DEVICE": "auto"})
    for dataset, problem in (("sysu", "SYSU-MM01: "), ("regdb", "RegDB: "), ("llcm", "LLCM: ")):
        for folder, line in ((tmp_path / "none", f"{dataset}: .* is not a folder"), (tmp_path, problem)):
            with pytest.raises(InputError, match=f"^{line}.*; check DATA_ROOT"):
                check_parameters({**SIX, "DATASET": dataset, "DATA_ROOT": str(folder)})


def test_only_what_papermill_can_inject_counts_as_a_parameter():
    ordinary = {"In": [], "Out": {}, "_i": "x", "sys": sys, "refusal": refusal, "costs": Costs("none")}
    check_parameters({**SIX, **ordinary})
    for value in ("4/255", 1, 0.5, True, None, [1], {"a": 1}):
        with pytest.raises(InputError, match="eps: no such parameter"):
            check_parameters({**SIX, "eps": value})


def test_a_second_run_of_the_cell_allows_the_chapters_own_variables():
    names = dict(SIX)
    check_parameters(names)
    names |= {"epochs": 3, "SEED": "5"}
    assert check_parameters(names).seed == 5
    with pytest.raises(InputError, match="EPOCHZ"):
        check_parameters({**names, "EPOCHZ": 3})


def test_absent_device_is_one_line():
    with pytest.raises(InputError, match="DEVICE 'cuda:99' is not on this machine"):
        check_parameters({**SIX, "DEVICE": "cuda:99"})


def announced(capsys, costs: Costs, **values) -> list[str]:
    """Return the lines that a chapter begins with."""
    assert check_parameters({**SIX, **values}, costs).tier == values.get("TIER", "lite")
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def costs(tmp_path):
    """What a chapter cost: tier standard on an H200, nothing else."""
    path = tmp_path / "costs.json"
    standard = {"minutes": 30.0, "memory_gib": 2.0, "device": "NVIDIA H200", "gpu_gib": 9.5}
    path.write_text(json.dumps({"01_first": {"standard": standard}}))
    return Costs("01_first", path)


@pytest.mark.parametrize(("name", "capability"), [("Tesla T4", (7, 5)), ("NVIDIA H200", (9, 0))])
def test_a_gpu_switches_nothing_and_hears_what_a_larger_tier_costs_there(name, capability, costs, monkeypatch, capsys):
    there = {"is_available": True, "device_count": 1, "get_device_name": name, "get_device_capability": capability}
    there["is_bf16_supported"] = True  # as torch says of a T4 too
    for function, answer in there.items():
        monkeypatch.setattr(torch.cuda, function, lambda *_, answer=answer: answer)
    first, larger, *slow = announced(capsys, costs, DEVICE="auto")
    assert first == f"Tier lite on {name}; torch {torch.__version__}. It stays lite until you change TIER."
    elsewhere = "" if name == "NVIDIA H200" else ", not on this device"
    cost = f"standard 30.0 min and 2.0 GiB + 9.5 GiB of GPU on NVIDIA H200{elsewhere}; full not measured yet"
    assert larger == f"Larger: {cost}."
    assert [line.startswith("No native bf16 here, and many times slower") for line in slow] == [True] * (
        name != "NVIDIA H200"
    )
    assert announced(capsys, costs, DEVICE="auto", TIER="full", DATASET="synthetic") == [
        f"Tier full on {name}; torch {torch.__version__}.",
        *slow,
    ]


def test_without_a_gpu_a_larger_tier_is_said_to_need_one(costs, capsys):
    first, larger, need = announced(capsys, costs)
    assert first.endswith(f"; torch {torch.__version__}.")
    assert "on NVIDIA H200, not on this device; full not measured yet." in larger
    assert need == "Larger tiers are sized for a GPU; this run uses the CPU."


def test_costs_say_what_was_measured_and_what_was_not(tmp_path):
    path = tmp_path / "costs.json"
    lite = {"minutes": 1.25, "memory_gib": 0.84, "device": "two cores"}
    standard = {"minutes": 30.0, "memory_gib": 2.0, "device": "a GPU", "gpu_gib": 9.5}
    path.write_text(json.dumps({"01_first": {"lite": lite, "standard": standard}}))
    costs = Costs("01_first", path)
    assert costs.price("lite") == "1.2 min and 0.8 GiB on two cores"
    path.write_text(json.dumps({"first": {"lite": {**lite, "retrained": 5.34}}}))
    assert Costs("first", path).price("lite") == "1.2 (trained here 5.3) min and 0.8 GiB on two cores"
    assert costs.price("full") == "not measured yet"
    rows = costs._repr_markdown_().splitlines()
    assert len(rows) == 2 + len(TIERS)
    assert "1.2 | 0.8 GiB | two cores" in rows[2]
    assert rows[4].endswith("not measured yet |")
    assert Costs("01_first", tmp_path / "absent.json").price("lite") == "not measured yet"


def notebook(path: Path, *sources: str) -> Path:
    """Write a notebook of code cells, the first of them tagged parameters."""
    cells = [
        {"cell_type": "code", "metadata": {"tags": ["parameters"]} if not index else {}, "source": [source]}
        for index, source in enumerate(sources)
    ]
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_a_notebooks_parameters_are_read_without_running_it(tmp_path):
    first = 'SEED: int = 0\nEPS: "fraction" = "8/255"  # budget\nMODE: "one_of[a, b]" = "a"'
    check = "import nothing_of_the_kind\nsettings = check_parameters(globals(), costs)"
    defaults, own = read_parameters(notebook(tmp_path / "a.ipynb", first, check))
    assert defaults == {"SEED": 0, "EPS": "8/255", "MODE": "a"}
    assert own == {"EPS": "fraction", "MODE": "one_of[a, b]"}
    with pytest.raises(InputError, match=r"d.ipynb: STEPS = 2 \* 5 is no plain value"):
        read_parameters(notebook(tmp_path / "d.ipynb", "STEPS: int = 2 * 5", check))
    with pytest.raises(InputError, match="no cell calls check_parameters"):
        read_parameters(notebook(tmp_path / "b.ipynb", first, "1 + 1"))
    with pytest.raises(InputError, match="0 cells tagged parameters"):
        read_parameters(notebook(tmp_path / "c.ipynb"))
