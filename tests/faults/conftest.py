import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Mount = Callable[[str], None]


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
