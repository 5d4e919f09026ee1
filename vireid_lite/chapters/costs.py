"""What a chapter costs, as measured."""

from pathlib import Path

from vireid_lite.errors import TIERS, check_number, check_table
from vireid_lite.files import damaged, read_json, results_folder

COSTS = results_folder() / "costs.json"
COST = {"minutes": int | float, "memory_gib": int | float, "device": str}


def read_costs(path: Path) -> dict[str, dict[str, dict]]:
    """Return what chapters cost, {chapter: {tier: cost}}, nothing where the file is missing."""
    table = read_json(path)
    try:
        for cost in [cost for runs in table.values() for cost in runs.values()]:
            check_table("cost", cost, COST, others=True)
            for name in COST.keys() - {"device"} | cost.keys() & {"gpu_gib", "retrained"}:
                check_number(cost["device"], name, cost[name], 0, 1e9)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise damaged(path) from None
    return table


def in_minutes(cost: dict) -> str:
    """Return the minutes of a run, and with the training of victims that come with the package where it uses some."""
    return f"{cost['minutes']:.1f}" + (f" (trained here {cost['retrained']:.1f})" if "retrained" in cost else "")


class Costs:
    """What one chapter costs per tier: a table in a notebook, drawn from `book/results/costs.json`."""

    def __init__(self, chapter: str, path: Path = COSTS) -> None:
        self.tiers: dict[str, dict] = read_costs(path).get(chapter, {})

    def price(self, tier: str, here: str | None = None) -> str:
        """Return the measured cost of a tier in words, and whether it is of another device than `here`, if given."""
        if tier not in self.tiers:
            return "not measured yet"
        minutes, memory, device = self._measured(tier)
        return f"{minutes} min and {memory} on {device}" + ", not on this device" * (here not in (None, device))

    def _measured(self, tier: str) -> tuple[str, str, str]:
        cost = self.tiers[tier]
        gpu = f" + {cost['gpu_gib']:.1f} GiB of GPU" if "gpu_gib" in cost else ""
        return in_minutes(cost), f"{cost['memory_gib']:.1f} GiB{gpu}", cost["device"]

    def __repr__(self) -> str:
        return "\n".join(f"{tier}: {self.price(tier)}" for tier in TIERS)

    def _repr_markdown_(self) -> str:
        """Show the table in a notebook, which looks this method up by name."""
        rows = ["| Tier | Minutes | Peak memory | Measured on |", "|---|---|---|---|"]
        for tier in TIERS:
            cells = self._measured(tier) if tier in self.tiers else ("–", "–", "not measured yet")
            rows.append(f"| `{tier}` | {' | '.join(cells)} |")
        return "\n".join(rows)
