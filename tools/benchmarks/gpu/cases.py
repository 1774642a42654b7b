"""What is measured on a GPU, most important first: a run that ends early has measured what matters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

SIZES: dict[str, dict[str, int]] = {
    "125M": {"hidden": 768, "layers": 12, "heads": 12, "head_dim": 64, "ffn": 2048},
    "350M": {"hidden": 1024, "layers": 24, "heads": 16, "head_dim": 64, "ffn": 2816},
    "1B": {"hidden": 2048, "layers": 20, "heads": 16, "head_dim": 128, "ffn": 5504},
    "7B wide": {"hidden": 4096, "layers": 0, "heads": 32, "head_dim": 128, "ffn": 11008},
}
"""LLaMA models with 32,000 pieces; 0 layers: as many as fit, of those of LLaMA-2 7B."""
VOCAB = 32_000
TINY = {
    name: {"hidden": 16 * k, "layers": 2 if s["layers"] else 0, "heads": 2 * k, "head_dim": 8, "ffn": 24 * k}
    for k, (name, s) in enumerate(SIZES.items(), 1)
}
"""Of models that a CPU runs in no time, to try the benchmark itself."""
TINY_VOCAB = 64
MOST_LAYERS = 32


@dataclass(frozen=True)
class Case:
    """One thing to measure, in one process, in at most `seconds`.

    micro_batches: samples in a micro-batch, one measurement for each, until one does not fit into memory; 0: as many as
    the plan says will fit, at most `most` tokens. tokens: of an optimizer step. compiled: train.compile.
    """

    kind: Literal["ceilings", "train", "profile", "event"]
    seconds: float
    model: str = ""
    seq_len: int = 2048
    micro_batches: tuple[int, ...] = (0,)
    compiled: bool = True
    tokens: int = 1 << 17
    most: int = 1 << 14
    tiny: bool = False

    @property
    def name(self) -> str:
        """For people, and to tell cases apart."""
        if self.kind == "ceilings":
            return "ceilings"
        if self.kind == "event":
            return f"growth event into {self.model}"
        how = "compiled" if self.compiled else "eager"
        sweep = ", every micro-batch" if len(self.micro_batches) > 1 else ""
        return f"{self.kind} {self.model}, seq {self.seq_len}, {how}{sweep}"

    def sizes(self) -> dict[str, int]:
        """The axes of the model, for growth.Architecture; 0 layers are still to be chosen."""
        sizes = (TINY if self.tiny else SIZES)[self.model]
        return {"vocab": TINY_VOCAB if self.tiny else VOCAB, **sizes, "kv_heads": sizes["heads"]}

    def before(self) -> Case:
        """Of a growth event: the case whose model grows into this one's."""
        names = list(SIZES)
        return replace(self, model=names[names.index(self.model) - 1])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Case:
        return Case(**{**data, "micro_batches": tuple(data["micro_batches"])})


def all_cases(tiny: bool) -> list[Case]:
    """All of them, in order; tiny: the first of each kind, and small."""
    found = list(_cases())
    if not tiny:
        return found
    kinds = {(case.kind, len(case.micro_batches)): case for case in reversed(found)}
    return [_tiny(case) for case in found if case in kinds.values()]


def _cases() -> Iterator[Case]:
    yield Case("ceilings", 40)
    yield Case("train", 90, "1B")
    yield Case("train", 60, "1B", compiled=False)
    yield Case("profile", 60, "1B")
    yield Case("train", 90, "7B wide", seq_len=4096, tokens=1 << 16)
    yield Case("train", 60, "125M")
    yield Case("event", 60, "350M")
    every = (1, 2, 4, 8, 16, 32, 64)
    yield Case("train", 60, "1B", micro_batches=every, tokens=1 << 15)
    yield Case("train", 60, "350M")
    yield Case("train", 60, "1B", seq_len=4096)
    yield Case("train", 60, "7B wide", tokens=1 << 16)
    yield Case("profile", 60, "125M")
    yield Case("train", 60, "125M", compiled=False)
    yield Case("train", 60, "350M", compiled=False)
    yield Case("profile", 60, "1B", compiled=False)
    yield Case("train", 60, "7B wide", seq_len=4096, compiled=False, tokens=1 << 16)
    for model in ("125M", "350M"):
        yield Case("train", 60, model, seq_len=4096)
    for model in ("125M", "350M"):
        yield Case("train", 60, model, micro_batches=every, tokens=1 << 15)
    yield Case("train", 60, "1B", compiled=False, micro_batches=every, tokens=1 << 15)
    for model in ("125M", "350M", "1B"):
        yield Case("train", 60, model, seq_len=4096, compiled=False)
    yield Case("profile", 60, "7B wide", seq_len=4096)


def _tiny(case: Case) -> Case:
    micro_batches = case.micro_batches[:2] if len(case.micro_batches) > 1 else (0,)
    return replace(
        case,
        seq_len=case.seq_len // 128,
        micro_batches=micro_batches,
        compiled=False,  # compiling takes seconds
        seconds=3 * case.seconds,  # a CPU that does other things as well
        tokens=128,
        most=64,
        tiny=True,
    )
