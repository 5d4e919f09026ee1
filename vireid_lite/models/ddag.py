"""DDAG: stripes of an image attend to each other, images of a training batch attend to those of their identity."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vireid_lite.errors import check_number, whole
from vireid_lite.losses import hard_triplet, identity_loss
from vireid_lite.models import two_stream
from vireid_lite.models.two_stream import Batch, ModelOutput, Objective, TwoStream, bnneck, horizontal_stripes

HEADS = 4  #: of the graph attention; each is a quarter of the trunk's width, 512 at ResNet-50 (train_ddag.py)


class DDAG(TwoStream):
    """The DDAG two-stream network: average pooling and a BNNeck, then the parts that `PartAggregation` adds to it.

    `GraphAttention` helps in training alone. ResNet-50 with 395 identities has 41,931,929 parameters, 5,008,150 of them
    the graph's. Left out is what nothing reads in the published network: two classifiers and a 1x1 convolution.
    Source: Ye et al., "Dynamic Dual-Attentive Aggregation Learning", ECCV 2020; DDAG model_main.py:133-198.

    Args:
        parts: stripes, 3 as published.
        dropout: share dropped in the graph, 0.2 as published.
    """

    def __init__(self, num_identities, backbone="resnet50", pretrained=False, *, parts=3, dropout=0.2) -> None:
        whole("models", "parts", parts, 1, 256, int)
        check_number("models", "dropout", dropout, 0, 0.99)
        super().__init__(*two_stream.trunk(backbone, pretrained))
        # The prefixes put all heads at the full learning rate, as published (train_ddag.py, optimizer_P).
        self.bottleneck = bnneck(self.channels)
        self.bottleneck_parts = PartAggregation(self.channels, parts)
        self.classifier = two_stream.identity_classifier(self.channels, num_identities)
        self.classifier_graph = GraphAttention(self.channels, num_identities, dropout)

    def forward(self, images: Tensor, modality) -> ModelOutput:
        """Return pooled (N, D), embedding (N, D; the part-aggregated feature) and its logits (N, num_identities)."""
        pooled, _, embedding = self._features(images, modality)
        return ModelOutput(pooled, embedding, self.classifier(embedding))

    def objective(self, batch: Batch) -> Objective:
        """Return identity + triplet + part + w graph, and the logits of the global feature (train_ddag.py:286-321).

        w = 1 / (1 + L), L the sum of the first three as noted for the last epoch, and 0 in the first epoch.
        """
        pooled, neck, embedding = self._features(batch.images, batch.modality)
        logits = self.classifier(neck)
        graph = F.nll_loss(self.classifier_graph(pooled, batch.labels, batch.generator), batch.labels)
        found = {
            "identity": identity_loss(logits, batch.labels, batch.smoothing),
            "triplet": hard_triplet(pooled, batch.labels),
            "part": identity_loss(self.classifier(embedding), batch.labels, batch.smoothing),
        }
        weight = 1 / (1 + sum(batch.history[-1][f"{name}_loss"] for name in found)) if batch.history else 0.0
        return Objective({**found, "graph": weight * graph}, logits, batch.labels)

    def _features(self, images: Tensor, modality) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pooled, the BNNeck's and the part-aggregated features, (N, D) each."""
        maps = self.feature_map(images, modality)
        pooled = two_stream.generalised_mean(maps, self.gem_p)
        neck = self.bottleneck(pooled)
        return pooled, neck, self.bottleneck_parts(maps, neck)


class PartAggregation(nn.Module):
    """Intra-modality weighted part aggregation: BN(f + sum_i g_i sum_j a_ij v(x_j)); DDAG attention.py (IWPA).

    a_i = softmax_j(q(x_i) . k(x_j)) over stripes x, g a softmax over the parts, f the BNNeck's feature of the map.
    """

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.gate = nn.Parameter(torch.full((parts,), 1 / parts))
        self.norm = bnneck(channels)

    def forward(self, maps: Tensor, embedding: Tensor) -> Tensor:
        """Return (N, C) for maps (N, C, h, w) and the feature (N, C) that the parts are added to."""
        parts = horizontal_stripes(maps, len(self.gate))
        attention = (self.query(parts) @ self.key(parts).mT).softmax(2)
        return self.norm(embedding + self.gate.softmax(0) @ (attention @ self.value(parts)))


class GraphAttention(nn.Module):
    """Graph attention over a training batch: four layers side by side, then one that names the identities.

    An edge joins two images of one identity, of either modality. Source: DDAG, equations 6 to 9; attention.py.
    """

    def __init__(self, channels: int, num_identities: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.heads = nn.ModuleList([GraphLayer(channels, channels // HEADS) for _ in range(HEADS)])
        self.out = GraphLayer(channels // HEADS * HEADS, num_identities)

    def forward(self, pooled: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return log-probabilities (N, num_identities) for pooled features (N, C) and labels int64 (N,).

        The dropout of features, attention and hidden nodes is drawn from the generator, on the CPU.
        """

        def drop(values: Tensor) -> Tensor:
            if not self.dropout:
                return values
            kept = torch.rand(values.shape, generator=generator) >= self.dropout
            return values * kept.to(values.device, non_blocking=True) / (1 - self.dropout)

        same, nodes = labels[:, None] == labels, drop(pooled)
        nodes = torch.cat([F.elu(head(nodes, same, drop)) for head in self.heads], 1)
        return F.elu(self.out(drop(nodes), same, drop)).log_softmax(1)


class GraphLayer(nn.Module):
    """A layer of Veličković et al. 2018: sum_j a_ij h_j, h = x W, a_i = softmax over edges of leaky(a . [h_i, h_j])."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(channels, width), 2**0.5))
        self.attention = nn.Parameter(nn.init.xavier_uniform_(torch.empty(2 * width, 1), 2**0.5))

    def forward(self, nodes: Tensor, same: Tensor, drop) -> Tensor:
        """Return (N, width) for nodes (N, C) and edges (N, N) bool; drop: maps attention to attention."""
        hidden = nodes @ self.weight
        source, target = (hidden @ vector for vector in self.attention.chunk(2))  # (N, 1) each
        scores = F.leaky_relu(source + target.T, 0.2).masked_fill(~same, -torch.inf)
        return drop(scores.softmax(1)) @ hidden
