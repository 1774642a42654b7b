"""The documents of a micro-batch as Megatron-core hands them to every layer, also where it computes one again."""

from __future__ import annotations

from functools import cached_property

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from pretrain.data import documents
from pretrain.data.documents import STARTS
from pretrain.data.samples import Samples


class Documents(PackedSeqParams):
    """Megatron-core's parameters of packed sequences, of samples that keep their own rows (qkv_format sbhd).

    starts: int32 [B, K], see pretrain.data.documents.
    """

    def __init__(self, samples: Samples) -> None:
        length = samples["inputs"].shape[1]
        super().__init__(qkv_format="sbhd", max_seqlen_q=length, max_seqlen_kv=length)
        self.starts, self.samples, self._in_units = samples[STARTS], samples, dict[int, Documents]()

    @staticmethod
    def of(samples: Samples) -> Documents | None:
        """Of a micro-batch; None where its documents see each other."""
        return Documents(samples) if STARTS in samples else None

    @cached_property
    def begins(self) -> Tensor:
        """The first token of the document of every token, int64 [B, S]."""
        place = documents.positions(self.samples)
        return torch.arange(place.shape[-1], device=place.device) - place

    @cached_property
    def parted(self) -> Tensor:
        """Which tokens are of different documents, bool [B, S, S]."""
        parted = documents.parted(self.samples)
        assert parted is not None
        return parted

    def in_units(self, tokens: int) -> Documents:
        """The same where a unit stands for so many tokens."""
        if tokens not in self._in_units:
            self._in_units[tokens] = Documents(documents.in_units(self.samples, tokens))
        return self._in_units[tokens]
