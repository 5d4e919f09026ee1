"""Rankings, their scores under the official protocols, chance level, arithmetic minimum, and intervals over people."""

from vireid_lite.metrics.bootstrap import Difference, Interval, bootstrap, paired_bootstrap
from vireid_lite.metrics.ranking import (
    PROTOCOLS,
    ChanceLevel,
    ChanceScores,
    Minimum,
    PerIdentity,
    RetrievalScores,
    chance,
    evaluate,
    evaluate_features,
    per_identity,
)

__all__ = [
    "PROTOCOLS",
    "ChanceLevel",
    "ChanceScores",
    "Difference",
    "Interval",
    "Minimum",
    "PerIdentity",
    "RetrievalScores",
    "bootstrap",
    "chance",
    "evaluate",
    "evaluate_features",
    "paired_bootstrap",
    "per_identity",
]
