"""BERT's text: pairs of segments with masked words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pretrain.data.samples import Samples
from pretrain.data.stream.windows import Rows
from pretrain.errors import UserError
from pretrain.families.bert.masking import Masking
from pretrain.families.bert.stream import BertBatch, BertCorpus, BertStream
from pretrain.families.common.text import BYTES_PER_TOKEN, Feed, HeldOut, Taken, padded
from pretrain.families.common.tokenizers import WORD_PIECE

IGNORED = -100  # the next sentence of a sample that does not count, as torch's cross entropy has it


class BertFeed(Feed):
    """Pairs of segments with masked words."""

    tokenizers = WORD_PIECE
    corpus_type = BertCorpus
    counts_bytes = False
    causal = False
    corpus: BertCorpus

    @staticmethod
    def objective(data: Mapping[str, Any]) -> str:
        masked = f"{data['mask_rate']:g}" + (f" to {data['mask_rate_end']:g}" if data["mask_rate_end"] else "")
        return f"{masked} of {'words' if data['whole_words'] else 'pieces'} masked, {data['pairs']}"

    def _stream(self, vocab: int, seq_len: int, held_out: bool, cursor: Mapping[str, Any] | None = None) -> BertStream:
        data = self.stage.data
        return BertStream(
            self.corpus,
            vocab=vocab,
            seq_len=seq_len,
            seed=self.stage.seed,
            validation=data.validation_fraction,
            cursor=dict(cursor) if cursor else None,
            masking=Masking(data.mask_rate, whole_words=data.whole_words),
            pairs=data.pairs,
            held_out=held_out,
            window=data.window,
        )

    _text: BertStream

    def _opened(self, cursor: Mapping[str, Any] | None) -> BertStream:
        return self._stream(self.stage.model.vocab, self.stage.train.seq_len, False, cursor)

    def _take(self, n: int, rows: Rows, progress: float) -> Taken:
        data = self.stage.data
        if data.mask_rate_end:
            rate = data.mask_rate + progress * (data.mask_rate_end - data.mask_rate)
            self._text.masking = replace(self._text.masking, rate=rate)
        return Taken(_samples(self._text.take(n, rows)), None)

    def held_out(self, unit: int) -> HeldOut:
        t = self.stage.train
        n = max(1, t.eval_bytes // (BYTES_PER_TOKEN * t.seq_len))
        samples = padded(self._held_out(self.stage.model.vocab, t.seq_len, n), unit)
        if not samples["mask"].any():
            raise UserError(
                f"train.eval_bytes: {t.eval_bytes} bytes of held-out text come to {n} x {t.seq_len} tokens, and "
                f"data.mask_rate {self.stage.data.mask_rate:g} masks none of them; raise either"
            )
        samples["next_sentence"][n:] = IGNORED
        samples["valid"][n:] = 1.0  # attention needs something to see
        return HeldOut(samples, None)

    def probe(self, n: int, vocab: int, seq_len: int) -> Samples:
        samples = self._with_labels(vocab, seq_len, n)
        ones = torch.ones_like(samples["valid"])
        return {**samples, "types": torch.zeros_like(samples["types"]), "valid": ones}

    def batch(self, n: int) -> Samples:
        return self._with_labels(self.stage.model.vocab, self.stage.train.seq_len, n)

    def _held_out(self, vocab: int, seq_len: int, n: int) -> Samples:
        return _samples(self._stream(vocab, seq_len, True).take(n))

    def _with_labels(self, vocab: int, seq_len: int, n: int) -> Samples:
        """The first n samples; with all tokens masked where the rate masks none, of which there would be no loss."""
        samples = self._held_out(vocab, seq_len, n)
        if not samples["mask"].any():
            stream = self._stream(vocab, seq_len, True)
            stream.masking = replace(stream.masking, rate=1.0)
            samples = _samples(stream.take(n))
        return samples


def _samples(batch: BertBatch) -> Samples:
    return {
        "inputs": torch.from_numpy(batch.tokens),
        "labels": torch.from_numpy(batch.labels),
        "mask": torch.from_numpy(batch.loss_mask).float(),
        "types": torch.from_numpy(batch.token_types),
        "valid": torch.from_numpy(batch.attention_mask).float(),
        "next_sentence": torch.from_numpy(batch.next_sentence),
    }


TEXT = BertFeed
