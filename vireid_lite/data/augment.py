"""Training augmentations on whole batches: each image draws its own, all from one generator.

Every function takes images (N, 3, H, W) float in [0, 1] and a CPU generator, and returns a new tensor of that shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from vireid_lite.data.records import Modality
from vireid_lite.errors import check_flag, check_number, check_whole

# CAJ fills erased boxes with (.4914, .4822, .4465) after ImageNet normalisation; this is that value as a pixel.
ERASED = (0.485 + 0.229 * 0.4914, 0.456 + 0.224 * 0.4822, 0.406 + 0.225 * 0.4465)


def _some(changed: Tensor, images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Return each image changed with the given probability."""
    return _where(torch.rand(len(images), generator=generator) < probability, changed, images)


def _where(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1, 1).to(images.device), changed, images)


def _channel(images: Tensor, channel: Tensor) -> Tensor:
    """Return one channel of each image, (N,), as all three."""
    rows = torch.arange(len(images), device=images.device)
    return images[rows, channel.to(images.device)][:, None].expand_as(images)


def pad_crop(images: Tensor, pad: int, generator: Generator) -> Tensor:
    """Pad with black on every side and crop back to size at a random place (AGW: pad 10)."""
    count, _, height, width = images.shape
    corners = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).T.tolist()
    padded = zip(F.pad(images, [pad]), corners, strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, (top, left) in padded])


def flip(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Mirror each image left to right with the given probability."""
    return _some(F.horizontal_flip(images), images, probability, generator)


def erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Blank a rectangle of 2 to 40 % of the area, aspect ratio 0.3 to 1/0.3, with the given probability (CAJ)."""
    count, _, height, width = images.shape
    area = (0.02 + 0.38 * torch.rand(count, generator=generator)) * height * width
    aspect = torch.exp(torch.empty(count).uniform_(-1.204, 1.204, generator=generator))  # log(1/0.3) = 1.204
    box_height = (area * aspect).sqrt().round().clamp(1, height - 1)
    box_width = (area / aspect).sqrt().round().clamp(1, width - 1)
    top = (torch.rand(count, generator=generator) * (height - box_height + 1)).floor()
    left = (torch.rand(count, generator=generator) * (width - box_width + 1)).floor()
    rows, columns = torch.arange(height), torch.arange(width)
    inside_rows = (rows >= top[:, None]) & (rows < (top + box_height)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + box_width)[:, None])
    inside = (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).to(images.device)
    fill = torch.tensor(ERASED, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return _some(torch.where(inside, fill, images), images, probability, generator)


def random_grey(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Replace each image by its luma (.299 R + .587 G + .114 B) in three channels with the given probability."""
    return _some(F.rgb_to_grayscale(images, num_output_channels=3), images, probability, generator)


def channel_exchange(images: Tensor, generator: Generator) -> Tensor:
    """Replace every image by one of its channels, R, G or B at random, copied three times (CAJ, ChannelExchange)."""
    return _channel(images, torch.randint(0, 3, (len(images),), generator=generator)).contiguous()


def channel_or_grey(images: Tensor, generator: Generator) -> Tensor:
    """Copy R, G or B to all channels, a quarter each; else grey with probability one half (CAJ, ChannelAdapGray)."""
    draw = torch.randint(0, 4, (len(images),), generator=generator)
    return _where(draw < 3, _channel(images, draw.clamp(max=2)), random_grey(images, 0.5, generator))


@dataclass(frozen=True)
class Augmentation:
    """Which augmentations a training run draws, most by a probability; the default is AGW's: pad, crop and flip."""

    pad: int = 10  #: pixels of black border before the random crop
    flip: float = 0.5
    erasing: float = 0.0
    grey: float = 0.0  #: of turning a visible image into its luma
    channels: bool = False  #: CAJ's random channel or grey on infrared images, channel exchange on half of the visible

    def __post_init__(self) -> None:
        check_whole("augmentation", "pad", self.pad)
        check_flag("augmentation", "channels", self.channels)
        for name in ("flip", "erasing", "grey"):
            check_number("augmentation", name, getattr(self, name), 0, 1)

    def __call__(self, images: Tensor, modality: Modality, generator: Generator) -> Tensor:
        """Return the augmented batch; images are all of one modality."""
        if self.pad:
            images = pad_crop(images, self.pad, generator)
        if self.flip:
            images = flip(images, self.flip, generator)
        if self.erasing:
            images = erase(images, self.erasing, generator)
        if modality == Modality.VISIBLE and self.grey:
            images = random_grey(images, self.grey, generator)
        if not self.channels:
            return images
        if modality == Modality.INFRARED:
            return channel_or_grey(images, generator)
        return _some(channel_exchange(images, generator), images, 0.5, generator)
