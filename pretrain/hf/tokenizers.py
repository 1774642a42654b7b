"""Which tokenizer a checkpoint's rows belong to, and in which order an exported model has them."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain import families
from pretrain.checkpoint import Manifest
from pretrain.config.curriculum import stage_from
from pretrain.data.corpus.corpus import TOKENIZER
from pretrain.data.tokenizers.byte_level import ByteLevel
from pretrain.data.tokenizers.hf_sentencepiece import export_tokenizer
from pretrain.data.tokenizers.hf_wordpiece import export_wordpiece
from pretrain.data.tokenizers.wordpiece import WordPiece
from pretrain.errors import UserError
from pretrain.families.common.tokenizers import Tokenizer
from pretrain.families.text import open_feed

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
"""The files that an import copies besides the weights and the config. No file with code is among them."""


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a checkpoint.

    tokenizer: if it is one that Cambium reads; the checkpoint's rows are then in its order of growth. imported: the
    folder of the tokenizer files of an imported model; without a tokenizer the rows are in the order of their ids.
    """

    size: int
    tokenizer: Tokenizer | None
    imported: Path | None

    @property
    def source(self) -> NDArray[np.int64] | None:
        """For each row of the exported model the row of the checkpoint, int64 [size]; None: the same."""
        return np.argsort(self.tokenizer.stock_order(self.size)) if self.tokenizer else None

    @property
    def identity(self) -> str:
        """Identifies the tokenizer in the mark of an export."""
        return self.tokenizer.hash if self.tokenizer else "as imported"

    def token_ids(self) -> dict[str, int | None]:
        """The ids of special tokens for the exported model's config, if the tokenizer is known."""
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
        """Writes the tokenizer files of the exported model."""
        added = self.tokenizer is not None and self.tokenizer.base is not None
        if self.imported and not added and (self.tokenizer is None or self.tokenizer.size == self.size):
            for name in FILES:
                if (self.imported / name).exists():
                    shutil.copyfile(self.imported / name, folder / name)
        elif isinstance(self.tokenizer, WordPiece):
            export_wordpiece(self.tokenizer, folder, self.size)
        elif isinstance(self.tokenizer, ByteLevel):
            self.tokenizer.save(folder, self.size)
            if self.imported:  # beside the pieces, what the model came with
                for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
                    if (self.imported / name).exists():
                        shutil.copyfile(self.imported / name, folder / name)
        elif self.tokenizer:
            export_tokenizer(self.tokenizer, folder, self.size)


def vocabulary(checkpoint: Path, manifest: Manifest, given: Path | None) -> Vocabulary:
    """The vocabulary of a checkpoint: by the tokenizer that is given, else of an imported ancestor, else of the corpus.

    Raises UserError when the tokenizer is not there or is not the one that the model was trained with.
    """
    size = manifest.architecture["sizes"]["vocab"]
    event = imported(manifest)
    record = event["vocabulary"] if event else None
    files = imported_files(checkpoint, manifest) if record else None
    if record and record["order"] == "identity" and size > event["config"].get("vocab_size", size):
        more = _tokenizer(manifest, given)
        if more.base is None or more.base.hash != record["tokenizer"]:
            raise UserError(
                f"{more.name} does not add to the tokenizer that the model was imported with: name that one"
            )
        more.legal(size)
        return Vocabulary(size, more, files)
    if record and record["order"] == "identity":
        files = given or files
        if files is None:
            raise UserError(
                f"the tokenizer files of {event['name']}, from which the model grew, are not beside its import any "
                "more: name the folder of the model that was imported with --tokenizer"
            )
        if record["tokenizer"] and ByteLevel.load(files).hash != record["tokenizer"]:
            raise UserError(f"{files} is not the tokenizer that the model was imported with: name that one")
        return Vocabulary(size, None, files)
    tokenizer = _tokenizer(manifest, given or files)
    expected_hash = record["tokenizer"] if record else manifest.cursor.get("tokenizer", tokenizer.hash)
    if tokenizer.hash != expected_hash:
        how = "imported" if record else "trained"
        raise UserError(f"{tokenizer.name} is not the tokenizer that the model was {how} with: name that one")
    tokenizer.legal(size)
    return Vocabulary(size, tokenizer, None if given else files)


def imported(manifest: Manifest) -> dict[str, Any]:
    """The import at the beginning of a checkpoint's lineage, or an empty dict."""
    imports: list[Mapping[str, Any]] = [event["imported"] for event in manifest.events if "imported" in event]
    return dict(imports[0]) if imports else {}


def imported_files(checkpoint: Path, manifest: Manifest) -> Path | None:
    """Where the import put the tokenizer files: beside the checkpoints of the first stage of this checkpoint's lineage.

    None when an ancestor is neither where it was nor in the same run folder.
    """
    checkpoint = checkpoint.absolute()
    while manifest.parent:
        place = Path(manifest.parent["path"])
        for path in (place.absolute(), checkpoint.parents[2].joinpath(*place.parts[-3:])):
            try:
                parent = Manifest.load(path)
            except UserError:  # not there, or damaged: the other place may have it
                continue
            if parent.hash == manifest.parent["hash"]:
                checkpoint, manifest = path, parent
                break
        else:
            return None
    folder = checkpoint.parent.parent / TOKENIZER
    return folder if folder.is_dir() else None


def _tokenizer(manifest: Manifest, given: Path | None) -> Tokenizer:
    text = families.of(manifest.architecture["family"]).text
    if given:
        return text.tokenizers.any(given)
    data = manifest.config.get("data", {})
    if not (data.get("corpus") or data.get("corpora")):
        raise UserError("the checkpoint does not say which tokenizer it was trained with: name it with --tokenizer")
    try:
        feed = open_feed(stage_from(manifest.config, f"the configuration of stage {manifest.stage!r}"))
    except UserError as error:
        raise UserError(f"{error}\nIf the corpus is elsewhere, name its tokenizer with --tokenizer") from error
    if manifest.cursor:
        feed.seek(manifest.cursor)  # raises UserError for another corpus or tokenizer
    return feed.tokenizer
