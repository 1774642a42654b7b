"""From a folder that a user names to a checkpoint of another stack, opened and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.errors import UserError
from pretrain.megatron_lm.ranks import FOLDER, open_ranks
from pretrain.megatron_lm.source import Opened
from pretrain.megatron_lm.torch_dist import COMMON, METADATA, open_torch_dist
from pretrain.megatron_lm.zero import OPTIMIZER, STAGE_3, open_zero
from pretrain.runtime.documents import show

TRACKER = "latest_checkpointed_iteration.txt"
LATEST = "latest"  # DeepSpeed's


def opened(folder: Path, given: Mapping[str, Any] | None = None, moments: bool = True) -> Opened:
    """The checkpoint in a folder, or the newest of those in it, of whichever format.

    given: arguments of the model, where the checkpoint has none. moments: whether Adam's are wanted too. Raises
    UserError for a folder that holds none, one that is not complete, and a model that no family has.
    """
    folder = _newest(folder)
    if (folder / METADATA).is_file() and (folder / COMMON).is_file():
        return open_torch_dist(folder, given, moments)
    if (folder / METADATA).is_file():
        raise UserError(
            f"{folder}: a checkpoint of torch's own distributed checkpoint (there is no {COMMON}), as FSDP writes it: "
            "save it as torch_dist in Megatron-LM"
        )
    if any(OPTIMIZER.fullmatch(path.name) or STAGE_3.fullmatch(path.name) for path in folder.iterdir()):
        return open_zero(folder, given, moments)
    if any(FOLDER.fullmatch(path.name) for path in folder.iterdir()):
        return open_ranks(folder, given, moments)
    raise UserError(
        f"{folder}: no checkpoint of Megatron-LM or DeepSpeed: name a folder with {TRACKER}, or one such as "
        "iter_0001000, or global_step1000"
    )


def _newest(folder: Path) -> Path:
    """The folder that Megatron-LM's tracker or DeepSpeed's names; the folder itself where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / LATEST).is_file() and not (folder / TRACKER).is_file():
        tag = (folder / LATEST).read_bytes()[:100].decode("ascii", "replace").strip()
        if not re.fullmatch(r"[\w-]+", tag, re.ASCII) or not (folder / tag).is_dir():
            raise UserError(f"{folder / LATEST}: it names {show(tag)}, which is no folder beside it")
        return folder / tag
    if not (folder / TRACKER).is_file():
        return folder
    text = (folder / TRACKER).read_bytes()[:100].decode("ascii", "replace").strip()
    if text != "release" and not text.isdigit():
        raise UserError(f"{folder / TRACKER}: {show(text)} is no iteration")
    name = text if text == "release" else f"iter_{int(text):07d}"
    if not (folder / name).is_dir():
        raise UserError(f"{folder / name}: {TRACKER} names it, and it is not there")
    return folder / name
