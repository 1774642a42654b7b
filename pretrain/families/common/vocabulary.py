"""The embedding and the head of a Megatron-core model: padding of the vocabulary, and tied weights."""

from __future__ import annotations

from math import ceil

import torch
from megatron.core import parallel_state
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor

from pretrain.families.common.dropout import EmbeddingDropout
from pretrain.kernels.cross_entropy import CrossEntropy, in_chunks, whole


def padded(vocab: int, tp: int) -> int:
    """Rows of an embedding that tensor parallelism cuts into equal parts."""
    return ceil(vocab / tp) * tp


class Vocabulary(LanguageModule):
    """A language model whose vocabulary may be padded to a multiple of the tensor-parallel size.

    Padding rows come after the real ones; their logits are the lowest number there is, so they take no part in the
    softmax and get no gradient.
    """

    vocab: int
    fused: bool
    """Whether the loss is computed by kernels."""

    def complete(self, vocab: int, fused: bool) -> None:
        """Say the vocabulary without padding, and whether kernels are used; the last step of building a chunk."""
        self.vocab, self.fused = vocab, fused
        if self.pre_process and self.config.hidden_dropout:
            self.embedding.embedding_dropout = EmbeddingDropout(self.config, fused)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy per token, [B, S], from labels [B, S] and local logits [S, B, vocab / TP]."""
        local = logits.shape[-1]
        real = self.vocab - parallel_state.get_tensor_model_parallel_rank() * local
        if real < local:
            with torch.no_grad():
                logits[..., max(real, 0) :] = torch.finfo(logits.dtype).min
        if not self.fused and logits.dtype == torch.float32:
            return super().compute_language_model_loss(labels, logits)  # in place: there is nothing to save
        run = whole if self.fused else in_chunks
        loss_T = CrossEntropy.apply(logits.flatten(0, 1), labels.t().flatten(), self.pg_collection.tp, run)
        return loss_T.view(labels.t().shape).t().contiguous()

    def setup_embeddings_and_output_layer(self) -> None:
        """Mark the two copies of a tied embedding for the engine, which sums their gradients.

        Megatron would also give them equal values here, which this is too early for: values come by address, later.
        """
        if self.share_embeddings_and_output_weights and self.config.pipeline_model_parallel_size > 1:
            weight = self.shared_embedding_or_output_weight()
            weight.shared_embedding = True
