"""How fast samples are made, against Megatron-core's own data sets on the same files.

Text is prepared once, as a corpus of SentencePiece pieces and as one of WordPiece sentences; Megatron-core reads the
same .bin and .idx. Once more, its documents are dealt out to `SOURCES` corpora, of which a mixture is read. Rounds
alternate; times are CPU times of this process. Both sides end in one array a field.
"""

import argparse
import json
import shutil
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
from pretrain.config.curriculum import curriculum_of
from pretrain.data.corpus.corpus import DESCRIPTION, TOKENIZER, TOKENS, Corpus
from pretrain.data.corpus.encoders import Encoder, SentencePieceEncoder, WordPieceEncoder
from pretrain.data.corpus.indexed import IndexedTokens, write_index
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.data.ragged import ragged
from pretrain.data.stream import stream as text_stream
from pretrain.data.stream.stream import Stream
from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.families.bert import stream as bert_stream
from pretrain.families.bert.stream import BertCorpus, BertStream
from pretrain.families.text import open_feed
from pretrain.runtime.files import hash_of

SEED, VALIDATION = 0, 0.05
BERT = "BERT: sentence pairs, whole words masked"
TEXT = "text: sequences of tokens"
SOURCES = 8
WEIGHTS = (0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05)


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
        bert = _prepared(source, folder / "bert", WordPieceEncoder(vocab_size=options.vocab))
        text = _prepared(source, folder / "text", SentencePieceEncoder(vocab_size=options.vocab))
        cut = _cut(text, options.vocab)
        rows = [
            _row(BERT, _bert(bert, options), _bert_of_megatron(bert, options), options),
            _row(TEXT, _text(text, cut, options), _text_of_megatron(text, options), options),
        ]
        for name, folder, family, vocab, window, theirs in (
            (BERT, bert, "bert", options.vocab, bert_stream.WINDOW, _bert_of_megatron),
            (TEXT, text, "llama2", cut, text_stream.WINDOW, _text_of_megatron),
        ):
            parts = _dealt(folder)
            ours = _mixed(parts, family, vocab, window, options)
            blended = _blended([theirs(part, options) for part in parts], options)
            rows.append(_row(f"{name}; {SOURCES} sources", ours, blended, options))
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


Take = Callable[[int], object]


def _bert(folder: Path, options: argparse.Namespace) -> Take:
    corpus = BertCorpus.open(folder)
    return BertStream(corpus, vocab=options.vocab, seq_len=options.seq_len, seed=SEED, validation=VALIDATION).take


def _text(folder: Path, vocab: int, options: argparse.Namespace) -> Take:
    corpus = Corpus.open(folder)
    return Stream(corpus, vocab=vocab, seq_len=options.seq_len, seed=SEED, validation=VALIDATION).take


def _cut(folder: Path, vocab: int) -> int:
    """About half of the vocabulary, so that re-segmenting is part of it."""
    tokenizer = Corpus.open(folder).tokenizer
    assert isinstance(tokenizer, Tokenizer)
    sizes = np.flatnonzero(tokenizer.age.cut)
    return int(sizes[max(0, int(np.searchsorted(sizes, vocab // 2, side="right")) - 1)])


def _bert_of_megatron(folder: Path, options: argparse.Namespace) -> Any:
    from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset, BERTMaskedWordPieceDatasetConfig

    words = BertCorpus.open(folder).tokenizer

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
    return _megatron(BERTMaskedWordPieceDataset, folder, config, options)


def _text_of_megatron(folder: Path, options: argparse.Namespace) -> Any:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    tokenizer = Corpus.open(folder).tokenizer

    class ForMegatron:
        vocab_size, eod = tokenizer.size, tokenizer.eos
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
    return _megatron(GPTDataset, folder, config, options)


def _dealt(folder: Path) -> list[Path]:
    """Corpora that have every `SOURCES`th document of one, from the first, the second and so on."""
    tokens = IndexedTokens(folder / TOKENS)
    parts = []
    for number in range(SOURCES):
        part = folder.with_name(f"{folder.name}-{number}")
        documents = np.arange(number, tokens.documents, SOURCES)
        first, counts = tokens.bounds[documents], tokens.bounds[documents + 1] - tokens.bounds[documents]
        ids = tokens.read(*tokens.document_ranges(documents))
        shutil.copytree(folder / TOKENIZER, part / TOKENIZER)
        (part / f"{TOKENS}.bin").write_bytes(ids.astype(tokens.dtype).tobytes())
        bounds = np.concatenate([[0], np.cumsum(counts)])
        write_index(part / f"{TOKENS}.idx", tokens.lengths[ragged(first, counts)], bounds, tokens.dtype)
        description = json.loads((folder / DESCRIPTION).read_text())
        description |= {"documents": len(documents), "tokens": len(ids), "xxh3_128": hash_of(part / f"{TOKENS}.bin")}
        (part / DESCRIPTION).write_text(json.dumps(description))
        parts.append(part)
    return parts


def _mixed(folders: list[Path], family: str, vocab: int, window: int, options: argparse.Namespace) -> Take:
    """What takes the next samples of a mixture."""
    corpora = [{"corpus": str(one), "weight": n} for one, n in zip(folders, WEIGHTS, strict=True)]
    raw = {
        "name": "mixed",
        "data": {"validation_fraction": VALIDATION, "corpora": corpora, "window": window},
        "model": {"family": family, "vocab": vocab, "hidden": 64, "layers": 1, "heads": 1, "ffn": 64},
        "train": {"seq_len": options.seq_len, "global_batch": 1, "micro_batch": 1, "lr": 1e-3, "tokens": 10**9},
        "stages": [{"name": "only"}],
    }
    feed = open_feed(curriculum_of(raw, Path("mixed.yaml")).stages[0])
    feed.seek(None)
    return lambda n: feed.take(n, 0.0, 0, 1)


def _blended(sources: list[Any], options: argparse.Namespace) -> Any:
    from megatron.core.datasets.blended_dataset import BlendedDataset

    total = sum(WEIGHTS)
    weights = [weight / total for weight in WEIGHTS]
    return BlendedDataset(sources, weights, options.batch * (options.rounds + 1), sources[0].config)


def _megatron(dataset: type, folder: Path, config: Any, options: argparse.Namespace) -> Any:
    """One of Megatron-core's data sets over a corpus."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    tokens = IndexedDataset(str(folder / TOKENS))
    documents = np.arange(len(tokens.document_indices) - 1, dtype=np.int32)
    need = options.batch * (options.rounds + 1)
    return dataset(tokens, str(folder / TOKENS), documents, need, Split.train, config)


def _taking(samples: Any) -> Take:
    """What takes the next n samples of a data set of Megatron-core's."""
    numbers = iter(range(len(samples)))

    def take(n: int) -> dict[str, Any]:
        rows = [samples[next(numbers)] for _ in range(n)]
        names = [name for name in rows[0] if name != "dataset_id"]
        return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in names}

    return take


def _row(name: str, ours: Take, samples: Any, options: argparse.Namespace) -> dict[str, Any]:
    theirs = _taking(samples)

    def seconds(take: Callable[[int], object]) -> float:
        start = time.process_time()
        take(options.batch)
        return time.process_time() - start

    seconds(ours), seconds(theirs)  # opens files
    times = np.array([[seconds(ours), seconds(theirs)] for _ in tqdm(range(options.rounds), desc=name)])
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
