"""Which checkpoint teaches a stage, and whether it can."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from growth import Architecture
from pretrain.checkpoint import Manifest, find, is_done
from pretrain.checkpoint.locate import locate
from pretrain.config import Curriculum, Stage
from pretrain.config.teachers import misfits
from pretrain.errors import UserError
from pretrain.families.common.tokenizers import Tokenizer
from pretrain.families.hf_teachers import Folder, hf_teacher


@dataclass(frozen=True)
class Known:
    """What is known of a teacher before its weights are read.

    path: of its checkpoint, or its folder. hash: of the manifest, or of the folder's files. tokenizer: the hash of the
    one whose pieces it knows, where there was one. whole: the folder of a model that transformers computes, as a whole
    on every rank.
    """

    path: Path
    arch: Architecture
    hash: str
    tokenizer: str | None
    whole: Folder | None = None


def teacher_of(curriculum: Curriculum, stage: Stage) -> Known:
    """The teacher of a stage. Raises UserError for one that is not there, is not finished, or is not the one that
    `distill.teacher_hash` names."""
    name, wanted = stage.distill.teacher, stage.distill.teacher_hash
    if "/" not in name:
        known = _of_checkpoint(_of_stage(curriculum, name))
    elif folder := hf_teacher(Path(name)):
        tokenizer = folder.tokenizer().hash
        known = Known(folder.path, folder.arch, folder.hash, tokenizer, folder)
    else:
        known = _of_checkpoint(locate(Path(name), finished=True))
    if wanted not in ("", known.hash):
        raise UserError(
            f"distill.teacher_hash: {wanted}, and {known.path} has the hash {known.hash}: that is another teacher; "
            "name the one that is meant"
        )
    return known


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
    known = teacher_of(curriculum, stage)
    for problem in misfits(known.arch, stage, whole=known.whole is not None):
        raise UserError(f"{curriculum.path}: stage {stage.name!r}: {problem}")
    if tokenizer and known.tokenizer not in (None, tokenizer.hash):
        raise UserError(
            f"distill.teacher: {known.path} was trained with another tokenizer than {tokenizer.name} of data.corpus; "
            "teacher and student read the same tokens"
        )
    return replace(stage, distill=replace(stage.distill, teacher_hash=known.hash))


def _of_stage(curriculum: Curriculum, name: str) -> Path:
    """The checkpoint of a finished stage of this curriculum."""
    folder = curriculum.folder / name
    found = find(folder / "checkpoints").path if is_done(folder) else None
    if found is None:
        raise UserError(
            f"distill.teacher: stage {name!r} has not finished, or has no checkpoint that verifies, in {folder}: "
            f"run it first, bash slurm/stage.sh {curriculum.path} {name}"
        )
    return found


def _of_checkpoint(path: Path) -> Known:
    manifest = Manifest.load(path)
    return Known(path, Architecture.from_json(manifest.architecture), manifest.hash, _tokenizer(manifest))


def _tokenizer(manifest: Manifest) -> str | None:
    """The hash of the tokenizer whose pieces a model knows: that of its text, or that it was imported with."""
    imported = [event["imported"]["vocabulary"]["tokenizer"] for event in manifest.events if "imported" in event]
    return manifest.cursor.get("tokenizer") or next(iter(imported), None)
