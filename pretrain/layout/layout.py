"""The layout of a stage: how many tensor-parallel, pipeline and data-parallel ranks, and which layers each owns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from growth.architecture import Architecture
from pretrain.errors import UserError
from pretrain.layout.work import totals

LONGEST = 1 << 14  # letters of a pipeline layout


def balanced_pipeline(work: int | Sequence[int], chunks: int) -> tuple[int, ...]:
    """Blocks of each pipeline chunk: their work as equal as possible, earlier chunks get the remainder.

    work: that of each block, in any unit, or the number of blocks that are alike. The chunk with most work has as
    little as can be, for it is what the others wait for; the rest is spread by least squares.

    >>> balanced_pipeline(7, 3), balanced_pipeline([2, 1, 1, 4], 2)
    ((3, 2, 2), (3, 1))
    """
    if isinstance(work, int) or len(set(work)) < 2:
        blocks = work if isinstance(work, int) else len(work)
        return tuple(blocks // chunks + (i < blocks % chunks) for i in range(chunks))
    if chunks >= len(work):
        return (1,) * len(work) + (0,) * (chunks - len(work))
    most, _ = _split(work, chunks, max, sum(work))
    return _split(work, chunks, lambda chunk, behind: chunk * chunk + behind, most)[1]


def _split(work: Sequence[int], chunks: int, cost: Callable[[int, int], int], most: int) -> tuple[int, tuple[int, ...]]:
    """(its cost, blocks of each chunk) of the cheapest split whose chunks have at most so much work each. cost: of a
    chunk's work and the cost of those behind it. Of equally cheap splits, that whose earlier chunks are longer."""
    until = [0, *accumulate(work)]
    # Of the blocks from each one on, with no chunks first, then with one more of them at a time.
    cheapest: dict[int, tuple[int, tuple[int, ...]]] = {len(work): (0, ())}
    for _ in range(chunks):
        longer = {}
        for start in range(len(work) + 1):
            splits = []
            for stop in range(start, len(work) + 1):
                own = until[stop] - until[start]
                if own > most:
                    break
                if stop in cheapest:
                    splits.append((cost(own, cheapest[stop][0]), (stop - start, *cheapest[stop][1])))
            if splits:
                longer[start] = min(splits, key=lambda split: (split[0], [-n for n in split[1]]))
        cheapest = longer
    return cheapest[0]


def parse_pipeline(text: str) -> tuple[int, ...]:
    """Layers of each chunk from a Megatron layout string; `*n` repeats the letter or group before it.

    >>> parse_pipeline("Ett|t*2L"), parse_pipeline("Et|(tt|)*2L")
    ((2, 2), (1, 2, 2, 0))

    Raises UserError when the string has other letters than E (embedding), t (layer) and L (loss), or when E is not
    its first and L not its last.
    """
    expanded = text.replace(" ", "").replace(",", "")

    def repeated(match: re.Match[str]) -> str:
        part, times = match.groups()
        if len(times) > 9 or len(part) * int(times) > LONGEST:
            raise UserError(
                f"pipeline layout {text[:60]!r}: {part[:20]!r} {times[:20]} times is more than it may be long"
            )
        return part * int(times)

    for pattern in (r"\(([^()]*)\)\*(\d+)", r"([EtL|])\*(\d+)"):
        if len(expanded) > LONGEST:
            raise UserError(f"pipeline layout {text[:60]!r} is longer than {LONGEST:,} letters")
        expanded = re.sub(pattern, repeated, expanded)
    if not re.fullmatch(r"E[t|]*L", expanded):
        raise UserError(
            f"pipeline layout {text[:60]!r} is not understood: write E (embedding), one t per layer, L (loss) and | "
            "between pipeline ranks, such as 'Ett|ttL'"
        )
    return tuple(chunk.count("t") for chunk in expanded.split("|"))


@dataclass(frozen=True)
class Layout:
    """TP x PP x DP of one stage.

    pipeline holds the number of blocks of each pipeline chunk, in order; chunk c belongs to pipeline rank
    c % pp. There are pp chunks, or a multiple of it when the pipeline is interleaved (Megatron-LM 2021, section 2.2).
    """

    tp: int
    pp: int
    dp: int
    pipeline: tuple[int, ...]
    sequence_parallel: bool = False

    @staticmethod
    def make(
        work: int | Sequence[int],
        *,
        tp: int = 1,
        pp: int = 1,
        dp: int = 1,
        pipeline: str | Sequence[int] | None = None,
        sequence_parallel: bool = False,
    ) -> Layout:
        """A checked layout; `pipeline` is a Megatron layout string, layers per chunk, or None for a balanced split.

        work: that of each block, or how many blocks there are: see balanced_pipeline. Raises UserError when the
        pipeline does not cover the blocks or has no whole number of chunks per rank.
        """
        layers = work if isinstance(work, int) else len(work)
        if pipeline is None:
            chunks = balanced_pipeline(work, pp)
        else:
            chunks = parse_pipeline(pipeline) if isinstance(pipeline, str) else tuple(pipeline)
        if sum(chunks) != layers:
            fits = "|".join("t" * n for n in balanced_pipeline(work, pp))
            raise UserError(
                f"parallel.pipeline {pipeline!r} places {sum(chunks)} layers, but the number of them (of an order: of "
                f"sublayers) is {layers}: place each once, for example {fits!r} between E and L"
            )
        if len(chunks) % pp:
            raise UserError(
                f"parallel.pipeline {pipeline!r} has {len(chunks)} parts for parallel.pp {pp}: "
                "give each pipeline rank one part, or the same number of parts (interleaved)"
            )
        return Layout(tp, pp, dp, chunks, sequence_parallel and tp > 1)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.tp * self.pp * self.dp

    @property
    def loss_rank(self) -> int:
        """The first rank that computes the loss."""
        return (self.pp - 1) * self.dp * self.tp

    @property
    def virtual(self) -> int:
        """Chunks per pipeline rank; more than 1 is an interleaved pipeline."""
        return len(self.pipeline) // self.pp

    def to_json(self) -> dict[str, object]:
        """For machines."""
        return {"tp": self.tp, "pp": self.pp, "dp": self.dp, "pipeline": list(self.pipeline)}

    def batch_unit(self, micro_batch: int) -> int:
        """Samples of which every batch is a whole multiple: a micro-batch on each data-parallel rank, and of an
        interleaved pipeline as many micro-batches as there are pipeline ranks."""
        return micro_batch * self.dp * (self.pp if self.virtual > 1 else 1)

    def resized(self, arch: Architecture, seq_len: int) -> Layout:
        """The same ranks for another model, split evenly."""
        return replace(self, pipeline=balanced_pipeline(totals(arch, seq_len), self.pp))

    def of_parent(self, old: Architecture, seq_len: int) -> Layout:
        """Of the same ranks, that of the model that grows into this one's, while a growth event measures it: without
        tensor parallelism where it is too small to be cut like that."""
        whole = any(old.sizes.get(axis, self.tp) % self.tp for axis in ("heads", "kv_heads", "ffn"))
        tp = 1 if whole else self.tp
        dp = self.dp * self.tp // tp
        return Layout.make(totals(old, seq_len), tp=tp, pp=self.pp, dp=dp, sequence_parallel=self.sequence_parallel)

    @property
    def megatron(self) -> str:
        """The same split as Megatron's `pipeline_model_parallel_layout`."""
        parts = ["t" * n for n in self.pipeline]
        parts[0] = "E" + parts[0]
        parts[-1] += "L"
        return "|".join(parts)

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(pipeline rank, data-parallel rank, tensor-parallel rank) of a global rank, in Megatron's order tp-dp-pp."""
        return rank // (self.tp * self.dp), rank // self.tp % self.dp, rank % self.tp

    def chunks(self, pp_rank: int) -> list[tuple[int, range]]:
        """(chunk, the numbers of its blocks) for every chunk of a pipeline rank."""
        offsets = [0, *accumulate(self.pipeline)]
        return [(c, range(offsets[c], offsets[c + 1])) for c in range(pp_rank, len(self.pipeline), self.pp)]
