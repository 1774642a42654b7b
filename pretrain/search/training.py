"""Training in one process with a reference model, in fp32 and without dropout: for what is small, and short."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growth import Architecture, Box, Plan
from pretrain import families
from pretrain.config import Stage
from pretrain.data.samples import Samples, size
from pretrain.errors import UserError
from pretrain.families.common.text import Feed, Wanted
from pretrain.losses import Outputs, of_logits
from pretrain.runtime import progress_files
from pretrain.schedule.curve import Pace, curve_of

SAVED = 25  # steps after which a run is saved again


class Training:
    """A model that is trained as a stage says (batches, rates, betas, decay, clipping), from weights drawn with `seed`.

    stage: with its budget in tokens. `steps` and `tokens` are those that were done.
    """

    def __init__(self, arch: Architecture, stage: Stage, seed: int, device: torch.device) -> None:
        plan = Plan(None, arch, (), seed, stage.model.init_std)
        self.arch, self.stage, self.device = arch, stage, device
        self.steps = self.tokens = 0
        self.weights = {
            name: plan.evaluate(name, Box.whole(t.shape), _nothing).to(device).requires_grad_()
            for name, t in arch.tensors().items()
        }
        self._pace = Pace(0, 0.0, stage.train.tokens).restarted(0, stage.train.warmup_tokens)
        matrices = [w for w in self.weights.values() if w.dim() > 1]
        others = [w for w in self.weights.values() if w.dim() == 1]
        train = stage.train
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=train.lr,
            betas=train.betas,
            eps=train.eps,
            fused=True,
        )

    def finished(self) -> bool:
        return self.tokens >= self.stage.train.tokens

    def outputs(self, samples: Samples) -> Outputs:
        """The logits by name."""
        return families.of(self.arch.family).reference(self.read, self.arch, samples, torch.float32)

    def read(self, kind: str, name: str, box: Box) -> Tensor:
        """A reader of the weights, differentiable."""
        return self.weights[name][box.slices()]

    def step(self, feed: Feed) -> float:
        """One step on the next samples of the text; gives the loss before it. UserError if that is not finite."""
        loss = self._gradients(feed)
        if self.stage.train.clip:
            torch.nn.utils.clip_grad_norm_(self.weights.values(), self.stage.train.clip)
        rate = self._pace.rate(curve_of(self.stage), self.tokens)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return loss

    def _gradients(self, feed: Feed) -> float:
        """Counts a step and leaves the gradients of the next samples' loss, which it gives."""
        train = self.stage.train
        samples = feed.take(*Wanted.at(train, self.tokens, rank=0, ranks=1)).samples
        self._optimizer.zero_grad()
        loss = 0.0
        for part in self._losses(samples):
            part.backward()
            loss += part.item()
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {self.steps + 1}: take a smaller train.lr")
        self.steps += 1
        self.tokens += size(samples) * train.seq_len
        return loss

    def held_out(self, feed: Feed) -> float:
        """The loss on the held-out text, in nats a token."""
        with torch.no_grad():
            return sum(part.item() for part in self._losses(feed.held_out(1).samples))

    def _losses(self, samples: Samples) -> Iterator[Tensor]:
        """What each micro-batch adds to the loss of the samples."""
        terms = families.of(self.arch.family).losses
        counts = [max(1.0, term.count(samples)) for term in terms]
        for start in range(0, size(samples), self.stage.train.micro_batch):
            end = start + self.stage.train.micro_batch
            part = {name: rows[start:end].to(self.device) for name, rows in samples.items()}
            outputs = of_logits(self.outputs(part), part)
            sums = [term.weight * term.total(outputs, part) / count for term, count in zip(terms, counts, strict=True)]
            yield torch.stack(sums).sum()

    def state(self) -> dict[str, Tensor]:
        """What another one with the same arguments needs to go on."""
        state = {"steps": torch.tensor(self.steps), "tokens": torch.tensor(self.tokens)}
        for name, weight in self.weights.items():
            state |= optimizer_state(name, weight, self._optimizer)
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the `state` of another one."""
        self.steps, self.tokens = int(state["steps"]), int(state["tokens"])
        for name, weight in self.weights.items():
            restore_optimizer(name, weight, self._optimizer, state)


def optimizer_state(name: str, weight: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """A weight and what its optimizer knows of it, by names that begin with its own."""
    of_weight: Mapping[str, Tensor] = optimizer.state[weight]
    return {f"{name}/weight": weight.detach(), **{f"{name}/{key}": value for key, value in of_weight.items()}}


def restore_optimizer(name: str, weight: Tensor, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """The reverse of `optimizer_state`."""
    values = {key.rpartition("/")[2]: x for key, x in state.items() if key.startswith(f"{name}/")}
    weight.data.copy_(values.pop("weight"))
    optimizer.state[weight] = {key: x.to(weight.device, copy=True) for key, x in values.items()}


def to_the_end(run: Training, feed: Feed, path: Path, about: Mapping[str, Any]) -> Iterator[float]:
    """Steps until the run has finished; gives the loss of each.

    The run is saved at `path` on the way. What a process that was killed has left there goes on, to the same bits on a
    CPU, if it was about the same (JSON). Raises UserError for a file that is damaged, and what `step` does.
    """
    progress = progress_files.read(path)
    if progress and progress[1]["about"] == about:
        run.restore(progress[0])
        feed.seek(progress[1]["cursor"])
    else:
        feed.seek(None)
    while not run.finished():
        yield run.step(feed)
        if run.steps % SAVED == 0:
            progress_files.write(path, run.state(), {"about": about, "cursor": feed.cursor})


def _nothing(kind: str, name: str, box: Box) -> Tensor:
    raise AssertionError("a fresh model reads nothing")
