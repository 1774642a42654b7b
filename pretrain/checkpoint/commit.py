"""The filesystem's side of a save: a hidden folder that becomes a checkpoint at once, and checkpoints that go."""

import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from pretrain.checkpoint.find import is_good, step_of, steps
from pretrain.checkpoint.manifest import MANIFEST, Manifest
from pretrain.errors import UserError
from pretrain.runtime.files import fsync_folder, write_file

log = logging.getLogger(__name__)

LOCK = ".lock"  # in a folder of checkpoints; only its holder, a run or an offline tool, writes there


def partial_of(path: Path) -> Path:
    """Where the files of the checkpoint `path` are until it is complete."""
    return path.with_name(f".{path.name}.partial")


def progress_of(path: Path) -> Path:
    """What is known about an unfinished checkpoint that is written outside of training: whose it is, which files are
    finished."""
    return path.with_name(f".{path.name}.progress")


def begin(path: Path) -> Path:
    """Removes what killed saves, removals and offline writes left beside `path`, and makes the folder to write into."""
    for kind in ("partial", "removed", "progress"):
        for remnant in path.parent.glob(f".step-*.{kind}"):
            shutil.rmtree(remnant)
    partial = partial_of(path)
    partial.mkdir()
    return partial


def commit(manifest: Manifest, partial: Path, path: Path) -> None:
    """Makes the files in `partial` the checkpoint `path`, at once and durably.

    Raises UserError when a file is not to be seen from here, OSError as the filesystem does, also when `path` exists.
    """
    for name, file in manifest.files.items():
        try:
            size = (partial / name).stat().st_size
        except FileNotFoundError as error:
            raise UserError(
                f"{partial / name} was written by another rank and cannot be seen here: "
                "checkpoints need a folder that all nodes share"
            ) from error
        if size != file.size:
            raise UserError(f"{partial / name} has {size} bytes, and {file.size} were written")
    write_file(partial / MANIFEST, manifest.to_bytes())
    partial.rename(path)
    fsync_folder(path.parent)


def retain(root: Path, step: int, keep_last: int, keep_every: int, spare: Collection[int] = ()) -> list[Path]:
    """Removes old checkpoints after the one of `step` was saved, and says which; see `Checkpointer` for the numbers.

    Only checkpoints that `check` finds good count and go: a broken one is for a person to look at. Later steps stay.
    """
    removed = []
    older = [p for p in steps(root) if (step_of(p) or 0) < step and is_good(p)]
    for path in older[keep_last - 1 :]:
        number = step_of(path) or 0
        if number in spare or (keep_every and number % keep_every == 0):
            continue
        try:
            # Renamed first: a removal that is killed leaves nothing that looks like a checkpoint.
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.removed")))
        except OSError as error:
            log.warning("%s: could not be removed (%s)", path, error.strerror)
            continue
        removed.append(path)
    return removed


def move_aside(path: Path, problem: str) -> None:
    """Hides a corrupt checkpoint under a new name, so that its step can be saved again."""
    log.warning("%s is corrupt and kept as %s: %s", path, _hide(path, "corrupt").name, problem)


def abandon(root: Path, after: int) -> None:
    """Hides the checkpoints of steps after this one under new names: the run goes back behind them, on another way."""
    for path in steps(root):
        if (step_of(path) or 0) > after:
            log.warning("%s is left behind and kept as %s", path, _hide(path, "abandoned").name)


def _hide(path: Path, why: str) -> Path:
    number = 1
    while (aside := path.with_name(f".{path.name}.{why}-{number}")).exists():
        number += 1
    path.rename(aside)
    fsync_folder(path.parent)
    return aside
