"""DEEN: two more embeddings of every image, made from its middle map, kept apart by the loss and ranked together."""

from numbers import Real
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite import losses
from vireid_lite.errors import MANY, InputError, check_flag, check_number
from vireid_lite.models import two_stream
from vireid_lite.models.two_stream import Batch, ModelOutput, Objective, TwoStream, out_channels

BRANCHES = 3  #: the original map and the two made from it


class DEEN(TwoStream):
    """The DEEN two-stream network: each layer is fused with its input, and layer 4 runs on three maps an image.

    In block 4 the branches stand on the batch axis, so that its BatchNorm sees 3N maps; it delivers them side by side,
    (N, 3C, h, w). They share the BNNeck and the classifier. ResNet-50 with 395 identities has 42,037,792 parameters;
    without layer 4 and with 206, as published for RegDB, 13,094,176. Left out: a dropout of 0.01 behind the expansion.
    Source: Zhang and Wang, "Diverse Embedding Expansion Network", CVPR 2023; LLCM DEEN/model.py:91-272.

    Args:
        flip: `embed` sums the features of the image and its mirror image, as the published test does (undivided).
        layer4: False leaves it and the fusion of layer 3 out: block 3 is the expansion of layer 2, block 4 is layer 3.
        published_view: the position attention reads C/2 channels x P positions as C x P/2, as in published weights.
    """

    def __init__(
        self, num_identities, backbone="resnet50", pretrained=False, *, flip=False, layer4=True, published_view=False
    ) -> None:
        for name, value in (("flip", flip), ("layer4", layer4), ("published_view", published_view)):
            check_flag("models", name, value)
        stem, layers = two_stream.trunk(backbone, pretrained)
        widths = [stem.conv1.out_channels, *(out_channels(layer[-1]) for layer in layers)]
        fusions = [Fusion(*widths[k : k + 2][::-1], s, published_view) for k, s in enumerate((1, 2, 2))]
        stages = [Fused(*layers[k], fusion) for k, fusion in enumerate(fusions)]
        if layer4:
            stages.append(nn.Sequential(Expansion(widths[3]), *layers[3], SideBySide(widths[4])))
        else:
            stages[2] = nn.Sequential(Expansion(widths[2]), SideBySide(widths[2]))
            stages.append(nn.Sequential(Stacked(), *layers[2], SideBySide(widths[3])))
        super().__init__(stem, stages)
        self.flip = flip
        self.add_head(num_identities, BRANCHES)

    def forward(self, images: Tensor, modality) -> ModelOutput:
        """Return pooled (N, 3C), embedding (N, 6C) and logits (N, num_identities), the mean of the three branches'.

        The embedding is pooled and BNNeck features, six vectors of length 1 side by side: an inner product is the sum
        of the six similarity matrices that the published test adds up (DEEN test.py).
        """
        pooled, neck = self._branches(images, modality)
        embedding = F.normalize(torch.cat([pooled, neck], 1), dim=2).flatten(1)
        return ModelOutput(pooled.flatten(1), embedding, self.classifier(neck).mean(1))

    def objective(self, batch: Batch) -> Objective:
        """Return identity + triplet + 0.8 cpm + 0.01 orthogonality (DEEN/train.py:284-294), and the logits of 3N rows.

        cpm: `centre_pair_mining` of the first branch with each of the others, summed. orthogonality: inner product of
        the two expanded pooled features, summed over images and divided by 3N.
        """
        pooled, neck = self._branches(batch.images, batch.modality)
        logits, labels = self.classifier(neck).flatten(0, 1), batch.labels.repeat_interleave(BRANCHES)
        plain, first, second = pooled.unbind(1)
        cpm = sum(centre_pair_mining(plain, made, batch.labels, batch.modality) for made in (first, second))
        found = {
            "identity": losses.identity_loss(logits, labels, batch.smoothing),
            "triplet": losses.hard_triplet(pooled.flatten(0, 1), labels),
            "cpm": 0.8 * cpm,
            "orthogonality": 0.01 * (first * second).sum() / len(labels),
        }
        return Objective(found, logits, labels)

    def _branches(self, images: Tensor, modality) -> tuple[Tensor, Tensor]:
        """Return the branches' pooled and BNNeck features, (N, 3, C) each."""
        maps = self.feature_map(images, modality)
        pooled = two_stream.generalised_mean(maps, self.gem_p).unflatten(1, (BRANCHES, -1))
        return pooled, self.bottleneck(pooled.flatten(0, 1)).view_as(pooled)


def centre_pair_mining(plain: Tensor, made: Tensor, labels: Tensor, modality: Tensor, margin: float = 0.2) -> Tensor:
    """Return the centre-guided pair mining loss of one expanded branch, `made`, with margin m and centres w::

        [d - |own_j - w_j| + m]+ + ([d - min_k |w_j - w_k| + m]+ + [d - min_k |own_j - own_k| + m]+) / 2

    with `d = |other_j - w_j|`, k over the other identities, the first distance without gradient; averaged over
    identities and the two modalities. Features are (N, C), labels and modality int64 (N,), both for every identity.
    Source: LLCM DEEN/loss.py (CPMLoss).
    """
    check_number("centre pair mining", "margin", margin, -MANY, MANY, Real)
    (visible, infrared), expanded = (losses.class_centres(features, labels, modality) for features in (plain, made))
    total = plain.new_zeros(())
    for own, other, centre in ((visible, infrared, expanded[0]), (infrared, visible, expanded[1])):
        pulled, left = (other - centre).norm(dim=1), (own - centre).norm(dim=1).detach()
        first, second, third = (F.relu(pulled - far + margin) for far in (left, nearest(centre), nearest(own)))
        total = total + (first + (second + third) / 2).mean() / 2
    return total


def nearest(centres: Tensor) -> Tensor:
    """Return each centre's distance to the nearest other one, (J,), for (J, C); infinite where there is no other."""
    distance = losses.pairwise(centres)
    return distance.masked_fill(torch.eye(len(centres), dtype=torch.bool, device=centres.device), torch.inf).amin(1)


class Fused(nn.Sequential):
    """The blocks of a layer and, last, a `Fusion` of what they deliver with what they were given."""

    def forward(self, maps: Tensor) -> Tensor:
        *blocks, fusion = self
        return fusion(nn.Sequential(*blocks)(maps), maps)


class Fusion(nn.Module):
    """Multi-stage feature aggregation: a layer's output attends to its input, over channels and then over positions.

    Both attentions are products without a softmax. Source: LLCM DEEN/model.py (MFA_block, of CNL and PNL).
    """

    def __init__(self, high: int, low: int, stride: int, published_view: bool = False) -> None:
        super().__init__()
        inner, self.published_view = low // 2, published_view
        self.theta1, self.phi1 = nn.Conv2d(high, low, 1), nn.Conv2d(low, low, 1, stride)
        self.g1, self.out1, self.bn1 = nn.Conv2d(low, low, 1), nn.Conv2d(low, high, 1, stride), nn.BatchNorm2d(high)
        self.theta2, self.phi2 = nn.Conv2d(high, inner, 1), nn.Conv2d(low, inner, 1)
        self.g2, self.out2, self.bn2 = nn.Conv2d(low, inner, 1), nn.Conv2d(inner, high, 1), nn.BatchNorm2d(high)
        for norm in (self.bn1, self.bn2):
            nn.init.zeros_(norm.weight)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Return the shape of `high` (N, C, h, w) for the layer's input `low`, (N, C', h * stride, w * stride)."""
        theta, phi, g = (each.flatten(2) for each in (self.theta1(high), self.phi1(low), self.g1(low)))
        channels = (theta @ phi.mT / phi.shape[1]) @ g
        high = high + self.bn1(self.out1(channels.unflatten(2, low.shape[2:])))
        theta, phi, g = (each.flatten(2) for each in (self.theta2(high), self.phi2(low), self.g2(low)))
        if self.published_view:
            if theta.shape[2] % 2 or g.shape[2] % 2:
                raise InputError("deen: published_view halves the positions of each map; give crops of other sides")
            theta, phi, g = (each.reshape(len(each), low.shape[1], -1) for each in (theta, phi, g))
        positions = (g @ phi.mT / phi.shape[2]) @ theta  # associative: no positions x positions matrix is built
        return high + self.bn2(self.out2(positions.flatten(1).unflatten(1, (-1, *high.shape[2:]))))


class Expansion(nn.Module):
    """Diverse embedding expansion: a map and two made of it by dilated convolutions (DEEN/model.py, DEE_module)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, made = channels // 4, range(BRANCHES - 1)
        self.down = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(channels, inner, 3, padding=d, dilation=d, bias=False) for d in (1, 2, 3))
            for _ in made
        )
        self.up = nn.ModuleList(nn.Conv2d(inner, channels, 1) for _ in made)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, h, w) to (3N, C, h, w): all originals first, then each branch."""
        summed = [sum(conv(maps) for conv in down) / len(down) for down in self.down]
        return torch.cat([maps, *(up(F.relu(each)) for up, each in zip(self.up, summed, strict=True))])


class SideBySide(nn.Module):
    """The branches from the batch axis to the channel axis: (3N, C, h, w) to (N, 3C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn2 = SimpleNamespace(num_features=BRANCHES * channels)  # read by `two_stream.out_channels`

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat(maps.chunk(BRANCHES), 1)


class Stacked(nn.Module):
    """The inverse of `SideBySide`, (N, 3C, h, w) to (3N, C, h, w)."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat(maps.chunk(BRANCHES, 1))
