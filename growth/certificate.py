"""The certificate of a growth event: did it keep the function that it claims to keep, and can all that is new learn?

Pure: numbers in, a verdict out. Who measures them (a training stack on its shards, or one process with a reference
model in one process) is not its business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import torch

from growth.describe import table
from growth.errors import GrowthError
from growth.plan import Plan

TOLERANCE = 1e-5  # A relative error of logits up to this is rounding in fp32, not growth.


def relative_error(new: torch.Tensor, old: torch.Tensor) -> float:
    """max |new - old| / max |old|, over two tensors of one shape (logits of the old ids); of an old model that says
    nothing but zeros, max |new|."""
    scale = float(old.double().abs().max())
    return float((new.double() - old.double()).abs().max()) / (scale or 1.0)


def count_dead(
    born: torch.Tensor, first: torch.Tensor, second: torch.Tensor, seen: torch.Tensor | None = None
) -> tuple[int, int]:
    """(dead, counted) of the elements `born` (bool) of a tensor or of any part of it, given its gradients on two
    backward passes, before and after one optimizer step. Dead: exactly zero on both. `seen` (bool, broadcastable)
    leaves out rows that the batch cannot reach: embedding rows of ids that do not occur."""
    counted = born if seen is None else born & seen
    dead = counted & (first == 0) & (second == 0)
    return int(dead.sum()), int(counted.sum())


@dataclass(frozen=True)
class Certificate:
    """Of one growth event. `error` is relative (max over logits of old ids, new ids masked); losses are nats per token
    on the old segmentation; `dead` maps rows of the family's table to (dead, counted) new parameters; `locked` maps an
    axis with copied channels to the share of copies that still equal their source, at once and after ten steps;
    `approximate` says where transformed moments are only near those of an exact trajectory; bits per byte, where
    measured, are with the new vocabulary and segmentation and never stop a stage; `memory` is what became of what
    lanes remember: "mapped", so that `error` is of text behind it, or "recomputed" by the grown model (empty: there
    was none); the gradient's global norm before and after the event, where measured, is on one batch of the old
    segmentation."""

    operators: tuple[str, ...]
    claims: bool
    error: float
    tolerance: float
    loss_before: float
    loss_after: float
    dead: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    locked: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    approximate: tuple[str, ...] = ()
    bits_per_byte_before: float | None = None
    bits_per_byte_after: float | None = None
    grad_norm_before: float | None = None
    grad_norm_after: float | None = None
    memory: str = ""

    @staticmethod
    def of(plan: Plan, *, error: float, loss_before: float, loss_after: float, **measured: Any) -> Certificate:
        """The certificate of this plan's event from what was measured."""
        tolerance = measured.pop("tolerance", TOLERANCE)
        return Certificate(
            plan.operators,
            plan.preserves,
            error,
            tolerance,
            loss_before,
            loss_after,
            approximate=plan.approximate,
            **measured,
        )

    @property
    def preserved(self) -> bool:
        """Whether the function is the old one, up to the tolerance (a NaN is not)."""
        return self.error <= self.tolerance

    @property
    def dead_share(self) -> float:
        """The share of new parameters that cannot learn, of those counted."""
        counted = sum(n for _, n in self.dead.values())
        return sum(d for d, _ in self.dead.values()) / counted if counted else 0.0

    @property
    def grad_norm_ratio(self) -> float | None:
        """By what the event multiplied the gradient's norm; None where it was not measured, or cannot be said."""
        if not self.grad_norm_after or not self.grad_norm_before:
            return None
        ratio = self.grad_norm_after / self.grad_norm_before
        return ratio if isfinite(ratio) else None

    def require(self) -> None:
        """Raise GrowthError when the plan claims to preserve the function but does not, and when what was measured is
        not finite: then one of the models computes nothing, and no checkpoint could hold the certificate."""
        if not all(map(isfinite, (self.error, self.loss_before, self.loss_after))):
            raise GrowthError(
                f"on held-out text the loss is {self.loss_before:g} before the growth and {self.loss_after:g} after, "
                f"and the logits differ by {self.error:g}: a model whose output is not finite cannot be grown. The "
                "parent is untouched; choose an earlier checkpoint of it, or other operators"
            )
        if self.claims and not self.preserved:
            raise GrowthError(
                f"growth claims to preserve the function but changes it: logits differ by {self.error:.3g} of their "
                f"largest, more than {self.tolerance:.0e} (operators {', '.join(self.operators)}). The parent is "
                "untouched; check that its checkpoint and scalars (norm_eps, softmax_scale) belong together"
            )

    def __str__(self) -> str:
        claim = "claims to preserve" if self.claims else "does not claim to preserve"
        verdict = "preserved" if self.preserved else "CHANGED"
        counted = sum(n for _, n in self.dead.values())
        dead = sum(d for d, _ in self.dead.values())
        rows = [
            ["operators", ", ".join(self.operators) or "none", ""],
            ["function", f"error {self.error:.3g}", f"{verdict} (tolerance {self.tolerance:.0e}; {claim})"],
            ["loss", f"{self.loss_before:.6f} to {self.loss_after:.6f}", f"{self.loss_after - self.loss_before:+.2e}"],
            ["new parameters", f"{counted:,} counted", f"{dead:,} dead ({self.dead_share:.2%})"],
        ]
        rows += [["", name, f"{d:,} of {n:,} dead"] for name, (d, n) in self.dead.items() if d]
        rows += [
            ["copied channels", axis, f"{now:.0%} locked at once, {later:.0%} after ten steps"]
            for axis, (now, later) in self.locked.items()
        ]
        if self.grad_norm_ratio:
            text = f"{self.grad_norm_before:.4f} to {self.grad_norm_after:.4f}"
            rows.append(["gradient norm", text, f"times {self.grad_norm_ratio:.4f} (on one batch)"])
        if self.memory:
            rows.append(["memory", self.memory, ""])
        rows += [["moments", "approximate", note] for note in self.approximate]
        if self.bits_per_byte_before is not None and self.bits_per_byte_after is not None:
            change = self.bits_per_byte_after - self.bits_per_byte_before
            text = f"{self.bits_per_byte_before:.4f} to {self.bits_per_byte_after:.4f}"
            rows.append(["bits per byte", text, f"{change:+.4f} (new vocabulary and segmentation)"])
        return table(rows)

    def to_json(self) -> dict[str, Any]:
        values = {**asdict(self), "preserved": self.preserved, "dead_share": self.dead_share}
        if not self.memory:
            del values["memory"]
        return values

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Certificate:
        values = {k: v for k, v in data.items() if k not in ("preserved", "dead_share")}
        values["operators"] = tuple(values["operators"])
        values["approximate"] = tuple(values["approximate"])
        values["dead"] = {name: (d, n) for name, (d, n) in values["dead"].items()}
        values["locked"] = {axis: (now, later) for axis, (now, later) in values["locked"].items()}
        return Certificate(**values)
