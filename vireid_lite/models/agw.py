"""AGW: attention (non-local), generalised-mean pooling and a BNNeck on a two-stream ResNet."""

from __future__ import annotations

from torch import Tensor, nn

from vireid_lite.data.records import Modality
from vireid_lite.errors import InputError
from vireid_lite.models.two_stream import (
    ModelOutput,
    TwoStream,
    bnneck,
    generalised_mean,
    identity_classifier,
    out_channels,
    trunk,
    with_non_local,
)


class AGW(TwoStream):
    """The AGW two-stream network; only conv1, bn1, relu and maxpool belong to a modality.

    num_identities: classes of the identity classifier. backbone, pretrained: see `two_stream.trunk`.
    non_local_channels: inner channels of the non-local blocks (1 as published); 0 leaves the blocks out.
    gem_p: exponent of the pooling, a constant (3 as published; 1 is average pooling).
    Raises InputError for values that make no network.
    Source: Ye et al., "Deep Learning for Person Re-identification", section 4; AGW model.py.
    """

    def __init__(
        self,
        num_identities: int,
        backbone: str = "resnet50",
        pretrained: bool = False,
        *,
        non_local_channels: int = 1,
        gem_p: float = 3.0,
    ) -> None:
        if not isinstance(non_local_channels, int) or non_local_channels < 0:
            raise InputError(
                f"models: non_local_channels must be 0 (none) or a whole number, got {non_local_channels!r}"
            )
        if not isinstance(gem_p, int | float) or not 0 < gem_p < float("inf"):
            raise InputError(f"models: gem_p must be a number above 0, got {gem_p!r}")
        stem, layers = trunk(backbone, pretrained)
        channels = out_channels(layers[3][-1])
        if non_local_channels:
            layers[1:3] = [with_non_local(layer, non_local_channels) for layer in layers[1:3]]
        super().__init__(stem, layers)
        self.gem_p = gem_p
        self.bottleneck = bnneck(channels)
        self.classifier: nn.Linear = identity_classifier(channels, num_identities)

    def forward(self, images: Tensor, modality: Modality | Tensor) -> ModelOutput:
        """Return pooled (N, D), embedding (N, D) and logits (N, num_identities).

        images: (N, 3, H, W) float in [0, 1], not checked. modality: one Modality for the batch, or int64 (N,).
        """
        pooled = generalised_mean(self.feature_map(images, modality), self.gem_p)
        embedding = self.bottleneck(pooled)
        return ModelOutput(pooled, embedding, self.classifier(embedding))
