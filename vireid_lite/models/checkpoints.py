"""Networks by name, and their checkpoints: safetensors with a JSON card, loaded strictly."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from vireid_lite.errors import MANY, InputError, check_choice, check_flag, check_table, whole
from vireid_lite.files import clear_unreadable, parse_json, read_tensors, write_atomically, write_tensors
from vireid_lite.models.agw import AGW, CAJ
from vireid_lite.models.baselines import IDE, PCB
from vireid_lite.models.ddag import DDAG
from vireid_lite.models.deen import DEEN
from vireid_lite.models.two_stream import TwoStream

TORCHS = (b"PK\x03", b"\x80\x02\x8a")  #: how files of torch.save begin, now and before torch 1.6
NETWORKS = {"agw": AGW, "caj": CAJ, "ddag": DDAG, "deen": DEEN, "ide": IDE, "pcb": PCB}


@torch.inference_mode(False)  # whose weights could never be attacked or trained
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
    whole("models", "num_identities", num_identities, 1, MANY, int)
    network = NETWORKS[name]
    made_by = [vars(each).get("__init__") for each in reversed(network.__mro__) if issubclass(each, TwoStream)]
    known = [name for call in made_by if call for name in call.__kwdefaults__ or ()]  # its base's and its own
    for option in options:
        if option not in known:
            raise InputError(f"models: {name} has no option {option!r}; it has {', '.join(known)}")
    model = network(num_identities, backbone, pretrained, **options)
    arguments = {"name": name, "num_identities": num_identities, "backbone": backbone, "pretrained": pretrained}
    model.arguments = {**arguments, **options}
    return model


def save_checkpoint(path: str | Path, model: TwoStream, card: dict) -> dict:
    """Write weights to `path`, NAME.safetensors, and the card to NAME.json, each whole; return the card as written.

    The card gains "model", the arguments of `build`, and "people", whom it was trained on, where that is known. It is
    kept inside the weights file as well: that copy is the one read back, so a kill between the two files never pairs
    weights with another card.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a checkpoint's name must end in .safetensors")
    people = {} if model.people is None else {"people": " ".join(sorted(model.people))}
    try:
        text = json.dumps({**card, "model": model.arguments, **people}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the card must be plain JSON ({error})") from None
    write_tensors(path, {name: _narrow(value) for name, value in model.state_dict().items()}, "card", text)
    write_atomically(path.with_suffix(".json"), (text + "\n").encode())
    return json.loads(text)


def _narrow(value: Tensor) -> Tensor:
    """Return weights in half precision where that holds them exactly."""
    half = value.half() if value.dtype == torch.float32 else value
    return half if torch.equal(half.to(value), value) else value


def load_checkpoint(path: str | Path) -> tuple[TwoStream, dict]:
    """Return the network a checkpoint holds, in eval mode on the CPU, and its card.

    torch's random generator is left as it was. Raises InputError where the file is missing, damaged, carries no card,
    or its weights do not fit the network that the card describes (naming the first that does not).
    """
    path = existing(path)
    torchs = begins(path, 3) in TORCHS
    remedy = "torch.save wrote it: give a published checkpoint to --official" if torchs else "save or copy it again"
    state, card = read_weights(path, "a readable safetensors file", remedy)
    try:
        arguments, most = card["model"], sum(value.numel() for value in state.values())
        check_flag("models", "pretrained", arguments.get("pretrained", False))
        if any(isinstance(value, int) and value > most for value in arguments.values()):
            raise ValueError(f"a network of more than the {most:,} weights it holds")  # before memory is taken for it
        with torch.random.fork_rng(devices=[]):
            model = build(**{**arguments, "pretrained": False})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        remedy = "only files of save_checkpoint can be loaded"
        raise InputError(f"{path}: carries no usable card ({error}); {remedy}") from None
    model.arguments |= {"pretrained": arguments.get("pretrained", False)}
    model.people = set(card["people"].split()) if isinstance(card.get("people"), str) else None
    load_strictly(model, state, {name: name for name in model.state_dict()}, str(path))
    return model.eval(), card


def existing(path: str | Path) -> Path:
    """Return the path of a file that is there."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such checkpoint; train one or check the path")
    return Path(path)


def begins(path: Path, count: int) -> bytes:
    """Return the first bytes of a file."""
    with clear_unreadable(path), path.open("rb") as file:
        return file.read(count)


def read_weights(path: Path, kind: str, remedy: str) -> tuple[dict[str, Tensor], dict]:
    """Return the weights of a safetensors file and its card, empty where it carries none."""
    try:
        state, texts = read_tensors(path)
        card = parse_json(texts.get("card", "{}"))
        check_table("its card", card, {"model": dict, "dataset": dict | str}, others=True)
        return state, card
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not {kind} ({' '.join(str(error).split())}); {remedy}") from None


def load_strictly(model: TwoStream, state: dict[str, Tensor], names: dict[str, str], where: str) -> None:
    """Copy `state` into `model`, every weight under the name `names` gives it; refuse the first that does not fit."""
    what = "{name}, num_identities={num_identities}, backbone={backbone}".format(**model.arguments)
    remedy = "build the network the file was saved from"
    for name, value in model.state_dict().items():
        if (theirs := names[name]) not in state:
            raise InputError(f"{where}: {theirs} is missing for {what}; {remedy}")
        if (found := tuple(state[theirs].shape)) != (shape := tuple(value.shape)):
            raise InputError(f"{where}: {theirs} is {found} where {what} has {shape}; {remedy}")
        if state[theirs].is_floating_point() != value.is_floating_point():
            raise InputError(f"{where}: {theirs} holds {state[theirs].dtype} where {value.dtype} is needed; {remedy}")
        if not state[theirs].float().isfinite().all():  # as it will be kept
            raise InputError(f"{where}: {theirs} holds NaN or infinity; train it again")
    if foreign := [name for name in state if name not in set(names.values())]:
        raise InputError(f"{where}: {foreign[0]} has no place in {what}; {remedy}")
    model.load_state_dict({name: state[theirs] for name, theirs in names.items()})
