"""Training augmentations on whole batches: each image draws its own, all from one generator.

Every function takes images (N, 3, H, W) float in [0, 1] and a CPU generator, and returns a new tensor of that shape.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from vireid_lite.data.records import Modality, one_modality
from vireid_lite.errors import check_choice, check_flag, check_number, whole

# CAJ fills erased boxes with (.4914, .4822, .4465) after ImageNet normalisation; this is that value as a pixel.
ERASED = (0.485 + 0.229 * 0.4914, 0.456 + 0.224 * 0.4822, 0.406 + 0.225 * 0.4465)

# The published boxes: least and most share of the area, colour. DEEN's is ImageNet's mean, after normalisation too; the
# box of SYSU-MM01 is larger (CAJ ChannelAug.py, DEEN random_erasing.py and train.py).
MEAN = (0.485 + 0.229 * 0.485, 0.456 + 0.224 * 0.456, 0.406 + 0.225 * 0.406)
BOXES = {"caj": (0.02, 0.4, ERASED), "deen": (0.02, 0.4, MEAN), "deen-sysu": (0.2, 0.8, MEAN)}


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


def erase(images: Tensor, probability: float, generator: Generator, box: str = "own") -> Tensor:
    """Blank a rectangle of 2 to 40 % of the area, aspect ratio 0.3 to 1/0.3, with the given probability (CAJ).

    The aspect ratio's logarithm is uniform, and a box that does not fit is cut. In the published code, one of `BOXES`,
    the ratio itself is uniform, and a box that does not fit is drawn again, up to 100 times: boxes are twice as high.
    """
    count, _, height, width = images.shape
    low, high, colour = BOXES.get(box, BOXES["caj"])
    draws = (count,) if box == "own" else (100, count)
    area = (low + (high - low) * torch.rand(draws, generator=generator)) * height * width
    if box == "own":
        aspect = torch.exp(torch.empty(count).uniform_(-1.204, 1.204, generator=generator))  # log(1/0.3) = 1.204
        box_height = (area * aspect).sqrt().round().clamp(1, height - 1)
        box_width = (area / aspect).sqrt().round().clamp(1, width - 1)
    else:
        aspect = 0.3 + (1 / 0.3 - 0.3) * torch.rand(draws, generator=generator)
        sides = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (sides[0] < height) & (sides[1] < width)
        first = fits.int().argmax(0, keepdim=True)
        box_height, box_width = (side.gather(0, first)[0] * fits.any(0) for side in sides)
    top = (torch.rand(count, generator=generator) * (height - box_height + 1)).floor()
    left = (torch.rand(count, generator=generator) * (width - box_width + 1)).floor()
    rows, columns = torch.arange(height), torch.arange(width)
    inside_rows = (rows >= top[:, None]) & (rows < (top + box_height)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + box_width)[:, None])
    inside = (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).to(images.device)
    fill = torch.tensor(colour, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
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
    grey: float = 0.0  #: of turning a visible image into its luma, which three equal channels are already
    channels: bool = False  #: CAJ's random channel or grey on infrared images, channel exchange on half of the visible
    box: str = "own"  #: what is erased, "own" or as published one of `BOXES`

    def __post_init__(self) -> None:
        whole("augmentation", "pad", self.pad, 0, 4096, int)
        check_flag("augmentation", "channels", self.channels)
        check_choice("augmentation", "box", self.box, ("own", *BOXES))
        for name in ("flip", "erasing", "grey"):
            check_number("augmentation", name, getattr(self, name), 0, 1)

    def __call__(self, images: Tensor, modality: Modality, generator: Generator) -> Tensor:
        """Return the augmented batch; images are all of one modality."""
        modality = one_modality(modality)
        if self.pad:
            images = pad_crop(images, self.pad, generator)
        if self.flip:
            images = flip(images, self.flip, generator)
        if self.erasing:
            images = erase(images, self.erasing, generator, self.box)
        if modality == Modality.VISIBLE and self.grey:
            images = random_grey(images, self.grey, generator)
        if not self.channels:
            return images
        if modality == Modality.INFRARED:
            return channel_or_grey(images, generator)
        return _some(channel_exchange(images, generator), images, 0.5, generator)
