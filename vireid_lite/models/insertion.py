"""Modules of attention hooked behind the blocks of a network, for a while or for good."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError
from vireid_lite.models.attention import SFM, build_attention
from vireid_lite.models.two_stream import NonLocal, TwoStream, out_channels

Modules = Mapping[int, nn.Module | Sequence[nn.Module]]  # by block, 0 to 4; several act in their order


def block_channels(model: TwoStream) -> list[int]:
    """Return the number of channels that each of the five blocks delivers."""
    layers = [[block for block in stage if not isinstance(block, NonLocal)] for stage in model.stages[1:]]
    return [model.stages[0].visible.conv1.out_channels, *(out_channels(layer[-1]) for layer in layers)]


class _Call:
    """Hook before block 0: keeps the modality that the network is being called with, for the later blocks."""

    modality: Modality | Tensor

    def __call__(self, stem: nn.Module, arguments: tuple, keywords: dict) -> None:
        self.modality = arguments[1] if len(arguments) > 1 else keywords["modality"]


class _Chain:
    """Hook after a block: its map through the modules. An object and no closure, so that a deep copy has its own."""

    def __init__(self, modules: Iterable[nn.Module], call: _Call) -> None:
        self.modules, self.call = modules, call

    def __call__(self, stage: nn.Module, arguments: tuple, maps: Tensor) -> Tensor:
        for module in self.modules:
            maps = module(maps, self.call.modality)
        return maps


def _chains(model: TwoStream, modules: Modules) -> dict[int, list[nn.Module]]:
    """Return a list of modules for each block, checked."""
    chains = {}
    for block, given in modules.items():
        if block not in range(len(model.stages)):
            raise InputError(f"attention: there is no block {block!r}; choose 0 to {len(model.stages) - 1}")
        chains[block] = [given] if isinstance(given, nn.Module) else list(given)
        for module in chains[block]:
            if not isinstance(module, nn.Module):
                raise InputError(f"attention: block {block} needs modules, got {module!r}; see build_attention")
    return chains


def _hook(model: TwoStream, chains: Mapping[int, Iterable[nn.Module]]) -> list:
    """Register the hooks and return their handles."""
    call = _Call()
    handles = [model.stages[0].register_forward_pre_hook(call, with_kwargs=True)]
    return handles + [model.stages[block].register_forward_hook(_Chain(chains[block], call)) for block in chains]


@contextmanager
def inserted(model: TwoStream, modules: Modules) -> Iterator[None]:
    """Let the modules act behind the blocks of a network inside the `with`; the network itself is not touched.

    The modules are no part of the model: they neither save, move nor freeze with it, and gradients reach their weights
    through a frozen one. Nested insertions act in the order they were made; a deep copy made inside keeps the modules
    (copies of them). The network is called as a whole, as block 0 tells the later blocks the modality.

    modules: by block, 0 to 4, a module or several; on the model's device. Raises InputError for another block.
    """
    handles = _hook(model, _chains(model, modules))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def insert(model: TwoStream, modules: Modules) -> TwoStream:
    """Make the modules a part of a network and return it: they train, move and save with it as `model.attention`.

    modules: as for `inserted`. Raises InputError for another block, and where modules were inserted already.
    """
    if hasattr(model, "attention"):
        raise InputError("attention: this network has attention modules already; remove(model) them first")
    chains = {block: nn.ModuleList(chain) for block, chain in _chains(model, modules).items()}
    model.attention = nn.ModuleDict({str(block): chain for block, chain in chains.items()})
    model.attention.handles = _hook(model, chains)
    return model


def remove(model: TwoStream) -> dict[int, list[nn.Module]]:
    """Take out what `insert` put in and return it, by block. Raises InputError where there is nothing."""
    if not hasattr(model, "attention"):
        raise InputError("attention: this network has no attention modules; insert(model, ...) puts them in")
    for handle in model.attention.handles:
        handle.remove()
    modules = {int(block): list(chain) for block, chain in model.attention.items()}
    del model.attention
    return modules


class Tap(nn.Module):
    """Passes feature maps on and keeps the last ones in `maps`, (N, C, h, w): what stage 1 is pooled from."""

    maps: Tensor

    def forward(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return the maps as they are."""
        self.maps = maps
        return maps


def staged(model: TwoStream, attention: str, blocks: Sequence[int], sfm: bool) -> tuple[dict[int, list], Tap]:
    """Return the paper's modules by block, freshly drawn, and the tap that reads stage 1.

    attention: what stands after each of `blocks`, "fsam", "se", "eca" or "none". Stage 1 is the map after block 4 and
    its module, stage 2 what SFM makes of it. What is left out is the identity, so without SFM both stages are one.
    Source: section 3.2 and table 4, blocks 0 and 4. No projection fits in the parameter count the paper reports, so a
    map of 64 channels cannot meet one of 2,048 in a distance; both stages are therefore read after block 4.
    """
    channels = block_channels(model)
    kept = () if attention == "none" else blocks
    modules: dict[int, list] = {block: [build_attention(attention, channels[block])] for block in kept}
    tap = Tap()
    modules.setdefault(4, []).append(tap)
    if sfm:
        modules[4].append(SFM())
    return modules, tap


def check_blocks(name: str, blocks: object) -> tuple[int, ...]:
    """Return blocks as a tuple. Raises InputError, which starts with `name`, unless they are different and 0 to 4."""
    if not isinstance(blocks, list | tuple) or any(type(b) is not int or not 0 <= b <= 4 for b in blocks):
        raise InputError(f"{name}: blocks must be numbers from 0 to 4, such as (0, 4); got {blocks!r}")
    if len(set(blocks)) < len(blocks):
        raise InputError(f"{name}: blocks {tuple(blocks)} name one block twice")
    return tuple(blocks)
