"""What the build writes on pages of the book: costs, status, and pictures that chapters computed.

A page asks with a line of its own, which is a comment in its source: `% costs: ...` for the chapters with their
minutes, `% measured: STEM` for one chapter's cost or `all` for a table, `% status: ...` for how this copy was made.
`% lab: ...` is the attack lab. `% picture: CHAPTER FIGURE` to `% end` stands where the chapter has been executed, and a
line that says so otherwise.
"""

import base64
import re
from collections import defaultdict
from functools import partial
from pathlib import Path

from _make import lab, move
from _make.notebooks import COSTS, find_chapters, read_record
from vireid_lite.chapters.costs import in_minutes, read_costs
from vireid_lite.errors import InputError
from vireid_lite.files import damaged, read_json

PICTURE = re.compile(r"^% picture: (\S+) (\S+)\n(.*?)^% end\n", re.MULTILINE | re.DOTALL)
NUMBERS = re.compile(r"^% (costs|measured|status): (.+)\n", re.MULTILINE)


def fill(files: dict[str, bytes], root: Path, executed: Path) -> dict[str, bytes]:
    """Return the pages among `files` that ask for something, filled, and the pictures they show, by name.

    files: what is rendered of the book in `root`. executed: folder of the chapters as executed. Raises InputError where
    a page asks for a chapter or a figure that is not there.
    """
    costs, filled = read_costs(root / COSTS), {}
    copies = {source.stem: executed / f"{source.stem}.ipynb" for source in find_chapters(root)}

    def known(page: str, mark: str, chapter: str) -> None:
        if chapter not in copies:
            raise InputError(f"{page}: % {mark}: {chapter} names no chapter; there are {', '.join(copies)}")

    def picture(page: str, found: re.Match) -> str:
        chapter, figure, text = found.groups()
        known(page, "picture", chapter)
        if not copies[chapter].exists():
            said = "draws the picture that belongs here; it has not run yet: `vireid-lite book --chapters"
            return f"[](../notebooks/{chapter}) {said} {int(chapter[:2])}`.\n"
        filled[f"book/{figure}.png"] = _figure(copies[chapter], figure, page)
        return text

    def numbers(page: str, found: re.Match) -> str:
        if found[1] == "costs":
            return _list([*copies], costs)
        if found[1] == "status":
            return _status({stem: read_record(copy) for stem, copy in copies.items()}, costs)
        if found[2] == "all":
            return _table([*copies], costs)
        known(page, "measured", found[2])
        if runs := _runs(costs, found[2], "tier `{tier}` {minutes} minutes and {memory_gib:.1f} GiB on {device}"):
            return f"Measured from empty caches: {'; '.join(runs)}.\n"
        return f"Not measured yet: `vireid-lite book --chapters {int(found[2][:2])} --measure` does it.\n"

    for page in [name for name in files if name.startswith("book/") and name.endswith(".md")]:
        text = files[page].decode()
        shown = lab.MARK.sub(lambda _: lab.place(files), PICTURE.sub(partial(picture, page), text))
        if (shown := NUMBERS.sub(partial(numbers, page), shown)) != text:
            filled[page] = shown.encode()
    for page in [name for name in files if name.endswith(".ipynb")]:
        text = files[page].decode()
        if (shown := move.in_chapters(lab.in_chapters(text, files) if lab.exported(files) else text)) != text:
            filled[page] = shown.encode()
        if "move: spectrum" in text:
            filled[move.SPRITE] = move.sprite()
    return filled


def _figure(notebook: Path, name: str, page: str) -> bytes:
    """Return the PNG of the figure of this name in an executed chapter."""
    try:
        for cell in read_json(notebook)["cells"]:
            if cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") == name:
                for output in cell.get("outputs", []):
                    if "image/png" in output.get("data", {}):
                        return base64.b64decode(output["data"]["image/png"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise damaged(notebook) from None
    raise InputError(f"{page}: % picture: {notebook.stem} drew no figure {name}; see its cells' `name`")


def _list(stems: list[str], costs: dict) -> str:
    """Return the chapters as a numbered list, each with its minutes at tier lite, where, and what training adds."""
    lite = {stem: costs[stem]["lite"] for stem in stems if "lite" in costs.get(stem, {})}
    devices = f" ({', '.join(sorted({cost['device'] for cost in lite.values()}))})" if lite else ""
    unknown = "" if len(lite) == len(stems) else "; –: not measured yet"
    minutes = {stem: f"{cost['minutes']:.1f}" for stem, cost in lite.items()}
    trained = [cost["retrained"] - cost["minutes"] for cost in lite.values() if "retrained" in cost]
    more = f" A victim trained there adds {max(trained):.0f}." if trained else ""
    rows = [f"1. [](../notebooks/{stem}) **{minutes.get(stem, '–')}**" for stem in stems]
    return "\n".join([f"Minutes alone, from empty caches{devices}{unknown}.{more}", "", *rows, ""])


def _runs(costs: dict, stem: str, form: str) -> list[str]:
    runs = costs.get(stem, {}).items()
    return [form.format(**{"tier": tier, **cost, "minutes": in_minutes(cost)}) for tier, cost in runs]


def _table(stems: list[str], costs: dict) -> str:
    """Return what every chapter costs at each tier at which it was measured."""
    rows = ["| Chapter | Tier | Minutes | Memory, GiB | Measured on |", "|---|---|--:|--:|---|"]
    for stem in stems:
        runs = _runs(costs, stem, "`{tier}` | {minutes} | {memory_gib:.1f} | {device}")
        rows += [f"| [](../../notebooks/{stem}) | {run} |" for run in runs or ["`lite` | – | – | not measured yet"]]
    return "\n".join([*rows, ""])


def _status(records: dict[str, dict], costs: dict) -> str:
    """Return what each chapter ran on, for how long, and with which versions."""
    head = "| Chapter | Tier | Data | Parameters | Minutes | Minutes alone | Memory, GiB | Device |"
    rows, made_with = [head, "|---|---|---|---|--:|--:|--:|---|"], defaultdict(list)
    for stem, record in records.items():
        alone = costs.get(stem, {}).get(record.get("tier", "lite"))
        alone = in_minutes(alone) if alone else "not measured"
        cells = ["–", "–", "–", "–", alone, "–", "not executed yet"]
        if "versions" in record:
            given = ", ".join(f"`{name} {value}`" for name, value in record["parameters"].items()) or "its own"
            cells = [f"`{record['tier']}`", str(record.get("dataset")), given, f"{record['minutes']:.1f}", alone]
            cells += [f"{record['memory_gib']:.1f}", record["device"]]
            made_with[", ".join(f"{name} {version}" for name, version in record["versions"].items())].append(stem[:2])
        rows.append(f"| {' | '.join([f'[](../notebooks/{stem})', *cells])} |")
    lines = [f"- Chapter {', '.join(str(int(n)) for n in run)}: {versions}." for versions, run in made_with.items()]
    return "\n".join([*rows, "", "## Versions", "", *(lines or ["No chapter executed yet."]), ""])
