"""The state of a run: all that a checkpoint says of it besides its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from growth import Architecture, Generations
from pretrain.checkpoint import CorruptCheckpoint, ManifestFields, Reader, model_of
from pretrain.guard.health import Health
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress


@dataclass(frozen=True)
class State:
    """Everything of a run but its tensors, its configuration and its place in the folder tree."""

    arch: Architecture
    generations: Generations
    births: tuple[Birth, ...]
    progress: Progress
    cursor: Mapping[str, Any] | None
    events: tuple[Mapping[str, Any], ...] = ()
    parent: Mapping[str, Any] | None = None
    health: Health = field(default_factory=Health)

    @staticmethod
    def from_reader(reader: Reader) -> State:
        """The state that a checkpoint holds; raises CorruptCheckpoint when it holds none, or none that makes sense."""
        m = reader.manifest
        arch = model_of(m, reader.path)
        if not m.generations:
            raise CorruptCheckpoint(f"{reader.path}: it has tensors, and nothing is said of a run that made them")
        progress = dict(m.progress)
        health = Health.from_json(progress.pop("health", {}))
        return State(
            arch,
            Generations.from_json(m.generations),
            tuple(Birth.from_json(b) for b in m.generations["each"]),
            Progress(**{**progress, "held_out": tuple(progress.get("held_out", ()))}),
            m.cursor,
            tuple(m.events),
            m.parent,
            health,
        )

    def fields(self, stage: str, config: Mapping[str, Any], steps: Sequence[int]) -> ManifestFields:
        """The manifest of a checkpoint with this state, whose generations have had `steps` updates."""
        births = [asdict(replace(birth, adam_step=n)) for birth, n in zip(self.births, steps, strict=True)]
        return ManifestFields(
            architecture=self.arch.to_json(),
            stage=stage,
            events=self.events,
            generations={**self.generations.to_json(), "each": births},
            cursor=self.cursor or {},
            progress={**asdict(self.progress), "health": asdict(self.health)},
            config=config,
            parent=self.parent,
            shapes={name: tensor.shape for name, tensor in self.arch.tensors().items()},
        )
