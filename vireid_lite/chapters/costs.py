"""What a chapter costs, as measured."""

import json
from pathlib import Path

from vireid_lite.errors import TIERS, InputError
from vireid_lite.files import results_folder

COSTS = results_folder() / "costs.json"


class Costs:
    """What one chapter costs per tier: a table in a notebook, drawn from `book/results/costs.json`."""

    def __init__(self, chapter: str, path: Path = COSTS) -> None:
        try:
            measured = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            self.tiers: dict[str, dict] = measured.get(chapter, {})
            _ = [self._measured(tier) for tier in self.tiers]
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            raise InputError(f"{path} is damaged; restore it, or delete it and measure again") from None

    def price(self, tier: str, here: str | None = None) -> str:
        """Return the measured cost of a tier in words, and whether it is of another device than `here`, if given."""
        if tier not in self.tiers:
            return "not measured yet"
        minutes, memory, device = self._measured(tier)
        return f"{minutes} min and {memory} on {device}" + ", not on this device" * (here not in (None, device))

    def _measured(self, tier: str) -> tuple[str, str, str]:
        cost = self.tiers[tier]
        gpu = f" + {cost['gpu_gib']:.1f} GiB of GPU" if "gpu_gib" in cost else ""
        return f"{cost['minutes']:.1f}", f"{cost['memory_gib']:.1f} GiB{gpu}", cost["device"]

    def __repr__(self) -> str:
        return "\n".join(f"{tier}: {self.price(tier)}" for tier in TIERS)

    def _repr_markdown_(self) -> str:
        """Show the table in a notebook, which looks this method up by name."""
        rows = ["| Tier | Minutes | Peak memory | Measured on |", "|---|---|---|---|"]
        for tier in TIERS:
            cells = self._measured(tier) if tier in self.tiers else ("–", "–", "not measured yet")
            rows.append(f"| `{tier}` | {' | '.join(cells)} |")
        return "\n".join(rows)
