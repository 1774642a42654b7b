"""The compiled guard that lets a CPU build of torch carry tensors of a device that is not there."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

from pretrain.errors import UserError

SOURCE = Path(__file__).with_name("guard.cpp")
VARIABLE = "CAMBIUM_GUARD"
"""Of the environment of a rank: where its guard is."""


def available() -> bool:
    """Whether there is a compiler to build it with."""
    return shutil.which("g++") is not None


def built() -> Path:
    """The shared library, compiled once for its source and each installed torch, into the user's cache.

    Raises UserError without g++, or with what g++ says.
    """
    torch = _torch()
    library = place(torch)
    if library.exists():
        return library
    if not available():
        raise UserError(
            "the dry run compiles a few lines of C++ and there is no g++: install it (apt-get install g++, or a module "
            "of your cluster)"
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / "guard.so"
        done = subprocess.run(_command(torch, made), capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{SOURCE}: g++ does not compile it against torch {version('torch')}:\n{done.stderr}")
        made.rename(library)
    return library


def place(torch: Path) -> Path:
    """Where the library for the torch in this folder is kept.

    The library finds torch's own by their path, so two environments with the same version need one each.
    """
    name = hashlib.sha256(SOURCE.read_bytes() + f"{version('torch')} {torch}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cambium"
    return cache / f"guard-{name}.so"


def _torch() -> Path:
    """The folder that torch is installed in, found without loading it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]).resolve()


def _command(torch: Path, to: Path) -> list[str]:
    flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-lc10", "-ltorch_cpu"]
    of_torch = [f"-I{torch / 'include'}", f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}"]
    return ["g++", str(SOURCE), *flags, *of_torch, "-o", str(to)]
