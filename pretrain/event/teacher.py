"""Which checkpoint teaches a stage, and whether it can."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from growth import Architecture
from pretrain.checkpoint import Manifest, find, is_done
from pretrain.checkpoint.locate import locate
from pretrain.config import Curriculum, Stage
from pretrain.config.teachers import misfits
from pretrain.errors import UserError
from pretrain.families.common.tokenizers import Tokenizer
from pretrain.runtime import documents


def teacher_of(curriculum: Curriculum, stage: Stage) -> tuple[Path, Manifest]:
    """The checkpoint of a stage's teacher. Raises UserError for one that is not there, is not finished, or is not the
    one that `distill.teacher_hash` names."""
    name, wanted = stage.distill.teacher, stage.distill.teacher_hash
    if "/" in name:
        path = _outside(Path(name))
    else:
        folder = curriculum.folder / name
        found = find(folder / "checkpoints").path if is_done(folder) else None
        if found is None:
            raise UserError(
                f"distill.teacher: stage {name!r} has not finished, or has no checkpoint that verifies, in {folder}: "
                f"run it first, bash slurm/stage.sh {curriculum.path} {name}"
            )
        path = found
    manifest = Manifest.load(path)
    if wanted not in ("", manifest.hash):
        raise UserError(
            f"distill.teacher_hash: {wanted}, and {path} has the hash {manifest.hash}: that is another teacher; name "
            "the one that is meant"
        )
    return path, manifest


def taught(
    curriculum: Curriculum, stage: Stage, tokenizer: Tokenizer | None = None, ahead: Collection[str] = ()
) -> Stage:
    """The stage with the hash of its teacher, if it has one. Raises as `teacher_of`, and UserError for a teacher that
    does not fit, or reads the text in other pieces than `tokenizer`.

    ahead: stages that will have finished by then; a teacher among them is not looked for.
    """
    name = stage.distill.teacher
    if not name or (name in ahead and not is_done(curriculum.folder / name)):
        return stage
    path, manifest = teacher_of(curriculum, stage)
    for problem in misfits(Architecture.from_json(manifest.architecture), stage):
        raise UserError(f"{curriculum.path}: stage {stage.name!r}: {problem}")
    read = _tokenizer(manifest)
    if tokenizer and read not in (None, tokenizer.hash):
        raise UserError(
            f"distill.teacher: {path} was trained with another tokenizer than {tokenizer.name} of data.corpus; teacher "
            "and student read the same tokens"
        )
    return replace(stage, distill=replace(stage.distill, teacher_hash=manifest.hash))


def _outside(folder: Path) -> Path:
    config = folder / "config.json"
    if config.is_file():
        kind = documents.show(_json(config).get("model_type"))
        raise UserError(
            f"distill.teacher: {folder} is a folder in Hugging Face's format, of a model of type {kind}; import it "
            f"first, python tools/import_hf.py {folder} runs/teachers/{folder.name}, which says whether it is of a "
            f"family that is known here, and name the result"
        )
    return locate(folder, finished=True)


def _json(path: Path) -> Mapping[str, Any]:
    found = documents.parse(path.read_bytes(), path)
    return found if isinstance(found, dict) else {}


def _tokenizer(manifest: Manifest) -> str | None:
    """The hash of the tokenizer whose pieces a model knows: that of its text, or that it was imported with."""
    imported = [event["imported"]["vocabulary"]["tokenizer"] for event in manifest.events if "imported" in event]
    return manifest.cursor.get("tokenizer") or next(iter(imported), None)
