"""The ledger: every verdict follows from its evidence, the page is written from the file, and both can be wrong."""

import copy
import csv
import re
import shutil
from collections import defaultdict
from functools import reduce
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from _make import arithmetic, claims
from _make.build import sync
from _make.evidence import (
    CONTRADICTS,
    HOLDS,
    LICENSED,
    NOT,
    NOT_RUN,
    OPEN,
    PARTLY,
    TYPO,
    UNDECIDED,
    VERDICTS,
)
from vireid_lite.errors import InputError
from vireid_lite.files import PACKAGE
from vireid_lite.study.cards import read_cards

ROOT = Path(__file__).parents[1]
ONE = """
[papers]
cmps = "CMPS"
[repositories]
CMPS = "78126a2"
[printed]
eps = 8
[[claim]]
id = "C1"
paper = "cmps"
where = "abstract"
whose = "printed"
about = "text"
statement = "It says {eps}."
verdict = "contradicts itself"
evidence = { kind = "text", places = ["equation 1", "equation 2"], text = "they differ" }
"""


@pytest.fixture(scope="module")
def ledger():
    return claims.read_ledger(ROOT / "book" / "claims.toml")


@pytest.fixture(scope="module")
def cards():
    return read_cards(ROOT / "book" / "results")


@pytest.fixture(scope="module")
def found(ledger, cards):
    return claims.check(ledger, cards)


def test_the_ledger_is_large_enough_and_covers_both_papers(ledger):
    assert len(ledger.claims) >= 40
    assert len({claim.id for claim in ledger.claims}) == len(ledger.claims)
    assert {claim.paper for claim in ledger.claims} == {"cmps", "feature"}
    for word in ("transfer", "notices", "first", "rerun", "grey", "parameters"):
        assert any(word in claim.statement for claim in ledger.claims), word


def test_every_verdict_is_what_its_evidence_gives(ledger, found):
    for claim in ledger.claims:
        assert claim.verdict in VERDICTS
        assert found[claim.id].verdict == claim.verdict, claim.id
        assert found[claim.id].text, claim.id
        assert found[claim.id].data, claim.id


def test_the_page_is_the_rendering_of_the_file(ledger, found):
    written = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
    assert written == claims.render(ledger, found, ROOT), "run vireid-lite book --sync"


def test_each_claim_is_one_row_of_short_cells(ledger, found):
    rows = [line for line in claims.render(ledger, found, ROOT).splitlines() if re.match(r"\| [CF]\d", line)]
    assert len(rows) == len(ledger.claims)
    for claim, row in zip(ledger.claims, rows, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 6
        assert all(cells)
        assert cells[0] == claim.id
        assert max(len(re.sub(r"\]\([^)]*\)", "", cell)) for cell in cells) <= 260, row


def test_evidence_outside_the_cards_names_places_and_commits(ledger):
    for claim in ledger.claims:
        kind, places = claim.evidence["kind"], claim.evidence.get("places", [])
        if kind == "code":
            assert re.fullmatch(r"[0-9a-f]{7,40}", ledger.repositories[claim.evidence["repository"]])
            assert all(re.fullmatch(r"[\w./-]+\.(py|md|sh)(:\d+(-\d+)?)?", place) for place in places), claim.id
        if claim.verdict in (CONTRADICTS, TYPO) and kind == "text":
            assert len(set(places)) >= 2, claim.id
        if kind == "cards":
            assert claim.evidence["command"].startswith("vireid-lite "), claim.id


def test_synthetic_people_settle_no_number_of_a_licensed_set(ledger, found, cards):
    for claim in ledger.claims:
        if claim.about == "number" and "synthetic" in found[claim.id].data:
            assert claim.verdict in OPEN, claim.id
    forced = next(one for one in ledger.claims if one.evidence["kind"] == "cards" and one.verdict not in OPEN)
    with pytest.raises(InputError, match="which synthetic images cannot settle"):
        claims.check(ledger._replace(claims=[forced._replace(about="number")]), cards)


def test_no_row_names_a_person(ledger, found):
    page = claims.render(ledger, found, ROOT)
    rows = "\n".join(line for line in page.splitlines() if line.startswith("| "))
    authors = re.findall(r"author\s*=\s*[{\"](.+?)[}\"],?\n", (ROOT / "book" / "references.bib").read_text())
    names = {part.split(",")[0].strip(" {}") for author in authors for part in author.split(" and ")}
    names -= {"others"}
    assert len(names) > 30
    for name in names:
        assert not re.search(rf"\b{re.escape(name)}\b", rows), name
    assert "{cite}" not in rows


@pytest.mark.parametrize("kind", ["arithmetic", "cards"])
def test_a_verdict_that_its_evidence_does_not_give_is_refused(ledger, cards, kind):
    claim = next(claim for claim in ledger.claims if claim.evidence["kind"] == kind)
    given = claims.find(claim, ledger, cards).verdict
    wrong = NOT if given == HOLDS else HOLDS
    with pytest.raises(InputError, match=rf"{claim.id} says '{wrong}', its evidence '{given}'"):
        claims.check(ledger._replace(claims=[claim._replace(verdict=wrong)]), cards)


def test_a_pending_claim_is_open_and_names_its_command(ledger):
    for claim in ledger.claims:
        if claim.evidence["kind"] == "cards":
            finding = claims.find(claim, ledger, [])
            verdict = LICENSED if claim.about == "number" else NOT_RUN
            assert (finding.verdict, finding.text) == (verdict, f"pending: `{claim.evidence['command']}`")


# Arithmetic, derived again by hand.


def test_the_least_average_precision_is_that_of_a_list_with_all_matches_last():
    for ranked, matches in product((5, 56, 112), (1, 2, 4)):
        hits, total = 0, 0.0
        for place in range(1, ranked + 1):
            if place > ranked - matches:
                hits += 1
                total += hits / place
        assert arithmetic._least(ranked, matches) == pytest.approx(total / matches)


def test_the_span_of_no_information_holds_its_mean_and_is_wider_than_one_draw_a_query():
    ends = arithmetic._uninformed()
    for name, mean in (("RegDB", 100 / 206), ("SYSU-MM01", 1.0)):
        for (low, high), *others in ends[name].values():
            assert low < mean < high, "whatever a person's share, one right image in so many comes first"
            assert all(0 <= least < most < 30 for least, most in others)
    independent = 100 * np.sqrt(1 / 206 * (1 - 1 / 206) / 2060)
    assert ends["RegDB"][0][0][1] - 100 / 206 > 1.96 * independent


def test_a_row_is_explained_by_one_form_of_no_information_and_not_by_the_hull_of_all(ledger):
    """The least of one form with the most of another, which exclude each other, are no row of either."""
    printed, ends = copy.deepcopy(ledger.printed), arithmetic._uninformed()["RegDB"]
    row = printed["final"]["RegDB"]["FSAM"]
    for score, number in (("rank1", 0), ("rank10", 1), ("mAP", 2), ("mINP", 3)):
        row[score] = ends[0][number].mean()
    assert arithmetic.at_floor(printed, ["FSAM"])["fits"]["RegDB"]["FSAM"].startswith("0")
    row["mINP"] = ends[1][3].mean()
    assert arithmetic.at_floor(printed, ["FSAM"])["fits"]["RegDB"]["FSAM"] == "none"


@pytest.mark.parametrize(
    ("claim", "path", "value", "verdict"),
    [
        ("C30", "table1.AGW.CMPS.mAP", [1.41, 1.60], UNDECIDED),
        ("C33", "sysu_people.test_stated", 96, HOLDS),
        ("C34", "table6_eps8", [2.3, 1.9], HOLDS),
        ("C25", "fgsm_pgd_above", 30, HOLDS),
        ("C25", "fgsm_pgd_above", 90, NOT),
        ("C32", "table1.AGW.none.mAP", [47.0, 62.97], UNDECIDED),
        ("C35", "deen.page", [[62.53, 65.84], [54.96, 62.95]], HOLDS),
        ("C35", "deen.paper", [[60.0, 65.8], [54.9, 62.9]], NOT),
        ("C36", "table5_full", [[3.46, 1.93], [1.23, 1.30]], UNDECIDED),
        ("F24", "clean_tables_1_and_3", {"SYSU-MM01": [47.5, 47.5], "RegDB": [70.05, 70.05]}, HOLDS),
        ("F25", "ablation_clean_map", [45.78, 45.78], HOLDS),
        ("F26", "answer_regdb_before", [70.05, 86.21], HOLDS),
        ("F27", "parameters_million", 23.6, NOT),
        ("F28", "giga_flops.before", 5.2, NOT),
        ("F29", "giga_flops", {"before": 5, "FGSM": 5, "UAP": 5, "ours": 6}, HOLDS),
        ("F18", "final.RegDB.FSAM.rank1", 9.0, PARTLY),
        ("F21", "table3_ablation", {"": [1, 1], "SFM": [2, 2]}, NOT),
        ("F21", "table3_ablation", {"": [2, 2], "SFM": [1, 3]}, PARTLY),
    ],
)
def test_other_printed_numbers_give_another_verdict(ledger, claim, path, value, verdict):
    printed = copy.deepcopy(ledger.printed)
    *parents, last = path.split(".")
    place = reduce(dict.__getitem__, parents, printed)
    assert place[last] != value
    place[last] = value
    (claim,) = (one for one in ledger.claims if one.id == claim)
    assert claims.find(claim, ledger._replace(printed=printed), []).verdict == verdict


# What is written wrongly is named in one line.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('verdict = "contradicts itself"', 'verdict = "wrong"', "claim C1: verdict 'wrong' is unknown"),
        ('whose = "printed"', 'whose = "yours"', "claim C1: whose 'yours' is unknown"),
        ('about = "text"', 'about = "people"', "claim C1: about 'people' is unknown"),
        ('paper = "cmps"', 'paper = "mine"', "claim C1: paper 'mine' is unknown"),
        ('kind = "text"', 'kind = "belief"', "claim C1: kind of evidence 'belief' is unknown"),
        ('where = "abstract"', "", "claim C1: field 'where' is missing"),
        ('where = "abstract"', 'where = "abstract"\nwho = "x"', "claim C1: field 'who' is unknown"),
        ("{eps}", "{alpha}", "claim C1: its statement asks for 'alpha'"),
        ("[papers]", "[papers", "is not a readable ledger"),
        (ONE[ONE.index("[[claim]]") :], 2 * ONE[ONE.index("[[claim]]") :], "claim C1: this id comes twice"),
        ('places = ["equation 1", "equation 2"]', 'places = ["equation 1"]', "evidence of C1 cannot be resolved"),
        ('kind = "text"', 'kind = "code", repository = "mine"', "evidence of C1 cannot be resolved"),
        ('kind = "text"', 'kind = "code"', "evidence of C1 cannot be resolved"),
        ('kind = "text"', 'kind = "text", function = "x"', "evidence of C1 cannot be resolved"),
        ('kind = "text", places = ["equation 1", "equation 2"], text = "they differ"',
         'kind = "arithmetic", function = "guess", so = "x", verdicts = []', "evidence of C1 cannot be resolved"),
        ('kind = "text", places = ["equation 1", "equation 2"], text = "they differ"',
         'kind = "arithmetic", function = "pixels", so = "guess", verdicts = []', "evidence of C1 cannot be resolved"),
        ('kind = "text", places = ["equation 1", "equation 2"], text = "they differ"',
         'kind = "cards", function = "hinge", guess = 1, cards = {}, command=""', "evidence of C1 cannot be resolved"),
        ("they differ", "they | differ", "C1 has a bar or a line break"),
        ('where = "abstract"', 'where = "abstract"\nchapter = 99', "C1 names chapter 99, which does not exist"),
    ],
)  # fmt: skip
def test_a_ledger_written_wrongly_is_refused_in_one_line(tmp_path, old, new, message):
    assert old in ONE
    (tmp_path / "book" / "results").mkdir(parents=True)
    (tmp_path / "book" / "claims.toml").write_text(ONE.replace(old, new, 1))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        claims.page(tmp_path)
    assert "\n" not in str(error.value)


def test_sync_writes_the_page_and_leaves_it_where_nothing_changed(tmp_path):
    (tmp_path / "book" / "results").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "book" / "claims.toml").write_text(ONE)
    assert [path.name for path in sync(tmp_path)] == ["claims.md"]
    text = (tmp_path / "book" / "claims.md").read_text(encoding="utf-8")
    row = "| C1 | It says 8. (abstract) | printed | **contradicts itself** | the text | equation 1; equation 2: "
    assert f"{row}they differ |" in text
    assert sync(tmp_path) == []


def test_an_answer_of_the_authors_is_printed_below_the_table(tmp_path):
    (tmp_path / "book" / "results").mkdir(parents=True)
    answer = 'answer = """\nThe code had a bug | since mended.\n\n2026-01-02, the authors\n"""\nevidence ='
    (tmp_path / "book" / "claims.toml").write_text(ONE.replace("evidence =", answer))
    quoted = "**The authors on C1:**\n\n> The code had a bug | since mended.\n>\n> 2026-01-02, the authors\n"
    table, _, below = claims.page(tmp_path).partition("they differ |\n\n")
    assert (below, "**contradicts itself** | the text" in table) == (quoted, True)


def test_a_stale_card_is_told(ledger, cards):
    settled = (one for one in ledger.claims if one.evidence["kind"] == "cards")
    claim = next(one for one in settled if claims.find(one, ledger, cards).verdict not in (NOT_RUN, LICENSED))
    assert "stale" not in claims.find(claim, ledger, cards).data
    assert "cards stale" in claims.find(claim, ledger, [one | {"made_with": {}} for one in cards]).data


def test_printed_numbers_are_the_reported_ones(ledger):
    reported, printed, pairs = defaultdict(list), ledger.printed, []
    with (PACKAGE / "study" / "grids" / "reported.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            for place in ((row["source"], row["table"]), row["setting"]):
                reported[place, row["victim"], row["attack"], row["metric"]].append(float(row["percent"]))
                reported[place, row["victim"], row["attack"]].append(float(row["percent"]))
    for number, (score, metric) in product((1, 2, 3), (("rank1", "r1"), ("rank20", "r20"), ("mAP", "mAP"))):
        for victim, attacks in printed[f"table{number}"].items():
            known = {attack: reported[("cmps", f"Table {number}"), victim, attack, metric] for attack in attacks}
            pairs += [(values[score], known[attack]) for attack, values in attacks.items() if score in values]
    for source, targets in printed["table4"].items():
        place = f"transfer success rate, source {source}"
        for target, values in targets.items():
            pairs.append((values, reported[place, target, "CMPS"] + reported[place, target, "Col.+Del."]))
    own = [("feature_level", f"Table {title}") for title in ("3 (ablation)", "5 (attention)")]
    for parts, values in printed["table3_ablation"].items():
        pairs.append((values, reported[own[0], "AGW", "+".join(filter(None, ["noise", parts])), "r1"]))
    labels = {"SE": "SENet", "ECA": "ECA-Net", "FSAM": "FSAM"}
    for (module, label), (score, metric) in product(labels.items(), (("rank1", "r1"), ("mAP", "mAP"))):
        values = [printed["final"][name][module][score] for name in ("SYSU-MM01", "RegDB")]
        pairs.append((values, reported[own[1], "AGW", label, metric]))
    assert len(pairs) > 45
    for values, known in pairs:
        assert values == known
