"""Modules of attention hooked behind the blocks of a network, for a while or for good."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from vireid_lite.errors import InputError
from vireid_lite.models.attention import SFM, build_attention
from vireid_lite.models.two_stream import NonLocal, TwoStream, out_channels

Modules = Mapping[int, nn.Module | Sequence[nn.Module]]  #: by block, 0 to 4; several act in their order


def block_channels(model: TwoStream) -> list[int]:
    """Return the number of channels that each of the five blocks delivers."""
    layers = [[block for block in stage if not isinstance(block, NonLocal)] for stage in model.stages[1:]]
    return [model.stages[0].visible.conv1.out_channels, *(out_channels(layer[-1]) for layer in layers)]


class _Hooks:
    """An object and no closures, so that a deep copy of the network has its own."""

    def before_block_0(self, stem, arguments, keywords):
        self.modality = arguments[1] if len(arguments) > 1 else keywords["modality"]

    def after(self, chain, stage, arguments, maps):
        for module in chain:
            maps = module(maps, self.modality)
        return maps


def _hook(model, modules):
    """Register the modules' hooks; return the modules by block, and the hooks' handles."""
    chains, hooks = nn.ModuleDict(), _Hooks()
    for block, given in modules.items():
        if block not in range(len(model.stages)):
            raise InputError(f"attention: there is no block {block!r}; choose 0 to {len(model.stages) - 1}")
        for module in (chain := [given] if isinstance(given, nn.Module) else list(given)):
            if not isinstance(module, nn.Module):
                raise InputError(f"attention: block {block} needs modules, got {module!r}; see build_attention")
        chains[str(block)] = nn.ModuleList(chain)
    handles = [model.stages[int(b)].register_forward_hook(partial(hooks.after, each)) for b, each in chains.items()]
    return chains, [*handles, model.stages[0].register_forward_pre_hook(hooks.before_block_0, with_kwargs=True)]


@contextmanager
def inserted(model: TwoStream, modules: Modules) -> Iterator[None]:
    """Let modules act behind the blocks of a network inside the `with`: by block, 0 to 4, one or several in order.

    They neither save, move nor freeze with the model, but a deep copy made inside keeps copies of them. Nested
    insertions act in the order they were made. Call the network as a whole: block 0 tells the others the modality.
    """
    _, handles = _hook(model, modules)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def insert(model: TwoStream, modules: Modules) -> TwoStream:
    """Make the modules (see `inserted`) a part of a network and return it: they train, move and save with it.

    Raises InputError where modules were inserted already.
    """
    if hasattr(model, "attention"):
        raise InputError("attention: this network has attention modules already; build a fresh one")
    model.attention, _ = _hook(model, modules)
    return model


class Tap(nn.Module):
    """Passes feature maps on and keeps the last ones in `maps`, (N, C, h, w): what stage 1 is pooled from."""

    def forward(self, maps: Tensor, modality) -> Tensor:
        self.maps = maps
        return maps


def staged(model: TwoStream, attention: str, blocks: Sequence[int], sfm: bool) -> tuple[dict[int, list], Tap]:
    """Return the paper's modules by block, freshly drawn, and the tap that reads stage 1.

    After each of `blocks` stands "fsam", "se", "eca" or "none". Stage 1 is the map after block 4 and its module, stage
    2 what SFM makes of it: in the parameter count the paper reports no projection fits, without which a map of 64
    channels cannot meet one of 2,048 in a distance. Source: section 3.2 and table 4, blocks 0 and 4.
    """
    channels, tap, kept = block_channels(model), Tap(), () if attention == "none" else blocks
    modules = {block: [build_attention(attention, channels[block])] for block in kept}
    modules[4] = [*modules.get(4, []), tap, *([SFM()] if sfm else [])]
    return modules, tap


def check_blocks(name: str, blocks: object) -> tuple[int, ...]:
    """Return blocks as a tuple; they must be different and 0 to 4."""
    if not isinstance(blocks, list | tuple) or any(type(b) is not int or not 0 <= b <= 4 for b in blocks):
        raise InputError(f"{name}: blocks must be numbers from 0 to 4, such as (0, 4); got {blocks!r}")
    if len(set(blocks)) < len(blocks):
        raise InputError(f"{name}: blocks {tuple(blocks)} name one block twice")
    return tuple(blocks)
