"""What the reference models share.

Shape suffixes: B batch, S sequence, D hidden, N heads, G kv heads, Q queries of a kv head, H head_dim, V vocab.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from growth.architecture import Architecture
from growth.box import Box
from growth.evaluate.box_values import Read


class Weights:
    """The tensors of a model by name, whole and in one precision, read when they are used."""

    def __init__(self, read: Read, arch: Architecture, dtype: torch.dtype) -> None:
        self.read, self.arch, self.dtype = read, arch, dtype

    def __call__(self, name: str) -> torch.Tensor:
        return self.read("weight", name, Box.whole(self.arch.tensor(name).shape)).to(self.dtype)

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """x [..., in] -> [..., out], with a bias."""
        return F.linear(x, self(f"{name}.weight"), self(f"{name}.bias"))

    def layer_norm(self, x_BSD: torch.Tensor, name: str) -> torch.Tensor:
        eps = self.arch.scalars["norm_eps"]
        return F.layer_norm(x_BSD, x_BSD.shape[-1:], self(f"{name}.weight"), self(f"{name}.bias"), eps)


def rotary(arch: Architecture, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [S, H] of the rotate-half rotary embedding; the angles are float64 whatever the precision."""
    frequency = torch.from_numpy(arch.frequencies())
    angle = torch.arange(length, dtype=torch.float64)[:, None] * torch.cat((frequency, frequency))
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _turn(x_BNSH: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    first, second = x_BNSH.chunk(2, dim=-1)
    return x_BNSH * turn[0] + torch.cat((-second, first), dim=-1) * turn[1]


def attention(
    arch: Architecture,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    turn: tuple[torch.Tensor, torch.Tensor] | None = None,
    valid_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Grouped-query attention: q [B, S, N*H], k and v [B, S, G*H] -> [B, S, N*H]; `turn` are rotary cosine and sine,
    `valid_BS` (bool) the positions that may be looked at."""
    batch, length = q.shape[:2]
    heads, dim = arch.sizes["heads"], arch.sizes["head_dim"]
    groups = arch.sizes.get("kv_heads", heads)
    q = q.view(batch, length, heads, dim).transpose(1, 2)
    k, v = (x.view(batch, length, groups, dim).transpose(1, 2) for x in (k, v))
    if turn:
        q, k = _turn(q, turn), _turn(k, turn)
    q = q.reshape(batch, groups, heads // groups, length, dim)
    score = (q @ k.unsqueeze(2).transpose(-1, -2)) * arch.scalars["softmax_scale"]  # [B, G, Q, S, S]
    if causal:
        score = score.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
    if valid_BS is not None:
        score = score.masked_fill(~valid_BS[:, None, None, None, :], float("-inf"))
    out = score.softmax(-1) @ v.unsqueeze(2)
    return out.reshape(batch, heads, length, dim).transpose(1, 2).reshape(batch, length, heads * dim)
