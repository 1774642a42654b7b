"""AdamW for ZeRO partitions that hold parameters of several generations."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pretrain.engine import adamw_mixed
from pretrain.engine.generation_segments import Segment
from pretrain.runtime.device import sent


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) on one flat partition.

    Every generation has its learning rate (0: frozen; its moments go on), its weight decay, and its own step, so that
    the bias correction of what was born at a growth event starts at its birth. Weight decay is switched off by
    segment, and a segment's factors multiply learning rate and epsilon: a step decays by the generation's learning rate
    times its weight decay, whatever the factor. Whatever the number of generations, an element is read and written
    once: on a device, all elements by one kernel (compile: see pretrain.kernels.fused). With one generation an update
    equals that of torch.optim.AdamW(fused=True) bit for bit.

    State of the partition: exp_avg and exp_avg_sq, like it. `steps`, `lrs` and `weight_decays` have an item for each
    generation: the updates it has had, and what the next one takes.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        compile: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.compile = compile
        self.segments: Sequence[Segment] = ()
        self.resting: Collection[int] = ()  # generations in no segment of any rank: their steps stay as they are
        self.steps: list[int] = []
        self.lrs: list[float] = []
        self.weight_decays: list[float] = []
        self._codes: tuple[Sequence[Segment], Tensor] | None = None

    def describe(
        self, segments: Sequence[Segment], steps: Sequence[int], weight_decays: Sequence[float] | None = None
    ) -> None:
        """Say what the partition holds, and how many updates each generation has had.

        weight_decays: of each generation; None: the constructor's for all. The learning rates are the constructor's
        until `set_lr`.
        """
        self.segments, self.steps, self.resting = segments, list(steps), ()
        (group,) = self.param_groups
        self.weight_decays = [group["weight_decay"]] * len(steps) if weight_decays is None else list(weight_decays)
        self.set_lr(group["lr"])
        if len(self.weight_decays) != len(self.steps):
            raise ValueError(f"{len(self.weight_decays)} weight decays for {len(self.steps)} generations")

    def set_lr(self, lr: float | Sequence[float]) -> None:
        """The learning rate of the next update: of all generations, or of each. ValueError for another number."""
        self.lrs = [lr] * len(self.steps) if isinstance(lr, (int, float)) else list(lr)
        if len(self.lrs) != len(self.steps):
            raise ValueError(f"{len(self.lrs)} learning rates for {len(self.steps)} generations")
        self.param_groups[0]["lr"] = self.lrs[-1] if self.lrs else lr

    def moments(self, partition: Tensor) -> tuple[Tensor, Tensor]:
        """(exp_avg, exp_avg_sq) of a partition, made of zeros when there are none yet."""
        state = self.state[partition]
        if not state:
            state["exp_avg"] = torch.zeros_like(partition)
            state["exp_avg_sq"] = torch.zeros_like(partition)
        return state["exp_avg"], state["exp_avg_sq"]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every generation."""
        (group,) = self.param_groups
        (partition,) = group["params"]
        if partition.grad is None:
            return
        tensors = (partition.detach(), partition.grad, *self.moments(partition))
        self.steps = [n + (g not in self.resting) for g, n in enumerate(self.steps)]
        beta1, beta2 = group["betas"]
        each = zip(self.lrs, self.weight_decays, (max(1, n) for n in self.steps), strict=True)
        table = np.array([_coefficients(lr, wd, n, (beta1, beta2), group["eps"]) for lr, wd, n in each], "f4")
        # The bias corrections of generations with one learning rate end up equal, and then they are as one.
        first = [int((table == row).all(1).argmax()) for row in table]
        mixes = [segment for segment in self.segments if len({first[g] for g in segment.present}) > 1]
        if mixes and self._on_device(partition):
            self._update_all(table, tensors)
            return
        whole: dict[tuple[float, float, float], list[tuple[Segment, int]]] = {}
        for segment in self.segments:
            generations = {first[g] for g in segment.present}
            if len(generations) > 1:
                continue
            (g,) = generations
            weight_decay = self.weight_decays[g] / segment.rate if segment.decay else 0.0
            how = (self.lrs[g] * segment.rate, weight_decay, group["eps"] * segment.eps)
            whole.setdefault(how, []).append((segment, max(1, self.steps[g]) - 1))
        for (lr, weight_decay, eps), alike in whole.items():
            self._update_whole(alike, lr, weight_decay, eps, tensors)
        table_3G = torch.from_numpy(table.T.copy())
        for segment in mixes:
            self._update_mixed(segment, table_3G, tensors)

    @staticmethod
    def _on_device(partition: Tensor) -> bool:
        return partition.device.type != "cpu"

    def _update_whole(
        self,
        alike: Sequence[tuple[Segment, int]],
        lr: float,
        weight_decay: float,
        eps: float,
        tensors: tuple[Tensor, ...],
    ) -> None:
        """Segments with the updates they have had, of one learning rate: torch's fused kernel."""
        params, grads, exp_avgs, exp_avg_sqs = ([x[s.start : s.stop] for s, _ in alike] for x in tensors)
        done = sent(torch.tensor([float(n) for _, n in alike]), tensors[0].device)
        (group,) = self.param_groups
        adamw(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs=[],
            state_steps=list(done.unbind()),
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
        )

    def _update_mixed(self, segment: Segment, table_3G: Tensor, tensors: tuple[Tensor, ...]) -> None:
        """A segment of several generations on a CPU; equal to the others up to rounding.

        table_3G: the coefficients of each generation.
        """
        assert segment.rows is not None
        patterns = segment.rows.patterns
        p, g, m, v = (x[segment.start : segment.stop].view(-1, patterns.shape[1]) for x in tensors)
        table_3G = table_3G * torch.from_numpy(_multipliers(segment.rate, segment.eps, True))[:, None]
        scale, shift, minus_decay = table_3G[:, patterns]  # [distinct rows, columns] each
        if not segment.decay:
            minus_decay = torch.zeros_like(minus_decay)
        adamw_mixed.update_rows(
            (p, g, m, v), scale, shift, minus_decay, segment.rows.index, self.param_groups[0]["betas"]
        )

    def _update_all(self, table: np.ndarray, tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """All segments at once on a device. table: the coefficients of each generation, [G, 3]."""
        count, device = len(table), tensors[0].device
        kinds = list(dict.fromkeys((s.rate, s.eps) for s in self.segments))
        last = 2 * count * len(kinds)
        if self._codes is None or self._codes[0] is not self.segments:
            codes = torch.full(tensors[0].shape, last, dtype=torch.uint8 if last < 256 else torch.int16)
            self._codes = self.segments, codes.to(device)
            for segment in self.segments:
                here = self._codes[1][segment.start : segment.stop]
                off = 2 * count * kinds.index((segment.rate, segment.eps)) + (0 if segment.decay else count)
                if segment.rows is None:
                    here.fill_(segment.present[0] + off)
                else:
                    each = (segment.rows.patterns + off).to(here.dtype)
                    torch.index_select(each, 0, segment.rows.index, out=here.view(len(segment.rows.index), -1))
        tables = [table * _multipliers(rate, eps, decay) for rate, eps in kinds for decay in (True, False)]
        columns = np.concatenate((*tables, [[0, -math.inf, 0]])).T
        coefficients = sent(torch.from_numpy(columns.astype("f4", order="C")), device)
        adamw_mixed.update_all(tensors, self._codes[1], coefficients, self.param_groups[0]["betas"], self.compile)


def _multipliers(rate: float, eps: float, decay: bool) -> np.ndarray:
    """fp32 [3]: what a segment's factors do to the coefficients of its generations."""
    return np.array([1 / rate, eps / rate, decay], "f4")


def _coefficients(
    lr: float, weight_decay: float, steps: int, betas: tuple[float, float], eps: float
) -> tuple[float, float, float]:
    """(scale, shift, minus decay) of an update: p += minus decay * p, then p += exp_avg / (scale * root + shift), where
    root is that of exp_avg_sq. Learning rate and bias corrections in two numbers: as few passes as there can be."""
    if lr == 0:
        return 0.0, -math.inf, 0.0
    size = -lr / (1 - betas[0] ** steps)
    return (1 - betas[1] ** steps) ** -0.5 / size, eps / size, -lr * weight_decay
