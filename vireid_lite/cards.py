"""Which modules a victim's scores depend on."""

from __future__ import annotations

# The modules of networks that bring their own losses.
NETWORKS = {
    "ddag": ["models/ddag", "models/baselines", "objectives"],
    "deen": ["models/deen", "quadruple", "objectives"],
    "ide": ["models/baselines", "hetero_centre", "objectives"],
    "pcb": ["models/baselines", "hetero_centre", "objectives"],
    "caj": ["models/agw", "models/caj", "objectives"],
}


def code_modules(dataset: str, model: str) -> list[str]:
    """Return the modules a victim's scores depend on; an attack adds its own (`attacks.attack_modules`)."""
    data = ["records", "loading", "augmentation", dataset, "rendering" if dataset == "synthetic" else "protocol"]
    own = ["models/two_stream", *NETWORKS.get(model, [f"models/{model}"]), "losses", "training", "metrics"]
    return [f"data/{name}" for name in data] + own
