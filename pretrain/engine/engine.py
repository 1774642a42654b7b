"""The training engine: Megatron-core's schedules drive the model, DeepSpeed's ZeRO-1 holds the optimizer state."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from growth.architecture import Architecture
from growth.mup import Factors, Mup
from pretrain import families
from pretrain.data.samples import Samples, size
from pretrain.engine import megatron
from pretrain.engine.adamw import AdamW
from pretrain.engine.averaging import Average
from pretrain.engine.dropout import Drops, left_out
from pretrain.engine.exchange import StepResult, Veto, exchange
from pretrain.engine.frozen import Frozen, enter_without_gradient
from pretrain.engine.generation_segments import Segment, segments
from pretrain.engine.gradients import reduce_together, sum_of_squares
from pretrain.engine.megatron import Numerics
from pretrain.engine.memory import Memory, Passing
from pretrain.engine.owned import owned_ranges
from pretrain.engine.passes import Passes
from pretrain.engine.spans import Spans
from pretrain.engine.teacher import Teacher
from pretrain.engine.zero import Zero
from pretrain.estimate.flops import Ran
from pretrain.families.parameters import parameters, spanning
from pretrain.guard.recheck import unlike
from pretrain.kernels import fused
from pretrain.layout import Layout, Parameter
from pretrain.layout.zero import FragmentBox
from pretrain.losses import Term


@dataclass(frozen=True)
class Adam:
    """AdamW's constants, the gradient clipping threshold (0: no clipping), and the base model of muP (None: every
    tensor learns at the rate that is given)."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    mup: Mup | None = None


class Engine:
    """A model under TP x PP x DP with its ZeRO-1 partition.

    Values are not set by the constructor: fill the views of `owned`, call `describe_generations`, then
    `publish_weights`. All methods are collective.
    """

    def __init__(
        self,
        arch: Architecture,
        layout: Layout,
        numerics: Numerics,
        adam: Adam,
        *,
        seq_len: int,
        micro_batch: int,
        averages: bool = False,
        memory: int = 0,
    ) -> None:
        """averages: whether it keeps a moving average of its weights. memory: tokens that each block remembers of the
        text before a sample, in steps that are told so."""
        megatron.make_groups(layout)
        self.arch, self.layout, self.numerics = arch, layout, numerics
        self.family = families.of(arch.family)
        self.seq_len, self.micro_batch = seq_len, micro_batch
        pp_rank, self.dp_rank, tp_rank = layout.coordinates(dist.get_rank())
        chunks = megatron.build(arch, layout, numerics, seq_len=seq_len, pp_rank=pp_rank, tp_rank=tp_rank)
        self.device = next(chunks.parameters()).device
        self.adam = AdamW(
            chunks.parameters(),
            lr=0.0,
            betas=adam.betas,
            eps=adam.eps,
            weight_decay=adam.weight_decay,
            compile=fused.chosen(numerics.compile),
        )
        self._zero, self._model = Zero(chunks, self.adam, micro_batch), chunks
        self._gradients = self._zero.gradients
        self.average = Average(self._zero, self.publish_weights) if averages else None
        self.chunks: list[Any] = list(chunks)
        table = parameters(arch, layout, pp_rank, tp_rank)
        self.parameters = list(zip(table, chunks.parameters(), strict=True))
        kinds = [self._zero.masters.detach(), *self.adam.moments(self._zero.masters)]
        self.owned = owned_ranges(self.parameters, [*kinds, self.average.values] if self.average else kinds)
        self._clip, self._mup = adam.clip, adam.mup
        self._sequence_parallel = [p for _, p in self.parameters if getattr(p, "sequence_parallel", False)]
        self._tied = [p for _, p in self.parameters if getattr(p, "shared_embedding", False)]
        here = {parameter.pieces[0].tensor: p for parameter, p in self.parameters if parameter.pieces}
        spread = spanning(arch, layout, tp_rank)
        self._spanning = [(p.pieces[0].tensor, p.shape, here.get(p.pieces[0].tensor)) for p in spread]
        self.passes = Passes(arch, layout, pp_rank, chunks, micro_batch)
        self.frozen = Frozen()
        self.terms: tuple[Term, ...] = self.family.losses
        self.teacher: Teacher | None = None
        self.memory = Memory(memory, chunks, layout, micro_batch, self.device) if memory else None
        self.spans = None
        if arch.span:
            masters = [o.weight for o in self.owned if o.parameter.name.endswith(".span")]
            self.spans = Spans(arch, layout, self.chunks, masters)

    def describe_generations(
        self,
        generation: Callable[[FragmentBox], Tensor],
        steps: Sequence[int],
    ) -> None:
        """Give every owned element its generation (uint8, of a box's shape), and every generation its Adam step.

        Matrices and embeddings decay, gains and biases do not.
        """
        parts: list[Segment] = []
        for owned in self.owned:
            ids = torch.zeros(owned.weight.numel(), dtype=torch.uint8)
            for box in owned.boxes:
                box.view(ids).copy_(generation(box))
            shape = owned.parameter.shape
            columns, decay = (shape[-1], True) if len(shape) > 1 else (len(ids), False)
            by = self._factors(owned.parameter)
            into = owned.start % columns
            parts += segments(owned.offset, ids, columns, into, decay, self.device, by.rate, by.eps)
        self.adam.describe(parts, steps)

    def _factors(self, parameter: Parameter) -> Factors:
        """Of muP; a parameter that is made of several logical tensors is made of such as have the same."""
        if self._mup is None or not parameter.pieces:
            return Factors()
        rows = {self.arch.tensor(piece.tensor).spec for piece in parameter.pieces}
        (factors,) = {self._mup.factors(self.arch, row) for row in rows}
        return factors

    def freeze(self, frozen: Frozen) -> None:
        """From here on, neither differentiate nor update these parts; once, after `describe_generations`.

        Their masters and moments stay in the partition as they are, for the next checkpoint.
        """
        self.frozen = frozen
        for parameter, tensor in self.parameters:
            rests = all(frozen.has(self.arch, piece.tensor) for piece in parameter.pieces)
            if not parameter.pieces:  # nothing but padding of the vocabulary
                rests = "embedding" in frozen.parts
            tensor.requires_grad_(not rests)
        self._sequence_parallel = [p for p in self._sequence_parallel if p.requires_grad]
        self._tied = [p for p in self._tied if p.requires_grad]
        self._spanning = [part for part in self._spanning if not frozen.has(self.arch, part[0])]
        trained = {parameter.name for parameter, tensor in self.parameters if tensor.requires_grad}
        spans = [(o.offset, o.offset + o.weight.numel()) for o in self.owned if o.parameter.name in trained]
        self.adam.segments = [s for s in self.adam.segments if any(a <= s.start < b for a, b in spans)]
        self.adam.resting = frozen.resting
        first_trained = frozen.prefix(self.arch)
        pp_rank, _, _ = self.layout.coordinates(dist.get_rank())
        for chunk, (number, blocks) in zip(self.chunks, self.layout.chunks(pp_rank), strict=True):
            if blocks.start <= first_trained:
                trained_here = {self.arch.calls[block] for block in blocks} - frozen.parts
                whole = self.numerics.recompute == "full" and bool(trained_here)
                enter_without_gradient(chunk, first=number == 0, recomputed=whole)

    def learn_from(self, teacher: Teacher) -> None:
        """From here on, minimise what a teacher says in a step; `evaluate` knows nothing of it."""
        self.teacher, self.terms = teacher, teacher.terms

    def penalise_spans(self, penalty: float) -> None:
        """From here on, minimise how far heads see as well, if they have spans; `evaluate` knows nothing of it."""
        if self.spans and penalty:
            self.terms = (*self.terms, self.spans.penalise(penalty))

    def clip_at(self, norm: float) -> None:
        """The largest gradient norm of the steps to come; 0: no clipping."""
        self._clip = norm

    def publish_weights(self) -> None:
        """Cast the master weights and gather them over the data-parallel ranks into the model."""
        if self.spans:
            self.spans.clamp()
        self._zero.publish()
        if self.spans:
            self.spans.refresh()

    def ran(self, samples: int, key: int | None) -> Ran | None:
        """In which share of the passes of a step with this key each block ran, over the whole global batch of so many
        samples; None: in all of them."""
        if key is None or not self.numerics.layer_drop.p:
            return None
        return 1 - left_out(key, 0, samples // self.micro_batch, self.arch.depth, self.numerics.layer_drop).mean(0)

    def backward(self, samples: Samples, key: int | None = None) -> Tensor:
        """Forward and backward over this rank's samples; gradients stay local to the data-parallel rank, and nothing
        waits for the device. key: see `train_step`.

        Returns this rank's part of each term of the loss by its weight, float64 [terms]; over all ranks they sum to it.
        """
        terms = self._passes(samples, key)
        self._complete()
        return terms

    def _passes(self, samples: Samples, key: int | None, memory: Memory | None = None) -> Tensor:
        """As `backward`, with the gradients of what tensor-parallel or pipeline ranks share still in parts."""
        counts = self.passes.moved(torch.tensor([t.count(samples) / t.weight for t in self.terms], dtype=torch.float64))
        if self.layout.dp > 1:
            dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
        counts.clamp_(min=1)
        self._model.train()
        first, count = self.dp_rank * size(samples), size(samples)
        drops = Drops.of(key, self.numerics, self.arch.depth, first, count, self.micro_batch, self.passes.moved)
        step = self.passes.forward(counts, self.terms, self.teacher)
        collected = self.passes.run(step, samples, drops, memory, forward_only=False)
        return self.passes.total(collected, len(self.terms)) / counts

    def _complete(self) -> None:
        """Sum the gradients of what tensor-parallel or pipeline ranks share; that of the spans' penalty is added."""
        if self.spans:
            self.spans.add_gradient(self._gradients)
        # The norms' in one collective, for there are many and small ones; a tied embedding's where it lies.
        whole = [self.gradient(parameter) for parameter in self._sequence_parallel]
        reduce_together(whole, parallel_state.get_tensor_model_parallel_group())
        if self._spanning:  # of a rank that has no block of such a layer, zeros
            parts = [
                torch.zeros(shape, device=self.device) if parameter is None else self.gradient(parameter)
                for _, shape, parameter in self._spanning
            ]
            reduce_together(parts, parallel_state.get_pipeline_model_parallel_group())
        for parameter in self._tied:
            dist.all_reduce(self.gradient(parameter), group=parallel_state.get_embedding_group())

    def gradient(self, parameter: torch.nn.Parameter) -> Tensor:
        """The gradient of a parameter that this rank has accumulated, in fp32."""
        return self._gradients[parameter]

    def reached(self) -> list[Tensor]:
        """Per local parameter, uint8: whether an element has a gradient on any data-parallel rank."""
        by_parameter = []
        for _, parameter in self.parameters:
            nonzero = (self.gradient(parameter) != 0).to(torch.uint8)
            dist.all_reduce(nonzero, op=dist.ReduceOp.MAX, group=parallel_state.get_data_parallel_group())
            by_parameter.append(nonzero)
        return by_parameter

    def step(
        self,
        lr: float | Sequence[float],
        terms: Tensor | None = None,
        veto: Veto = lambda *_: "",
        wish: Callable[[], int] = lambda: 0,
        writing: Callable[[], bool] = lambda: False,
    ) -> StepResult:
        """Reduce the gradients, clip and update.

        lr: the learning rate of all generations, or of each. terms: what `backward` returned. veto: asked before the
        update, with the same values on every rank; a gradient that is not finite makes no update anyway. wish, writing:
        asked as late as can be; see `exchange`.
        """
        self.adam.set_lr(lr)
        gradient = self._gradients.reduce()
        if terms is None:
            terms = torch.zeros(len(self.terms), dtype=torch.float64, device=self.device)
        counted = [gradient[o.offset :][: o.weight.numel()] for o in self.owned if o.parameter.owner]
        means, square, largest, unwritten = exchange(terms, sum_of_squares(counted, self.device), wish(), writing())
        loss, norm = sum(means), torch.tensor(square, dtype=torch.float32).sqrt()
        finite = bool(norm.isfinite())
        grad_norm = float(norm) if finite else math.inf
        trouble = veto(loss, grad_norm) if finite else "the gradient norm is not finite"
        if not trouble:
            self._update(gradient, norm)
        self._gradients.clear()
        named = {term.name: part / term.weight for term, part in zip(self.terms, means, strict=True)}
        return StepResult(loss, grad_norm, named, trouble, largest, unwritten)

    def _update(self, gradient: Tensor, norm: Tensor) -> None:
        """Clip this rank's partition of the gradient by the global norm (fp32, on the host), update, publish."""
        if self._clip and (excess := (norm + 1e-6) / self._clip) > 1:
            gradient.mul_(float(1.0 / excess))
        self._zero.update(gradient)
        self.publish_weights()

    def forget(self) -> None:
        """Drop gradients that no step will use."""
        self._gradients.clear()

    def free(self) -> None:
        """Give up the model and its optimizer, to make room for another engine in this process; the last call."""
        self._zero.destroy()
        vars(self).clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next engine's blocks are of other sizes, and NCCL allocates beside torch

    def train_step(
        self,
        samples: Samples,
        lr: float | Sequence[float],
        veto: Veto = lambda *_: "",
        wish: Callable[[], int] = lambda: 0,
        writing: Callable[[], bool] = lambda: False,
        recheck: bool = False,
        key: int | None = None,
        remember: bool = False,
    ) -> StepResult:
        """One update from this data-parallel rank's part of the global batch, unless there is trouble: see `step`.

        recheck: the passes are made twice, and there is no update unless both gave every rank the same. key: of
        what is dropped, see pretrain.engine.dropout; None: nothing. remember: samples go on behind those of the last
        step that did, row by row, where the engine has a memory.
        """
        memory = self.memory if remember else None
        if recheck:
            first = self._fingerprint(self._passes(samples, key, memory))
            self.forget()
        terms = self._passes(samples, key, memory)
        if recheck and (ranks := unlike(first, self._fingerprint(terms))):
            self.forget()
            if memory:
                memory.pass_over()
            nothing = torch.zeros_like(terms)
            *_, largest, unwritten = exchange(nothing, nothing[0], wish(), writing())
            trouble = f"the gradient of {', '.join(map(str, ranks))} came out differently when it was computed again"
            return StepResult(math.nan, math.nan, {}, trouble, largest, unwritten, ranks)
        self._complete()
        result = self.step(lr, terms, veto, wish, writing)
        if memory and result.trouble:
            memory.pass_over()
        elif memory:
            memory.take_over()
        return result

    def _fingerprint(self, terms: Tensor) -> Tensor:
        """int64, of this rank's gradients and terms of the loss: whatever differs in a bit has another one."""
        return torch.cat((self._gradients.checksum()[None], terms.view(torch.int64)))

    @torch.no_grad()
    def remember(self, samples: Samples) -> None:
        """Pass over this data-parallel rank's samples, behind what is remembered: the next step goes on behind them."""
        assert self.memory
        self._model.eval()
        terms = self.family.losses
        step = self.passes.forward(torch.ones(len(terms), device=self.device), terms)
        self.passes.run(step, samples, memory=self.memory, forward_only=True)
        self.memory.take_over()

    @torch.no_grad()
    def evaluate(self, samples: Samples, memory: int = 0) -> dict[str, float]:
        """The sum, in nats, of each term of the loss over the samples of all ranks. memory: of an engine that has one,
        tokens that are remembered; each micro-batch goes on behind the one before it, row by row."""
        self._model.eval()
        terms = self.family.losses
        step = self.passes.forward(torch.ones(len(terms), device=self.device), terms)
        passing = Passing(memory, self.chunks, self.layout, self.micro_batch, self.device) if memory else None
        total = self.passes.total(self.passes.run(step, samples, memory=passing, forward_only=True), len(terms))
        dist.all_reduce(total)
        return {term.name: value for term, value in zip(terms, total.tolist(), strict=True)}

    @torch.no_grad()
    def logits(self, samples: Samples, remember: bool = False) -> Tensor | None:
        """Logits [n, seq_len, vocab] of samples that every data-parallel rank has all of: fp32 and on the host, on the
        first rank that computes them; None elsewhere. remember: they are behind what the engine remembers, if it does,
        and are not remembered."""
        self._model.eval()
        group = parallel_state.get_tensor_model_parallel_group()
        first = dist.get_rank() == self.layout.loss_rank
        parts: list[Tensor] = []

        def collect(local_BSV: Tensor, non_loss_data: bool = True) -> None:
            gathered = [local_BSV]  # Logits may be what is largest on a GPU, so that there is no other copy of them.
            if self.layout.tp > 1:
                gathered = [torch.empty_like(local_BSV) for _ in range(self.layout.tp)]
                dist.all_gather(gathered, local_BSV.contiguous(), group=group)
            if first:
                whole = torch.cat([part.cpu() for part in gathered], dim=-1)
                parts.append(whole[..., : self.arch.sizes["vocab"]].float())

        def step(batches: Iterator[Samples], model: Any) -> Any:
            return self.family.model.logits(model, next(batches)), collect

        memory = self.memory if remember else None
        self.passes.run(step, samples, memory=memory, forward_only=True, collect_non_loss_data=True)
        return torch.cat(parts) if first else None
