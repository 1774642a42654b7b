"""A checkpoint as a folder that transformers loads: streamed, so that memory does not depend on the model's size."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from growth import Architecture, Box, between
from pretrain.checkpoint import AVERAGE, Manifest, Reader
from pretrain.config import orders
from pretrain.errors import UserError
from pretrain.families.common.hf.form import MODULES, HfForm
from pretrain.hf import form_of
from pretrain.hf.card import card
from pretrain.hf.files import DTYPES, INDEX, index, shards, write_shard
from pretrain.hf.rows import reordered
from pretrain.hf.tokenizers import Vocabulary, imported, vocabulary
from pretrain.judge import records
from pretrain.runtime.files import Lock, fsync_folder, make_folder, write_file
from pretrain.stage import trained

MARK, LOCK = "cambium.json", "lock"
TRANSFORMERS = "5.23.0"  # the files follow the conventions of this version


@dataclass(frozen=True)
class Exported:
    """What `export` made. existed: whether the folder held this very export already."""

    checkpoint: Path
    folder: Path
    existed: bool
    dtype: str
    parameters: int
    files: dict[str, int]


def export(
    checkpoint: Path,
    folder: Path,
    *,
    dtype: str = "fp32",
    shard_bytes: int,
    tokenizer: Path | None = None,
    merged: bool = True,
    average: bool = False,
    progress: bool = False,
) -> Exported:
    """Write the weights of a checkpoint, its config, its tokenizer and a model card to a folder that is not there yet.

    dtype: fp32, bf16 or fp16. merged: with its adapters, if it has any, as a part of its matrices; else without them.
    average: the moving average of the weights, which train.average keeps, in their place.
    shard_bytes: the largest file of weights; above, they are cut into shards with an index. Stopped and called again,
    it goes on after the last shard that was finished. Raises UserError when the folder holds something else, another
    process writes it, the model cannot be expressed, the tokenizer is missing, or the disk is full; CorruptCheckpoint
    when a block of the checkpoint does not verify.
    """
    with Reader(checkpoint) as reader:
        manifest = reader.manifest
        if average and not reader.has(AVERAGE):
            raise UserError(f"{checkpoint}: it has no average of the weights; its stage kept none (train.average)")
        stored = Architecture.from_json(manifest.architecture)
        base = stored.with_adapters(None)
        arch = written_out(base)
        plan = between(stored if merged else base, arch, seed=0, init_std=0.0)
        family = form_of(arch.family)
        if _ordered(arch) or arch.span:
            family = coded(arch, family)
        words = vocabulary(checkpoint, manifest, tokenizer)
        origin = imported(manifest)
        order = origin.get("shard_order", MODULES)
        config = _config(manifest.config, arch, family, words, origin.get("config", {}), dtype)
        mark = {
            "format_version": 1,
            "checkpoint": manifest.hash,
            "stage": manifest.stage,
            "step": manifest.step,
            "architecture": arch.to_json(),
            "dtype": dtype,
            "shard_bytes": shard_bytes,
            "tokenizer": words.identity,
            **({} if merged else {"merged": False}),
            **({"average": True} if average else {}),
        }
        work = folder.absolute().with_name(f".{folder.absolute().name}.partial")
        try:
            existed = _is_there(folder, mark)
            if not existed:
                make_folder(work)
                with Lock(work / LOCK):
                    _begin(work, mark)
                    _weights(
                        work,
                        partial(plan.evaluate, read=reader.read_average if average else reader.read),
                        arch,
                        family,
                        words,
                        DTYPES[dtype],
                        shard_bytes,
                        order,
                        progress,
                    )
                    _json(work / "config.json", config)
                    if family.generates:
                        _json(work / "generation_config.json", _generation(config))
                    if code := family.carried:
                        write_file(work / code.file.name, code.file.read_bytes())
                    words.write(work)
                    weights = f"{dtype}, moving average" if average else dtype
                    write_file(work / "README.md", _card(checkpoint, manifest, arch, family, weights).encode())
                    work.rename(folder)
                    (folder / LOCK).unlink()
                    fsync_folder(work.parent)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written: {error.strerror} ({error.filename or work}); "
                "put that right and run it again: it goes on after the last file that was finished"
            ) from error
    files = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
    return Exported(checkpoint, folder, existed, dtype, arch.parameters(), files)


def _card(checkpoint: Path, manifest: Manifest, arch: Architecture, family: HfForm, dtype: str) -> str:
    """The model card, with what the folder of the stage knows of this checkpoint."""
    stage = checkpoint.absolute().parents[1]
    if checkpoint.parent.name != "checkpoints":
        return card(manifest, arch, family, dtype)
    return card(manifest, arch, family, dtype, trained.read(stage), records.find(stage, manifest))


def written_out(arch: Architecture) -> Architecture:
    """The same model without shared layers: each block has one of its own."""
    return arch.replace({"layers": arch.depth}, kinds=tuple(block.kind for block in arch.blocks), calls=())


def _ordered(arch: Architecture) -> bool:
    """Whether the key `order` says the blocks: not where a family has kinds of its own, of which its form has keys."""
    return arch.mixed and not arch.table.streams


def coded(arch: Architecture, form: HfForm) -> HfForm:
    """The form of a model whose layers are attention or an MLP alone, or whose heads have spans. Raises UserError where
    transformers' class cannot express a model, and there is no code that does."""
    says, why = form.code.says if form.code else (), ""
    if _ordered(arch) and not ("order" in says and set(arch.kinds) <= set(orders.KINDS.values())):
        why = f"its blocks are not all alike ({orders.in_words(arch)})"
    elif arch.span and "span" not in says:
        why = "its heads have spans"
    if why:
        raise UserError(f"transformers' {form.model_class} cannot express this model: {why}")
    return form.coded()


def _config(
    resolved: Any, arch: Architecture, family: HfForm, words: Vocabulary, imported: dict[str, Any], dtype: str
) -> dict[str, Any]:
    seq_len = resolved.get("train", {}).get("seq_len", 0)
    taken_over = {key: imported[key] for key in family.kept if key in imported}
    longest = {"max_position_embeddings": max(seq_len, taken_over.get("max_position_embeddings", 0))}
    config = {
        "architectures": [family.model_class],
        "model_type": family.model_type,
        **family.config(arch),
        "initializer_range": resolved.get("model", {}).get("init_std", 0.02),
        "pad_token_id": None,
        "use_cache": True,
        **words.token_ids(),
        **taken_over,
        **({} if "positions" in arch.sizes else longest),  # with learned positions family.config says it
        **({"order": orders.in_words(arch)} if _ordered(arch) else {}),
        **({"span": arch.span.to_json()} if arch.span else {}),
        **({"auto_map": family.carried.auto_map()} if family.carried else {}),
        "dtype": str(DTYPES[dtype]).removeprefix("torch."),
        "transformers_version": TRANSFORMERS,
    }
    rope = config.get("rope_parameters", {})
    if rope.get("rope_type") == "longrope":  # the factors are the same before and after this length
        rope["original_max_position_embeddings"] = config["max_position_embeddings"]
    return config


def _generation(config: dict[str, Any]) -> dict[str, Any]:
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}
    return {"_from_model_config": True, **ids, "transformers_version": TRANSFORMERS}


def _is_there(folder: Path, mark: dict[str, Any]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        stored_mark = json.loads((folder / MARK).read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} is there already and is no export: choose another folder") from None
    if stored_mark != mark:
        raise UserError(
            f"{folder} is there already and holds another export (of stage {stored_mark.get('stage')}, step "
            f"{stored_mark.get('step')}, {stored_mark.get('dtype')}): remove it, or choose another folder"
        )
    return True


def _begin(work: Path, mark: dict[str, Any]) -> None:
    """Removes what other exports have left; what this very export has finished before it was stopped stays."""
    if not ((work / MARK).exists() and json.loads((work / MARK).read_text()) == mark):
        for path in work.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    _json(work / MARK, mark)


def _weights(
    work: Path,
    evaluate: Callable[[str, Box], torch.Tensor],
    arch: Architecture,
    family: HfForm,
    words: Vocabulary,
    dtype: torch.dtype,
    shard_bytes: int,
    order: str,
    progress: bool,
) -> None:
    tensors, source = arch.tensors(), words.source
    shapes = {name: family.stored(name).shape(arch) for name in family.names(arch, order)}
    files = shards(shapes, dtype, shard_bytes)

    def logical(name: str, box: Box) -> torch.Tensor:
        return reordered(partial(evaluate, name), tensors[name], source, box)

    def read(name: str, box: Box) -> torch.Tensor:
        return family.stored(name).read(arch, logical, box)

    total = arch.parameters() * dtype.itemsize
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=not progress) as bar:
        for file, names in files.items():
            write_shard(work / file, names, shapes, dtype, read, bar.update)
    if len(files) > 1:
        write_file(work / INDEX, index(files, shapes, dtype).encode())


def _json(path: Path, value: dict[str, Any]) -> None:
    write_file(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
