"""How fast samples are made, against Megatron-core's own data sets on the same files.

Text is prepared once, as a corpus of SentencePiece pieces and as one of WordPiece sentences; Megatron-core reads the
same .bin and .idx. Rounds alternate; times are CPU times of this process. Both sides end in one array a field.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from benchmarks.report import Report, spread
from pretrain.cli.command import positive
from pretrain.data.corpus.corpus import TOKENS, Corpus
from pretrain.data.corpus.encoders import Encoder, SentencePieceEncoder, WordPieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.data.stream.stream import Stream
from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.families.bert.stream import BertCorpus, BertStream

SEED, VALIDATION = 0, 0.05
BERT = "BERT: sentence pairs, whole words masked"
TEXT = "text: sequences of tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py data`."""
    parser.add_argument("--text", type=Path, help=".txt, .jsonl or .parquet (default: the demo's text)")
    parser.add_argument("--vocab", type=int, default=8000, help="pieces of the tokenizers (default: %(default)s)")
    parser.add_argument("--seq-len", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--batch", type=positive, default=1024, help="samples a round (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=6, help="measured rounds (default: %(default)s)")


def run(options: argparse.Namespace) -> Report:
    """Time both kinds of samples; see the notes of the report for the columns."""
    with tempfile.TemporaryDirectory() as name, _one_process():
        folder = Path(name)
        source = Source((options.text or _demo(folder),))
        pairs = _bert(_prepared(source, folder / "bert", WordPieceEncoder(vocab_size=options.vocab)), options)
        texts = _text(_prepared(source, folder / "text", SentencePieceEncoder(vocab_size=options.vocab)), options)
        rows = [_row(BERT, *pairs, options), _row(TEXT, *texts, options)]
    return Report(
        "Samples made a second, against Megatron-core's data sets",
        {"seq_len": options.seq_len, "vocab": options.vocab, "batch": options.batch, "rounds": options.rounds},
        rows,
        (
            "samples a second of CPU time over all rounds, and their ratio",
            "ratio q1, q3: quartiles of the ratio in each round; a round in which a window is read is slower",
            "Megatron-core's B is never of another document (it swaps the order), and its replacements are of all ids",
        ),
    )


def _demo(folder: Path) -> Path:
    from demo_corpus import chapters

    file = folder / "demo.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in chapters()))
    return file


def _prepared(source: Source, folder: Path, encoder: Encoder[Any]) -> Path:
    prepare(source, folder, encoder)
    return folder


@contextmanager
def _one_process() -> Iterator[None]:
    """Megatron-core's data sets ask torch.distributed for a rank."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


Sides = tuple[Callable[[int], object], Callable[[int], object]]


def _bert(folder: Path, options: argparse.Namespace) -> Sides:
    from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset, BERTMaskedWordPieceDatasetConfig

    corpus = BertCorpus.open(folder)
    words = corpus.tokenizer

    class ForMegatron:
        inv_vocab: ClassVar = dict(enumerate(words.pieces))
        cls, sep, mask, pad = words.cls, words.sep, words.mask, words.pad
        unique_identifiers: ClassVar = {"class": "WordPiece"}

    config = BERTMaskedWordPieceDatasetConfig(
        random_seed=0,
        sequence_length=options.seq_len,
        split="1",
        tokenizer=ForMegatron(),
        path_to_cache=str(folder / "cache"),
        masking_probability=0.15,
        short_sequence_probability=0.1,
        masking_max_ngram=1,
        masking_do_full_word=True,
        masking_do_permutation=False,
        masking_use_longer_ngrams=False,
        masking_use_geometric_distribution=False,
        classification_head=True,
    )
    stream = BertStream(corpus, vocab=options.vocab, seq_len=options.seq_len, seed=SEED, validation=VALIDATION)
    return stream.take, _megatron(BERTMaskedWordPieceDataset, folder, config, options)


def _text(folder: Path, options: argparse.Namespace) -> Sides:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    corpus = Corpus.open(folder)

    class ForMegatron:
        vocab_size, eod = corpus.tokenizer.size, corpus.tokenizer.eos
        unique_identifiers: ClassVar = {"class": "SentencePiece"}

    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=options.seq_len,
        split="1",
        tokenizer=ForMegatron(),
        path_to_cache=str(folder / "cache"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    # About half of the vocabulary, so that re-segmenting is part of it.
    assert isinstance(corpus.tokenizer, Tokenizer)
    sizes = np.flatnonzero(corpus.tokenizer.age.cut)
    vocab = int(sizes[max(0, np.searchsorted(sizes, options.vocab // 2, side="right") - 1)])
    stream = Stream(corpus, vocab=vocab, seq_len=options.seq_len, seed=SEED, validation=VALIDATION)
    return stream.take, _megatron(GPTDataset, folder, config, options)


def _megatron(dataset: type, folder: Path, config: Any, options: argparse.Namespace) -> Callable[[int], object]:
    """What takes the next n samples of one of Megatron-core's data sets over a corpus."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    tokens = IndexedDataset(str(folder / TOKENS))
    documents = np.arange(len(tokens.document_indices) - 1, dtype=np.int32)
    need = options.batch * (options.rounds + 1)
    samples = dataset(tokens, str(folder / TOKENS), documents, need, Split.train, config)
    numbers = iter(range(need))

    def take(n: int) -> dict[str, Any]:
        rows = [samples[next(numbers)] for _ in range(n)]
        return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}

    return take


def _row(
    name: str, ours: Callable[[int], object], theirs: Callable[[int], object], options: argparse.Namespace
) -> dict[str, Any]:
    def seconds(take: Callable[[int], object]) -> float:
        start = time.process_time()
        take(options.batch)
        return time.process_time() - start

    seconds(ours), seconds(theirs)  # opens files
    times = np.array([[seconds(ours), seconds(theirs)] for _ in tqdm(range(options.rounds), desc=name.split(":")[0])])
    _, low, high = spread((times[:, 1] / times[:, 0]).tolist())
    own, other = (options.batch / times.mean(axis=0)).tolist()
    return {
        "samples": name,
        "Cambium": own,
        "Megatron-core": other,
        "ratio": own / other,
        "ratio_q1": low,
        "ratio_q3": high,
    }
