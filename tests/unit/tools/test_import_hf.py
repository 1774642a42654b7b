"""Imports of LLaMA folders: round trips, growth from them, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import yaml
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from growth import Architecture
from pretrain.checkpoint import Reader, find, is_done
from pretrain.config import load
from pretrain.data.corpus.corpus import Corpus
from pretrain.families import reference
from pretrain.families.text import open_feed
from pretrain.hf import form_of
from tools.export_hf import main as export
from tools.grow import main as grow
from tools.import_hf import main
from tools.prepare_data import main as prepare_data
from tools.verify import main as verify


@pytest.fixture(params=["gqa", "mha"], scope="module")
def llama(request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA as people have it: saved by transformers in bf16 shards, with a stock SentencePiece tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "Tiny-Llama"
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=corpus.tokenizer.size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=11,  # layers.10 sorts before layers.2
        num_attention_heads=4,
        num_key_value_heads=2 if request.param == "gqa" else 4,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=5000.0,
        max_position_embeddings=77,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "tokenizer.model").write_bytes(corpus.tokenizer.model_bytes)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return folder


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors*")}


def test_round_trip(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Out again byte for byte, at the same dtype and shard size; also what transformers loaded and saved again."""
    resaved = tmp_path / "resaved"
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(resaved, max_shard_size="40KB")
    shutil.copy(llama / "tokenizer.model", resaved)
    for source in (llama, resaved):
        stage, out = tmp_path / "run" / source.name, tmp_path / "out" / source.name
        assert main([str(source), str(stage), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["vocabulary"]["order"] == "merge age"
        assert is_done(stage)
        assert export([str(stage), str(out), "--dtype", "bf16", "--shard-size", "40KB"]) == 0
        capsys.readouterr()
        assert weights(out) == weights(source)
        for file in ("config.json", "generation_config.json"):
            ours, theirs = (json.loads((folder / file).read_text()) for folder in (out, source))
            assert ours == {key: theirs[key] for key in ours}
        assert (out / "tokenizer.model").read_bytes() == (llama / "tokenizer.model").read_bytes()
        assert "imported from" in (out / "README.md").read_text()
    assert weights(resaved) != weights(llama)  # two orders of shards, so the test is of both


def test_rows_are_in_merge_age_order(llama: Path, corpus: Corpus, tmp_path: Path) -> None:
    """The logits of a text in our ids are transformers' of the same text in the stock ids."""
    assert main([str(llama), str(tmp_path / "stage")]) == 0
    ids = corpus.tokenizer.encode("class Action(object):")
    stock = torch.from_numpy(corpus.tokenizer.age.permutation[ids]).long()[None]
    path = find(tmp_path / "stage" / "checkpoints").path
    assert path
    with Reader(path) as reader, torch.no_grad():
        assert not reader.has("exp_avg")
        arch = Architecture.from_json(reader.manifest.architecture)
        ours = reference.logits(reader.read, arch, torch.from_numpy(ids).long()[None])
        theirs = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)(stock).logits
    order = torch.from_numpy(corpus.tokenizer.age.permutation).long()
    assert (ours - theirs[..., order]).abs().max() <= 1e-5 * theirs.abs().max()


def curriculum(folder: Path, llama: Path, corpus: Corpus, **grown: int) -> Path:
    config = json.loads((llama / "config.json").read_text())
    model = {
        "vocab": config["vocab_size"],
        "hidden": 24,
        "layers": 11,
        "heads": 4,
        "kv_heads": config["num_key_value_heads"],
        "head_dim": 8,
        "ffn": 40,
    }
    document: dict[str, Any] = {
        "name": "run",
        "output": str(folder),
        "data": {"corpus": str(corpus.path)},
        "train": {"tokens": 640, "seq_len": 32, "global_batch": 4, "lr": 1e-3},
        "stages": [{"name": "base", "model": model}, {"name": "next", "model": {**model, **grown}}],
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_it_grows(llama: Path, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next stage's first checkpoint, offline: certified, without moments, exported with the stock tokenizer."""
    assert main([str(llama), str(tmp_path / "run" / "base")]) == 0
    config = curriculum(tmp_path, llama, corpus, hidden=32, layers=12)
    assert grow([str(tmp_path / "run"), "--config", str(config), "--stage", "next"]) == 0
    assert verify([str(tmp_path / "run" / "next"), "--parent", str(tmp_path / "run" / "base")]) == 0
    told = capsys.readouterr().out
    assert "content" in told
    assert export([str(tmp_path / "run" / "next"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (llama / "tokenizer.model").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("def f():", return_tensors="pt").input_ids
    with torch.no_grad():
        found, expected = model(ids).logits, base(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert model.config.max_position_embeddings == 77


def test_another_tokenizer(llama: Path, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows stay in the order of their ids; the files go out again as they came; the vocabulary cannot grow, and why."""
    source, stage = tmp_path / "Bytes", tmp_path / "run" / "base"
    shutil.copytree(llama, source)
    (source / "tokenizer.model").unlink()
    (source / "tokenizer.json").write_text("{}")
    assert main([str(source), str(stage)]) == 0
    assert "identity order and cannot grow: its tokenizer is no SentencePiece model" in capsys.readouterr().out
    assert export([str(stage), str(tmp_path / "out"), "--dtype", "bf16", "--shard-size", "40KB"]) == 0
    assert weights(tmp_path / "out") == weights(source)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    capsys.readouterr()
    config = curriculum(tmp_path, llama, corpus, hidden=32)
    assert grow([str(stage), "--config", str(config), "--stage", "next"]) == 2
    assert "is not the tokenizer of Bytes" in capsys.readouterr().err


def byte_level(llama: Path, folder: Path) -> None:
    """The same model with a byte-level BPE of fewer pieces than it has rows."""
    shutil.copytree(llama, folder)
    (folder / "tokenizer.model").unlink()
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    made.train_from_iterator([Path(shutil.__file__).read_text()], trainer)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>", "tokenizer_class": "GPT2TokenizerFast"}')


def test_a_byte_level_tokenizer(
    llama: Path, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A corpus of its ids is prepared, the model grows on it at its vocabulary, and the files go out as they came."""
    source, stage, data = tmp_path / "Bytes", tmp_path / "run" / "base", tmp_path / "data"
    byte_level(llama, source)
    text = str(corpus.path.parent / "text.txt")
    assert main([str(source), str(stage)]) == 0
    assert prepare_data([text, "--output", str(data), "--tokenizer", str(source)]) == 0
    prepared = Corpus.open(data)
    config = curriculum(tmp_path, llama, prepared, hidden=32)
    capsys.readouterr()
    assert grow([str(tmp_path / "run"), "--config", str(config), "--stage", "next", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["preserved"]
    feed = open_feed(load(config).stage("next"))
    feed.seek(None)
    assert feed.take(4, 0.0, 0, 1).bytes
    for name in ("tokenizer.json", "tokenizer_config.json"):
        for where in (stage, tmp_path / "run" / "next"):
            out = tmp_path / "out" / where.name
            assert export([str(where), str(out)]) == 0
            assert (out / name).read_bytes() == (source / name).read_bytes()
    config = curriculum(tmp_path, llama, prepared, vocab=corpus.tokenizer.size + 8)
    assert grow([str(stage), str(tmp_path / "x"), "--config", str(config), "--stage", "next"]) == 2
    assert "cannot grow: its tokenizer is no SentencePiece model" in capsys.readouterr().err
    shutil.rmtree(stage / "tokenizer")
    assert export([str(tmp_path / "run" / "next"), str(tmp_path / "gone")]) == 2
    assert "name the folder of the model that was imported with --tokenizer" in capsys.readouterr().err
    assert export([str(tmp_path / "run" / "next"), str(tmp_path / "given"), "--tokenizer", str(source)]) == 0
    assert (tmp_path / "given" / "tokenizer.json").exists()


def test_again_and_elsewhere(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = tmp_path / "run" / "base"
    assert main([str(llama), str(stage)]) == 0
    (stage / "DONE").unlink()  # killed before its last act
    assert main([str(llama), str(stage)]) == 0
    assert "is there already" in capsys.readouterr().out
    assert is_done(stage)
    other = tmp_path / "Other"
    shutil.copytree(llama, other)
    assert main([str(other), str(stage)]) == 2
    assert "is there already and is something else" in capsys.readouterr().err


def test_refused(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with what is wrong and where; nothing is made."""

    def error(name: str, **config: Any) -> str:
        stage = tmp_path / "run" / name
        if config:
            found = json.loads((llama / "config.json").read_text())
            (tmp_path / name / "config.json").write_text(json.dumps({**found, **config}))
        assert main([str(tmp_path / name), str(stage)]) == 2
        assert not stage.exists()
        return capsys.readouterr().err

    for name in ("bias", "scaled", "theta", "other", "shape", "pickle", "gone", "damaged", "missing", "wrong"):
        shutil.copytree(llama, tmp_path / name)
    assert "attention_bias = True" in error("bias", attention_bias=True)
    assert "plain rotary" in error("scaled", rope_scaling={"type": "linear", "factor": 2.0})
    for theta in (None, "5000", True):
        assert f"rope_theta = {theta!r} is no number" in error("theta", rope_parameters=None, rope_theta=theta)
        assert f"rope_theta = {theta!r} is no number" in error("theta", rope_scaling={"rope_theta": theta})
    assert "rms_norm_eps = None is no number" in error("theta", rope_scaling=None, rms_norm_eps=None)
    assert "model_type 'mamba' is not known" in error("other", model_type="mamba")
    assert "the config says (48, 24)" in error("shape", intermediate_size=48)
    for path in (tmp_path / "pickle").glob("*.safetensors*"):
        path.unlink()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"x")
    assert "a pickle can run any program" in error("pickle")
    (tmp_path / "gone" / "config.json").unlink()
    assert "name the folder of a model" in error("gone")
    shard = sorted((tmp_path / "damaged").glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    assert shard.name in error("damaged")
    sorted((tmp_path / "missing").glob("*.safetensors"))[1].unlink()
    assert "the index names it" in error("missing")
    index = tmp_path / "wrong" / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    files, name = found["weight_map"], "model.norm.weight"
    files[name] = min(set(files.values()) - {files[name]})
    index.write_text(json.dumps(found))
    told = error("wrong")
    assert f"{tmp_path / 'wrong' / files[name]} has no {name}" in told
    assert main([str(llama), str(tmp_path / "step-00000000")]) == 2


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"rope_theta": 5000.0},
        {"rope_theta": 5000},
        {"rope_theta": 5000.0, "rope_parameters": {"rope_theta": 700.0}},
        {"rope_theta": 5000.0, "rope_scaling": {"type": "default", "rope_theta": 700.0}},
        {"rope_theta": None, "rope_scaling": {"rope_type": "default", "rope_theta": 700.0}},
        {"rope_theta": 5000.0, "rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 700.0}},
        {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 700.0}},
        {"rope_scaling": {}, "rope_parameters": {"rope_theta": 700.0}},
        {
            "rope_scaling": {"type": "default", "rope_theta": 900.0},
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0},
        },
        {
            "rope_theta": 5000.0,
            "rope_scaling": {
                "type": "longrope",
                "rope_theta": 700.0,
                "factor": 1.0,
                "attention_factor": 1.0,
                "short_factor": [1.0, 1.5, 2.0, 4.0],
                "long_factor": [1.0, 1.5, 2.0, 4.0],
            },
        },
        {
            "rope_theta": 5000.0,
            "rope_scaling": {
                "type": "default",
                "attention_factor": 1.0,
                "short_factor": [2.0] * 4,
                "long_factor": [2.0] * 4,
            },
        },
    ],
    ids=str,
)
def test_rotary_frequencies(told: dict[str, Any], tmp_path: Path) -> None:
    """Whichever way a config says them, they are those of transformers."""
    sizes = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "intermediate_size": 8, "max_position_embeddings": 77, **sizes, **told}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(tmp_path)).inv_freq
    ours = torch.from_numpy(form_of("llama2").architecture(config, "config.json").frequencies())
    torch.testing.assert_close(ours.float(), theirs)
