"""AGW: attention (non-local), generalised-mean pooling and a BNNeck on a two-stream ResNet; CAJ, a recipe of it."""

import torch

from vireid_lite.data.augment import channel_exchange, channel_or_grey
from vireid_lite.data.records import Modality
from vireid_lite.errors import check_flag, check_number, whole
from vireid_lite.losses import identity_loss
from vireid_lite.models.two_stream import Batch, NonLocal, Objective, TwoStream, out_channels, trunk


class AGW(TwoStream):
    """The AGW two-stream network; only conv1, bn1, relu and maxpool belong to a modality.

    Source: Ye et al., "Deep Learning for Person Re-identification", section 4; AGW model.py.

    Args:
        non_local_channels: inner channels of the non-local blocks (1 as published); 0 leaves the blocks out.
        gem_p: exponent of the pooling, a constant (3 as published; 1 is average pooling).
        flip: `embed` adds the mirror image's features, as CAJ's published test does and AGW's does not.
    """

    triplet = "wrt"

    def __init__(
        self, num_identities, backbone="resnet50", pretrained=False, *, non_local_channels=1, gem_p=3.0, flip=False
    ) -> None:
        check_flag("models", "flip", flip)
        whole("models", "non_local_channels", non_local_channels, 0, 4096, int)
        check_number("models", "gem_p", gem_p, 1e-6, 1e6)
        stem, layers = trunk(backbone, pretrained)
        for layer in layers[1:3] if non_local_channels else ():
            later = layer[len(layer) // 2 :]  # a non-local block follows each of these (AGW model.py:155-167)
            del layer[len(layer) // 2 :]
            for block in later:
                layer.extend([block, NonLocal(out_channels(block), non_local_channels)])
        super().__init__(stem, layers)
        self.gem_p, self.flip = gem_p, flip
        self.add_head(num_identities)

    def objective(self, batch: Batch) -> Objective:
        """Return the identity loss and the triplet of the pooled features, 0 where there is none."""
        output = self(batch.images, batch.modality)
        identity = identity_loss(output.logits, batch.labels, batch.smoothing)
        pull = batch.triplet(output.pooled, batch.labels) if batch.triplet else identity.new_zeros(())
        return Objective({"identity": identity, "triplet": pull}, output.logits, batch.labels)


class CAJ(AGW):
    """AGW trained on each visible image twice: as it is, and with one of its channels in all three.

    ResNet-50 with 395 identities has 24,359,311 parameters. Published numbers are of `flip=True` and the recipe
    `TrainSettings(triplet="adp", augmentation=Augmentation(erasing=0.5), epochs=100)`, without the KL term (weight 0).
    Here the two copies of a visible image share crop, flip and erased box, and channels are chosen in pixels, of
    visible images alone; published, after normalisation, which makes the channels of 87 % of infrared crops unequal.

    With "adp" the triplet loss of some runs stays at log 2 (issue 27 of the official repository), as its slope is zero
    where an anchor's positives and negatives are equally far; so any of `losses.TRIPLETS` may be chosen.
    Source: Ye et al., "Channel Augmented Joint Learning", ICCV 2021, data_loader.py:67-106, train_ext.py, testa.py.

    Args:
        published_channels: choose channels as the published code does; the other options are those of `AGW`.
    """

    def __init__(self, *arguments: object, published_channels: bool = False, **options: object) -> None:
        check_flag("models", "published_channels", published_channels)
        super().__init__(*arguments, **options)
        self.published_channels = published_channels

    def objective(self, batch: Batch) -> Objective:
        """Return the identity loss and any triplet over plain visible, exchanged visible and infrared images."""
        visible = int((batch.modality == Modality.VISIBLE).sum())  # they come first
        plain, infrared = batch.images[:visible], batch.images[visible:]
        if self.published_channels:
            mean, std = self.stages[0].mean, self.stages[0].std
            exchanged = channel_exchange((plain - mean) / std, batch.generator) * std + mean
            infrared = channel_or_grey((infrared - mean) / std, batch.generator) * std + mean
        else:
            exchanged = channel_exchange(plain, batch.generator)
        images = torch.cat([plain, exchanged, infrared]).contiguous(memory_format=torch.channels_last)
        modality, labels = (torch.cat([each[:visible], each]) for each in (batch.modality, batch.labels))
        output = self(images, modality)
        found = {"identity": identity_loss(output.logits, labels, batch.smoothing)}
        if batch.triplet:
            found["triplet"] = batch.triplet(output.pooled, labels)
        return Objective(found, output.logits, labels)
