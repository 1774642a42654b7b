"""A model that writes a unit of tokens at a time, in transformers and here: from prompts of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pretrain import families
from pretrain.errors import UserError
from pretrain.families.convolution_attention.padding import prompt
from pretrain.generate.sampling import Sampling
from pretrain.generate.write import continuation
from pretrain.hf.imports import import_model
from pretrain.report.continuation import says_next, writes
from tests.unit.pretrain.families.test_convolution_attention import SIZES, UNIT, architecture
from tests.unit.pretrain.hf.coded import close, exported, imports_as

ARCH = architecture((1, 1, 1, 1, 1, 1, 1)).replace(scalars={"norm_eps": 1e-3, "softmax_scale": 0.7})
IDS = torch.randint(SIZES["vocab"], (2, 65), generator=torch.Generator().manual_seed(0))
GREEDY: dict[str, Any] = {"how": Sampling(temperature=0), "seed": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """The export in transformers, what reads the checkpoint's tensors, and the folder."""
    to = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(to / "modules"))
        folder, read = exported(ARCH, to)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    return loaded, read, folder


def greedy(read: Any, ids: list[int], tokens: int) -> list[int]:
    """What the reference model says, by its own logits alone."""
    text = list(ids)
    while len(text) < len(ids) + tokens:
        said = families.of(ARCH.family).reference(read, ARCH, prompt(text, ARCH), torch.float32)["words"]
        text += said[0, -UNIT:].argmax(-1).tolist()
    return text[: len(ids) + tokens]


@pytest.mark.parametrize("length", [1, 63, 64, 65])
@torch.no_grad()
def test_it_writes_from_a_prompt_of_any_length(length: int, model: Any) -> None:
    """More than a unit, here and in transformers."""
    loaded, read, _ = model
    expected = [greedy(read, ids[:length].tolist(), 100) for ids in IDS]
    how: dict[str, Any] = {"max_new_tokens": 100, "do_sample": False}
    assert loaded.generate(IDS[:, :length], **how).tolist() == expected
    ours = list(continuation(read, ARCH, IDS[0, :length].tolist(), tokens=100, **GREEDY))
    assert IDS[0, :length].tolist() + ours == expected[0]
    padded, mask = (torch.nn.functional.pad(x[:, :length], (3, 0)) for x in (IDS, torch.ones_like(IDS)))
    assert loaded.generate(padded, attention_mask=mask, **how)[:, 3:].tolist() == expected


@torch.no_grad()
def test_its_logits_and_its_loss(model: Any) -> None:
    loaded, read, _ = model
    ids = torch.randint(SIZES["vocab"], (2, 128), generator=torch.Generator().manual_seed(1))
    expected = families.of(ARCH.family).reference(read, ARCH, {"inputs": ids}, torch.float32)["words"]
    close(loaded(ids).logits, expected)
    close(loaded(ids[:, -64:]).logits, loaded(ids[:, -64:], attention_mask=torch.ones(2, 64).long()).logits)
    loss = torch.nn.functional.cross_entropy(expected[:, :-UNIT].flatten(0, 1), ids[:, UNIT:].flatten())
    close(loaded(ids, labels=ids).loss, loss)


@torch.no_grad()
def test_where_a_text_ends(model: Any) -> None:
    """Behind the end of one text of a batch there is padding; and it writes no further than its positions."""
    loaded, read, _ = model
    whole = loaded.generate(IDS[:, :5], max_new_tokens=1000)
    assert whole.shape == (2, SIZES["positions"])
    end = int(whole[0, 9])
    cut = loaded.generate(IDS[:, :5], max_new_tokens=70, eos_token_id=end, pad_token_id=39)
    first = (whole[0, 5:] == end).nonzero()[0, 0] + 5
    assert cut[0, : first + 1].tolist() == whole[0, : first + 1].tolist()
    assert (cut[0, first + 1 :] == 39).all()
    ours = list(continuation(read, ARCH, IDS[0, :5].tolist(), tokens=70, ends={end}, **GREEDY))
    assert ours == whole[0, 5:first].tolist()
    with pytest.raises(ValueError, match="prompts of 192 tokens: give 1 to 191"):
        loaded.generate(whole)
    torch.manual_seed(0)
    drawn = [loaded.generate(IDS[:, :5], do_sample=True, top_k=3, top_p=0.9, temperature=0.7) for _ in range(2)]
    assert not torch.equal(*drawn)
    assert drawn[0].shape == (2, 5 + UNIT)


def test_the_way_back_is_exact(model: Any, tmp_path: Path) -> None:
    _, read, folder = model
    imports_as(folder, ARCH, read, tmp_path / "run/first")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"levels": [', '"levels": [-1, '))
    with pytest.raises(UserError, match=r"levels = .* must be a list of numbers of blocks"):
        import_model(folder, tmp_path / "run/second")


def test_what_scores_the_next_token_is_refused(model: Any) -> None:
    assert writes(model[2])
    assert not says_next(model[2])
