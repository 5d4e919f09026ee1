"""Networks by name."""

from __future__ import annotations

import inspect

from vireid_lite.errors import InputError, check_choice, check_whole
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
    """Return a new network of `NETWORKS` in train mode, its weights drawn from torch's global generator.

    Args:
        num_identities: classes of its classifier, at least 1.
        backbone, pretrained: see `two_stream.trunk`.
        options: the network's own, e.g. `non_local_channels` and `gem_p` of `AGW`.
    """
    check_choice("models", "network", name, NETWORKS)
    check_whole("models", "num_identities", num_identities, 1)
    network = NETWORKS[name]
    made_by = [inspect.signature(each) for each in network.__mro__ if issubclass(each, TwoStream)]
    known = {p.name: each for each in made_by[::-1] for p in each.parameters.values() if p.kind is p.KEYWORD_ONLY}
    for option in options:
        if option not in known:
            raise InputError(f"models: {name} has no option {option!r}; it has {', '.join(known)}")
    model = network(num_identities, backbone, pretrained, **options)
    model.arguments = dict(
        name=name, num_identities=num_identities, backbone=backbone, pretrained=pretrained, **options
    )
    return model
