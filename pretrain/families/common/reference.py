"""What the reference models share.

Shape suffixes: B batch, S sequence, D hidden, N heads, G kv heads, Q queries of a kv head, H head_dim, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from growth import span
from growth.architecture import Architecture
from growth.box import Box
from growth.evaluate.box_values import Read
from pretrain.data.documents import parted, positions
from pretrain.data.samples import Samples
from pretrain.families.common.kinds import ATTENTION, KINDS, MLP
from pretrain.losses import Outputs


class Continued(dict[str, torch.Tensor]):
    """Samples that go on behind others of the same model, whose keys and values are kept, block after block: a causal
    model computes of a text what is new. memory: of how many tokens at most; 0: of all."""

    def __init__(self, memory: int = 0) -> None:
        super().__init__()
        self._memory = memory
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._block = self._length = 0

    def by(self, ids_BS: torch.Tensor) -> Continued:
        """The next of them: what comes behind all before."""
        end = self._length + ids_BS.shape[1]
        self["inputs"], self["positions"] = ids_BS, torch.arange(self._length, end)
        self._length, self._block = end, 0
        return self

    def behind(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, G, S, H] of the next attention on the way through the blocks, behind those before."""
        if self._block < len(self._kept):
            k, v = (torch.cat(pair, 2) for pair in zip(self._kept[self._block], (k, v), strict=True))
        self._kept[self._block : self._block + 1] = [(k[:, :, -self._memory :], v[:, :, -self._memory :])]
        self._block += 1
        return k, v


class Remembering(dict[str, torch.Tensor]):
    """Samples behind a text of which the model remembers, attention by attention, what the block's input was (Dai et
    al. 2019, "Transformer-XL"). memory: [B, M, D] of each attention on the way through the blocks; none: it begins."""

    def __init__(self, samples: Samples, memory: Sequence[torch.Tensor] = ()) -> None:
        super().__init__(samples)
        self._memory, self._block = memory, 0
        self.inputs: list[torch.Tensor] = []
        """What the input of each of these blocks was in this pass, [B, S, D]."""
        if memory:
            before = memory[0].shape[1]
            self["positions"] = torch.arange(before + samples["inputs"].shape[1])

    def behind(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """[memory; x], [B, M + S, D], of the next attention on the way."""
        self.inputs.append(x_BSD)
        self._block += 1
        return torch.cat((self._memory[self._block - 1], x_BSD), 1) if self._memory else x_BSD


class Weights:
    """The tensors of a model by name, whole and in one precision, read when they are used; a matrix with an adapter is
    what the two of them come to."""

    def __init__(self, read: Read, arch: Architecture, dtype: torch.dtype) -> None:
        self.read, self.arch, self.dtype = read, arch, dtype
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        weight = self._whole(name)
        if (adapter := self.arch.adapter(name)) is None:
            return weight
        assert self.arch.adapters is not None
        a, b = map(self._whole, adapter)
        return weight + self.arch.adapters.scale * (b @ a)

    def _whole(self, name: str) -> torch.Tensor:
        return self.read("weight", name, Box.whole(self.arch.tensor(name).shape)).to(self.dtype)

    def spans(self, query: str) -> torch.Tensor | None:
        """How far the heads with this matrix of queries see, in tokens, [N]; None where they have no spans."""
        return self(span.beside(query)) * self.arch.span.max if self.arch.span else None

    def kept(self, name: str) -> torch.Tensor:
        """One that is used at both ends of the model, such as a tied embedding: it is read once."""
        if name not in self._kept:
            self._kept[name] = self(name)
        return self._kept[name]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """x [..., in] -> [..., out], with a bias."""
        return F.linear(x, self(f"{name}.weight"), self(f"{name}.bias"))

    def layer_norm(self, x_BSD: torch.Tensor, name: str) -> torch.Tensor:
        eps = self.arch.scalars["norm_eps"]
        return F.layer_norm(x_BSD, x_BSD.shape[-1:], self(f"{name}.weight"), self(f"{name}.bias"), eps)


Sublayer = Callable[[Weights, int, torch.Tensor, Samples], torch.Tensor]
"""What a part of a layer adds to the residual stream [B, S, D]: from the weights, the number of the layer, the stream
and the samples."""


@dataclass(frozen=True)
class Reference:
    """A reference model in its parts: what the first block gets, [B, S, D]; for each kind of layer what adds to it, one
    after the other; the logits by name, from what the last block gives; and of kinds that make another stream of it
    how they do."""

    embed: Callable[[Weights, Samples], torch.Tensor]
    sublayers: Mapping[str, tuple[Sublayer, ...]]
    head: Callable[[Weights, torch.Tensor], Outputs]
    between: Mapping[str, Callable[[Weights, int, torch.Tensor], torch.Tensor]] = field(default_factory=dict)

    def __call__(self, read: Read, arch: Architecture, samples: Samples, dtype: torch.dtype) -> Outputs:
        """The logits of a model that `read` gives, by name; the words first, [B, S, V]."""
        weight = Weights(read, arch, dtype)
        x_BSD = self.embed(weight, samples)
        for kind, number in arch.blocks:
            if kind in self.between:
                x_BSD = self.between[kind](weight, number, x_BSD)
                continue
            for sublayer in self.sublayers[kind]:
                x_BSD = x_BSD + sublayer(weight, number, x_BSD, samples)
        return self.head(weight, x_BSD)


def by_kind(attention: Sublayer, mlp: Sublayer) -> dict[str, tuple[Sublayer, ...]]:
    """The sublayers of each of the usual kinds."""
    return {kind: (attention,) * (kind in ATTENTION) + (mlp,) * (kind in MLP) for kind in KINDS}


def rotary(arch: Architecture, like_BSD: torch.Tensor, samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotate-half rotary embedding, [S, H], or [B, 1, S, H] where each document has positions of
    its own; the angles are float64 whatever the precision."""
    frequency = torch.from_numpy(arch.frequencies())
    place = positions(samples).double()
    angle = (place if place.dim() == 1 else place[:, None])[..., None] * torch.cat((frequency, frequency))
    return angle.cos().to(like_BSD), angle.sin().to(like_BSD)


def _turn(x_BNSH: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    first, second = x_BNSH.chunk(2, dim=-1)
    return x_BNSH * turn[0] + torch.cat((-second, first), dim=-1) * turn[1]


def _log_mask(arch: Architecture, span_N: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """The logarithm of the mask m of growth.span, [N, S, S], of the last queries among so many keys."""
    assert arch.span
    place = torch.arange(keys, device=span_N.device)
    beyond_NSS = place[keys - queries :, None] - place - span_N[:, None, None]
    faded_NSS = 1 - beyond_NSS / arch.span.ramp
    on_ramp = (beyond_NSS > 0) & (faded_NSS > 0)
    return torch.where(on_ramp, faded_NSS, 1).log().masked_fill(faded_NSS <= 0, float("-inf"))


def attention(
    arch: Architecture,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    turn: tuple[torch.Tensor, torch.Tensor] | None = None,
    valid_BS: torch.Tensor | None = None,
    samples: Samples | None = None,
    beside: Callable[[int], torch.Tensor] | None = None,
    span_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Grouped-query attention: q [B, S, N*H], k and v [B, S, G*H] or behind a memory [B, M + S, G*H] -> [B, S, N*H];
    `turn` are rotary cosine and sine of all of them, `valid_BS` (bool) the positions that may be looked at, `samples`
    those whose documents may not see each other, or that go on behind others; `beside` makes of the number of keys K
    what scores have beside q k^T, [B, N, S, K]; `span_N` is how far the heads see, in tokens."""
    batch, length = q.shape[:2]
    heads, dim = arch.sizes["heads"], arch.sizes["head_dim"]
    groups = arch.sizes.get("kv_heads", heads)
    q = q.view(batch, length, heads, dim).transpose(1, 2)
    k, v = (x.view(batch, -1, groups, dim).transpose(1, 2) for x in (k, v))
    if turn:
        q, k = _turn(q, (turn[0][..., -length:, :], turn[1][..., -length:, :])), _turn(k, turn)
    if isinstance(samples, Continued):
        k, v = samples.behind(k, v)
    q = q.reshape(batch, groups, heads // groups, length, dim)
    score = q @ k.unsqueeze(2).transpose(-1, -2)  # [B, G, Q, S, K]
    if beside:
        score = score + beside(k.shape[2]).view_as(score)
    score = score * arch.scalars["softmax_scale"]
    if causal:
        keys = k.shape[2]
        ahead = torch.ones(length, keys, dtype=torch.bool, device=q.device).triu(1 + keys - length)
        score = score.masked_fill(ahead, float("-inf"))
    if valid_BS is not None:
        score = score.masked_fill(~valid_BS[:, None, None, None, :], float("-inf"))
    if samples is not None and (apart := parted(samples)) is not None:
        score = score.masked_fill(apart[:, None, None], float("-inf"))
    if span_N is not None:
        score = score + _log_mask(arch, span_N, length, k.shape[2]).unflatten(0, (groups, -1))
    out = score.softmax(-1) @ v.unsqueeze(2)
    return out.reshape(batch, heads, length, dim).transpose(1, 2).reshape(batch, length, heads * dim)
