"""The plain victims of the transfer tables: IDE, trained by identity loss alone, and PCB, six stripes of it.

Everything but what their names say is this project's: stems of their own for each modality, a last layer that keeps
its resolution, a BNNeck, cosine ranking. `hetero_centre` is the weight of the hetero-centre loss on the ranked
features of length 1 (PCB: of each stripe, summed over the stripes); 0 leaves it out, the published weight is 0.5.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.errors import check_number
from vireid_lite.losses import hetero_centre_loss, identity_loss
from vireid_lite.models import two_stream
from vireid_lite.models.two_stream import Batch, ModelOutput, Objective, TwoStream, bnneck, generalised_mean

STRIPES, STRIPE_CHANNELS = 6, 256  #: the channels are of each stripe after its reduction, as in PCB


class IDE(TwoStream):
    """The identity-discriminative embedding: average pooling, a BNNeck and the identity loss alone.

    With 395 identities a ResNet-50 has 24,330,624 parameters, the ResNet-18 of the transfer table 11,389,312.
    Source: Zheng et al., "Person Re-identification: Past, Present and Future", 2016; Zhu et al. (`hetero_centre_loss`).
    """

    def __init__(self, num_identities, backbone="resnet50", pretrained=False, *, hetero_centre=0.0) -> None:
        check_number("models", "hetero_centre", hetero_centre, 0, 1000)
        super().__init__(*two_stream.trunk(backbone, pretrained))
        self.hetero_centre = float(hetero_centre)
        self.add_head(num_identities)

    def objective(self, batch: Batch) -> Objective:
        """Return the identity loss and, where it has a weight, the hetero-centre loss, each summed over the stripes."""
        _, features, logits = self.stripes(batch.images, batch.modality)
        found = {"identity": sum(identity_loss(part, batch.labels, batch.smoothing) for part in logits.unbind(1))}
        if self.hetero_centre:
            features = F.normalize(features, dim=2).flatten(1)
            found["hetero_centre"] = self.hetero_centre * hetero_centre_loss(features, batch.labels, batch.modality)
        return Objective(found, logits.mean(1), batch.labels)

    def stripes(self, images: Tensor, modality) -> tuple[Tensor, Tensor, Tensor]:
        """Return pooled (N, D) of the whole map, and by stripe, of which there is one, features and logits."""
        pooled, embedding, logits = self(images, modality)
        return pooled, embedding[:, None], logits[:, None]


class PCB(IDE):
    """The part-based convolutional baseline: six horizontal stripes, each with its own reduction and classifier.

    A stripe is average-pooled, reduced to 256 channels, passed through a BNNeck and classified; losses are summed over
    the stripes, as published. With a ResNet-50 and 395 identities there are 27,273,088 parameters.
    Left out: the ReLU, the dropout and the bias before and in the classifier. PCB's own code shares the reduction
    between the stripes and ranks what comes before it; Zhu et al. have one for each, and rank what comes after it.
    Source: Sun et al., "Beyond Part Models", ECCV 2018, and its code (resnet.py); Zhu et al. (`hetero_centre_loss`).
    """

    def add_head(self, num_identities: int) -> None:
        self.bottleneck, self.classifier = nn.ModuleList(), nn.ModuleList()
        for _ in range(STRIPES):  # under this name both parts train at the full learning rate, as published
            reduction = nn.Linear(self.channels, STRIPE_CHANNELS, bias=False)
            nn.init.kaiming_normal_(reduction.weight, mode="fan_out")
            self.bottleneck.append(nn.Sequential(OrderedDict(reduction=reduction, neck=bnneck(STRIPE_CHANNELS))))
        for _ in range(STRIPES):
            self.classifier.append(two_stream.identity_classifier(STRIPE_CHANNELS, num_identities))

    def stripes(self, images: Tensor, modality) -> tuple[Tensor, Tensor, Tensor]:
        """Return pooled (N, D) of the whole map, and by stripe, top first, features (N, 6, 256), logits (N, 6, K)."""
        maps = self.feature_map(images, modality)
        parts = two_stream.horizontal_stripes(maps, STRIPES).unbind(1)
        features = [bottleneck(part) for bottleneck, part in zip(self.bottleneck, parts, strict=True)]
        logits = [classifier(part) for classifier, part in zip(self.classifier, features, strict=True)]
        return generalised_mean(maps, self.gem_p), torch.stack(features, 1), torch.stack(logits, 1)

    def forward(self, images: Tensor, modality) -> ModelOutput:
        """Return pooled (N, D), embedding (N, 1536), each stripe's part of length 1, and logits, the stripes' mean."""
        pooled, features, logits = self.stripes(images, modality)
        return ModelOutput(pooled, F.normalize(features, dim=2).flatten(1), logits.mean(1))
