"""Attention per modality: on the phase of a feature map (FSAM), on the map itself (SFM), on its channels (SE, ECA).

The four modules have one interface, `module(maps, modality) -> maps`, each with one set of weights per modality
(`.visible`, `.infrared`). `inserted` hooks them behind the blocks of a two-stream network for the length of a `with`;
`insert` makes them a part of it.
Source: Yang et al., "Feature-Level Adversarial Attacks and Ranking Disruption", NeurIPS 2024, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError
from vireid_lite.frequency import decompose, recombine
from vireid_lite.models.two_stream import NonLocal, TwoStream, out_channels

Modules = Mapping[int, nn.Module | Sequence[nn.Module]]  # by block, 0 to 4; several act in their order


class SpatialAttention(nn.Module):
    """One weight per position: sigmoid of a convolution over the maximum and the mean of the channels.

    kernel: its side. Zeros are padded, and there is no bias.
    Source: Woo et al., "CBAM", 2018, the spatial attention module; maximum first as Yang et al. print it.
    """

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding="same", bias=False)

    @staticmethod
    def squeeze(maps: Tensor) -> Tensor:
        """Return the maximum and the mean over the channels of (N, C, h, w), in this order: (N, 2, h, w)."""
        return torch.cat([maps.amax(1, keepdim=True), maps.mean(1, keepdim=True)], 1)

    def excite(self, summary: Tensor) -> Tensor:
        """Return the weights (N, 1, h, w) in (0, 1) for a summary (N, 2, h, w)."""
        return self.conv(summary).sigmoid()

    def forward(self, maps: Tensor) -> Tensor:
        """Return the weights (N, 1, h, w) in (0, 1) for maps (N, C, h, w)."""
        return self.excite(self.squeeze(maps))


class ChannelAttention(nn.Module):
    """One weight per channel, from the means of the channels; a subclass says how, in `excite`."""

    @staticmethod
    def squeeze(maps: Tensor) -> Tensor:
        """Return the mean of each channel of (N, C, h, w): (N, C)."""
        return maps.mean((2, 3))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the weights (N, C, 1, 1) in (0, 1) for maps (N, C, h, w)."""
        return self.excite(self.squeeze(maps))


class SqueezeExcitation(ChannelAttention):
    """Two linear layers with a ReLU between them, without biases: 2 C (C / reduction) parameters.

    reduction: what the inner width divides the channels by; at least one inner channel is left.
    Source: Hu et al., "Squeeze-and-Excitation Networks", 2018, equation 3.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.down = nn.Linear(channels, inner, bias=False)
        self.up = nn.Linear(inner, channels, bias=False)

    def excite(self, summary: Tensor) -> Tensor:
        """Return the weights (N, C, 1, 1) in (0, 1) for means (N, C)."""
        return self.up(self.down(summary).relu()).sigmoid()[:, :, None, None]


class EfficientChannel(ChannelAttention):
    """One convolution along the channels, without bias: as many parameters as its kernel is long.

    The kernel is (log2 C + 1) / 2, cut to a whole number and raised to an odd one (gamma 2, b 1 as published).
    Source: Wang et al., "ECA-Net", 2020.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = int((math.log2(channels) + 1) / 2)
        kernel += 1 - kernel % 2
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def excite(self, summary: Tensor) -> Tensor:
        """Return the weights (N, C, 1, 1) in (0, 1) for means (N, C)."""
        return self.conv(summary[:, None]).sigmoid()[:, 0, :, None, None]


class ModalityAttention(nn.Module):
    """Maps times their attention weights, each image's from the attention of its own modality."""

    def __init__(self, visible: nn.Module, infrared: nn.Module) -> None:
        super().__init__()
        self.visible = visible
        self.infrared = infrared

    def weights(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return what multiplies, in (0, 1): (N, 1, h, w) of a spatial attention, (N, C, 1, 1) of a channel one.

        maps: (N, C, h, w) float. modality: one Modality for the batch, or int64 (N,) of 0 (visible) and 1 (infrared).
        Raises InputError for another modality, or one that is not of N images.
        """
        if not isinstance(modality, Tensor):
            if modality not in (0, 1):
                raise InputError(
                    f"modality: Modality.VISIBLE, Modality.INFRARED or a tensor is needed, got {modality!r}"
                )
            return (self.visible, self.infrared)[modality](maps)
        if modality.shape != maps.shape[:1]:
            raise InputError(f"modality: one 0 (visible) or 1 (infrared) per image is needed, {len(maps)} in all")
        # Both are computed for every image and one is kept: a summary is small, and splitting would make a GPU wait.
        summary = self.visible.squeeze(maps)
        infrared = (modality == Modality.INFRARED).view(-1, 1, 1, 1).to(maps.device, non_blocking=True)
        return torch.where(infrared, self.infrared.excite(summary), self.visible.excite(summary))

    def forward(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Map (N, C, h, w) to the same shape; arguments and errors of `weights`."""
        return self.weights(maps, modality) * maps


class SFM(ModalityAttention):
    """Second-stage attention: M(x) x with a spatial attention M. The paper's tables call it SAM."""

    def __init__(self) -> None:
        super().__init__(SpatialAttention(), SpatialAttention())


class SE(ModalityAttention):
    """Squeeze-and-excitation of each modality's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(SqueezeExcitation(channels), SqueezeExcitation(channels))


class ECA(ModalityAttention):
    """Efficient channel attention of each modality's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(EfficientChannel(channels), EfficientChannel(channels))


class FSAM(ModalityAttention):
    """Attention on the phase alone: IFFT(A, M(P) P), M a spatial attention over the bins of the spectrum.

    The raw phase in (-pi, pi] is multiplied, as published; the bins are in fft2's order, DC in the corner. The weights
    of opposite bins differ, so the inverse is complex and its real part is returned.
    """

    def __init__(self) -> None:
        super().__init__(SpatialAttention(), SpatialAttention())

    def weights(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return what multiplies the phase, (N, 1, h, w) in (0, 1), by bin; arguments and errors of the base class."""
        return super().weights(decompose(maps)[1], modality)

    def forward(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Map (N, C, h, w) to the same shape; arguments and errors of `weights`."""
        amplitude, phase = decompose(maps)
        return recombine(amplitude, super().weights(phase, modality) * phase)


def build_attention(name: str, channels: int) -> ModalityAttention:
    """Return a new module: "fsam" or "sfm" (of any number of channels), "se" or "eca". Raises InputError for others."""
    if name not in _ATTENTION:
        raise InputError(f"attention: {name!r} is unknown; choose one of {', '.join(_ATTENTION)}")
    return _ATTENTION[name](channels)


_ATTENTION = {"fsam": lambda channels: FSAM(), "sfm": lambda channels: SFM(), "se": SE, "eca": ECA}


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
