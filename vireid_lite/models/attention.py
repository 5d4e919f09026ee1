"""Attention per modality: on the phase of a feature map (FSAM), on the map itself (SFM), on its channels (SE, ECA).

The four modules have one interface, `module(maps, modality) -> maps`, each with one set of weights per modality
(`.visible`, `.infrared`); `insertion` hooks them behind the blocks of a network.
Source: Yang et al., "Feature-Level Adversarial Attacks and Ranking Disruption", NeurIPS 2024, section 3.2.
"""

import math

import torch
from torch import Tensor, nn

from vireid_lite.data.records import Modality, check_modality
from vireid_lite.errors import check_choice
from vireid_lite.frequency import decompose, recombine


class SpatialAttention(nn.Module):
    """One weight per position: sigmoid of a convolution, zeros padded, over the maximum and the mean of the channels.

    Source: Woo et al., "CBAM", 2018, the spatial attention module; maximum first as Yang et al. print it.
    """

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding="same", bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the weights of maps (N, C, h, w), (N, 1, h, w) in (0, 1)."""
        return self.conv(torch.cat([maps.amax(1, keepdim=True), maps.mean(1, keepdim=True)], 1)).sigmoid()


class SqueezeExcitation(nn.Module):
    """One weight per channel: two linear layers with a ReLU between them (Hu et al., 2018, equation 3)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.down, self.up = nn.Linear(channels, inner, bias=False), nn.Linear(inner, channels, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the weights of maps (N, C, h, w), (N, C, 1, 1) in (0, 1)."""
        return self.up(self.down(maps.mean((2, 3))).relu()).sigmoid()[:, :, None, None]


class EfficientChannel(nn.Module):
    """One weight per channel: a convolution along the channels (Wang et al., "ECA-Net", 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = int((math.log2(channels) + 1) / 2) | 1  # gamma 2, b 1 as published
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the weights of maps (N, C, h, w), (N, C, 1, 1) in (0, 1)."""
        return self.conv(maps.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]


class ModalityAttention(nn.Module):
    """Maps times their attention weights, each image's from the attention of its own modality; both are of one kind."""

    kind: type[nn.Module]

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.visible, self.infrared = self.kind(*channels), self.kind(*channels)

    def weights(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return what multiplies maps (N, C, h, w), in (0, 1): (N, 1, h, w) if spatial, (N, C, 1, 1) by channel.

        Raises InputError for a modality that is neither one for the batch nor one for each of N images.
        """
        if not isinstance(modality := check_modality(modality, len(maps)), Tensor):
            return (self.visible, self.infrared)[modality](maps)
        # Both are computed for every image and one is kept, as splitting would make a GPU wait.
        infrared = (modality == Modality.INFRARED).view(-1, 1, 1, 1).to(maps.device, non_blocking=True)
        return torch.where(infrared, self.infrared(maps), self.visible(maps))

    def forward(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Map (N, C, h, w) to the same shape."""
        return self.weights(maps, modality) * maps


class SFM(ModalityAttention):
    """Second-stage attention: M(x) x with a spatial attention M. The paper's tables call it SAM."""

    kind = SpatialAttention


class SE(ModalityAttention):
    kind = SqueezeExcitation


class ECA(ModalityAttention):
    kind = EfficientChannel


class FSAM(ModalityAttention):
    """Attention on the phase alone: IFFT(A, M(P) P), M a spatial attention over the bins, in fft2's order.

    The raw phase in (-pi, pi] is multiplied, as published. The weights of opposite bins differ, so the inverse is
    complex and its real part is returned.
    """

    kind = SpatialAttention

    def weights(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return what multiplies the phase, (N, 1, h, w) in (0, 1), by bin."""
        return super().weights(decompose(maps)[1], modality)

    def forward(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        amplitude, phase = decompose(maps)
        return recombine(amplitude, super().weights(phase, modality) * phase)


def build_attention(name: str, channels: int) -> ModalityAttention:
    """Return a new module: "fsam" or "sfm" (of any number of channels), "se" or "eca". Raises InputError for others."""
    known = {"fsam": lambda _: FSAM(), "sfm": lambda _: SFM(), "se": SE, "eca": ECA}
    check_choice("attention", "name", name, known)
    return known[name](channels)
