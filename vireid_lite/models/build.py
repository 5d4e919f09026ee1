"""Networks by name."""

from __future__ import annotations

import inspect

from vireid_lite.errors import InputError
from vireid_lite.models.agw import AGW
from vireid_lite.models.baselines import IDE, PCB
from vireid_lite.models.caj import CAJ
from vireid_lite.models.ddag import DDAG
from vireid_lite.models.deen import DEEN
from vireid_lite.models.two_stream import TwoStream

NETWORKS = {"agw": AGW, "caj": CAJ, "ddag": DDAG, "deen": DEEN, "ide": IDE, "pcb": PCB}


def build(
    name: str, num_identities: int, backbone: str = "resnet50", pretrained: bool = False, **options: object
) -> TwoStream:
    """Return a new network in train mode, its weights drawn from torch's global generator.

    name: one of `NETWORKS`. num_identities: classes of its classifier, at least 1. backbone: "resnet50", "resnet18" or
    "lite".
    pretrained: start from torchvision's ImageNet weights (ResNets only; downloaded at first use).
    options: the network's own, e.g. `non_local_channels` and `gem_p` of `AGW`.
    Raises InputError for an unknown name or option, and as the network does.
    """
    if name not in NETWORKS:
        raise InputError(f"models: unknown network {name!r}; choose one of {', '.join(NETWORKS)}")
    if isinstance(num_identities, bool) or not isinstance(num_identities, int) or num_identities < 1:
        raise InputError(f"models: num_identities must be a whole number from 1 up, got {num_identities!r}")
    network = NETWORKS[name]
    known = [p.name for p in inspect.signature(network).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise InputError(f"models: {name} has no option {option!r}; it has {', '.join(known)}")
    model = network(num_identities, backbone, pretrained, **options)
    model.arguments = {
        "name": name, "num_identities": num_identities, "backbone": backbone, "pretrained": pretrained, **options
    }  # fmt: skip
    return model
