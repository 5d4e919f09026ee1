"""The attack lab on a page: the place its scripts fill, a picture where they are off, and what its network scores."""

import hashlib
import json
import re
from collections.abc import Mapping

from vireid_lite.behaviour import entries
from vireid_lite.errors import InputError
from vireid_lite.files import parse_json, stable_hash

MARK = re.compile(r"^% lab: .+\n", re.MULTILINE)
IN_CHAPTER = re.compile(r"<!-- lab: (#lab[&\w=-]*) -->")  # which Colab does not show
FOLDER = "book/_static/lab/data/"
STILL = (
    "Two rows. Each begins with an attacked colour picture of a rendered pedestrian; ten infrared pictures follow, the "
    "nearest first, each in a solid frame with a tick or in a dashed frame with a cross."
)
HTML = (
    '<link rel="stylesheet" href="../_static/lab/lab.css">'
    '<div class="attack-lab" data-folder="../_static/lab/data/" data-manifest="{manifest}" data-start="{start}">'
    '<noscript><img src="../_static/lab/data/still.png" alt="{still}"></noscript>'
    "<p>The lab runs in a browser with scripts switched on, from a book that is served over http. A book built at home "
    "is served by <code>python -m http.server -d _build/html</code>. Without scripts the picture shows two queries "
    "under CMPS at 8/255.</p></div>"
    '<script type="module" src="../_static/lab/page.js"></script>'
)


def exported(files: Mapping[str, bytes]) -> bool:
    """Return whether the lab's files are among what is rendered."""
    return f"{FOLDER}manifest.json" in files


def html(files: Mapping[str, bytes], start: str) -> str:
    """Return the element that the lab fills, in the state of a link; it names the manifest that it was built with."""
    manifest = hashlib.sha256(files[f"{FOLDER}manifest.json"]).hexdigest()
    return HTML.format(start=start.replace("&", "&amp;"), manifest=manifest, still=STILL)


def in_chapters(text: str, files: Mapping[str, bytes]) -> str:
    """Return a staged notebook with the lab where a comment asks for it, in the state that the comment names."""

    def here(found: re.Match) -> str:
        return json.dumps(html(files, found[1]))[1:-1]

    return IN_CHAPTER.sub(here, text)


def place(files: Mapping[str, bytes]) -> str:
    """Return what stands where a page asks for the lab; files: what is rendered, by name."""
    if not exported(files):
        return "This copy was built without the lab's files; `vireid-lite lab` writes them.\n"
    try:
        manifest, scores = (parse_json(files[f"{FOLDER}{name}.json"]) for name in ("manifest", "scores"))
        for name, stated in manifest["files"].items():
            data = files[f"{FOLDER}{name}"]
            if stated != {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}:
                raise ValueError(f"{name} is another")
        return f"```{{raw}} html\n{html(files, '')}\n```\n{_described(manifest, scores)}"
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{FOLDER} is damaged ({error}); `vireid-lite lab` makes it again") from None


def _described(manifest: dict, scores: dict) -> str:
    """Return what the lab's network scores, and which code it is of."""
    ways = list(scores["tested"])
    rows = [f"| The network | {' | '.join(ways)} |", f"|---|{'---|' * len(ways)}"]
    for what, scored in (
        ("as trained, weights as floats", scores["float"]),
        ("weights in 8 bits, as it runs here", scores["rounded"]["nothing"]),
        ("weights in 8 bits, behind the chain of resizes", scores["rounded"]["chain"]),
    ):
        rows.append(f"| {what} | {' | '.join('{rank1:.1f} / {mAP:.1f}'.format(**scored[way]) for way in ways)} |")
    chance = " | ".join("{:.1f} ({:.1f} to {:.1f})".format(*scores["chance"][way]) for way in ways)
    tested = " | ".join("{} queries, {} crops".format(*scores["tested"][way]) for way in ways)
    rows += [f"| chance, rank-1 | {chance} |", f"| tested on | {tested} |"]
    known = {part: stable_hash(entry)[:8] for part, entry in entries().items()}
    old = [part for part, made in manifest["behaviour"].items() if known.get(part, "") != made]
    weights = manifest["files"]["weights.bin"]["sha256"][:12]
    said = "Rank-1 / mAP in percent over the whole test, without an attack. The weights' sha256 begins with "
    said += f"`{weights}`; queries and gallery were drawn by seed {manifest['seed']}."
    if old:
        said += f" Code has changed since in {', '.join(old)}: `vireid-lite lab` makes the lab's files again."
    return "\n".join(["", *rows, "", said, ""])
