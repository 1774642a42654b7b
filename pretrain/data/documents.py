"""Documents that do not see each other: where each begins in a sample, and what follows from it.

A document's *end token* opens the next one: it is the last label of its own document and the first input of the one
behind it, whose first token is predicted from it alone. So every token is a label once, as without this; no label is of
another document than its inputs; and text begins in training as it does in validation and for a prompt. What a sample
has of a document counts as one: a document that a sample begins in the middle of begins there.

Samples say it in `document_starts`, int32 [n, K]: the places of the first inputs of a sample's documents, in order, the
first of them 0; a sample that has fewer documents than another has its length S in what is left. Of samples that go on
behind others, as those of lanes do, `opens_document`, bool [n], says which nevertheless begin a document.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.samples import Samples

STARTS = "document_starts"
OPENS = "opens_document"


def apart(samples: Samples, end: int) -> Samples:
    """The same samples whose documents do not see each other. end: the id of the token that ends a document; several in
    a row, as in padding, open one."""
    ended = samples["inputs"] == end
    begins = ended.clone()
    begins[:, 1:] &= ~ended[:, :-1]
    begins[:, 0] = True
    return beginning(samples, begins)


def beginning(samples: Samples, begins: Tensor) -> Samples:
    """The same samples, whose documents begin where `begins` is True, bool [n, S], and do not see each other."""
    (rows, places), counts = begins.nonzero(as_tuple=True), begins.sum(1)
    starts = torch.full((len(begins), int(counts.max())), begins.shape[1], dtype=torch.int32)
    starts[rows, torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]] = places.to(torch.int32)
    return {**samples, STARTS: starts}


def in_lanes(samples: Samples, end: int) -> Samples:
    """The same samples, each of which goes on behind the one before it in its lane, or opens a document."""
    return {**samples, OPENS: samples["inputs"][:, 0] == end}


def reached(samples: Samples, before: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many tokens before each sample are of the document that it begins in, and how many are behind it, to its
    end, int64 [n]; before: how many there are before it, which are of the document that the one before it has ended
    in. On the host. Without documents all are of one."""
    length = samples["inputs"].shape[1]
    if STARTS not in samples:
        return before, before + length
    own = np.where(samples[OPENS].cpu().numpy(), 0, before) if OPENS in samples else before
    last = samples[STARTS].where(samples[STARTS] < length, 0).amax(1).cpu().numpy()
    return own, np.where(last > 0, length - last, own + length)


def joined(parts: Sequence[Samples]) -> Samples:
    """The samples of all parts, one after the other, wherever they have as many documents as each other or not."""
    if STARTS in parts[0]:
        length, most = parts[0]["inputs"].shape[1], max(part[STARTS].shape[1] for part in parts)
        parts = [{**p, STARTS: F.pad(p[STARTS], (0, most - p[STARTS].shape[1]), value=length)} for p in parts]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def positions(samples: Samples) -> Tensor:
    """The place of every input in its document, int64 [n, S]; without documents [S], which samples that go on behind
    others have as `positions`."""
    if "positions" in samples:
        return samples["positions"]
    place = torch.arange(samples["inputs"].shape[1], device=samples["inputs"].device)
    if STARTS not in samples:
        return place
    starts = samples[STARTS].long()
    return place - starts.gather(1, _numbers(starts, place))


def parted(samples: Samples) -> Tensor | None:
    """Which inputs are of different documents, bool [n, S, S]; None without documents."""
    if STARTS not in samples:
        return None
    starts = samples[STARTS].long()
    numbers = _numbers(starts, torch.arange(samples["inputs"].shape[1], device=starts.device))
    return numbers[:, :, None] != numbers[:, None, :]


def in_units(samples: Samples, tokens: int) -> Samples:
    """The same documents where a unit stands for so many tokens: one that has tokens of two is of the later one."""
    if tokens == 1 or STARTS not in samples:
        return samples
    return {"inputs": samples["inputs"][:, ::tokens], STARTS: samples[STARTS] // tokens}


def _numbers(starts: Tensor, place: Tensor) -> Tensor:
    """The number of the document of every place, int64 [n, S]."""
    return torch.searchsorted(starts, place.expand(len(starts), -1).contiguous(), right=True) - 1


def cu_seqlens(starts: Tensor, length: int) -> Tensor:
    """Where documents begin and end in samples of this length laid end to end, int32 [n * K + 1], of starts [n, K]:
    cumulative lengths, as variable-length attention takes them. Some documents may be empty."""
    before = torch.arange(0, starts.shape[0] * length, length, device=starts.device, dtype=torch.int32)
    return torch.cat(((starts + before[:, None]).flatten(), before[-1:] + length))


def lengths(starts: Tensor, length: int) -> list[list[int]]:
    """The lengths of the documents of each sample; on the host."""
    bounds = torch.cat((starts, starts.new_full((len(starts), 1), length)), 1)
    return [[size for size in sizes if size] for sizes in bounds.diff(dim=1).tolist()]


def seen(samples: Samples) -> float | None:
    """How many tokens the document of a token has, in the mean over tokens: those that attention relates it with, as
    FLOPs are counted. None without documents: all of its sample's."""
    if STARTS not in samples:
        return None
    n, length = samples["inputs"].shape
    return sum(size * size for sizes in lengths(samples[STARTS], length) for size in sizes) / (n * length)
