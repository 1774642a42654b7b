"""The terms that losses are made of."""

from pretrain.losses.terms import MASKED_TOKEN, NEXT_SENTENCE, NEXT_TOKEN, Outputs, Term, mean, of_logits

__all__ = ["MASKED_TOKEN", "NEXT_SENTENCE", "NEXT_TOKEN", "Outputs", "Term", "mean", "of_logits"]
