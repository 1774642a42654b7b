"""Exports: what transformers makes of them, and what the command line says."""

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from growth import Architecture
from pretrain.checkpoint import Reader
from pretrain.data.corpus.encoders import SentencePieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.errors import UserError
from pretrain.families import reference
from pretrain.families.llama2.hf import LLAMA
from pretrain.hf import form_of
from pretrain.report.continuation import Sampling, continuations
from pretrain.runtime.files import Lock
from pretrain.runtime.storage import CACHE
from tests.unit.pretrain.checkpoint.ranks import run_ranks
from tests.unit.tools.runs import Run, rewrite, save
from tools.export_hf import bytes_of, main

TEXT = "def parse(self, args):\n    return  naïve 日本 0x12"


def test_transformers_agrees(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same text gives the same ids and, in fp32, the logits of the reference; in shards as in one file."""
    for size in ("4GB", "40KB"):
        folder = tmp_path / size
        assert main([str(run.folder), str(folder), "--shard-size", size, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert ("model.safetensors.index.json" in told["files"]) == (size == "40KB")
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with Reader(run.parent) as reader, torch.no_grad():
            arch = Architecture.from_json(reader.manifest.architecture)
            vocab = arch.sizes["vocab"]
            ids = torch.from_numpy(run.corpus.tokenizer.encode(TEXT, vocab)).long()[None]
            order = torch.from_numpy(run.corpus.tokenizer.stock_order(vocab))
            encoded = tokenizer(TEXT, return_tensors="pt").input_ids
            assert torch.equal(encoded, order[ids])
            expected = reference.logits(reader.read, arch, ids)
            found = model(encoded).logits[..., order]
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert model.config.eos_token_id == order[run.corpus.tokenizer.eos]
        assert tokenizer.decode(encoded[0]) == TEXT
        card = (folder / "README.md").read_text()
        assert "2,560" in card


def test_an_order_writes_text(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a model with its code, as its card says; and what transformers saves of it is whole."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    stage = run.curriculum.stage("small")
    save(replace(stage, model=replace(stage.model, layers=0, order="sffsf")), tmp_path / "step-00000020")
    folder = tmp_path / "out"
    assert main([str(tmp_path / "step-00000020"), str(folder)]) == 0
    assert 'AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)' in (folder / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    encoded = tokenizer(TEXT, return_tensors="pt")
    written = model.generate(**encoded, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(written[0]).startswith(TEXT)
    (text,) = continuations(folder, [TEXT[:9]], Sampling(tokens=4))
    assert text.startswith(TEXT[:9])
    (code,) = folder.glob("*.py")
    code.write_text(code.read_text() + "\n")
    with pytest.raises(UserError, match="transformers cannot load this export"):
        continuations(folder, [TEXT[:9]], Sampling(tokens=4))
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(**encoded).logits, model(**encoded).logits)


def test_same_files_as_save_pretrained(run: Run, tmp_path: Path) -> None:
    """Byte for byte, at every dtype and shard size."""
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for size in ("30KB", "4GB"):
            ours, theirs = tmp_path / f"{name}{size}", tmp_path / f"{name}{size}-theirs"
            assert main([str(run.parent), str(ours), "--dtype", name, "--shard-size", size]) == 0
            loaded = AutoModelForCausalLM.from_pretrained(ours, dtype=dtype)
            model = LlamaForCausalLM(loaded.config).to(dtype)  # one that was made: a loaded one has another order
            model.load_state_dict(loaded.state_dict())
            model.save_pretrained(theirs, max_shard_size=size)
            weights = sorted(p.name for p in theirs.glob("*.safetensors*"))
            assert weights == sorted(p.name for p in ours.glob("*.safetensors*"))
            assert all((ours / w).read_bytes() == (theirs / w).read_bytes() for w in weights)
            for file in ("config.json", "generation_config.json"):
                known = json.loads((ours / file).read_text())
                made = json.loads((theirs / file).read_text())
                assert known == {key: made.get(key) for key in known}


def test_again_and_elsewhere(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same export is left alone, a stopped one goes on, another one is refused, and so is a stranger's folder."""
    folder = tmp_path / "out"
    assert main([str(run.parent), str(folder), "--shard-size", "30KB"]) == 0
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert main([str(run.parent), str(folder), "--shard-size", "30KB"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert main([str(run.parent), str(folder), "--shard-size", "30KB", "--dtype", "bf16"]) == 2
    assert "holds another export" in capsys.readouterr().err

    stopped = folder.rename(tmp_path / ".again.partial")
    (stopped / "config.json").unlink()
    (stopped / "model-00002-of-00002.safetensors").unlink(missing_ok=True)
    shard = sorted(stopped.glob("*.safetensors"))[0]
    kept = shard.stat().st_ino
    assert main([str(run.parent), str(tmp_path / "again"), "--shard-size", "30KB"]) == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == before
    assert (tmp_path / "again" / shard.name).stat().st_ino == kept

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    assert main([str(run.parent), str(tmp_path / "mine")]) == 2
    assert "is no export" in capsys.readouterr().err


def test_another_tokenizer(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of the same size would put the rows into an order that means nothing."""
    other = tmp_path / "other"
    encoder = SentencePieceEncoder(vocab_size=run.corpus.tokenizer.size)
    text = tmp_path / "text.txt"
    text.write_text(Path(inspect.__file__).read_text())
    prepare(Source((text,)), other, encoder)
    command = [str(run.parent), str(tmp_path / "out"), "--tokenizer"]
    assert main([*command, str(other / "tokenizer")]) == 2
    assert "is not the tokenizer that the model was trained with" in capsys.readouterr().err
    assert main([*command, str(run.corpus.path / "tokenizer")]) == 0


def test_two_at_once(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A second export into the same folder is refused, whatever it is of, and what the first has written stays."""
    work = tmp_path / ".out.partial"
    work.mkdir()
    (work / "model.safetensors").write_text("of the first")
    with Lock(work / "lock"):
        assert run_ranks(1, lambda rank: main([str(run.parent), str(tmp_path / "out")]), tmp_path / "store") == [2]
    assert "must not write one folder" in capfd.readouterr().err
    assert (work / "model.safetensors").read_text() == "of the first"
    assert main([str(run.parent), str(tmp_path / "out")]) == 0  # its folder was of no export like this one
    assert not work.exists()
    assert not (tmp_path / "out" / "lock").exists()


def test_a_table_of_rotary_frequencies(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers turns the pairs as the table says, beyond the longest sample too; and imported again it is there."""
    source, folder = tmp_path / "step-00000020", tmp_path / "out"
    table = (1.0, 0.3, 0.02, 0.5)
    rewrite(run.parent, source, {}, rope_frequencies=table)
    assert main([str(source), str(folder)]) == 0
    model = AutoModelForCausalLM.from_pretrained(folder)
    with Reader(source) as reader, torch.no_grad():
        arch = Architecture.from_json(reader.manifest.architecture)
        assert arch.rope_frequencies == table
        order = torch.from_numpy(run.corpus.tokenizer.stock_order(arch.sizes["vocab"]))
        ids = torch.randint(arch.sizes["vocab"], (2, 70), generator=torch.Generator().manual_seed(0))
        expected = reference.logits(reader.read, arch, ids)
        plain = reference.logits(reader.read, arch.replace(rope_frequencies=()), ids)
        found = model(order[ids]).logits[..., order]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (plain - expected).abs().max() > 1e-2 * expected.abs().max()
    again = LLAMA.architecture(json.loads((folder / "config.json").read_text()), "config.json")
    assert again.rope_frequencies == pytest.approx(table, rel=1e-12)


def test_what_cannot_be_exported(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(run.parent, tmp_path / "step-00000020", {}, softmax_scale=0.5)
    assert main([str(tmp_path / "step-00000020"), str(tmp_path / "out")]) == 2
    assert "softmax scale is 0.5" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no export of the family 'gpt5' yet"):
        form_of("gpt5")


def test_sizes() -> None:
    assert [bytes_of(t) for t in ("4GB", "500mb", "30 KB")] == [4 * 10**9, 500 * 10**6, 30_000]
    for wrong in ("4", "GB", "0MB", "1.5GB"):
        with pytest.raises(UserError, match="shard-size"):
            bytes_of(wrong)


TOOLS = ("show", "verify", "grow", "learn_growth", "export_hf", "import_hf")


def test_they_start_without_megatron() -> None:
    """None of the tools on checkpoints needs the training stack; each has help with an example."""
    code = f"""
import contextlib, importlib, sys
for tool in {TOOLS}:
    with contextlib.suppress(SystemExit):
        importlib.import_module(f"tools.{{tool}}").main(["--help"])
    slow = {{"megatron", "deepspeed", "transformers"}} & {{name.split(".")[0] for name in sys.modules}}
    assert not slow, (tool, slow)
    print("end of help")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for tool, said in zip(TOOLS, done.stdout.split("end of help\n"), strict=False):
        assert "example" in said
        assert f"python tools/{tool}.py" in said
        assert "--json" in said


def test_to_a_url(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same files, and the list of them, last; not where there is one already. Nothing of it stays here."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    url = f"file://{tmp_path / 'bucket'}"
    assert main([str(run.folder), str(tmp_path / "here")]) == 0
    assert main([str(run.folder), url]) == 0
    assert f"{url}: " in capsys.readouterr().out
    listed = json.loads((tmp_path / "bucket/blocks.json").read_text())["files"]
    files = {file.name: file.read_bytes() for file in (tmp_path / "here").iterdir()}
    assert files == {name: (tmp_path / "bucket" / name).read_bytes() for name in listed}
    assert not list((tmp_path / "cache/exports").iterdir())
    assert main([str(run.folder), url]) == 2
    assert "there is something already" in capsys.readouterr().err
