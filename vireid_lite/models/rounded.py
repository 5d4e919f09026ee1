"""A lite AGW network in 8 bits: BatchNorm folded into each convolution, one scale for each of its output channels."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from vireid_lite.errors import InputError
from vireid_lite.models.agw import AGW
from vireid_lite.models.two_stream import NonLocal, TwoStream

LEVELS = 127  #: weights are whole numbers from -127 to 127, times their channel's scale


class Rounded(NamedTuple):
    """One convolution, its BatchNorm folded in: `levels * scale` convolved, plus `bias`."""

    levels: Tensor  #: int8 (out, in, kernel, kernel)
    scale: Tensor  #: float32 (out,)
    bias: Tensor  #: float32 (out,)

    @property
    def weight(self) -> Tensor:
        """The weights as the rounded network has them, float32 (out, in, kernel, kernel)."""
        return self.levels.float() * self.scale.view(-1, 1, 1, 1)


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> Rounded:
    """Return a convolution in 8 bits, with the BatchNorm after it in eval mode; None where there is none."""
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
    if norm is not None:
        factor = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = (bias - norm.running_mean.double()) * factor + norm.bias.detach().double()
        weight = weight * factor.view(-1, 1, 1, 1)
    scale = (weight.abs().amax((1, 2, 3)) / LEVELS).float().clamp(min=torch.finfo(torch.float32).tiny)
    return Rounded((weight / scale.view(-1, 1, 1, 1)).round().to(torch.int8), scale, bias.float())


def convolutions(model: TwoStream) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """Return every convolution of a lite AGW network and the BatchNorm after it, by name.

    Raises InputError for another network, or for one whose features add the mirror image's.
    """
    known = all(isinstance(block, BasicBlock | NonLocal) for stage in model.stages[1:] for block in stage)
    if not (isinstance(model, AGW) and known) or hasattr(model.stages[0].visible, "maxpool") or model.flip:
        raise InputError("8 bits: only an agw with the lite trunk and flip=False is rounded; give another victim")
    found = {f"stages.0.{name}": (stem.conv1, stem.bn1) for name, stem in model.stages[0].named_children()}
    for name, block in model.named_modules():
        if isinstance(block, BasicBlock):
            found |= {f"{name}.first": (block.conv1, block.bn1), f"{name}.second": (block.conv2, block.bn2)}
            if block.downsample is not None:
                found[f"{name}.shortcut"] = tuple(block.downsample)
        elif isinstance(block, NonLocal):
            found |= {f"{name}.{part}": (getattr(block, part), None) for part in ("theta", "phi", "g")}
            found[f"{name}.W"] = tuple(block.W)
    return found


@torch.no_grad()
def rounded(model: TwoStream) -> TwoStream:
    """Return a copy of a lite AGW network whose convolutions have the weights of 8 bits, in eval mode, to be attacked.

    Its BatchNorms add what was folded and do nothing else; the BNNeck and the classifier stay floats.
    """
    model = copy.deepcopy(model).eval()
    for conv, norm in convolutions(model).values():
        found = fold(conv, norm)
        conv.weight.copy_(found.weight)
        if norm is None:
            conv.bias.copy_(found.bias)
            continue
        if conv.bias is not None:
            conv.bias.zero_()
        for part, value in ((norm.weight, 1), (norm.running_mean, 0), (norm.running_var, 1 - norm.eps)):
            part.fill_(value)
        norm.bias.copy_(found.bias)
    return model
