"""Work in one process that goes on where it was killed: its tensors, and what it is about, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from pretrain.errors import UserError
from pretrain.runtime import documents
from pretrain.runtime.documents import one_line
from pretrain.runtime.files import make_folder, write_file

_ABOUT = "about"


def write(path: Path, state: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Store a state; a reader finds the one before or this one. `about` (JSON) says whose it is."""
    make_folder(path.absolute().parent)
    tensors = {name: x.detach().contiguous() for name, x in state.items()}
    write_file(path, save(tensors, {_ABOUT: json.dumps(about)}))


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The state and the `about` that were stored, or None. Raises UserError for a file that is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = (file.metadata() or {}).get(_ABOUT, "")
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = one_line(str(error))
        raise UserError(f"{path} is damaged ({reason}): remove it, and what it knew is learned again") from error
    about: dict[str, Any] = documents.checked(documents.Object, documents.parse(metadata.encode(), path), path)
    return state, about
