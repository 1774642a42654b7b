"""Models of transformers that are no form of a family and teach its students all the same, in their folders."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from growth import Architecture
from pretrain.data.tokenizers.sentencepiece import Tokenizer as SentencePiece
from pretrain.data.tokenizers.wordpiece import WordPiece
from pretrain.errors import UserError
from pretrain.families import FAMILIES, of
from pretrain.families.common.hf.pickles import refuse_pickles
from pretrain.families.family import HfTeacher
from pretrain.runtime import documents
from pretrain.runtime.files import hash_of

CONFIG = "config.json"


@dataclass(frozen=True)
class Folder:
    """The folder of such a model. arch: of the family, with the sizes of the model."""

    path: Path
    form: HfTeacher
    arch: Architecture

    def tokenizer(self) -> SentencePiece | WordPiece:
        """Its vocabulary. Raises UserError for a folder without one whose pieces can be told from each other."""
        kind = of(self.arch.family).text.tokenizers
        if not (self.path / kind.file).is_file():
            raise UserError(
                f"distill.teacher: {self.path} has no {kind.file}, by which its pieces are matched with those of its "
                "student; put it there, in the order of its ids"
            )
        tokenizer = kind.load(self.path)
        if tokenizer.size != self.arch.sizes["vocab"]:
            raise UserError(
                f"distill.teacher: {self.path / kind.file} has {tokenizer.size} pieces and the model "
                f"{self.arch.sizes['vocab']} rows; they must be the same"
            )
        return tokenizer

    @property
    def hash(self) -> str:
        """xxh3_128 of its configuration, vocabulary and weights. Raises UserError for weights that are pickles."""
        weights = sorted(self.path.glob("*.safetensors"))
        if not weights:
            refuse_pickles(self.path, "distill.teacher: ")
            raise UserError(f"distill.teacher: {self.path}: there is no *.safetensors in it")
        total = xxhash.xxh3_128()
        for file in (self.path / CONFIG, self.path / of(self.arch.family).text.tokenizers.file, *weights):
            total.update(f"{file.name} {hash_of(file)}\n".encode())
        return total.hexdigest()

    def load(self, arch: Architecture, dtype: torch.dtype, *, words: bool) -> torch.nn.Module:
        """What the model is to a student, up to the depth of `arch`: see HfTeacher.module."""
        module: Any = importlib.import_module(self.form.module)
        rows = torch.from_numpy(self.tokenizer().permutation).long()
        model: torch.nn.Module = module.load(self.path, arch, rows, dtype, words=words)
        return model


def hf_teacher(path: Path) -> Folder | None:
    """The model of transformers in a folder; None where there is no such model at all.

    Raises UserError for one that can be no teacher as it is.
    """
    if not (path / CONFIG).is_file():
        return None
    content = documents.read(path / CONFIG)
    config = content if isinstance(content, dict) else {}
    for family in FAMILIES.values():
        form = family.hf_teacher
        if form and form.model_type == config.get("model_type"):
            return Folder(path, form, form.architecture(config, f"distill.teacher: {path / CONFIG}"))
    raise UserError(
        f"distill.teacher: {path} is a folder in Hugging Face's format, of a model of type "
        f"{documents.show(config.get('model_type'))}; import it first, python tools/import_hf.py {path} "
        f"runs/teachers/{path.name}, which says whether it is of a family that is known here, and name the result"
    )
