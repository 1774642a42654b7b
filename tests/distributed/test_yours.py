"""A model that others trained: imported, made deeper with what is old frozen, trained, judged by what is printed, and
exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pretrain.checkpoint import is_done
from pretrain.stage import trained
from tests.distributed.harness import run
from tests.distributed.test_stage import stage
from tests.unit.test_documents import ROOT
from tools import report, yours


def qwen3(folder: Path, text: Path) -> Qwen3Config:
    """A tiny one with a byte-level tokenizer of its own, as transformers saves it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train([str(text)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    made = Qwen3Config(
        **shape, intermediate_size=24, vocab_size=300, tie_word_embeddings=True, eos_token_id=0, bos_token_id=None
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(made).save_pretrained(folder)
    return made


def test_a_model_is_grown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file of configs/yours/qwen3.yaml at a tiny size, on real text."""
    text, model = tmp_path / "mine.txt", tmp_path / "model"
    text.write_text((ROOT / "docs/decisions.md").read_text() + (ROOT / "docs/tour.md").read_text())
    qwen3(model, text)
    document = yaml.safe_load((ROOT / "configs/yours/qwen3.yaml").read_text())
    document |= {"name": "run", "output": str(tmp_path), "log": {"wandb": False, "interval": 1}}
    document["yours"] = {"model": str(model), "text": [str(text)], "export": str(tmp_path / "export")}
    document["data"] = {"corpus": str(tmp_path / "corpus"), "validation_fraction": 0.1}
    document["model"] |= {"vocab": 300, "hidden": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 24}
    document["train"] |= {"seq_len": 32, "global_batch": 4, "tokens": 512, "lr": 1e-2, "precision": "fp32"}
    document["train"] |= {"eval_bytes": 2048}
    for one, layers in zip(document["stages"], (3, 3, 3), strict=True):
        one["model"] = {"layers": layers}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document))

    assert yours.main([str(path), "--begin"]) == 2
    assert "stages[0].model is not the shape" in (said := capsys.readouterr().err)
    assert "family: qwen3_tied" in said
    assert "layers: 2" in said
    document["stages"][0]["model"] = {"layers": 2}
    path.write_text(yaml.safe_dump({**document, "data": {"corpus": "s3://bucket/corpus"}}))
    assert yours.main([str(path), "--begin"]) == 2
    assert "becomes the folder data.corpus, and a stage has s3://bucket/corpus: prepare" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # before anything is imported
    path.write_text(yaml.safe_dump(document))
    for _ in range(2):
        assert yours.main([str(path), "--begin"]) == 0
    assert capsys.readouterr().out.count("(is there already)") == 2
    for name in ("deeper", "all"):
        assert run(1, stage, str(path), name, []) == [""]
        assert is_done(tmp_path / "run" / name)
    known = trained.read(tmp_path / "run/deeper")
    old, new = ([group for group in known if group.generation == which] for which in (0, 1))
    assert {(group.rate, group.moved) for group in old} == {(0.0, 0.0)}
    assert [group.where for group in new] == ["layer 2"]
    assert new[0].rate == 1
    assert new[0].moved is not None
    assert new[0].moved > 1e-3
    assert all(group.moved and group.rate for group in trained.read(tmp_path / "run/all"))

    assert yours.main([str(path), "--end"]) == 0
    card = (tmp_path / "export/README.md").read_text()
    assert "imported from model" in card
    assert "grown from " in card
    assert "| layer 2 | 1 (deeper) |" in card
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert loaded.config.num_hidden_layers == 3
    assert loaded.config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(tmp_path / "export").decode([0]) == "<|endoftext|>"
    (tmp_path / "export").rename(tmp_path / "run/export")
    assert report.main([str(tmp_path / "run"), "--prompt", "A stage"]) == 0
    told = (tmp_path / "run/report.md").read_text()
    assert "| layers 0-1 | 0 (base) |" in told
    assert "| frozen | nothing |" in told
    assert "> A stage" in told
