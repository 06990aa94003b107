"""Loss terms, one small class each, and penalties on the student itself.

To add a term: subclass `Term`, return one value per row, add a row to `TERMS` and its formula to the tests.
"""

from sftc.losses.channels import ChannelWise
from sftc.losses.features import Attention, Hint
from sftc.losses.logits import Correlation, Decoupled, MeanSquared, Soft
from sftc.losses.penalties import L1, L2SP
from sftc.losses.ramp import Ramp
from sftc.losses.relations import Contrastive, Relational, Similarity
from sftc.losses.semi import Agreeing, Climb, Consistent, Pseudo
from sftc.losses.team import Team
from sftc.losses.truth import Truth
from sftc.losses.uncertain import Uncertain

TERMS = {
    "truth": Truth,
    "uncertain": Uncertain,
    "soft": Soft,
    "decoupled": Decoupled,
    "correlation": Correlation,
    "channelwise": ChannelWise,
    "mean_squared": MeanSquared,
    "hint": Hint,
    "attention": Attention,
    "similarity": Similarity,
    "relational": Relational,
    "contrastive": Contrastive,
}

__all__ = [
    "L1",
    "L2SP",
    "TERMS",
    "Agreeing",
    "Attention",
    "ChannelWise",
    "Climb",
    "Consistent",
    "Contrastive",
    "Correlation",
    "Decoupled",
    "Hint",
    "MeanSquared",
    "Pseudo",
    "Ramp",
    "Relational",
    "Similarity",
    "Soft",
    "Team",
    "Truth",
    "Uncertain",
]
