"""AGW: attention (non-local), generalised-mean pooling and a BNNeck on a two-stream ResNet; CAJ, a recipe of it."""

import torch

from vireid_lite.data.augment import channel_exchange, channel_or_grey
from vireid_lite.data.records import Modality
from vireid_lite.errors import check_flag, check_number, check_whole
from vireid_lite.losses import identity_loss
from vireid_lite.models.two_stream import Batch, Objective, TwoStream, trunk, with_non_local


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
        self,
        num_identities: int,
        backbone="resnet50",
        pretrained=False,
        *,
        non_local_channels: int = 1,
        gem_p=3.0,
        flip=False,
    ) -> None:
        check_flag("models", "flip", flip)
        check_whole("models", "non_local_channels", non_local_channels, 0, 4096)
        check_number("models", "gem_p", gem_p, 1e-6, 1e6)
        stem, layers = trunk(backbone, pretrained)
        if non_local_channels:
            layers[1:3] = [with_non_local(layer, non_local_channels) for layer in layers[1:3]]
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

    With a ResNet-50 and 395 identities there are 24,359,311 parameters. The published test, and so the published
    numbers, are of `flip=True`; the published recipe is
    `TrainSettings(triplet="adp", augmentation=Augmentation(erasing=0.5), epochs=100)`, trained without the KL term,
    whose weight is 0 by default. Two things of it are not here: the two copies of a visible image share their crop,
    flip and erased box, and channels are chosen in pixels, of visible images alone. Published, they are chosen after
    normalisation, whose mean and spread differ by channel, and of infrared crops too: that changes 87 % of them, as
    their three channels are equal no longer (ChannelAdapGray). In pixels, as `Augmentation(channels=True)` has it, such
    a choice changes an erased box alone.

    The collapse: with "adp" the triplet loss of some runs (issue 27 of the official repository) stays at log 2, its
    value where an anchor's positives and negatives are equally far; there, and where they differ by more than 9.38, its
    slope is zero, so any of `losses.TRIPLETS` may be chosen, "wrt" unless told.
    Source: Ye et al., "Channel Augmented Joint Learning for Visible-Infrared Recognition", ICCV 2021, CAJ
    data_loader.py:67-106, train_ext.py, testa.py:113-181.

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
        images = torch.cat([plain, exchanged, infrared])
        modality, labels = (torch.cat([each[:visible], each]) for each in (batch.modality, batch.labels))
        output = self(images.contiguous(memory_format=torch.channels_last), modality)
        found = {"identity": identity_loss(output.logits, labels, batch.smoothing)}
        if batch.triplet:
            found["triplet"] = batch.triplet(output.pooled, labels)
        return Objective(found, output.logits, labels)
