"""A trained model that an engine's model learns from, in the same ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from torch import Tensor

from growth import Architecture, identity
from growth.evaluate.box_values import Read
from pretrain import families
from pretrain.config import Distill
from pretrain.config.teachers import held
from pretrain.data.samples import Samples
from pretrain.engine import megatron
from pretrain.engine.megatron import Numerics, transformer_block
from pretrain.families.common.attention import CoreAttention
from pretrain.families.parameters import parameters
from pretrain.layout import Layout
from pretrain.losses import Term
from pretrain.losses.relations import Attended, divergence, present
from pretrain.losses.soft_labels import SoftLabels

DISTILLED = "distill_loss"
"""The name of the divergence in metrics."""


class Reached(Exception):
    """All that is wanted of a forward pass is there; the rest of it is not computed."""


class Teacher:
    """A frozen model, cut over tensor-parallel ranks as its student, and the term that its student's loss has of it.

    It has weights in the student's precision, and no gradients and no state of an optimizer. arch: of the teacher, and
    layout: of the student, on one pipeline rank.
    """

    whole = False
    """Whether each tensor-parallel rank computes the whole of it; else they share its work."""

    def __init__(self, arch: Architecture, layout: Layout, numerics: Numerics, distill: Distill, seq_len: int) -> None:
        self.distill, self.family = distill, families.of(arch.family)
        self.arch, self.layout = held(arch, distill), layout.resized(held(arch, distill), seq_len)
        self.tp_rank = parallel_state.get_tensor_model_parallel_rank()
        self._model = self._built(numerics, seq_len).eval().requires_grad_(False)
        self._value: Tensor  # of the micro-batch whose loss is computed next
        self.term = Term(DISTILLED, lambda *_: self._value, self._tokens)

    def _built(self, numerics: Numerics, seq_len: int) -> torch.nn.Module:
        how = Numerics(numerics.precision, compile=numerics.compile)
        (model,) = megatron.build(self.arch, self.layout, how, seq_len=seq_len, pp_rank=0, tp_rank=self.tp_rank)
        return model

    def fill(self, read: Read) -> None:
        """Read this rank's part of the weights (not collective)."""
        table, as_it_is = parameters(self.arch, self.layout, 0, self.tp_rank), identity(self.arch)
        for described, parameter in zip(table, self._model.parameters(), strict=True):
            parameter.zero_()  # padding of the vocabulary
            for piece in described.pieces:
                parameter[piece.local.slices()].copy_(as_it_is.evaluate(piece.tensor, piece.box, read))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the student's loss by their weights: the teacher's alone where the labels have no share."""
        share = self.distill.share
        own = tuple(replace(term, weight=share) for term in self.family.losses) if share else ()
        return (*own, replace(self.term, weight=1 - share))

    def forward(self, student: torch.nn.Module, samples: Samples) -> Any:
        """As the family's forward of the student, compared with the teacher on the way; None, from the middle of it,
        where nothing else is wanted."""
        with torch.no_grad():
            theirs = self.said(samples)

        def compare(ours: Any) -> None:
            self._value = self._divergence(ours, theirs, samples)

        return self._run(student, samples, compare, leave=not self.distill.share)

    def said(self, samples: Samples) -> Any:
        """What is compared of the teacher: of this rank's heads `Attended`, or of its pieces logits [S, B, V / TP]."""
        seen: list[Any] = []
        self._run(self._model, samples, seen.append, leave=True)
        return seen[0]

    def _run(self, model: torch.nn.Module, samples: Samples, see: Callable[[Any], None], *, leave: bool) -> Any:
        """The forward pass of a model, which shows what is compared on its way and then is left, or goes on."""

        def queries_keys_values(core: CoreAttention, entering: tuple[Tensor, ...]) -> None:
            query, key, value = entering[:3]
            shown(Attended(query, key, value, core.scale or query.shape[-1] ** -0.5, core.causal))

        def logits(_: torch.nn.Module, entering: Any, left: tuple[Tensor, Any]) -> None:
            shown(left[0])

        def shown(what: Any) -> None:
            see(what)
            if leave:
                raise Reached

        if self.distill.kind == "logits":
            hook = model.get_submodule("output_layer").register_forward_hook(logits)
        else:
            block = transformer_block(model)
            number, attention = next(
                (number, layer.self_attention)
                for number, layer in reversed(list(enumerate(block.layers)))
                if hasattr(layer.self_attention, "core_attention")
            )
            # What is computed again is out of sight: neither this attention is, nor the layers from it on.
            attention.checkpoint_core_attention = False
            block.config.recompute_method, block.config.recompute_num_layers = "block", number
            hook = attention.core_attention.register_forward_pre_hook(queries_keys_values)
        try:
            return self.family.model.forward(model, samples)
        except Reached:
            return None
        finally:
            hook.remove()

    def _divergence(self, ours: Any, theirs: Any, samples: Samples) -> Tensor:
        """The sum over a micro-batch's tokens, the same on every tensor-parallel rank, each of which differentiates its
        own heads or pieces."""
        distill, tp = self.distill, self.layout.tp
        if distill.kind == "logits":
            counted = samples.get("mask", torch.ones_like(samples["inputs"])).t().flatten()
            group = parallel_state.get_tensor_model_parallel_group() if tp > 1 else None
            student, teacher = ours.flatten(0, 1), theirs.flatten(0, 1)
            real = self.arch.sizes["vocab"] - self.tp_rank * student.shape[1]
            own = SoftLabels.apply(student, teacher, counted.float(), max(real, 0), distill.temperature, group)
        else:
            own = divergence(distill.kind, ours, theirs, samples, distill.relation_heads // tp) / tp
        return reduce_from_tensor_model_parallel_region(own)

    def _tokens(self, samples: Samples) -> float:
        """Over how many tokens the divergence is a mean."""
        labels = self.family.losses[0].count
        return labels(samples) if self.distill.kind == "logits" else float(present(samples).sum())
