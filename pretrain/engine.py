"""The training engine: Megatron-core's schedules drive the model, DeepSpeed's ZeRO-1 holds the optimizer state.

The only module that imports deepspeed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found nothing else

import deepspeed  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from torch import Tensor  # noqa: E402

from growth.architecture import Architecture  # noqa: E402
from pretrain.layout import Layout, Parameter, fragment_boxes, parameters  # noqa: E402
from pretrain.layout.zero import FragmentBox  # noqa: E402
from pretrain.model import build  # noqa: E402
from pretrain.model.build import Numerics  # noqa: E402
from pretrain.optimizer import AdamW, Segment  # noqa: E402

# It warns of every optimizer that is not its own.
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# On the CPU DeepSpeed would compile a shared-memory all-reduce at the first start; gloo needs no compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@dataclass(frozen=True)
class Adam:
    """AdamW's constants and the gradient clipping threshold (0: no clipping)."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class Owned:
    """What this rank owns of one parameter: a flat range of it, as boxes of logical tensors.

    weight is the fp32 master, exp_avg and exp_avg_sq its moments: flat views of the ZeRO partition.
    """

    parameter: Parameter
    offset: int
    boxes: list[FragmentBox]
    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def _mpu() -> SimpleNamespace:
    """Megatron's process groups under the names that DeepSpeed asks for."""
    names = (
        "get_tensor_model_parallel_rank",
        "get_tensor_model_parallel_world_size",
        "get_tensor_model_parallel_group",
        "get_pipeline_model_parallel_rank",
        "get_pipeline_model_parallel_world_size",
        "get_pipeline_model_parallel_group",
        "get_data_parallel_rank",
        "get_data_parallel_world_size",
        "get_data_parallel_group",
        "get_model_parallel_group",
    )
    groups = {name: getattr(parallel_state, name) for name in names}
    return SimpleNamespace(
        **groups,
        get_model_parallel_rank=lambda: dist.get_rank(parallel_state.get_model_parallel_group()),
        get_model_parallel_world_size=lambda: dist.get_world_size(parallel_state.get_model_parallel_group()),
    )


@dataclass(frozen=True)
class StepResult:
    """loss is the mean negative log-likelihood per token of the global batch, in nats; grad_norm is before clipping."""

    loss: float
    grad_norm: float


class Engine:
    """A model under TP x PP x DP with its ZeRO-1 partition.

    Values are not set by the constructor: fill the views of `owned`, call `describe_generations`, then
    `publish_weights`. All methods are collective.
    """

    def __init__(
        self, arch: Architecture, layout: Layout, numerics: Numerics, adam: Adam, *, seq_len: int, micro_batch: int
    ) -> None:
        build.join(layout)
        self.arch, self.layout, self.numerics = arch, layout, numerics
        self.seq_len, self.micro_batch = seq_len, micro_batch
        pp_rank, self.dp_rank, tp_rank = layout.coordinates(dist.get_rank())
        self.first, self.last = pp_rank == 0, pp_rank == layout.pp - 1
        chunks = build.build(arch, layout, numerics, seq_len=seq_len, pp_rank=pp_rank, tp_rank=tp_rank)
        self.device = next(chunks.parameters()).device
        self.adam = AdamW(
            chunks.parameters(), lr=0.0, betas=adam.betas, eps=adam.eps, weight_decay=adam.weight_decay
        )
        self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
            model=chunks, optimizer=self.adam, mpu=_mpu(), config=self._deepspeed_config(adam), dist_init_required=False
        )
        self.chunks = list(self._deepspeed.module)
        table = parameters(arch, layout, pp_rank, tp_rank)
        self.parameters = list(zip(table, self._deepspeed.module.parameters(), strict=True))
        self.owned = self._owned()
        self._sequence_parallel = [p for _, p in self.parameters if getattr(p, "sequence_parallel", False)]

    def _deepspeed_config(self, adam: Adam) -> dict[str, Any]:
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": 1,  # Megatron's schedule accumulates
            "gradient_clipping": adam.clip,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": 1, "overlap_comm": False, "contiguous_gradients": False},
            "steps_per_print": 2**62,
        }
        if self.numerics.precision == "bf16":
            config["bf16"] = {"enabled": True, "immediate_grad_update": True}
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        return config

    def _owned(self) -> list[Owned]:
        (partition,) = self.adam.param_groups[0]["params"]
        exp_avg, exp_avg_sq = self.adam.moments(partition)
        found = []
        for parameter, tensor in self.parameters:
            if (mapping := getattr(tensor, "_hp_mapping", None)) is None:
                continue
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            views = (x.detach().narrow(0, here.start, here.numel) for x in (partition, exp_avg, exp_avg_sq))
            boxes = fragment_boxes(parameter, there.start, there.numel)
            found.append(Owned(parameter, here.start, boxes, *views))
        return found

    def describe_generations(self, generation: Callable[[FragmentBox], Tensor], steps: Sequence[int]) -> None:
        """Give every owned element its generation (uint8, of a box's shape) and every generation its Adam step.

        Matrices and embeddings decay, gains and biases do not.
        """
        segments = []
        for owned in self.owned:
            ids = torch.zeros(owned.weight.numel(), dtype=torch.uint8)
            for box in owned.boxes:
                box.view(ids).copy_(generation(box))
            one = bool((ids == ids[0]).all())
            segments.append(
                Segment(
                    owned.offset,
                    owned.offset + owned.weight.numel(),
                    len(owned.parameter.shape) > 1,
                    int(ids[0]) if one else ids.to(self.device),
                )
            )
        self.adam.describe(segments, steps)

    def publish_weights(self) -> None:
        """Cast the master weights and gather them over the data-parallel ranks into the model."""
        self._optimizer.update_lp_params()

    def _batches(self, tokens: Tensor | None, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Micro-batches (inputs [B, S], labels [B, S], mask [B, S]) of this data-parallel rank's samples."""
        assert tokens is not None
        for start in range(0, len(tokens), self.micro_batch):
            part = tokens[start : start + self.micro_batch].to(self.device)
            weights = None if mask is None else mask[start : start + self.micro_batch].to(self.device)
            yield part[:, :-1].contiguous(), part[:, 1:].contiguous(), weights

    def _forward(self, valid_tokens: float) -> Callable[..., Any]:
        """Megatron's forward_step: the loss of a micro-batch as its share of the global batch's mean."""
        position_S = torch.arange(self.seq_len, device=self.device)
        scale = self.layout.dp / valid_tokens  # DeepSpeed averages over the data-parallel ranks

        def step(batches: Iterator[Any], model: Any) -> Any:
            inputs_BS, labels_BS, mask_BS = next(batches)
            loss_BS = model(inputs_BS, position_S.expand_as(inputs_BS), None, labels=labels_BS)

            def loss(loss_BS: Tensor) -> Any:
                total = loss_BS.float().sum() if mask_BS is None else (loss_BS.float() * mask_BS).sum()
                count = torch.tensor(loss_BS.numel(), dtype=torch.int, device=self.device)
                return total * scale, count, total.detach()

            return loss_BS, loss

        return step

    def _run(
        self, forward: Callable[..., Any], tokens: Tensor, mask: Tensor | None = None, **how: bool
    ) -> list[Tensor]:
        """Megatron's schedule over this rank's samples; what the last pipeline rank collected per micro-batch."""
        for chunk in self.chunks:
            chunk.config.calculate_per_token_loss = True  # the loss is already a share of the global mean
        batches = [self._batches(tokens, mask) for _ in self.chunks]
        return get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=batches if len(batches) > 1 else batches[0],
            model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
            num_microbatches=len(tokens) // self.micro_batch,
            seq_length=self.seq_len,
            micro_batch_size=self.micro_batch,
            **how,
        )

    def _total(self, losses: list[Tensor]) -> float:
        """The sum over micro-batches and data-parallel ranks, known on every rank."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if self.last:
            total += torch.stack(losses).double().sum()
            dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        dist.broadcast(
            total,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
        return float(total)

    def backward(self, tokens: Tensor) -> float:
        """Forward and backward over this rank's samples [n, seq_len + 1]; gradients stay local. Returns the loss."""
        valid = len(tokens) * self.seq_len * self.layout.dp
        self._deepspeed.module.train()
        losses = self._run(self._forward(valid), tokens, forward_only=False)
        for parameter in self._sequence_parallel:
            dist.all_reduce(self.gradient(parameter), group=parallel_state.get_tensor_model_parallel_group())
        return self._total(losses) / valid

    def gradient(self, parameter: torch.nn.Parameter) -> Tensor:
        """The accumulated gradient of a parameter: fp32 in DeepSpeed's buffer under bf16, else `.grad`."""
        found = parameter._hp_grad if self.numerics.precision == "bf16" else parameter.grad  # type: ignore[attr-defined]
        assert found is not None
        return found

    def step(self, lr: float) -> float:
        """Reduce the gradients, clip and update. Returns the gradient norm before clipping."""
        self.adam.param_groups[0]["lr"] = lr
        if self.numerics.precision == "bf16":
            self._deepspeed.buffered_allreduce_fallback()
        else:
            self._optimizer.reduce_gradients(pipeline_parallel=True)
        self._optimizer.step()
        norm = float(self._optimizer._global_grad_norm)
        self._optimizer.zero_grad()
        return norm

    def forget(self) -> None:
        """Drop gradients that no step will use."""
        if self.numerics.precision == "bf16":
            self._optimizer.clear_hp_grads()
        self._optimizer.zero_grad()

    def train_step(self, tokens: Tensor, lr: float) -> StepResult:
        """One update from this data-parallel rank's part of the global batch, [n, seq_len + 1] token ids."""
        loss = self.backward(tokens)
        return StepResult(loss, self.step(lr))

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, mask: Tensor) -> float:
        """The summed negative log-likelihood, in nats, of the tokens whose mask [n, seq_len] is 1, over all ranks."""
        self._deepspeed.module.eval()
        return self._total(self._run(self._forward(1.0), tokens, mask, forward_only=True))

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor | None:
        """Logits [n, seq_len, vocab] in fp32 on the last pipeline rank, None elsewhere; every DP rank computes all."""
        self._deepspeed.module.eval()
        position_S = torch.arange(self.seq_len, device=self.device)

        def step(batches: Iterator[Any], model: Any) -> Any:
            inputs_BS, _, _ = next(batches)
            out = model(inputs_BS, position_S.expand_as(inputs_BS), None)
            return out, lambda x, non_loss_data=True: x.float()

        parts = self._run(step, tokens, forward_only=True, collect_non_loss_data=True)
        if not self.last:
            return None
        local_BSV = torch.cat(parts)
        gathered = [torch.empty_like(local_BSV) for _ in range(self.layout.tp)]
        dist.all_gather(gathered, local_BSV.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
        return torch.cat(gathered, dim=-1)[..., : self.arch.sizes["vocab"]]
