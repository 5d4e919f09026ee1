"""What every two-stream network is made of: one stem per modality, a shared trunk, non-local blocks, GeM, a BNNeck."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from vireid_lite.data.records import Modality, check_modality
from vireid_lite.errors import InputError, check_choice, check_flag

BACKBONES = ("resnet50", "resnet18", "lite")
LITE_WIDTHS = (24, 48, 96, 192)  #: channels of the lite trunk's layers; its stem has the first one's


class ModelOutput(NamedTuple):
    pooled: Tensor  #: (N, D), not normalised, read by the triplet losses
    embedding: Tensor  #: (N, D), not normalised, the BNNeck's output
    logits: Tensor  #: (N, num_identities)


class Batch(NamedTuple):
    images: Tensor  #: (N, 3, H, W) float in [0, 1], augmented, visible ones first
    modality: Tensor  #: int64 (N,) on the CPU
    labels: Tensor  #: int64 (N,), contiguous, on the images' device
    smoothing: float
    triplet: Callable[[Tensor, Tensor], Tensor] | None  #: one of `losses.TRIPLETS`
    history: list[dict]  #: one for each finished epoch
    generator: torch.Generator  #: on the CPU; every draw comes from it, so that a killed training resumes


class Objective(NamedTuple):
    losses: dict[str, Tensor]  #: name to scalar, weighted already; their sum is minimised
    logits: Tensor  #: (M, num_identities), noted as the accuracy against the labels (M,)
    labels: Tensor
    noted: dict[str, Tensor] | None = None  #: name to scalar, what a history keeps beside


class TwoStream(nn.Module):
    """A network with one stem per modality and a shared trunk; each says in `objective(batch)` how it is trained.

    Of its five `stages` block 0 holds the stems and is called as `stages[0](images, modality)`; blocks 1 to 4 take and
    return feature maps, so a forward hook on any of the five sees that block's feature map.
    """

    arguments: dict  #: what `models.build` made the network from; a checkpoint's card keeps it
    people: set[str] | None = None  #: whom it was trained on, as `data.people` names them; None where nothing says
    gem_p: float = 1.0  #: exponent of the pooling; 1 is average pooling
    flip: bool = False  #: whether `embed` adds the mirror image's features
    triplet: str | None = None  #: trained with unless told, a name of `losses.TRIPLETS`; None where it takes none

    def __init__(self, stem: nn.Module, layers: list[nn.Module]) -> None:
        super().__init__()
        # Convolutions follow the layout of their weights; channels last is the faster one, on a CPU by 10 to 15 %.
        self.stages = nn.ModuleList([Stems(stem), *layers]).to(memory_format=torch.channels_last)

    @property
    def channels(self) -> int:
        """Channels of the map after block 4."""
        return out_channels(self.stages[4][-1])

    def add_head(self, num_identities: int, branches: int = 1) -> None:
        width = self.channels // branches
        self.bottleneck, self.classifier = bnneck(width), identity_classifier(width, num_identities)

    @classmethod
    def chosen_triplet(cls, asked: str | None) -> str | None:
        """Return the name of the triplet a training uses, or None. Raises InputError where the network takes none."""
        if asked is not None and cls.triplet is None:
            raise InputError(f"training: {cls.__name__} has its own losses and takes no triplet; leave {asked!r} out")
        return asked or cls.triplet

    def feature_map(self, images: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return the map after block 4, (N, D, h, w)."""
        maps = self.stages[0](images, modality)
        for stage in self.stages[1:]:
            maps = stage(maps)
        return maps

    def forward(self, images: Tensor, modality: Modality | Tensor) -> ModelOutput:
        """Return the output for images (N, 3, H, W) in [0, 1], not checked, and one Modality for all or int64 (N,)."""
        pooled = generalised_mean(self.feature_map(images, modality), self.gem_p)
        embedding = self.bottleneck(pooled)
        return ModelOutput(pooled, embedding, self.classifier(embedding))

    def embed(self, images: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return the ranked features (N, D), the embedding at length 1; with `flip` its sum with the mirror image's.

        Always computed as in eval mode; every module's mode is put back, and gradient flows to the images. Raises
        InputError for images of another shape or type, outside [0, 1] or not finite (on a GPU this check waits).
        """
        check_images(images)
        with evaluating(self):
            features = F.normalize(self(images, modality).embedding)
            if not self.flip:
                return features
            return F.normalize(features + F.normalize(self(images.flip(3), modality).embedding))


def check_images(images: Tensor) -> None:
    """Raise InputError unless `images` is a non-empty float tensor (N, 3, H, W) with finite values in [0, 1]."""
    check_kind(images)
    if images.numel() == 0 or images.is_meta:  # which has a shape, and no values
        found = f"{tuple(images.shape)} on the device {images.device}"
        raise InputError(f"images: values of shape (N, 3, H, W) are needed, got {found}")
    low, high = (value.item() for value in images.detach().aminmax())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # rounding; also refuses NaN, which aminmax passes on
        remedy = "do not normalise, the model does that itself"
        raise InputError(f"images: values must lie in [0, 1], got {low:.8g} to {high:.8g}; {remedy}")


def check_kind(images: Tensor) -> None:
    """Raise InputError unless `images` is a dense float tensor (N, 3, H, W); its values are not looked at."""
    dense = isinstance(images, Tensor) and images.layout == torch.strided
    if not (dense and images.is_floating_point() and images.dtype.itemsize > 1):  # nothing is computed in 8 bits
        kind = images.dtype if dense else getattr(images, "layout", type(images).__name__)
        raise InputError(f"images: a float tensor (N, 3, H, W) in [0, 1] is needed, got {kind}; divide uint8 by 255")
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images: the shape must be (N, 3, H, W), got {tuple(images.shape)}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode inside the block, and each back in its own after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Stems(nn.Module):
    """Block 0: ImageNet normalisation, then each image through the stem of its own modality, two copies at first."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.visible, self.infrared = stem, copy.deepcopy(stem)
        for name, values in (("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225])):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, modality: Modality | Tensor) -> Tensor:
        """Return stem features in the order of `images`; each stem's BatchNorm sees its own images only."""
        check_kind(images)
        images, stems = (images.to(self.mean.dtype) - self.mean) / self.std, (self.visible, self.infrared)
        if not isinstance(modality := check_modality(modality, len(images)), Tensor):
            return stems[modality](images)
        groups = [(modality == value).nonzero().flatten() for value in Modality]  # on the CPU, so that no GPU waits
        if (modality.diff() >= 0).all():  # visible first, infrared after: slices spare two copies
            parts, back = images.split([*map(len, groups)]), slice(None)
        else:
            places = (*groups, torch.cat(groups).argsort())
            *groups, back = (place.to(images.device, non_blocking=True) for place in places)
            parts = [images[group] for group in groups]
        pairs = zip(stems, parts, strict=True)
        return torch.cat([stem(part) for stem, part in pairs if len(part) or not len(images)])[back]


class NonLocal(nn.Module):
    """Non-local block without softmax: x + W(theta phi^T g / positions), W = 1x1 convolution and a BatchNorm at 0."""

    def __init__(self, channels: int, inner_channels: int = 1) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner_channels, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv2d(inner_channels, channels, 1), nn.BatchNorm2d(channels))
        nn.init.zeros_(self.W[1].weight)  # its bias is 0 already

    def forward(self, maps: Tensor) -> Tensor:
        each = (self.theta, self.phi, self.g)  # one call for the three: the maps are read once
        weight, bias = torch.cat([conv.weight for conv in each]), torch.cat([conv.bias for conv in each])
        theta, phi, g = F.conv2d(maps, weight, bias).flatten(2).chunk(3, 1)
        # Without a softmax the product is associative: (phi^T g) first never builds the positions x positions matrix.
        attended = (g @ phi.mT / g.shape[2]) @ theta
        return maps + self.W(attended.unflatten(2, maps.shape[2:]))


def horizontal_stripes(maps: Tensor, count: int) -> Tensor:
    """Return the means over `count` horizontal stripes of maps (N, C, h, w), top first: (N, count, C)."""
    # As adaptive average pooling has them, whose own backward pass differs from run to run on a GPU.
    rows, height = maps.mean(3), maps.shape[2]
    edges = ((i * height // count, -((i + 1) * height // -count)) for i in range(count))
    return torch.stack([rows[:, :, first:end].mean(2) for first, end in edges], 1)


def generalised_mean(maps: Tensor, p: float = 3.0) -> Tensor:
    """Return GeM pooling (mean(x^p) + 1e-12)^(1/p) of maps (N, C, h, w) cut at 0: (N, C) (AGW model.py:234)."""
    return (maps.clamp(min=0).pow(p).mean((2, 3)) + 1e-12).pow(1 / p)


def bnneck(channels: int) -> nn.BatchNorm1d:
    """Return AGW's BNNeck: BatchNorm with its bias frozen at 0 and weights drawn from N(1, 0.01)."""
    neck = nn.BatchNorm1d(channels)
    nn.init.normal_(neck.weight, 1.0, 0.01)
    neck.bias.requires_grad_(False)
    return neck


def identity_classifier(channels: int, num_identities: int) -> nn.Linear:
    """Return the classifier without bias, weights drawn from N(0, 0.001)."""
    classifier = nn.Linear(channels, num_identities, bias=False)
    nn.init.normal_(classifier.weight, 0.0, 0.001)
    return classifier


def trunk(backbone: str, pretrained: bool = False) -> tuple[nn.Sequential, list[nn.Sequential]]:
    """Return a stem and layers 1 to 4; layer4 of a ResNet has stride 1, "lite" one BasicBlock a layer and no maxpool.

    pretrained: start from torchvision's ImageNet weights (IMAGENET1K_V1), downloaded at first use.
    """
    check_choice("models", "backbone", backbone, BACKBONES)
    check_flag("models", "pretrained", pretrained)
    if backbone == "lite":
        if pretrained:
            raise InputError("models: the lite trunk has no ImageNet weights; choose a ResNet or pretrained=False")
        return _lite_trunk()
    network = torchvision.models.get_model(backbone, weights=None)
    if pretrained:
        weights = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"]
        try:
            network.load_state_dict(weights.get_state_dict(progress=True, check_hash=True))
        except (OSError, RuntimeError) as error:  # no network; truncated or foreign file
            reason = (str(error) or type(error).__name__).splitlines()[0]
            remedy = f"put {weights.url} under {torch.hub.get_dir()}/checkpoints or choose pretrained=False"
            raise InputError(
                f"models: ImageNet weights for {backbone} could not be loaded ({reason}); {remedy}"
            ) from None
    for module in network.layer4[0].modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    stem = nn.Sequential(OrderedDict((part, getattr(network, part)) for part in ("conv1", "bn1", "relu", "maxpool")))
    return stem, [network.layer1, network.layer2, network.layer3, network.layer4]


def _lite_trunk():
    """Return a stem of stride 2 and four layers of one BasicBlock, with torchvision's ResNet initialisation."""
    channels = LITE_WIDTHS[0]
    convolution = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
    stem = nn.Sequential(OrderedDict(conv1=convolution, bn1=nn.BatchNorm2d(channels), relu=nn.ReLU(True)))
    layers = [nn.Sequential(BasicBlock(channels, channels))]
    for narrow, wide in pairwise(LITE_WIDTHS):
        shortcut = nn.Sequential(nn.Conv2d(narrow, wide, 1, 2, bias=False), nn.BatchNorm2d(wide))
        layers.append(nn.Sequential(BasicBlock(narrow, wide, 2, shortcut)))
    for module in nn.ModuleList([stem, *layers]).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return stem, layers


def out_channels(block: nn.Module) -> int:
    """Return the number of channels a residual block delivers."""
    return block.bn3.num_features if isinstance(block, Bottleneck) else block.bn2.num_features
