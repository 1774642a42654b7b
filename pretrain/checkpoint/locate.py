"""From what a user names (a checkpoint, a stage's folder or a run's) to the checkpoint that is meant."""

import sys
from pathlib import Path

from pretrain.checkpoint import Found, check, find, is_done, model_of
from pretrain.checkpoint.elsewhere import fetch
from pretrain.checkpoint.find import step_of
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.errors import UserError
from pretrain.runtime.storage import url_of


def locate(path: Path, finished: bool = False) -> Path:
    """The checkpoint itself, or the newest one of a stage or of a run that verifies (newer ones are named on stderr).
    Of a URL (see `url_of`), its copy in the cache of this machine.

    finished: of a run, the last stage that is done, if one is; otherwise the newest checkpoint of all stages counts.
    Raises UserError where there is none, CorruptCheckpoint when the checkpoint that was named is no good.
    """
    if url := url_of(path):
        return fetch(url, finished)
    if (path / MANIFEST).exists() or step_of(path) is not None:
        model_of(check(path), path)
        return path
    for folder in (path, path / "checkpoints"):
        if any(step_of(p) is not None for p in _folders(folder)):
            return _newest(find(folder), folder)
    stages = {p: find(p / "checkpoints") for p in _folders(path) if (p / "checkpoints").is_dir()}
    good = {stage: newest.manifest for stage, newest in stages.items() if newest.manifest}
    done = {stage: manifest for stage, manifest in good.items() if is_done(stage)}
    candidates = done if finished and done else good
    if candidates:
        last = max(candidates, key=lambda stage: candidates[stage].age)
        return _newest(stages[last], last)
    for stage, newest in stages.items():
        if newest.skipped:
            return _newest(newest, stage)  # raises, and says what is wrong with them
    what = "no checkpoint in it" if path.is_dir() else "no such folder"
    raise UserError(f"{path}: {what}: name a checkpoint (runs/NAME/STAGE/checkpoints/step-...), a stage or a run")


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _newest(newest: Found, where: Path) -> Path:
    for path, reason in newest.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if newest.path is None or newest.manifest is None:
        raise UserError(f"{where}: none of its checkpoints verifies")
    model_of(newest.manifest, newest.path)
    return newest.path
