"""Checkpoints of the published AGW code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vireid_lite.errors import InputError
from vireid_lite.models.agw import AGW
from vireid_lite.models.two_stream import NonLocal, TwoStream

# The official network holds three whole ResNets and uses a part of each (AGW model.py:93-147); these are the rest.
_OFFICIAL_UNUSED = re.compile(
    r"(visible_module\.visible|thermal_module\.thermal)\.(layer[1-4]|fc)\..+|base_resnet\.base\.(conv1|bn1|fc)\..+"
)


def load_official(path: str | Path, model: TwoStream, *, resize_classifier: bool = False) -> TwoStream:
    """Load an official AGW checkpoint (.t or .pth) into `model`, strictly, and return it in eval mode.

    The file is read with `weights_only=True`: a bare state dict, or one under "net" (as AGW saves it) or "state_dict",
    with or without the "module." of DataParallel. Parts of its three ResNets that the official network never uses are
    dropped; every other weight must have its place and every place its weight.

    model: an AGW from `models.build`, of the file's backbone (the authors' is resnet50).
    resize_classifier: give the model a classifier of the file's size where the two differ, instead of refusing.
    Raises InputError where the file is missing, holds anything but weights and numbers, or does not fit (naming the
    first weight that does not); the model is then unchanged.
    """
    path = Path(path)
    if not isinstance(model, AGW):
        raise InputError(f"{path}: official checkpoints are read for agw only, not {type(model).__name__}")
    state = _official_state(path)
    head = state.get("classifier.weight")
    previous = model.classifier
    if resize_classifier and head is not None and len(head) != previous.out_features:
        resized = nn.utils.skip_init(nn.Linear, previous.in_features, len(head), bias=False)
        model.classifier = resized.to(previous.weight)
    try:
        _load_strictly(model, state, _official_names(model), str(path))
    except InputError:
        model.classifier = previous
        raise
    model.arguments = {**model.arguments, "num_identities": model.classifier.out_features}
    return model.eval()


def _official_state(path: Path) -> dict[str, Tensor]:
    """Return the used weights of an official file under their official names."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; check the path")
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
    return {name: value for name, value in names.items() if not _OFFICIAL_UNUSED.fullmatch(name)}


def _official_names(model: AGW) -> dict[str, str]:
    """Return the official name of every weight of an AGW, by ours."""
    prefixes = {
        "stages.0.visible": "visible_module.visible",
        "stages.0.infrared": "thermal_module.thermal",
        "bottleneck": "bottleneck",
        "classifier": "classifier",
    }
    for number, layer in enumerate(model.stages[1:], start=1):
        blocks = non_locals = 0
        for index, module in enumerate(layer):
            # Officially the non-local blocks stand beside the layers, not between their blocks.
            if isinstance(module, NonLocal):
                prefixes[f"stages.{number}.{index}"] = f"NL_{number}.{non_locals}"
                prefixes[f"stages.{number}.{index}.g"] = f"NL_{number}.{non_locals}.g.0"
                non_locals += 1
            else:
                prefixes[f"stages.{number}.{index}"] = f"base_resnet.base.layer{number}.{blocks}"
                blocks += 1
    names = {}
    for name in model.state_dict():
        prefix = max((known for known in prefixes if name.startswith(known + ".")), key=len)
        names[name] = prefixes[prefix] + name.removeprefix(prefix)
    return names


def _load_strictly(model: TwoStream, state: dict[str, Tensor], names: dict[str, str], where: str) -> None:
    """Copy `state` into `model`, every weight under the name `names` gives it; refuse the first that does not fit."""
    own = model.state_dict()
    what = "{name}, num_identities={num_identities}, backbone={backbone}".format(**model.arguments)
    for name, value in own.items():
        theirs = names[name]
        if theirs not in state:
            raise InputError(f"{where}: {theirs} is missing for {what}; build the network the file was saved from")
        if state[theirs].shape != value.shape:
            raise InputError(
                f"{where}: {theirs} is {tuple(state[theirs].shape)} where {what} has {tuple(value.shape)}; "
                "build the network the file was saved from"
            )
    known = set(names.values())
    for name in state:
        if name not in known:
            raise InputError(f"{where}: {name} has no place in {what}; build the network the file was saved from")
    model.load_state_dict({name: state[theirs] for name, theirs in names.items()})
