"""Attention per modality: on the phase of a feature map (FSAM), on the map itself (SFM), on its channels (SE, ECA).

The four modules have one interface, `module(maps, modality) -> maps`, each with one set of weights per modality
(`.visible`, `.infrared`). `inserted` hooks them behind the blocks of a two-stream network for the length of a `with`;
`insert` makes them a part of it.
Source: Yang et al., "Feature-Level Adversarial Attacks and Ranking Disruption", NeurIPS 2024, section 3.2.
"""

import math

import torch
from torch import Tensor, nn

from vireid_lite.data.records import Modality, check_modality
from vireid_lite.errors import check_choice
from vireid_lite.frequency import decompose, recombine


class Attention(nn.Module):
    """Weights in (0, 1) for maps (N, C, h, w), made by `excite` of the summary that `squeeze` makes of them."""

    def squeeze(self, maps: Tensor) -> Tensor:
        """Return the means of the channels, (N, C), or another summary of the maps."""
        return maps.mean((2, 3))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the weights, (N, 1, h, w) or (N, C, 1, 1)."""
        return self.excite(self.squeeze(maps))


class SpatialAttention(Attention):
    """One weight per position: sigmoid of a convolution over the maximum and the mean of the channels, (N, 2, h, w).

    Zeros are padded, and there is no bias.
    Source: Woo et al., "CBAM", 2018, the spatial attention module; maximum first as Yang et al. print it.
    """

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding="same", bias=False)

    def squeeze(self, maps: Tensor) -> Tensor:
        return torch.cat([maps.amax(1, keepdim=True), maps.mean(1, keepdim=True)], 1)

    def excite(self, summary: Tensor) -> Tensor:
        return self.conv(summary).sigmoid()


class SqueezeExcitation(Attention):
    """One weight per channel: two linear layers with a ReLU between them, without biases, 2 C (C / reduction) numbers.

    Source: Hu et al., "Squeeze-and-Excitation Networks", 2018, equation 3.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.down, self.up = nn.Linear(channels, inner, bias=False), nn.Linear(inner, channels, bias=False)

    def excite(self, summary: Tensor) -> Tensor:
        return self.up(self.down(summary).relu()).sigmoid()[:, :, None, None]


class EfficientChannel(Attention):
    """One weight per channel: a convolution along the channels, without bias.

    Its kernel is (log2 C + 1) / 2, cut to a whole number and raised to an odd one (gamma 2, b 1 as published).
    Source: Wang et al., "ECA-Net", 2020.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = int((math.log2(channels) + 1) / 2) | 1
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def excite(self, summary: Tensor) -> Tensor:
        return self.conv(summary[:, None]).sigmoid()[:, 0, :, None, None]


class ModalityAttention(nn.Module):
    """Maps times their attention weights, each image's from the attention of its own modality; both are of one kind."""

    kind: type[Attention]

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.visible, self.infrared = self.kind(*channels), self.kind(*channels)

    def weights(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return what multiplies maps (N, C, h, w), in (0, 1): (N, 1, h, w) if spatial, (N, C, 1, 1) by channel.

        Raises InputError for a modality that is neither one for the batch nor one for each of N images.
        """
        if not isinstance(modality := check_modality(modality, len(maps)), Tensor):
            return (self.visible, self.infrared)[modality](maps)
        # Both are computed for every image and one is kept: a summary is small, and splitting would make a GPU wait.
        summary = self.visible.squeeze(maps)
        infrared = (modality == Modality.INFRARED).view(-1, 1, 1, 1).to(maps.device, non_blocking=True)
        return torch.where(infrared, self.infrared.excite(summary), self.visible.excite(summary))

    def forward(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Map (N, C, h, w) to the same shape."""
        return self.weights(maps, modality) * maps


class SFM(ModalityAttention):
    """Second-stage attention: M(x) x with a spatial attention M. The paper's tables call it SAM."""

    kind = SpatialAttention


class SE(ModalityAttention):
    """Squeeze-and-excitation of each modality's channels."""

    kind = SqueezeExcitation


class ECA(ModalityAttention):
    """Efficient channel attention of each modality's channels."""

    kind = EfficientChannel


class FSAM(ModalityAttention):
    """Attention on the phase alone: IFFT(A, M(P) P), M a spatial attention over the bins of the spectrum.

    The raw phase in (-pi, pi] is multiplied, as published; the bins are in fft2's order, DC in the corner. The weights
    of opposite bins differ, so the inverse is complex and its real part is returned.
    """

    kind = SpatialAttention

    def weights(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return what multiplies the phase, (N, 1, h, w) in (0, 1), by bin."""
        return super().weights(decompose(maps)[1], modality)

    def forward(self, maps: Tensor, modality: Modality | Tensor) -> Tensor:
        """Map (N, C, h, w) to the same shape."""
        amplitude, phase = decompose(maps)
        return recombine(amplitude, super().weights(phase, modality) * phase)


def build_attention(name: str, channels: int) -> ModalityAttention:
    """Return a new module: "fsam" or "sfm" (of any number of channels), "se" or "eca". Raises InputError for others."""
    known = {"fsam": lambda _: FSAM(), "sfm": lambda _: SFM(), "se": SE, "eca": ECA}
    check_choice("attention", "name", name, known)
    return known[name](channels)
