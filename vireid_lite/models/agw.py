"""AGW: attention (non-local), generalised-mean pooling and a BNNeck on a two-stream ResNet; CAJ, a recipe of it."""

import torch

from vireid_lite.data.augment import channel_exchange
from vireid_lite.data.records import Modality
from vireid_lite.errors import check_number, check_whole
from vireid_lite.losses import identity_loss
from vireid_lite.models.two_stream import Batch, Objective, TwoStream, trunk, with_non_local


class AGW(TwoStream):
    """The AGW two-stream network; only conv1, bn1, relu and maxpool belong to a modality.

    Source: Ye et al., "Deep Learning for Person Re-identification", section 4; AGW model.py.

    Args:
        non_local_channels: inner channels of the non-local blocks (1 as published); 0 leaves the blocks out.
        gem_p: exponent of the pooling, a constant (3 as published; 1 is average pooling).
    """

    triplet = "wrt"

    def __init__(
        self, num_identities: int, backbone="resnet50", pretrained=False, *, non_local_channels: int = 1, gem_p=3.0
    ) -> None:
        check_whole("models", "non_local_channels", non_local_channels)
        check_number("models", "gem_p", gem_p, 1e-6, 1e6)
        stem, layers = trunk(backbone, pretrained)
        if non_local_channels:
            layers[1:3] = [with_non_local(layer, non_local_channels) for layer in layers[1:3]]
        super().__init__(stem, layers)
        self.gem_p = gem_p
        self.add_head(num_identities)

    def objective(self, batch: Batch) -> Objective:
        """Return the identity loss and the triplet of the pooled features, 0 where there is none."""
        output = self(batch.images, batch.modality)
        identity = identity_loss(output.logits, batch.labels, batch.smoothing)
        pull = batch.triplet(output.pooled, batch.labels) if batch.triplet else identity.new_zeros(())
        return Objective({"identity": identity, "triplet": pull}, output.logits, batch.labels)


class CAJ(AGW):
    """AGW trained on each visible image twice: as it is, and with one of its channels in all three.

    With a ResNet-50 and 395 identities there are 24,359,311 parameters. The published recipe is
    `TrainSettings(triplet="adp", augmentation=Augmentation(erasing=0.5))`, trained without the KL term, whose weight is
    0 by default. Two things of it are not here: the two copies of a visible image share their crop, flip and erased
    box, and an infrared image is passed on without a channel choice (ChannelAdapGray), which changes nothing in three
    equal channels but the colour of an erased box. `Augmentation(channels=True)` brings that choice, and exchanges half
    of the plain copies besides.

    The collapse: with "adp" the triplet loss of some runs (issue 27 of the official repository) stays at log 2, its
    value where an anchor's positives and negatives are equally far; there, and where they differ by more than 9.38, its
    slope is zero, so any of `losses.TRIPLETS` may be chosen, "wrt" unless told.
    Source: Ye et al., "Channel Augmented Joint Learning for Visible-Infrared Recognition", ICCV 2021, CAJ
    data_loader.py:67-106, train_ext.py.
    """

    def objective(self, batch: Batch) -> Objective:
        """Return the identity loss and any triplet over plain visible, exchanged visible and infrared images."""
        visible = int((batch.modality == Modality.VISIBLE).sum())  # they come first
        plain = batch.images[:visible]
        images = torch.cat([plain, channel_exchange(plain, batch.generator), batch.images[visible:]])
        modality, labels = (torch.cat([each[:visible], each]) for each in (batch.modality, batch.labels))
        output = self(images.contiguous(memory_format=torch.channels_last), modality)
        found = {"identity": identity_loss(output.logits, labels, batch.smoothing)}
        if batch.triplet:
            found["triplet"] = batch.triplet(output.pooled, labels)
        return Objective(found, output.logits, labels)
