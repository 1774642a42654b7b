"""What of a model a stage does not train: layers, the embedding, the head, or rows of its table, whose every element is
frozen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from growth import Architecture, Generations
from growth.architecture import LogicalTensor

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlock

Part = int | str
"""The number of a layer, "embedding" (of a tied head too), "head", or the name of a row of the table, for its tensors
in all layers: as in pretrain.estimate.flops."""


@dataclass(frozen=True)
class Frozen:
    """`parts` are neither differentiated nor updated; `resting` are the generations of which nothing else is left."""

    parts: frozenset[Part] = frozenset()
    resting: frozenset[int] = frozenset()

    @staticmethod
    def of(
        arch: Architecture, generations: Generations, still: Collection[int], fixed: Collection[Part] = ()
    ) -> Frozen:
        """still: the generations whose learning rate is 0 for as long as this holds. fixed: what is not trained
        whatever its rate.

        The same whatever the layout. What of them shares a part with others is not frozen here: it is differentiated,
        and its moments go on.
        """
        always, present = Frozen(frozenset(fixed)), dict[Part, set[int]]()
        for name, tensor in arch.tensors().items():
            inside = present.setdefault(part_of(arch, name), set())
            if not always.has(arch, name):
                inside |= generations.present(tensor)
        parts = always.parts | {part for part, inside in present.items() if inside <= set(still)}
        moving = set().union(*(inside for part, inside in present.items() if part not in parts))
        return Frozen(parts, frozenset(set(range(generations.count)) - moving) if parts else frozenset())

    def has(self, arch: Architecture, name: str) -> bool:
        """Whether a logical tensor is frozen."""
        return bool(self.parts) and not self.parts.isdisjoint({part_of(arch, name), arch.tensor(name).spec.name})

    def prefix(self, arch: Architecture) -> int:
        """The number of the first block that trains, if nothing before it does: a gradient of what enters it, or any
        block before it, is of no use. -1 where the embedding trains; the number of blocks where none trains."""
        if "embedding" not in self.parts:
            return -1
        return next((n for n, layer in enumerate(arch.calls) if layer not in self.parts), arch.depth)


def part_of(arch: Architecture, name: str) -> Part:
    """The part of a model that a logical tensor belongs to; the families' tables list them in this order."""
    tensor: LogicalTensor = arch.tensor(name)
    if tensor.layer is not None:
        return tensor.layer
    names = [spec.name for spec in arch.table.tensors]
    first = next(i for i, spec in enumerate(arch.table.tensors) if spec.layered)
    return "embedding" if names.index(tensor.spec.name) < first else "head"


def enter_without_gradient(chunk: torch.nn.Module, *, first: bool, recomputed: bool) -> None:
    """End the backward pass of a pipeline chunk that has only frozen parts before it where nothing is left to train.

    first: it holds the embedding; else the rank before gets zeros for the gradient that it waits for. recomputed: whole
    layers are computed again, some of which train, and Megatron's recomputation begins with an input that has a
    gradient; then the pass ends at the chunk's entrance.
    """
    from pretrain.engine.megatron import transformer_block  # brings Megatron-core: seconds

    block = transformer_block(chunk)

    def cut(block: TransformerBlock, inputs: Any) -> None:
        received = block.input_tensor
        if torch.is_grad_enabled():
            received.grad = torch.zeros_like(received)
            block.input_tensor = received.detach()

    def differentiable(block: TransformerBlock, inputs: Any, named: Any) -> None:
        if torch.is_grad_enabled():
            (named["hidden_states"] if first else block.input_tensor).requires_grad_()

    if not first:
        block.register_forward_pre_hook(cut)
    if recomputed:
        block.register_forward_pre_hook(differentiable, with_kwargs=True)
