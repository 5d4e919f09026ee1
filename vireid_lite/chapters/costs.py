"""What a chapter costs, as measured."""

from __future__ import annotations

import json
from pathlib import Path

from vireid_lite.errors import TIERS
from vireid_lite.files import results_folder

COSTS = results_folder() / "costs.json"


class Costs:
    """What one chapter costs per tier, as measured: a table in a notebook, drawn from `book/results/costs.json`."""

    def __init__(self, chapter: str, path: Path = COSTS) -> None:
        measured = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.tiers: dict[str, dict] = measured.get(chapter, {})

    def price(self, tier: str, here: str | None = None) -> str:
        """Return the measured cost of one tier in words, or that it is not measured yet.

        Args:
            here: the device of this run, by name; a cost that was measured on another one says so.
        """
        cost = self.tiers.get(tier)
        if cost is None:
            return "not measured yet"
        elsewhere = ", not on this device" if here not in (None, cost["device"]) else ""
        return f"{cost['minutes']:.1f} min and {_memory(cost)} on {cost['device']}{elsewhere}"

    def __repr__(self) -> str:
        return "\n".join(f"{tier}: {self.price(tier)}" for tier in TIERS)

    def _repr_markdown_(self) -> str:
        """Show the table in a notebook, which looks this method up by name."""
        rows = ["| Tier | Minutes | Peak memory | Measured on |", "|---|---|---|---|"]
        for tier in TIERS:
            cells = "– | – | not measured yet"
            if cost := self.tiers.get(tier):
                cells = f"{cost['minutes']:.1f} | {_memory(cost)} | {cost['device']}"
            rows.append(f"| `{tier}` | {cells} |")
        return "\n".join(rows)


def _memory(cost: dict) -> str:
    gpu = f" + {cost['gpu_gib']:.1f} GiB of GPU" if "gpu_gib" in cost else ""
    return f"{cost['memory_gib']:.1f} GiB{gpu}"
