"""Checkpoints of the published AGW, CAJ, DDAG and DEEN code."""

import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vireid_lite.errors import InputError, check_choice
from vireid_lite.models.checkpoints import TORCHS, begins, build, existing, load_strictly
from vireid_lite.models.deen import Expansion, Fusion
from vireid_lite.models.two_stream import NonLocal, TwoStream

# The official networks hold three whole ResNets and use a part of each (AGW model.py:93-147); these are the rest.
UNUSED = r"(visible_module\.visible|thermal_module\.thermal)\.(layer[1-4]|fc)\..+|base_resnet\.base\.(conv1|bn1|fc)\..+"

# The official name of each part that has one place, by ours, and of the parts of a `Fusion`.
PARTS = {name: name for name in ("bottleneck", "classifier")} | {
    "stages.0.visible": "visible_module.visible",
    "stages.0.infrared": "thermal_module.thermal",
    "bottleneck_parts": "wpa",
    "bottleneck_parts.query": "wpa.fc1.0",
    "bottleneck_parts.key": "wpa.fc2",
    "bottleneck_parts.value": "wpa.fc3",
    "bottleneck_parts.norm": "wpa.bottleneck",
}
for ours, theirs in [(f"heads.{head}", f"attention_{head}") for head in range(4)] + [("out", "out_att")]:
    PARTS |= {f"classifier_graph.{ours}.weight": f"{theirs}.W", f"classifier_graph.{ours}.attention": f"{theirs}.a"}
FUSED = {"theta": "theta", "phi": "phi", "g": "g", "out": "W.0", "bn": "W.1"}
FUSED = {f"{ours}{n}": f"{kind}.{FUSED[ours]}" for n, kind in ((1, "CNL"), (2, "PNL")) for ours in FUSED}


def load_official(path: str | Path, network: str | None = None) -> tuple[TwoStream, dict]:
    """Return the network of a published checkpoint (.t or .pth), in eval mode on the CPU, and a card for it.

    The file is read with `weights_only=True`: a bare state dict, or one under "net" (as published code saves it) or
    "state_dict", with or without the "module." of DataParallel. It ranks as its published test does: DEEN and CAJ add
    the mirror image, DEEN has its published view, and AGW without non-local blocks (the baseline) is average-pooled.
    What that network never uses is dropped; all else must fit, but for counters of batches, which old files lack.
    Card keys: key (of the file's bytes), official (its name), dataset (the crops' size alone), model.

    Args:
        network: "agw", "caj", "ddag" or "deen"; None finds it from the keys, where those of CAJ are AGW's.
    """
    state = _official_state(path := existing(path))
    groups, head = {name.partition(".")[0] for name in state}, state.get("classifier.weight")
    possible = ["ddag"] if "wpa" in groups else ["deen"] if "DEE" in groups else ["agw", "caj"]
    check_choice(str(path), "network", network := network or possible[0], possible)
    if head is None or head.ndim != 2:
        raise InputError(f"{path}: classifier.weight is missing, or no matrix; AGW, CAJ, DDAG and DEEN are read")
    options, unused = {"flip": True} if network in ("caj", "deen") else {}, UNUSED
    if network == "ddag":
        unused += r"|classifier[12]\.weight|wpa\.W\..+"
        options = {"parts": state.get("wpa.gate", torch.ones(3)).numel()}
        # 1x1 convolutions on stripes are linear layers here
        state |= {n: part.flatten(1) for n, part in state.items() if n.startswith("wpa.fc") and part.ndim == 4}
    elif network == "deen":
        options |= {"layer4": "MFA3" in groups, "published_view": True}
        unused += "" if options["layer4"] else r"|base_resnet\.base\.layer4\..+"
    elif not groups & {"NL_2", "NL_3"}:
        options |= {"non_local_channels": 0, "gem_p": 1.0}
    state = {name: part for name, part in state.items() if not re.fullmatch(unused, name)}
    backbone = "resnet50" if "base_resnet.base.layer1.0.conv3.weight" in state else "resnet18"
    with torch.random.fork_rng(devices=[]):
        model = build(network, len(head), backbone, **options)
    names = _official_names(model)
    counters = {name: torch.tensor(0) for name in names.values() if name.endswith("num_batches_tracked")}
    load_strictly(model, counters | state, names, str(path))
    size = [384 if network == "deen" else 288, 144]  # of the crops it is trained on (train.py, --img_h and --img_w)
    key = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return model.eval(), {"key": key, "official": path.name, "dataset": {"size": size}, "model": model.arguments}


def _official_state(path: Path) -> dict[str, Tensor]:
    """Return the weights of an official file under their official names."""
    first = begins(path, 9)
    if first[:3] not in TORCHS:
        ours = first[3:] == bytes(5) + b"{"  # the length of a safetensors header, and its start
        door = "give a victim of `vireid-lite train` to --checkpoint" if ours else "fetch the published file again"
        raise InputError(f"{path}: cannot be read, as torch.save did not write it; {door}")
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
            'torch.save({"net": torch.load(FILE, weights_only=False)["net"]}, NEW_FILE), or what "net" is called there'
        ) from None
    for key in ("net", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        for value in content.values()
    ):
        raise InputError(f'{path}: holds no state dict, neither by itself nor under "net" or "state_dict"')
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _official_names(model: TwoStream) -> dict[str, str]:
    """Return the official name of every weight of a network, by ours."""
    prefixes, last = dict(PARTS), 4 if model.arguments.get("layer4", True) else 3
    for stage in range(1, 5):
        number, blocks, non_locals = min(stage, last), itertools.count(), itertools.count()
        for index, module in enumerate(model.stages[stage]):
            place = f"stages.{stage}.{index}"
            # Officially what is not a residual block stands beside the layers, not between their blocks.
            if isinstance(module, NonLocal):
                prefixes[place] = f"NL_{number}.{next(non_locals)}"
                prefixes[f"{place}.g"] = f"{prefixes[place]}.g.0"
            elif isinstance(module, Fusion):
                prefixes |= {f"{place}.{ours}": f"MFA{number}.{theirs}" for ours, theirs in FUSED.items()}
            elif isinstance(module, Expansion):
                for branch, down in enumerate(module.down):
                    prefixes[f"{place}.up.{branch}"] = theirs = f"DEE.FC{branch + 1}"
                    prefixes |= {f"{place}.down.{branch}.{i}": f"{theirs}{i + 1}" for i in range(len(down))}
            elif list(module.parameters()):
                prefixes[place] = f"base_resnet.base.layer{number}.{next(blocks)}"
    names = {}
    for name in model.state_dict():
        ours = max((known for known in prefixes if f"{name}.".startswith(f"{known}.")), key=len)
        names[name] = prefixes[ours] + name.removeprefix(ours)
    return names
