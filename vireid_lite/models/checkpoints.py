"""Checkpoints: safetensors with a JSON card, loaded strictly; and the official AGW files through a name map."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from vireid_lite.errors import InputError
from vireid_lite.files import write_atomically
from vireid_lite.models.build import build
from vireid_lite.models.official import _load_strictly
from vireid_lite.models.two_stream import TwoStream


def save_checkpoint(path: str | Path, model: TwoStream, card: dict) -> dict:
    """Write the weights to `path` and the card to the same name ending in .json; return the card as written.

    The card gains "model", the arguments `models.build` was called with, and is kept inside the weights file as well:
    that copy is the one read back, so a kill between the two files never pairs weights with another card. Each file is
    written beside its place and moved there whole.

    path: ends in .safetensors. model: from `models.build`. card: anything JSON can hold.
    Raises InputError where the path ends otherwise or cannot be written, or the card holds what is not JSON.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a checkpoint's name must end in .safetensors")
    card = {**card, "model": model.arguments}
    try:
        text = json.dumps(card, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the card must be plain JSON ({error})") from None
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, safetensors.torch.save(state, metadata={"card": text}))
    write_atomically(path.with_suffix(".json"), (text + "\n").encode())
    return json.loads(text)


def load_checkpoint(path: str | Path) -> tuple[TwoStream, dict]:
    """Return the network a checkpoint holds, in eval mode on the CPU, and its card.

    torch's random generator is left as it was. Raises InputError where the file is missing, damaged, carries no card,
    or its weights do not fit the network that the card describes (naming the first that does not).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train one or check the path")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("card")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safetensors file, no dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); save or copy it again") from None
    try:
        card = json.loads(text or "")
        arguments = card["model"]
        with torch.random.fork_rng(devices=[]):
            model = build(**{**arguments, "pretrained": False})
    except (json.JSONDecodeError, KeyError, TypeError):
        raise InputError(f"{path}: carries no usable card; only files of save_checkpoint can be loaded") from None
    model.arguments = arguments
    _load_strictly(model, state, {name: name for name in model.state_dict()}, str(path))
    return model.eval(), card
