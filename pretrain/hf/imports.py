"""A Hugging Face folder as the finished first stage of a run: a model that others trained, to be grown."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from growth import Architecture, Box, Generations
from pretrain import families
from pretrain.checkpoint import Manifest, check, mark_done, step_folder, write_checkpoint
from pretrain.checkpoint.find import steps
from pretrain.checkpoint.manifest import plain
from pretrain.data.corpus.corpus import TOKENIZER
from pretrain.data.tokenizers.byte_level import CONFIG_FILE, ByteLevel
from pretrain.errors import UserError
from pretrain.families.common.hf.form import HfForm
from pretrain.families.common.hf.values import Kept, TokenizerConfig
from pretrain.hf import forms
from pretrain.hf.code_keys import applied
from pretrain.hf.rows import reordered
from pretrain.hf.tokenizers import FILES
from pretrain.hf.weights import HfWeights
from pretrain.runtime import documents
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State


@dataclass(frozen=True)
class Imported:
    """What `import_model` made. existed: whether it was there already.

    vocabulary: {"order": "merge age" | "identity", "tokenizer": its hash or None, "reason": why identity}.
    """

    checkpoint: Path
    existed: bool
    parameters: int
    bytes: int
    vocabulary: dict[str, Any]


def import_model(source: Path, stage: Path, progress: bool = False) -> Imported:
    """Make `stage` (runs/NAME/STAGE) the finished stage that holds the model of the folder `source`, without moments.

    The weights are streamed; stopped and called again, it goes on. Raises UserError for a folder that is no model of a
    known family, has pickles for weights or anything that cannot be taken over, and when the stage has begun otherwise.
    """
    target = step_folder(stage / "checkpoints", 0)
    if other_steps := [path for path in steps(stage / "checkpoints") if path != target]:
        raise UserError(f"{stage} is a stage that has begun already ({other_steps[0].name}): name another one")
    model = look(source, progress)
    event = {
        "stage": stage.name,
        "imported": {
            "name": source.resolve().name,
            "config": model.config,
            "dtypes": sorted(model.weights.dtypes),
            "files": model.weights.identity(),
            "shard_order": model.weights.shard_order,
            "vocabulary": model.vocabulary,
        },
    }
    manifest = same(target, event)
    existed = manifest is not None
    if manifest is None:
        manifest = _write(target, stage.name, model, event, progress)
    finished(source, stage, manifest, event)
    return Imported(target, existed, model.arch.parameters(), manifest.size, model.vocabulary)


@dataclass(frozen=True)
class Model:
    """A folder that can be imported.

    vocabulary: see Imported. rows: for each row of the checkpoint's vocabulary the row of the model (None: the same).
    """

    config: dict[str, Any]
    arch: Architecture
    weights: HfWeights
    vocabulary: dict[str, Any]
    rows: NDArray[np.int64] | None


def shape_of(source: Path) -> Architecture:
    """The architecture of the model in a folder, by its config alone. Raises UserError as `import_model` does."""
    return _architecture(source, _config(source))[1]


def look(source: Path, progress: bool = False) -> Model:
    """Checks everything in a folder before anything is made of it. Raises UserError as `import_model` does."""
    config = _config(source)
    family, arch = _architecture(source, config)
    weights = HfWeights(source, family, arch)
    _check_tokenizer_files(source)
    vocabulary, rows = vocabulary_of(source, arch)
    weights.check_finite(progress)
    return Model(config, arch, weights, vocabulary, rows)


def _config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    if not path.is_file():
        raise UserError(f"{path} is not there: name the folder of a model in Hugging Face's format")
    config: dict[str, Any] = documents.read(path, Kept)
    return config


def _check_tokenizer_files(source: Path) -> None:
    """Checks the files that are copied as they are: damage must be found while the original is at hand."""
    for name in FILES:
        if name.endswith(".json") and (source / name).is_file():
            documents.read(source / name, TokenizerConfig if name == CONFIG_FILE else documents.Object)


def _architecture(source: Path, config: dict[str, Any]) -> tuple[HfForm, Architecture]:
    model_type, where = config.get("model_type"), str(source / "config.json")
    of_type = [form for form in forms().values() if form.model_type == model_type]
    if "order" in config:
        of_type = [form for form in of_type if not form.carried]
    if of_type:
        form = next((form for form in of_type if form.fits(config)), of_type[0])
        return form, form.architecture(config, where)
    for form in forms().values():  # with the code that orders of sublayers and spans of heads have
        if form.code and form.code.model_type == model_type:
            says = {key: config[key] for key in form.code.says if key in config}
            usual = {key: value for key, value in config.items() if key not in (*says, "auto_map")}
            return form.coded(), applied(says, form.architecture(usual, where), where)
    known = ", ".join(sorted({form.model_type for form in forms().values()}))
    raise UserError(f"{where}: model_type {documents.show(model_type)} is not known; known: {known}")


def vocabulary_of(source: Path, arch: Architecture) -> tuple[dict[str, Any], NDArray[np.int64] | None]:
    """What is recorded of the vocabulary of a folder of tokenizer files, and for each row of the checkpoint the row of
    the model (None: the same)."""
    size, kind = arch.sizes["vocab"], families.of(arch.family).text.tokenizers
    try:
        if not (source / kind.file).is_file():
            raise UserError(f"its tokenizer is no {kind.name} (there is no {kind.file})")
        tokenizer = kind.load(source)
        if tokenizer.size != size:
            raise UserError(f"its tokenizer has {tokenizer.size} pieces and the model {size} rows")
    except UserError as error:
        reason = str(error).removeprefix(f"{source}/")
        return {"order": "identity", **_as_it_is(source, arch, reason)}, None
    recorded = {"order": "merge age", "tokenizer": tokenizer.hash, "reason": None}
    return recorded, tokenizer.permutation.astype(np.int64)


def _as_it_is(source: Path, arch: Architecture, reason: str) -> dict[str, Any]:
    """The record of a tokenizer whose ids stay as they are: its hash if text can be prepared with it, or why not."""
    if not families.of(arch.family).text.tokenizers.is_byte_level(source):
        return {"tokenizer": None, "reason": reason}
    try:
        tokenizer = ByteLevel.load(source)
        tokenizer.legal(arch.sizes["vocab"])
    except UserError as error:
        return {"tokenizer": None, "reason": f"{reason}; {str(error).removeprefix(f'{source}/')}"}
    return {"tokenizer": tokenizer.hash, "reason": reason}


def _write(
    target: Path,
    stage: str,
    model: Model,
    event: dict[str, Any],
    progress: bool,
) -> Manifest:
    arch, tensors = model.arch, model.arch.tensors()
    state = State(arch, Generations.first(arch), (Birth(0, stage, 0),), Progress(), None, (event,))

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return reordered(partial(model.weights.read, name), tensors[name], model.rows, box)

    return write_checkpoint(target, 0, ["weight"], read, state.fields(stage, {}, [0]), event, progress=progress)


def same(target: Path, event: dict[str, Any]) -> Manifest | None:
    """The manifest of an earlier import of this very folder, or None. Raises UserError if something else is there."""
    if not target.exists():
        return None
    manifest = check(target)
    if [plain(e) for e in manifest.events] == [plain(event)]:
        return manifest
    raise UserError(f"{target} is there already and is something else: name another stage")


def finished(source: Path | None, stage: Path, manifest: Manifest, event: dict[str, Any]) -> None:
    """Copies the tokenizer files of a folder, if there is one, beside the checkpoint, and at last marks the stage as
    finished."""
    if source:
        folder = stage / TOKENIZER
        folder.mkdir(exist_ok=True)
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    mark_done(stage, {**manifest.progress, "imported": event["imported"]["name"]})
