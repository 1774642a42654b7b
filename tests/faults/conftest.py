import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOM = 256 << 20  # bytes

Mount = Callable[[str], None]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is room: a kill does not tell what reached the disk, and fsync takes most of the time."""
    memory = Path("/dev/shm")
    if not (os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="cambium-") as folder:
        yield Path(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A tmpfs of its own, and a function that mounts it (again) with options such as `size=3m` or `ro`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid():
        pytest.skip("NOT TESTED: a full disk and a read-only one need root, to mount a tmpfs")

    def mount(options: str) -> None:
        again = ["-o", "remount"] if os.path.ismount(folder) else []
        subprocess.run(["mount", "-t", "tmpfs", *again, "-o", options, "tmpfs", folder], check=True)

    try:
        mount("size=8m")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"NOT TESTED: a full disk and a read-only one need the right to mount a tmpfs ({error})")
    try:
        yield folder, mount
    finally:
        subprocess.run(["umount", folder], check=True)
