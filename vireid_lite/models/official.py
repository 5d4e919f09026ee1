"""Checkpoints of the published AGW code."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vireid_lite.errors import InputError
from vireid_lite.models.agw import AGW
from vireid_lite.models.checkpoints import build, existing, load_strictly
from vireid_lite.models.two_stream import NonLocal

SIZE = (288, 144)  # of the crops AGW is trained on: height and width in pixels (train.py, --img_h and --img_w)

# The official network holds three whole ResNets and uses a part of each (AGW model.py:93-147); these are the rest.
UNUSED = re.compile(
    r"(visible_module\.visible|thermal_module\.thermal)\.(layer[1-4]|fc)\..+|base_resnet\.base\.(conv1|bn1|fc)\..+"
)


def load_official(path: str | Path) -> tuple[AGW, dict]:
    """Return the network of an official AGW checkpoint (.t or .pth), in eval mode on the CPU, and a card for it.

    The file is read with `weights_only=True`: a bare state dict, or one under "net" (as AGW saves it) or "state_dict",
    with or without the "module." of DataParallel. The network has the file's identities and its ResNet (the authors' is
    resnet50). What the official network never uses is dropped; every other weight must have its place and every place
    its weight.
    Card keys: key (of the file's bytes), official (its name), dataset (the crops' size alone), model. torch's random
    generator is left as it was.
    """
    path = existing(path)
    state = _official_state(path)
    head = state.get("classifier.weight")
    if head is None:
        raise InputError(f"{path}: classifier.weight is missing; only checkpoints of AGW are read")
    backbone = "resnet50" if "base_resnet.base.layer1.0.conv3.weight" in state else "resnet18"
    with torch.random.fork_rng(devices=[]):
        model = build("agw", len(head), backbone)
    load_strictly(model, state, _official_names(model), str(path))
    key = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return model.eval(), {"key": key, "official": path.name, "dataset": {"size": list(SIZE)}, "model": model.arguments}


def _official_state(path: Path) -> dict[str, Tensor]:
    """Return the used weights of an official file under their official names."""
    # Beside the weights AGW saves its scores as numpy values (train.py:390). Rebuilding those runs nothing but numpy's
    # array and scalar constructors; they are named as numpy 1 wrote them and as numpy 2 writes them.
    array, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    allowed = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
    for package in ("numpy.core", "numpy._core"):
        allowed += [(array, f"{package}.multiarray._reconstruct"), (scalar, f"{package}.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can fail in any way
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it would run {refused[1]}" if refused else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as weights alone ({reason}); if you trust the file, convert it once: "
            'torch.save({"net": torch.load(FILE, weights_only=False)["net"]}, NEW_FILE)'
        ) from None
    for key in ("net", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f'{path}: holds no state dict, neither by itself nor under "net" or "state_dict"')
    names = {str(name).removeprefix("module."): value for name, value in content.items()}
    return {name: value for name, value in names.items() if not UNUSED.fullmatch(name)}


def _official_names(model: AGW) -> dict[str, str]:
    """Return the official name of every weight of an AGW, by ours."""
    prefixes = {"stages.0.visible": "visible_module.visible", "stages.0.infrared": "thermal_module.thermal"}
    prefixes |= {name: name for name in ("bottleneck", "classifier")}
    for number, layer in enumerate(model.stages[1:], start=1):
        blocks, non_locals = itertools.count(), itertools.count()
        for index, module in enumerate(layer):
            ours = f"stages.{number}.{index}"
            # Officially the non-local blocks stand beside the layers, not between their blocks.
            if isinstance(module, NonLocal):
                prefixes[ours] = f"NL_{number}.{next(non_locals)}"
                prefixes[f"{ours}.g"] = f"{prefixes[ours]}.g.0"
            else:
                prefixes[ours] = f"base_resnet.base.layer{number}.{next(blocks)}"
    names = {}
    for name in model.state_dict():
        prefix = max((known for known in prefixes if name.startswith(known + ".")), key=len)
        names[name] = prefixes[prefix] + name.removeprefix(prefix)
    return names
