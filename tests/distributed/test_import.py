"""A model of others, with a byte-level tokenizer and without moments, grown on load and trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from pretrain.checkpoint import Manifest, find, is_done
from pretrain.checkpoint.find import log
from pretrain.data.corpus.encoders import ByteLevelEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.hf.imports import import_model
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage

ROWS = 310  # more than the tokenizer has pieces


def model_of_others(folder: Path, corpus: Path) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    made.train([str(corpus.parent / "text.jsonl")], trainer)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')


def said(path: str, name: str) -> list[str]:
    """The user's error of a stage, or nothing, and what its start warned of."""
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    return [stage(path, name, []), *warnings]


def test_an_import_grows_and_trains(corpus: Path, tmp_path: Path) -> None:
    folder, data, checkpoints = tmp_path / "model", tmp_path / "data", tmp_path / "run" / "large" / "checkpoints"
    model_of_others(folder, corpus)
    prepare(Source((corpus.parent / "text.jsonl",)), data, ByteLevelEncoder(folder))
    sizes = {"vocab": ROWS, "heads": 4, "kv_heads": 2, "head_dim": 8}
    small, large = {"hidden": 32, "layers": 2, "ffn": 64}, {"hidden": 48, "layers": 3, "ffn": 96}
    stages = [
        {"name": "small", "model": {**sizes, **small}},
        {"name": "large", "model": {**sizes, **large}, "parallel": {"tp": 2}},
    ]
    path = curriculum(data, tmp_path, stages=stages)
    import_model(folder, tmp_path / "run" / "small")
    first, other = run(2, said, str(path), "large")
    assert other == [""]
    assert first[0] == ""
    assert any("has no Adam moments: they start at zero" in warning for warning in first)
    assert is_done(tmp_path / "run" / "large")
    manifest = find(checkpoints).manifest
    assert isinstance(manifest, Manifest)
    assert manifest.has("exp_avg")
    assert [birth["adam_step"] for birth in manifest.generations["each"]] == [8, 8]  # fresh: as many as were made
    event = json.loads((tmp_path / "run" / "large" / "events" / "step-00000000.json").read_text())
    assert event["certificate"]["error"] <= 1e-5
