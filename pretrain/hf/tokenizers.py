"""Which tokenizer a checkpoint's rows belong to, and in which order an exported model has them."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.checkpoint import Manifest
from pretrain.data.corpus.corpus import TOKENIZER, Corpus
from pretrain.data.stream.stream import Stream
from pretrain.data.tokenizers.byte_level import ByteLevel, is_byte_level
from pretrain.data.tokenizers.hf_sentencepiece import export_tokenizer
from pretrain.data.tokenizers.hf_wordpiece import export_wordpiece
from pretrain.data.tokenizers.sentencepiece import Tokenizer
from pretrain.data.tokenizers.wordpiece import WordPiece
from pretrain.errors import UserError
from pretrain.families.bert.stream import BertCorpus, BertStream
from pretrain.families.common.hf.values import TokenizerConfig
from pretrain.runtime import documents

FILES = (
    "tokenizer.model",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
"""What is kept of an imported folder besides its weights and config. No file with code is taken."""


@dataclass(frozen=True)
class Vocabulary:
    """A checkpoint's: its tokenizer if it is one that Cambium reads (rows by merge age), and the folder of the
    tokenizer files of an imported model, whose rows are otherwise in the order of their ids."""

    size: int
    tokenizer: Tokenizer | ByteLevel | WordPiece | None
    imported: Path | None

    @property
    def source(self) -> NDArray[np.int64] | None:
        """For each row of the exported model the row of the checkpoint, int64 [size]; None: the same."""
        return np.argsort(self.tokenizer.stock_order(self.size)) if self.tokenizer else None

    @property
    def identity(self) -> str:
        """Tells tokenizers apart."""
        return self.tokenizer.hash if self.tokenizer else "as imported"

    def token_ids(self) -> dict[str, int | None]:
        """The ids of special tokens in the exported model's config, where known."""
        if self.tokenizer is None:
            return {}
        row, t = self.tokenizer.stock_order(self.size), self.tokenizer
        if isinstance(t, WordPiece):
            return {"pad_token_id": int(row[t.pad])}
        if isinstance(t, ByteLevel):
            return {"bos_token_id": None, "eos_token_id": t.eos}
        return {
            "bos_token_id": None if t.bos is None else int(row[t.bos]),
            "eos_token_id": int(row[t.eos]),
        }

    def write(self, folder: Path) -> None:
        """The tokenizer files of the exported model."""
        if self.imported and (self.tokenizer is None or self.tokenizer.size == self.size):
            for name in FILES:
                if (self.imported / name).exists():
                    shutil.copyfile(self.imported / name, folder / name)
        elif isinstance(self.tokenizer, WordPiece):
            export_wordpiece(self.tokenizer, folder, self.size)
        elif isinstance(self.tokenizer, ByteLevel):
            self.tokenizer.save(folder)
        elif self.tokenizer:
            export_tokenizer(self.tokenizer, folder, self.size)


def vocabulary(checkpoint: Path, manifest: Manifest, given: Path | None) -> Vocabulary:
    """The vocabulary of a checkpoint: by the tokenizer that is given, else of an imported ancestor, else of the corpus.

    Raises UserError when the tokenizer is not there or is not the one that the model was trained with.
    """
    size = manifest.architecture["sizes"]["vocab"]
    event = imported(manifest)
    found = event["vocabulary"] if event else None
    files = imported_files(checkpoint, manifest) if found else None
    if found and found["order"] == "identity":
        files = given or files
        if files is None:
            raise UserError(
                f"the tokenizer files of {event['name']}, from which the model grew, are not beside its import any "
                "more: name the folder of the model that was imported with --tokenizer"
            )
        if found["tokenizer"] and ByteLevel.load(files).hash != found["tokenizer"]:
            raise UserError(f"{files} is not the tokenizer that the model was imported with: name that one")
        return Vocabulary(size, None, files)
    tokenizer = _tokenizer(manifest, given or files)
    wanted = found["tokenizer"] if found else manifest.cursor.get("tokenizer", tokenizer.hash)
    if tokenizer.hash != wanted:
        how = "imported" if found else "trained"
        raise UserError(f"{tokenizer.name} is not the tokenizer that the model was {how} with: name that one")
    tokenizer.legal(size)
    return Vocabulary(size, tokenizer, None if given else files)


def imported(manifest: Manifest) -> dict[str, Any]:
    """The import at the beginning of a checkpoint's lineage, or an empty dict."""
    found: list[Mapping[str, Any]] = [event["imported"] for event in manifest.events if "imported" in event]
    return dict(found[0]) if found else {}


def imported_files(checkpoint: Path, manifest: Manifest) -> Path | None:
    """Where the import put the tokenizer files: beside the checkpoints of the first stage of this checkpoint's lineage.

    None when an ancestor is neither where it was nor in the same run folder."""
    checkpoint = checkpoint.absolute()
    while manifest.parent:
        place = Path(manifest.parent["path"])
        for path in (place.absolute(), checkpoint.parents[2].joinpath(*place.parts[-3:])):
            try:
                found = Manifest.load(path)
            except UserError:
                continue
            if found.hash == manifest.parent["hash"]:
                checkpoint, manifest = path, found
                break
        else:
            return None
    folder = checkpoint.parent.parent / TOKENIZER
    return folder if folder.is_dir() else None


def load(family: str, path: Path) -> Tokenizer | ByteLevel | WordPiece:
    """The tokenizer in a folder or file, of the kind that a family has. Raises UserError when there is none."""
    if family != "bert":
        return ByteLevel.load(path) if is_byte_level(path) else Tokenizer.load(path)
    return WordPiece.load(path, lowercase(path))


def lowercase(folder: Path) -> bool:
    """Whether a WordPiece tokenizer's folder says that text loses its capitals; without a word about it, it does."""
    told = folder / "tokenizer_config.json"
    found = documents.read(told, TokenizerConfig).get("do_lower_case") if told.is_file() else None
    return True if found is None else bool(found)


def _tokenizer(manifest: Manifest, given: Path | None) -> Tokenizer | ByteLevel | WordPiece:
    bert = manifest.architecture["family"] == "bert"
    if given:
        return load(manifest.architecture["family"], given)
    data = manifest.config.get("data", {})
    if not data.get("corpus"):
        raise UserError("the checkpoint does not say which tokenizer it was trained with: name it with --tokenizer")
    corpus: BertCorpus | Corpus
    try:
        corpus = BertCorpus.open(data["corpus"]) if bert else Corpus.open(data["corpus"])
    except UserError as error:
        raise UserError(f"{error}\nIf the corpus is elsewhere, name its tokenizer with --tokenizer") from error
    if manifest.cursor:  # the cursor knows the corpus, its tokenizer included
        where: dict[str, Any] = {
            "vocab": manifest.architecture["sizes"]["vocab"],
            "seq_len": manifest.config["train"]["seq_len"],
            "seed": manifest.config["seed"],
            "validation": data["validation_fraction"],
            "cursor": dict(manifest.cursor),
            "window": data["window"],
        }
        if isinstance(corpus, BertCorpus):
            BertStream(corpus, pairs=data["pairs"], **where)
        else:
            Stream(corpus, **where)
    return corpus.tokenizer
