"""A model in memory and its words: of a checkpoint, or of a folder in Hugging Face's format."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from growth import Architecture, Box
from growth.evaluate.box_values import Read
from pretrain.checkpoint import Manifest, Reader
from pretrain.checkpoint.locate import locate
from pretrain.errors import UserError
from pretrain.generate.write import can_write
from pretrain.hf.imports import look
from pretrain.hf.tokenizers import imported, vocabulary
from pretrain.report.continuation import CONFIG, trusted
from pretrain.runtime import documents


@dataclass(frozen=True)
class Written:
    """A model that writes text. arch, read: of its weights, which are in memory, in fp32; source: where they are from;
    tokenizer: transformers'; rows: for each of its ids the row of the model, None: the same; memory: how many tokens
    before a new one it sees, as its stage was validated with a memory; 0: all."""

    source: Path
    arch: Architecture
    read: Read
    tokenizer: Any
    rows: Sequence[int] | None
    memory: int = 0

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt; of an empty one that of the end of a text, which opens the next."""
        ids = self.tokenizer(text)["input_ids"] if text else [*self._ends()][:1]
        return [self._row(int(i)) for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        if self.rows is not None:
            back = {row: i for i, row in enumerate(self.rows)}
            ids = [back[i] for i in ids]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a text."""
        return frozenset(self._row(i) for i in self._ends())

    def _ends(self) -> list[int]:
        return [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]

    def _row(self, i: int) -> int:
        return i if self.rows is None else self.rows[i]


def open_model(path: Path, tokenizer: Path | None = None) -> Written:
    """The model of an export, or of a checkpoint, the newest of a stage or of a run (its last finished stage).

    tokenizer: as of an export. Raises UserError for one that is not there, that writes no text, or whose tokenizer is
    missing.
    """
    if (path / CONFIG).is_file():
        model = look(path)
        can_write(model.arch)
        tensors = {n: model.weights.read(n, Box.whole(t.shape)) for n, t in model.arch.tensors().items()}
        return Written(path, model.arch, _reading(tensors), _tokenizer(path), None)
    checkpoint = locate(path, finished=True)
    manifest = Manifest.load(checkpoint)
    arch = Architecture.from_json(manifest.architecture)
    can_write(arch)
    words = vocabulary(checkpoint, manifest, tokenizer)
    with tempfile.TemporaryDirectory(prefix="cambium-words-") as place:
        folder = Path(place)
        words.write(folder)
        if config := imported(manifest).get("config"):
            (folder / CONFIG).write_text(json.dumps(config))
        loaded = _tokenizer(folder)
    with Reader(checkpoint) as reader:
        tensors = {n: reader.read("weight", n, Box.whole(t.shape)) for n, t in arch.tensors().items()}
    rows = None if words.source is None else words.source.tolist()
    train = manifest.config.get("train", {})
    memory = train.get("eval_memory", 0) or train.get("memory", 0)
    return Written(checkpoint, arch, _reading(tensors), loaded, rows, memory)


def _reading(tensors: dict[str, torch.Tensor]) -> Read:
    return lambda kind, name, box: tensors[name][box.slices()]


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted(folder))  # or it would ask
    except Exception as error:  # transformers raises almost anything for a damaged folder
        raise UserError(f"{folder}: transformers cannot load a tokenizer: {documents.one_line(str(error))}") from error
