"""The mirror of a stage: its checkpoints and records in a storage that fsspec knows, from where they can be had again.

A mirrored checkpoint is the same files as on the disk, and the same manifest, written last, after every byte has been
read back and compared with it. So one that has a manifest is complete, wherever a process was killed, and a file that
is there already is not sent again. The manifest of one that goes is removed first. `owner` says whose mirror it is, so
that two runs do not write one.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.checkpoint.blocks import BLOCK
from pretrain.checkpoint.commit import LOCK, move_aside, partial_of
from pretrain.checkpoint.find import check, is_good, step_folder, step_of, steps, verify_all
from pretrain.checkpoint.manifest import MANIFEST, CorruptCheckpoint, Manifest
from pretrain.checkpoint.places import StoredFile
from pretrain.errors import UserError
from pretrain.runtime import storage
from pretrain.runtime.files import Lock, fsync_folder, is_done, make_folder, write_file, write_json
from pretrain.runtime.storage import AT_ONCE, Missing, Unlike

log = logging.getLogger(__name__)

STATE = "mirror.json"  # in the stage's folder: what the last sending did, for the stage, its status and people
OWNER, MARK, DONE = "owner", ".mirror", "DONE"
RECORDS = ("config.yaml", "*.jsonl", "trained.json", "events/*.json", "decisions/*.json", "evaluations/*.json")
FILES = 4  # that are sent or brought at the same time
ROOM = 64 << 20  # bytes of a disk that stay free
CHECKPOINTS = "checkpoints"


def send(folder: Path, url: str, keep_last: int, keep_every: int) -> None:
    """Sends what is missing of the stage in `folder` to its mirror, the newest checkpoint first, and removes there what
    retention (see `Checkpointer`) or a way back has removed here. Waits for another process that does so.

    What it does, and what went wrong, is in STATE. Raises UserError for a mirror that cannot be used or is another
    run's, and for checkpoints that are damaged here; what else could be sent has been.
    """
    with alone(folder):
        state: dict[str, Any] = {"url": url, "sending": None, "newest": None, "problem": None}
        try:
            _send(folder, url, keep_last, keep_every, state)
        except UserError as error:
            state["problem"] = " ".join(str(error).split())
            raise
        finally:
            write_json(folder / STATE, {**state, "sending": None})


def _send(folder: Path, url: str, keep_last: int, keep_every: int, state: dict[str, Any]) -> None:
    root, damaged = folder / CHECKPOINTS, dict[Path, str]()
    if not steps(root):
        return
    _claim(folder, url, storage.listing(url))
    while True:  # whatever comes while something is sent is newer, and next
        there = storage.listing(url)
        path = next((p for p in steps(root) if p not in damaged and not _complete(p, url, there)), None)
        if path is None:
            break
        write_json(folder / STATE, {**state, "sending": step_of(path)})
        try:
            _upload(path, url, there)
        except CorruptCheckpoint as error:
            if path.exists():  # or it was removed meanwhile
                damaged[path] = str(error)
    here = {step_of(path) for path in steps(root)}
    state["newest"] = max((step for step in _steps(there)[0] if step in here), default=None)
    if state["newest"] is not None:
        _retain(root, url, there, state["newest"], keep_last, keep_every)
    _send_records(folder, url, there)
    if damaged:
        raise CorruptCheckpoint("; ".join(damaged.values()))


def _claim(folder: Path, url: str, there: dict[str, int]) -> None:
    """Makes the mirror this run's if it is nobody's, or empty. Raises UserError if it is another's."""
    check_owner(folder, url, there)
    own = _bytes(folder / MARK) or uuid.uuid4().hex.encode()
    write_file(folder / MARK, own)
    if there.get(OWNER) != len(own) or storage.get_bytes(f"{url}/{OWNER}") != own:
        storage.put_bytes(own, f"{url}/{OWNER}")


def check_owner(folder: Path, url: str, there: dict[str, int]) -> None:
    """Raises UserError for a mirror that holds checkpoints of another run; `there` is its listing."""
    if OWNER not in there or not _steps(there)[0]:
        return
    owner, own = storage.get_bytes(f"{url}/{OWNER}"), _bytes(folder / MARK)
    if own is None or not own.startswith(owner):  # of which a kill may have left the beginning
        raise UserError(
            f"{url}: another run than that of {folder} is mirrored there: give this one another name or another "
            f"checkpoint.mirror, or move {folder / CHECKPOINTS} away to go on from the mirror"
        )


def _complete(path: Path, url: str, there: dict[str, int]) -> bool:
    """Whether a checkpoint of this disk is in the mirror; True for one that is gone, or no good, as well."""
    try:
        manifest, data = check(path), (path / MANIFEST).read_bytes()
    except (CorruptCheckpoint, FileNotFoundError):
        return True
    place = f"{CHECKPOINTS}/{path.name}"
    sizes = {f"{place}/{name}": file.size for name, file in manifest.files.items()}
    if there.get(f"{place}/{MANIFEST}") != len(data) or any(there.get(name) != size for name, size in sizes.items()):
        return False
    return storage.get_bytes(f"{url}/{place}/{MANIFEST}") == data


def _upload(path: Path, url: str, there: dict[str, int]) -> None:
    """Sends a checkpoint. Raises CorruptCheckpoint if it is damaged here, or was removed meanwhile."""
    manifest, data = Manifest.load(path), (path / MANIFEST).read_bytes()
    place = f"{CHECKPOINTS}/{path.name}/"
    sizes = {name.removeprefix(place): size for name, size in there.items() if name.startswith(place)}
    old = sorted(sizes.keys() - manifest.files.keys(), key=lambda name: name != MANIFEST)  # another's of this step
    for name in old:
        storage.remove(f"{url}/{place}{name}")

    def one(name: str, file: StoredFile) -> None:
        target = f"{url}/{place}{name}"
        known = partial(storage.holds, size=file.size, hashes=file.blocks, block=BLOCK)
        if sizes.get(name) == file.size and storage.tried(known, target):
            return
        try:
            storage.put(path / name, target, file.size, file.blocks, BLOCK)
        except (Missing, Unlike):  # perhaps it is this disk that does not have it
            if problems := verify_all(path, [name]):
                raise CorruptCheckpoint(problems[0]) from None
            raise

    with ThreadPoolExecutor(FILES) as pool:
        list(pool.map(one, *zip(*manifest.files.items(), strict=True)))
    storage.put_bytes(data, f"{url}/{place}{MANIFEST}")


def _retain(root: Path, url: str, there: dict[str, int], newest: int, keep_last: int, keep_every: int) -> None:
    """Removes from the mirror what retention removes here, what was left behind on the way back to an earlier one, and
    what never became complete."""
    here = {step_of(path) for path in steps(root)}
    complete, others = _steps(there)
    older = [step for step in complete if step < newest]
    old = [step for step in older[keep_last - 1 :] if not keep_every or step % keep_every]
    left = {_bytes(path / MANIFEST) for path in root.glob(".step-*.abandoned-*")} - {None}
    later = [step for step in complete if step > newest and left]
    old += [step for step in later if storage.get_bytes(f"{url}/{_name(step)}/{MANIFEST}") in left]
    for step in {*old, *others} - here:
        if step in complete:
            storage.remove(f"{url}/{_name(step)}/{MANIFEST}")
        storage.remove(f"{url}/{_name(step)}")


def complete_steps(there: dict[str, int]) -> list[int]:
    """The steps of complete checkpoints in the listing of a mirrored stage, newest first."""
    return _steps(there)[0]


def _steps(there: dict[str, int]) -> tuple[list[int], list[int]]:
    """The steps of which there is a manifest, newest first, and those of which there is none."""
    parts = [name.split("/") for name in there]
    named = [(step_of(Path(p[1])), p[2]) for p in parts if len(p) == 3 and p[0] == CHECKPOINTS]
    every = {step for step, _ in named if step is not None}
    complete = {step for step, name in named if step is not None and name == MANIFEST}
    return sorted(complete, reverse=True), sorted(every - complete)


def _name(step: int) -> str:
    return step_folder(Path(CHECKPOINTS), step).as_posix()


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _send_records(folder: Path, url: str, there: dict[str, int]) -> None:
    """Sends what else the stage has written, and last of all that it is finished, if it is."""
    for path in [*(path for pattern in RECORDS for path in sorted(folder.glob(pattern))), folder / DONE]:
        name, data = path.relative_to(folder).as_posix(), _bytes(path)
        if data is None:
            if name in there:
                storage.remove(f"{url}/{name}")
        elif there.get(name) != len(data) or storage.get_bytes(f"{url}/{name}") != data:
            storage.put_bytes(data, f"{url}/{name}")


def bring_back(folder: Path, url: str, only: int | None = None) -> Path | None:
    """Brings the newest checkpoint of a mirror that is intact into the stage's `folder`, or the one of step `only`, and
    what else the stage has written; whether it is finished, last. None where there is no mirror.

    Stopped at any moment it leaves a folder without a checkpoint, or all of it. Raises UserError where there are
    checkpoints and none can be had, and for a disk without room; what is left out because it is damaged is said.
    """
    there = storage.listing(url)
    complete = complete_steps(there)
    wanted = complete if only is None else [step for step in complete if step == only]
    if not wanted:
        return None
    root, problems = folder / CHECKPOINTS, list[str]()
    make_folder(root)
    with Lock(root / LOCK):
        for step in wanted:
            try:
                path = download(f"{url}/{_name(step)}", step_folder(root, step))
                break
            except (CorruptCheckpoint, Missing, Unlike) as error:
                log.warning("%s: not brought back: %s", url, error)
                problems.append(str(error))
        else:
            raise UserError(f"{url}: none of its checkpoints can be brought back: {'; '.join(problems)}")
        records = sorted(name for name in there if any(_matches(name, pattern) for pattern in RECORDS))
        for name in [*records, *(name for name in (OWNER, DONE) if name in there)]:
            target = folder / (MARK if name == OWNER else name)
            make_folder(target.parent)
            write_file(target, storage.get_bytes(f"{url}/{name}"))
    return path


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def download(url: str, path: Path) -> Path:
    """Brings the checkpoint at a URL to `path`, where it is at once, when every byte is there and has been compared.

    What an earlier try has brought is not brought again, and another checkpoint there is moved aside. Raises
    CorruptCheckpoint, Missing or Unlike for one that is damaged, UserError where it cannot be had or there is no room.
    """
    data = storage.get_bytes(f"{url}/{MANIFEST}")
    if _bytes(path / MANIFEST) == data and is_good(path):
        return path
    manifest, folder = Manifest.from_bytes(data, Path(f"{url}/{MANIFEST}")), partial_of(path)
    if manifest.step != step_of(path):
        raise CorruptCheckpoint(f"{url}: the manifest is of step {manifest.step}, so of another checkpoint")
    make_folder(folder)
    for file in folder.iterdir():
        if file.name not in manifest.files:
            file.unlink()
    need = manifest.size - sum(file.stat().st_size for file in folder.iterdir())
    if (free := shutil.disk_usage(folder).free) < need + ROOM:
        raise UserError(f"{folder.parent}: {free / 1e9:,.1f} GB free, and {need / 1e9:,.1f} GB are to come: make room")
    with ThreadPoolExecutor(FILES) as pool:
        list(pool.map(lambda named: _receive(f"{url}/{named[0]}", named[1], folder / named[0]), manifest.files.items()))
    if path.exists():
        move_aside(path, f"{url} is another one")
    write_file(folder / MANIFEST, data)
    folder.rename(path)
    fsync_folder(path.parent)
    return path


def _receive(url: str, file: StoredFile, path: Path) -> None:
    """Brings a file, but for what is there already of an earlier try."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        for first in range(0, len(file.blocks), AT_ONCE):
            hashes = file.blocks[first : first + AT_ONCE]
            start, stop = first * BLOCK, min((first + AT_ONCE) * BLOCK, file.size)
            if storage.hashes_of(os.pread(fd, stop - start, start), BLOCK) == list(hashes):
                continue
            data = memoryview(storage.get(url, start, stop, hashes, BLOCK))
            while data:
                written = os.pwrite(fd, data, stop - len(data))
                data = data[written:]
        os.ftruncate(fd, file.size)
        os.fsync(fd)
    except OSError as error:
        raise UserError(f"{path}: it cannot be written ({error.strerror}): make room") from error
    finally:
        os.close(fd)


def alone(folder: Path) -> Lock:
    """The lock of those that send from a folder, or fetch into it, once whoever has it gives it back."""
    while True:
        try:
            return Lock(folder / f"{MARK}.lock")
        except UserError:
            time.sleep(1)


def is_empty(folder: Path) -> bool:
    """Whether a stage has nothing on this disk that a mirror could be older than."""
    return not is_done(folder) and not steps(folder / CHECKPOINTS)
