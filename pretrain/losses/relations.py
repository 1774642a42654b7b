"""What a student learns from the attention of its teacher: MiniLM (Wang et al. 2020, section 3) and MiniLMv2 (Wang et
al. 2021, section 3.1).

A *relation* of two vectors at every position is softmax(a b^T / sqrt(width)), of each token to all that it may look at.
The loss is the divergence KL(teacher || student) of relations of one layer of either, a mean over heads and tokens:
padding takes no part, and in a causal model what lies ahead and in other documents does not.

minilm: the attention itself, queries to keys, and values to values, of each head; both have as many heads. minilm2:
queries to queries, keys to keys and values to values, after the heads of each were put side by side and cut anew into
`relation_heads`; the models may have any number of heads. Where several queries share a key and a value (GQA), these
are repeated for each of them, as in the attention. Queries and keys are as they enter it, rotated where they rotate.

Shapes: B micro-batch, S sequence, N query heads, G kv groups, H width of a head, A heads of relations, D their width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.data.documents import parted
from pretrain.data.samples import Samples

CHUNK, CPU_CHUNK = 1 << 24, 1 << 20
"""Elements of the relations of so many heads as are compared at a time, at least of one: on a CPU they stay in the
cache."""


class Attended(NamedTuple):
    """What enters the attention of a layer: query [S, B, N, H], key and value [S, B, G, H], of all heads or of those of
    a tensor-parallel rank. scale: of the scores. causal: whether a token sees those before it alone."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    causal: bool


def present(samples: Samples) -> Tensor:
    """1 where a sample has text and no padding, float [B, S]."""
    known = samples.get("valid", samples.get("mask"))
    return torch.ones_like(samples["inputs"], dtype=torch.float) if known is None else known


def divergence(kind: str, student: Attended, teacher: Attended, samples: Samples, relation_heads: int) -> Tensor:
    """The sum over the tokens of a micro-batch of the divergences' means over heads, in nats.

    kind: minilm or minilm2. relation_heads: of minilm2, as many as there are of these tensors: a tensor-parallel rank
    that has a part of the heads has that part of the relations', and the mean over all heads is that over the ranks.
    """
    valid_BS = present(samples)
    wide = torch.float64 if student.query.dtype == torch.float64 else torch.float32
    hidden = ~valid_BS.bool()[:, None, None, :]
    if student.causal:
        length = valid_BS.shape[1]
        hidden = hidden | torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
    if (apart := parted(samples)) is not None:
        hidden = hidden | apart[:, None]
    # Added, and not filled in: a CPU takes an eighth of the time.
    hidden = torch.zeros(hidden.shape, dtype=wide, device=hidden.device).masked_fill_(hidden, torch.finfo(wide).min)
    rows = valid_BS[:, None, :, None]
    pairs = zip(_relations(kind, student, relation_heads), _relations(kind, teacher, relation_heads), strict=True)
    sums = [_Divergence.apply(*ours, *theirs, hidden, rows) / ours[0].shape[1] for ours, theirs in pairs]
    return torch.stack(sums).sum()


def _relations(kind: str, attended: Attended, relation_heads: int) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yields the pairs of vectors [B, A, S, D] that are related, and the scale of their products."""
    queries, groups = attended.query.shape[2], attended.key.shape[2]
    key, value = attended.key, attended.value
    if groups < queries:
        key, value = (x.repeat_interleave(queries // groups, 2) for x in (key, value))
    if kind == "minilm":
        q, k, v = (x.permute(1, 2, 0, 3) for x in (attended.query, key, value))
        yield q, k, attended.scale
        yield v, v, v.shape[-1] ** -0.5
    else:
        for vectors in (attended.query, key, value):
            x = vectors.flatten(2).unflatten(2, (relation_heads, -1)).permute(1, 2, 0, 3)
            yield x, x, x.shape[-1] ** -0.5


class _Divergence(torch.autograd.Function):
    """The sum over heads and rows of KL(teacher || student) of two relations, softmax(a b^T scale) of either.

    Nothing of the size of a relation is kept, and there are those of some heads at a time: the gradients of a and b are
    worked out on the way forward, since the derivative by the student's scores is the difference of the two relations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        scale: float,
        teacher_a: Tensor,
        teacher_b: Tensor,
        teacher_scale: float,
        hidden: Tensor,
        rows: Tensor,
    ) -> Tensor:
        weight, batch, length = (rows * scale).to(a.dtype), a.shape[0], a.shape[2]
        at_once = max(1, (CPU_CHUNK if a.device.type == "cpu" else CHUNK) // (batch * length * length))
        total, of_a, of_b = [], [], []
        heads = zip(*(x.split(at_once, 1) for x in (a, b, teacher_a * teacher_scale, teacher_b)), strict=True)
        for a_part, b_part, teacher_a_part, teacher_b_part in heads:
            each, difference = _compared(
                _scores(a_part * scale, b_part, hidden), _scores(teacher_a_part, teacher_b_part, hidden)
            )
            difference = difference.to(a.dtype)
            total.append((each * rows).sum())
            of_a.append(difference @ b_part * weight)
            of_b.append(difference.transpose(-1, -2) @ (a_part * weight))
        ctx.save_for_backward(torch.cat(of_a, 1), torch.cat(of_b, 1))
        return torch.stack(total).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_a, of_b = ctx.saved_tensors
        return of_a * grad, of_b * grad, *(None,) * 6


def _scores(a: Tensor, b: Tensor, hidden: Tensor) -> Tensor:
    """a b^T + hidden, [B, A, S, S], as wide as hidden, which is the lowest number there is where a token may not look:
    its product with a probability of 0 is 0."""
    return (a @ b.transpose(-1, -2)).to(hidden.dtype).add_(hidden)


def _compared(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(teacher || student) of each row [B, A, S, 1], the student's relation less the teacher's) of their scores,
    which are overwritten. The logarithms of relations come out of their largest elements: one exponential each."""
    relation, expected = student.softmax(-1), teacher.softmax(-1)
    shift = _log_total(student, relation) - _log_total(teacher, expected)
    each = teacher.sub_(student).add_(shift).mul_(expected).sum(-1, keepdim=True)
    return each, relation.sub_(expected)


def _log_total(scores: Tensor, relation: Tensor) -> Tensor:
    """The logarithm of what softmax divides each row by."""
    return scores.amax(-1, keepdim=True) - relation.amax(-1, keepdim=True).log()
