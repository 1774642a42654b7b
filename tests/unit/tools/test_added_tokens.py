"""Tokens that a user adds to the tokenizer of an imported model: a growth event of its vocabulary, and out again."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
import yaml
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from growth import Architecture, Box
from pretrain.checkpoint import Reader, find
from pretrain.data.corpus.corpus import Corpus
from pretrain.data.tokenizers.byte_level import ByteLevel
from tools.export_hf import main as export
from tools.grow import main as grow
from tools.import_hf import main as import_hf
from tools.prepare_data import main as prepare_data
from tools.verify import main as verify

ROWS, TOKENS = 310, ["<tool>", "argparse", "naïve word"]
SHAPE = {"hidden": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 40}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen 3 as people have it: special pieces behind the merges, and more rows than pieces."""
    folder = tmp_path_factory.mktemp("models") / "Tiny-Qwen"
    torch.manual_seed(5)
    config = Qwen3Config(
        vocab_size=ROWS,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=False,
        eos_token_id=298,
    )
    model = Qwen3ForCausalLM(config)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=298, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator([Path(shutil.__file__).read_text()], trainer)
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    made.save(str(folder / "tokenizer.json"))
    said = {"eos_token": "<|endoftext|>", "tokenizer_class": "Qwen2TokenizerFast", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def test_added_tokens(qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind all rows of the model, each the mean of the rows that spelled it; old logits stay as they are."""
    (tmp_path / "added.txt").write_text("\n".join(TOKENS) + "\n\n")
    (tmp_path / "text.txt").write_text("import argparse\n\na <tool> call, a naïve word\n\n" * 60)
    given = [str(tmp_path / "text.txt"), "--tokenizer", str(qwen)]
    assert prepare_data([*given, "--output", str(tmp_path / "data"), "--add-tokens", str(tmp_path / "added.txt")]) == 0
    assert prepare_data([*given, "--output", str(tmp_path / "plain")]) == 0
    assert import_hf([str(qwen), str(tmp_path / "run" / "base")]) == 0
    model = {"family": "qwen3", "rope_theta": 1e4, **SHAPE}
    document = {
        "name": "run",
        "output": str(tmp_path),
        "data": {"corpus": str(tmp_path / "data"), "validation_fraction": 0.1},
        "train": {"tokens": 640, "seq_len": 32, "global_batch": 4, "lr": 1e-3},
        "stages": [
            {"name": "base", "model": {"vocab": ROWS, **model}},
            {"name": "next", "model": {"vocab": ROWS + len(TOKENS), **model}},
        ],
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(document))
    capsys.readouterr()
    assert grow([str(tmp_path / "run"), "--config", str(config), "--stage", "next", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["preserved"]
    assert verify([str(tmp_path / "run" / "next"), "--parent", str(tmp_path / "run" / "base")]) == 0
    old = ByteLevel.load(qwen)
    path = find(tmp_path / "run" / "next" / "checkpoints").path
    assert path
    with Reader(path) as reader:
        arch = Architecture.from_json(reader.manifest.architecture)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            rows = reader.read("weight", name, Box.whole(arch.tensor(name).shape))
            for row, ids in zip(rows[ROWS:], old.encode_batch(TOKENS), strict=True):
                torch.testing.assert_close(row, rows[ids].mean(0))
    assert export([str(tmp_path / "run" / "next"), str(tmp_path / "out")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [tokenizer.encode(token) for token in TOKENS] == [[ROWS], [ROWS + 1], [ROWS + 2]]
    assert tokenizer.chat_template == "{{ messages }}"
    text = "def f(): return 'not one of them'"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == old.encode_batch([text])[0]
    with torch.no_grad():
        grown, before = (
            AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (tmp_path / "out", qwen)
        )
    torch.testing.assert_close(grown[..., :ROWS], before)
    document["data"] = {"corpus": str(tmp_path / "plain"), "validation_fraction": 0.1}
    config.write_text(yaml.safe_dump(document))
    assert grow([str(tmp_path / "run"), str(tmp_path / "x"), "--config", str(config), "--stage", "next"]) == 2
    assert "or add tokens to its tokenizer: tools/prepare_data.py --add-tokens" in capsys.readouterr().err


def test_corpora_of_the_tokenizer(qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Saved and loaded again; some of the tokens; text is told in the same bytes; and what cannot be added."""
    (tmp_path / "added.txt").write_text("\n".join(TOKENS))
    (tmp_path / "text.txt").write_text("import argparse: a <tool>")
    given = [str(tmp_path / "text.txt"), "--output", str(tmp_path / "data"), "--tokenizer", str(qwen)]
    given += ["--add-tokens", str(tmp_path / "added.txt")]
    assert prepare_data(given) == 0
    tokenizer = Corpus.open(tmp_path / "data").tokenizer
    assert isinstance(tokenizer, ByteLevel)
    assert (tokenizer.size, tokenizer.base and tokenizer.base.rows) == (ROWS + 3, ROWS)
    (ids,) = tokenizer.encode_batch(["import argparse: a <tool>"])
    assert tokenizer.piece_bytes[ids].sum() == 25
    tokenizer.save(tmp_path / "two", ROWS + 2)
    two = ByteLevel.load(tmp_path / "two")
    assert two.size == ROWS + 2
    assert tokenizer.new_pieces(ROWS + 2, ROWS + 3) == two.encode_batch(TOKENS[2:])
    for line, message in (("argparse\nargparse", "it has it already"), ("<|im_start|>", "it has it already")):
        (tmp_path / "added.txt").write_text(line)
        assert prepare_data(given) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "added.txt").unlink()
    assert prepare_data(given) == 2
    assert "--add-tokens" in capsys.readouterr().err
    assert prepare_data([*given[:3], "--add-tokens", "x"]) == 2
    assert "--add-tokens is only for a byte-level BPE" in capsys.readouterr().err
