"""From the URL of a checkpoint, a mirrored stage or a mirrored run to a copy of the checkpoint that is meant."""

from __future__ import annotations

from pathlib import Path

from pretrain.checkpoint.find import step_folder, step_of
from pretrain.checkpoint.manifest import MANIFEST, CorruptCheckpoint, Manifest
from pretrain.checkpoint.mirror import CHECKPOINTS, DONE, alone, bring_back, complete_steps, download
from pretrain.errors import UserError
from pretrain.runtime import storage
from pretrain.runtime.files import make_folder


def fetch(url: str, finished: bool) -> Path:
    """A verified copy, in the cache of this machine, of the checkpoint that `locate` would take there.

    Raises UserError where there is none, or none that can be had.
    """
    url = url.rstrip("/")
    there = storage.listing(url)
    above = url.rpartition("/")[0]
    if MANIFEST in there:
        manifest = Manifest.from_bytes(storage.get_bytes(f"{url}/{MANIFEST}"), Path(f"{url}/{MANIFEST}"))
        folder = storage.cache(CHECKPOINTS, above)
        make_folder(folder)
        with alone(folder):
            return download(url, step_folder(folder, manifest.step))
    if any(name.count("/") == 1 and step_of(Path(name).parent) is not None for name in there):
        return fetch(above, finished)
    stage = url if complete_steps(there) else f"{url}/{_stage(url, there, finished)}"
    folder = storage.cache(CHECKPOINTS, stage, stage.rpartition("/")[2])
    make_folder(folder)
    with alone(folder):
        path = bring_back(folder, stage)
    if path is None:
        raise UserError(f"{stage}: its checkpoints have been removed")
    return path


def _stage(url: str, there: dict[str, int], finished: bool) -> str:
    """The stage of a run that is meant: the one that got farthest; of those that are finished, if some are to be."""
    newest: dict[str, Manifest] = {}
    for stage in sorted({name.partition("/")[0] for name in there}):
        inside = {name.removeprefix(f"{stage}/"): size for name, size in there.items() if name.startswith(f"{stage}/")}
        for step in complete_steps(inside):
            try:
                path = step_folder(Path(f"{stage}/{CHECKPOINTS}"), step) / MANIFEST
                newest[stage] = Manifest.from_bytes(storage.get_bytes(f"{url}/{path}"), path)
                break
            except CorruptCheckpoint:
                continue
    done = {stage: manifest for stage, manifest in newest.items() if f"{stage}/{DONE}" in there}
    candidates = done if finished and done else newest
    if not candidates:
        raise UserError(
            f"{url}: no checkpoint there: name a checkpoint (URL/RUN/STAGE/checkpoints/step-...), a stage or a run"
        )
    return max(candidates, key=lambda stage: candidates[stage].age)
