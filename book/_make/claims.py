"""The claims ledger: what the two papers state, what was run or computed here, and where each statement stands.

`book/claims.md` is written from `book/claims.toml`. What can be recomputed is: numbers fill the sentence and give the
verdict, and a verdict that the run cards (`evidence.py`) or the arithmetic (`arithmetic.py`) do not give is an error.
"""

import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from _make import arithmetic, evidence
from _make.evidence import LICENSED, MARGIN, NOT_RUN, OPEN, TEXTUAL, VERDICTS, matches, share
from _make.notebooks import find_chapters
from vireid_lite.errors import InputError, check_choice, check_table
from vireid_lite.study.cards import is_stale, read_cards

# Of a licensed data set; what can be shown or refuted anywhere; the paper's own wording, equations, tables and code.
ABOUT = ("number", "mechanism", "text")
WHOSE = ("printed", "implied", "ours")  # by the paper, by what it prints, or by nobody but this book
KINDS = ("arithmetic", "cards", "code", "text")


class Claim(NamedTuple):
    """One statement of a paper in our words, its verdict, and where the evidence is found: see `book/claims.toml`."""

    id: str
    paper: str
    where: str
    whose: str
    about: str
    statement: str
    verdict: str
    evidence: dict
    chapter: int = 0
    answer: str = ""


class Ledger(NamedTuple):
    """The data file: printed numbers, papers, commits, usual card selection, sentences by function, claims."""

    printed: dict
    papers: dict
    repositories: dict
    selection: dict
    sentences: dict
    introduction: str
    claims: list[Claim]


# What the file may hold, and of what kind.
CONTENT = {**dict.fromkeys(Ledger._fields[:-2], dict), "introduction": str, "claim": list}


class Finding(NamedTuple):
    """What the evidence says, the verdict that follows from it, and the data it is about."""

    text: str
    verdict: str
    data: str


def read_ledger(path: Path) -> Ledger:
    """Return the ledger in a TOML file such as `book/claims.toml`; InputError names what is wrong in it."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        check_table("it", content, CONTENT)
        for name in ("papers", "repositories", "sentences"):
            check_table(name, known := content.get(name, {}), dict.fromkeys(known, str))
        for entry in content.get("claim", []):
            check_table("a claim", entry, Claim.__annotations__, others=True)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a readable ledger ({error}); restore it from the repository") from None
    parts = {name: content.get(name, {}) for name in ("printed", "papers", "repositories", "selection", "sentences")}
    claims: dict[str, Claim] = {}
    for number, entry in enumerate(content.get("claim", []), start=1):
        here = f"{path.name}: claim {entry.get('id', f'number {number}')}"
        if problem := sorted(({*Claim._fields} ^ entry.keys()) - Claim._field_defaults.keys()):
            raise InputError(f"{here}: field {problem[0]!r} is {'unknown' if problem[0] in entry else 'missing'}")
        claim = Claim(**entry)
        check_choice(here, "verdict", claim.verdict, VERDICTS)
        check_choice(here, "about", claim.about, ABOUT)
        check_choice(here, "whose", claim.whose, WHOSE)
        check_choice(here, "kind of evidence", claim.evidence.get("kind"), KINDS)
        check_choice(here, "paper", claim.paper, parts["papers"])
        if claim.id in claims:
            raise InputError(f"{here}: this id comes twice; give each claim its own")
        with _refusing(f"{here}: its statement asks for {{}}, which is not under printed"):
            claims[claim.id] = claim._replace(statement=claim.statement.format_map(parts["printed"]))
    return Ledger(**parts, introduction=content.get("introduction", ""), claims=[*claims.values()])


@contextmanager
def _refusing(message: str) -> Iterator[None]:
    """Say in one line what the data file asks for and cannot have; the error stands at the message's braces."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(message.format(error)) from None


def find(claim: Claim, ledger: Ledger, cards: Sequence[dict]) -> Finding:
    """Return what a claim's evidence says today: recomputed from all run cards or by arithmetic, or as it is quoted."""
    options = dict(claim.evidence)
    kind = options.pop("kind")
    with _refusing(f"claims: the evidence of {claim.id} cannot be resolved ({{}})"):
        if kind in ("code", "text"):
            return _quoted(claim, ledger, **options)
        name, text = options.pop("function"), options.pop("text", "")
        if kind == "arithmetic":
            so, verdicts = options.pop("so"), options.pop("verdicts")
            numbers = vars(arithmetic)[name](ledger.printed, **options)
            verdict, data = share(np.ravel(numbers[so]), verdicts), "arithmetic"
        else:
            text = text or ledger.sentences.get(options.pop("sentence", name), "")
            wanted, command = {**ledger.selection, **options.pop("cards")}, options.pop("command")
            chosen = [card for card in cards if matches(card, wanted)]
            if "printed" in options:
                options["printed"] = arithmetic.cells_at(ledger.printed, [options["printed"]])
            if (found := vars(evidence)[name](chosen, **options)) is None:
                verdict = NOT_RUN if wanted["dataset.name"] == "synthetic" else LICENSED
                return Finding(f"pending: `{command}`", verdict, f"{wanted['dataset.name']}, not run yet")
            numbers, verdict, used = found
            data = _ground(used)
        return Finding(text.format_map(ledger.printed | options | numbers), verdict, data)


def _quoted(claim: Claim, ledger: Ledger, text: str, places: list[str], repository: str = "") -> Finding:
    """Return the finding of a claim whose evidence stands in the text, or in a repository's code."""
    code = claim.evidence["kind"] == "code"
    if not text or len(places) < 1 + (not code and claim.verdict in TEXTUAL[1:]) or code != bool(repository):
        raise KeyError("places or repository")
    said = ", ".join(f"`{place}`" for place in places) if code else "; ".join(places)
    data = f"code of {repository} at `{ledger.repositories[repository]}`" if code else "the text"
    return Finding(f"{said}: {text}", claim.verdict, data)


def _ground(cards: Sequence[dict]) -> str:
    """Say on which data, sizes and seeds the cards that count were made."""
    cards = {id(card): card for card in cards}.values()
    difficulties = defaultdict(set)
    for card in cards:
        difficulties[card["dataset"]["name"]].add(card["dataset"].get("difficulty", ""))
    data = [name + (f" ({' and '.join(sorted(known))})" if any(known) else "") for name, known in difficulties.items()]
    tiers, seeds = sorted({card["tier"] for card in cards}), {card["seed"] for card in cards}
    said = f"{', '.join(data)}, tier {' and '.join(tiers)}, {len(seeds)} seed{'s' * (len(seeds) != 1)}"
    stale = sum(map(is_stale, cards))
    return said + f", {stale} of {len(cards)} cards stale" * (stale > 0)


def check(ledger: Ledger, cards: Sequence[dict]) -> dict[str, Finding]:
    """Return the finding of every claim by id; InputError where it gives another verdict, or may not give one."""
    found = {claim.id: find(claim, ledger, cards) for claim in ledger.claims}
    for claim in ledger.claims:
        finding = found[claim.id]
        if finding.verdict != claim.verdict:
            differ = f"{claim.id} says {claim.verdict!r}, its evidence {finding.verdict!r} ({finding.text})"
            raise InputError(f"claims: {differ}; look at it, and correct book/claims.toml or the evidence")
        if claim.about == "number" and "synthetic" in finding.data and claim.verdict not in OPEN:
            number = f"{claim.id} is about a number of a licensed data set"
            raise InputError(f"claims: {number}, which synthetic images cannot settle")
    return found


def page(root: Path) -> str:
    """Return the Markdown of `book/claims.md`, written from `book/claims.toml` and the cards in `book/results`."""
    ledger = read_ledger(root / "book" / "claims.toml")
    return render(ledger, check(ledger, read_cards(root / "book" / "results")), root)


def render(ledger: Ledger, found: dict[str, Finding], root: Path) -> str:
    """Return the page of a ledger and its findings by id; root: the repository, whose chapters are linked."""
    chapters = {int(source.stem[:2]): source.stem for source in find_chapters(root)}
    counts = dict.fromkeys(VERDICTS, 0) | Counter(claim.verdict for claim in ledger.claims)
    numbers = {"number": len(ledger.claims), "counts": counts, "whose": Counter(one.whose for one in ledger.claims)}
    parts = [ledger.introduction.format(margin=100 * MARGIN, **numbers)]
    names = ("", "Statement, and where it stands", "Whose", "Verdict", "What ran, on which data", "Evidence")
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|"
    for paper, title in ledger.papers.items():
        claims = [claim for claim in ledger.claims if claim.paper == paper]
        lines = [head, *(_row(claim, found[claim.id], chapters) for claim in claims)]
        for claim in claims:
            if answer := claim.answer.strip():
                quoted = "\n".join(f"> {line}".rstrip() for line in answer.splitlines())
                lines.append(f"\n**The authors on {claim.id}:**\n\n{quoted}")
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(claim: Claim, finding: Finding, chapters: dict[int, str]) -> str:
    """Return a claim's row of the table."""
    ran = finding.data
    if claim.chapter:
        if claim.chapter not in chapters:
            raise InputError(f"claims: {claim.id} names chapter {claim.chapter}, which does not exist")
        ran += f"; [chapter {claim.chapter}](../notebooks/{chapters[claim.chapter]})"
    verdict = f"**{claim.verdict}**" + " (synthetic)" * ("synthetic" in finding.data and claim.verdict not in OPEN)
    cells = (claim.id, f"{claim.statement} ({claim.where})", claim.whose, verdict, ran, finding.text)
    if any(re.search(r"[|\n]", cell) for cell in cells):
        raise InputError(f"claims: {claim.id} has a bar or a line break in a cell; write it otherwise")
    return f"| {' | '.join(cells)} |"
