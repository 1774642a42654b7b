"""Folders of models that others wrote: each is imported as it is, or refused in one line with nothing written."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from growth import Architecture
from pretrain.checkpoint import Reader, verify_all
from pretrain.data.tokenizers.byte_level import ByteLevel
from pretrain.errors import UserError
from pretrain.hf import form_of
from pretrain.hf.files import INDEX, index
from pretrain.hf.imports import look
from tests import mutations
from tools.import_hf import main

SIZES = {"vocab": 300, "hidden": 8, "layers": 2, "heads": 2, "head_dim": 4, "ffn": 12}
MODELS = {
    "llama2": Architecture("llama2", {**SIZES, "kv_heads": 1}),
    "gpt2": Architecture("gpt2", {**SIZES, "positions": 6}),
    "bert": Architecture("bert", {**SIZES, "positions": 6, "types": 2, "labels": 2}),
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 1.0, "attention_factor": 1.0}


def folder_of(folder: Path, arch: Architecture) -> Path:
    """As people have them: config, weights in two files with an index, a byte-level tokenizer or a vocab.txt."""
    folder.mkdir()
    family = form_of(arch.family)
    shapes = {name: family.stored(name).shape(arch) for name in family.names(arch)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    names = list(shapes)
    files = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, inside in files.items():
        save_file({name: tensors[name] for name in inside}, folder / file)
    (folder / INDEX).write_text(index(files, shapes, torch.float32))
    config = {"model_type": family.model_type, **family.config(arch), "max_position_embeddings": 6, "eos_token_id": 2}
    if arch.family == "llama2":
        config["rope_parameters"] = {**LONGROPE, "short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>", "do_lower_case": true, "bos_token": null}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    if arch.family == "bert":
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (folder / "vocab.txt").write_text("\n".join([*specials, *(f"w{i}" for i in range(295))]) + "\n")
        return folder
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab"], special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the text of a tokenizer, and the words of a text"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    return {family: folder_of(root / family, arch) for family, arch in MODELS.items()}


def fuzz(source: Path, name: str, seeds: range) -> int:
    """How many mutations of a file are refused."""
    path = source / name
    data, count = path.read_bytes(), 0
    document: Any = json.loads(data) if name.endswith(".json") else None
    before = mutations.files_of(source.parent)
    look(source)
    try:
        for seed in seeds:
            path.write_bytes(mutations.of_bytes(data, seed) if document is None else mutations.of_json(document, seed))
            count += mutations.refused(lambda: look(source), seed)
    finally:
        path.write_bytes(data)
    assert set(mutations.files_of(source.parent)) == set(before)
    return count


FILES = [
    *((family, "config.json") for family in MODELS),
    ("llama2", INDEX),
    ("llama2", "model-1.safetensors"),
    ("gpt2", "tokenizer.json"),
    ("gpt2", "tokenizer_config.json"),
    ("gpt2", "generation_config.json"),
    ("bert", "tokenizer_config.json"),
    ("bert", "vocab.txt"),
]


@pytest.mark.parametrize(("family", "name"), FILES)
def test_files(folders: dict[str, Path], family: str, name: str) -> None:
    fuzz(folders[family], name, range(60))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("family", "name"), FILES)
def test_many_files(folders: dict[str, Path], family: str, name: str) -> None:
    fuzz(folders[family], name, range(1000, 6000))


def refusal(source: Path, stage: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What an import says that is refused: one line, and nothing is made."""
    assert main([str(source), str(stage)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not stage.exists()
    return told


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("llama2", {"rope_parameters": [1]}, "rope_parameters = [1] is no mapping"),
        ("llama2", {"rope_scaling": "x"}, "rope_scaling = 'x' is no mapping"),
        ("llama2", {"rope_parameters": {**LONGROPE, "short_factor": ["a", 1], "long_factor": ["a", 1]}}, "'a' is no"),
        ("llama2", {"rope_parameters": {**LONGROPE, "short_factor": [0, 1], "long_factor": [0, 1]}}, "above 0"),
        ("llama2", {"rope_parameters": {"rope_theta": 0}}, "rope_theta = 0 must be above 0"),
        ("llama2", {"rope_parameters": {"rope_theta": -1.0}}, "rope_theta = -1.0 must be above 0"),
        ("llama2", {"num_attention_heads": 0}, "num_attention_heads = 0 must be there"),
        ("llama2", {"num_key_value_heads": True}, "num_key_value_heads = True must be there"),
        ("llama2", {"num_hidden_layers": 10**12}, "layers"),
        ("llama2", {"rms_norm_eps": -1}, "rms_norm_eps = -1 must be above 0"),
        ("llama2", {"max_position_embeddings": "x"}, "max_position_embeddings"),
        ("gpt2", {"n_embd": None}, "n_embd = None must be there"),
        ("gpt2", {"n_inner": -4}, "n_inner = -4 must be there"),
        ("gpt2", {"layer_norm_epsilon": "abc"}, "layer_norm_epsilon = 'abc' is no number"),
        ("gpt2", {"layer_norm_epsilon": None}, "layer_norm_epsilon = None is no number"),
        ("gpt2", {"layer_norm_epsilon": math.nan}, "NaN is no number"),
        ("bert", {"num_attention_heads": 0}, "num_attention_heads = 0 must be there"),
        ("bert", {"layer_norm_eps": 0}, "layer_norm_eps = 0 must be above 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_configs(
    folders: dict[str, Path],
    family: str,
    changes: dict[str, Any],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "model"
    shutil.copytree(folders[family], source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **changes}))
    assert why in refusal(source, tmp_path / "run" / "base", capsys)


@pytest.mark.parametrize(
    "weight_map", [None, [], 3, "x", {"lm_head.weight": 3}, {"lm_head.weight": "../a.safetensors"}]
)
def test_indexes(folders: dict[str, Path], weight_map: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model"
    shutil.copytree(folders["llama2"], source)
    (source / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert INDEX in refusal(source, tmp_path / "run" / "base", capsys)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", MODELS)
def test_weights_that_are_no_numbers(
    folders: dict[str, Path], family: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever in a model one is, it is named before anything is written."""
    source = tmp_path / "model"
    shutil.copytree(folders[family], source)
    path = source / "model-2.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)
    assert f"{name} has weights that are NaN or infinite" in refusal(source, tmp_path / "run" / "base", capsys)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_broken_tokenizer_files(
    folders: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "model"
    shutil.copytree(folders["gpt2"], source)
    for broken in ("{", "[]", "null", "", '{"a": NaN}'):
        (source / name).write_text(broken)
        assert name in refusal(source, tmp_path / "run" / "base", capsys)


def test_what_is_accepted_is_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    for family, source in folders.items():
        assert main([str(source), str(tmp_path / family)]) == 0
        checkpoint = tmp_path / family / "checkpoints" / "step-00000000"
        assert not verify_all(checkpoint)
        with Reader(checkpoint) as reader:
            assert not reader.has("exp_avg")


def test_a_tokenizer_on_which_the_library_panics(folders: dict[str, Path], tmp_path: Path) -> None:
    """A merge that makes a piece which is not there: code in Rust then raises what is no Exception."""
    source = tmp_path / "model"
    shutil.copytree(folders["gpt2"], source)
    found = json.loads((source / "tokenizer.json").read_text())
    vocab = found["model"]["vocab"]
    vocab["../x"] = vocab.pop("Ġtokenizer")
    (source / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"is no tokenizer\.json"):
        ByteLevel.load(source)
