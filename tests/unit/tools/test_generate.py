"""Text that models write: with a cache what they write without one, as an export what transformers writes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from growth import Architecture
from growth.evaluate.box_values import Read
from pretrain.errors import UserError
from pretrain.families import of
from pretrain.families.common.reference import Continued, Remembering
from pretrain.families.reference import logits
from pretrain.generate.sampling import Sampling, choose
from pretrain.generate.write import continuation
from pretrain.hf.words import open_model
from tests.distributed.test_families import BERT, GPT2
from tests.distributed.test_transformer_xl import XL
from tests.unit.tools.runs import Run, random_model
from tools import report
from tools.export_hf import main as export
from tools.generate import main

SHARED = Architecture(
    "llama2",
    {"vocab": 60, "hidden": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "ffn": 24},
    calls=(0, 0, 1, 1),
)


def reading(arch: Architecture) -> Read:
    values = random_model(arch)
    return lambda kind, name, box: values[kind, name][box.slices()]


@pytest.mark.parametrize("arch", [SHARED, GPT2, XL], ids=lambda arch: arch.family)
def test_the_cache_changes_nothing(arch: Architecture) -> None:
    """Pieces of a text one after the other give the logits of the whole, also where blocks share a layer."""
    ids, read, text = torch.randint(0, 60, (2, 11)), reading(arch), Continued()
    model = of(arch.family).reference
    parts = [model(read, arch, text.by(part), torch.float64)["words"] for part in ids.split((4, 1, 1, 5), 1)]
    whole = logits(read, arch, ids, torch.float64)
    assert (torch.cat(parts, 1) - whole).abs().max() <= 1e-12 * whole.abs().max()


@pytest.mark.parametrize("arch", [SHARED, XL], ids=lambda arch: arch.family)
def test_the_cache_of_a_model_with_a_memory(arch: Architecture) -> None:
    """It rolls: each piece of a text sees what is remembered of the ones before, as in validation."""
    ids, read, text = torch.randint(0, 60, (2, 14)), reading(arch), Continued(memory=3)
    model, memory = of(arch.family).reference, list[torch.Tensor]()
    for part in ids.split((4, 1, 1, 1, 2, 5), 1):
        ours = model(read, arch, text.by(part), torch.float64)["words"]
        samples = Remembering({"inputs": part}, memory)
        theirs = model(read, arch, samples, torch.float64)["words"]
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()
        before = memory or [x[:, :0] for x in samples.inputs]
        memory = [torch.cat(pair, 1)[:, -3:] for pair in zip(before, samples.inputs, strict=True)]


def test_what_is_chosen() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.tensor([0.5, 0.1, 0.3, 0.1]).log()

    def chosen(**how: float) -> set[int]:
        return {choose(scores, Sampling(**{"temperature": 1.0, "top_p": 1.0, **how}), draw) for _ in range(200)}

    assert chosen(temperature=0.0) == {0}
    assert chosen() == {0, 1, 2, 3}
    assert chosen(top_k=2) == {0, 2}
    assert chosen(top_p=0.5) == {0}
    assert chosen(top_p=0.51) == {0, 2}
    assert chosen(top_k=3, top_p=0.9) == {0, 1, 2}
    assert chosen(temperature=0.01) == {0}


def test_where_it_ends() -> None:
    """With the positions, or before what ends a text; of a model that writes none, and without a prompt, nowhere."""
    how, read = Sampling(temperature=0.0), reading(GPT2)
    given = {"tokens": 100, "how": how, "seed": 0}
    whole = list(continuation(read, GPT2, [1, 2, 3], **given))
    assert len(whole) == GPT2.sizes["positions"] - 3
    assert list(continuation(read, GPT2, [1, 2, 3], ends={whole[2]}, **given)) == whole[: whole.index(whole[2])]
    for prompt in ([], [1] * GPT2.sizes["positions"]):
        with pytest.raises(UserError, match=f"a prompt of {len(prompt)} tokens: give 1 to 19"):
            next(continuation(read, GPT2, prompt, **given))
    with pytest.raises(UserError, match="a bert fills gaps in a text"):
        next(continuation(read, BERT, [1], **given))


def test_a_checkpoint_and_its_export(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both write what transformers writes, greedily; and the same seed the same."""
    assert export([str(run.folder), str(tmp_path / "export")]) == 0
    capsys.readouterr()
    prompt = "def parse(self"
    texts = []
    for model in (run.folder, tmp_path / "export"):
        asked = [str(model), "--prompt", prompt, "--tokens", "12", "--temperature", "0", "--json"]
        assert main(asked) == 0
        (said,) = json.loads(capsys.readouterr().out)["texts"]
        assert said["text"].startswith(prompt)
        texts.append(said["text"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    inputs = tokenizer(prompt, return_tensors="pt")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export").generate(
        **inputs, max_new_tokens=12, do_sample=False
    )
    assert texts == [tokenizer.decode(theirs[0], skip_special_tokens=True)] * 2
    (of_the_report,) = report._written(open_model(run.folder), [prompt])
    assert of_the_report.startswith(prompt)
    drawn = []
    for seed in ("1", "1", "2"):
        assert main([str(run.folder), "--tokens", "20", "--seed", seed]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]
    for key, value in (("--top-p", "0"), ("--top-k", "-1"), ("--temperature", "nan")):
        assert main([str(run.folder), key, value]) == 2
        assert f"{key} {value}" in capsys.readouterr().err
