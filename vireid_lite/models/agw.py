"""AGW: attention (non-local), generalised-mean pooling and a BNNeck on a two-stream ResNet."""

from __future__ import annotations

from vireid_lite.errors import InputError, check_flag, check_whole
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
        backbone: str = "resnet50",
        pretrained: bool = False,
        *,
        non_local_channels: int = 1,
        gem_p: float = 3.0,
        flip: bool = False,
    ) -> None:
        check_flag("models", "flip", flip)
        check_whole("models", "non_local_channels", non_local_channels)
        if isinstance(gem_p, bool) or not isinstance(gem_p, int | float) or not 0 < gem_p < float("inf"):
            raise InputError(f"models: gem_p must be a number above 0, got {gem_p!r}")
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
