"""What it costs that heads see far (Sukhbaatar et al. 2019, "Adaptive attention span in transformers", section 3)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pretrain.data.samples import size
from pretrain.losses.terms import Term

SPANS = "span_loss"
"""The name of the penalty in metrics."""


def cost_of_a_token(penalty: float, heads: int) -> float:
    """What the loss has of each token of each head's span: the layers' means over heads are summed, so that heads that
    are copies of others cost nothing."""
    return penalty / heads


def penalty_term(penalty: float, heads: int, total: Callable[[], Tensor]) -> Term:
    """The penalty, as a term of the loss: the same in every sample. total: the spans of all heads of all layers, in
    tokens. It has no gradient here, where the last pipeline rank alone computes it: that is a constant, which the
    engine adds."""
    each = cost_of_a_token(penalty, heads)
    return Term(SPANS, lambda _, samples: each * total() * size(samples), lambda samples: float(size(samples)))
