"""GPT-2 and BERT into transformers and back: the same files, the same logits, the same tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from growth import Architecture, Box, Generations
from pretrain.checkpoint import Reader, write_checkpoint
from pretrain.data.tokenizers.wordpiece import SPECIALS
from pretrain.errors import UserError
from pretrain.families import reference
from pretrain.families.bert.reference import REFERENCE as BERT_REFERENCE
from pretrain.hf.export import export
from pretrain.hf.imports import import_model
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.unit.tools.runs import random_model

SIZES = {"vocab": 40, "positions": 12, "hidden": 24, "layers": 3, "heads": 4, "head_dim": 6, "ffn": 40}
GPT2 = Architecture("gpt2", SIZES, {"norm_eps": 1e-3})
BERT = Architecture("bert", {**SIZES, "types": 2, "labels": 2}, {"norm_eps": 1e-3})
IDS = torch.randint(0, 40, (3, 10), generator=torch.Generator().manual_seed(0))


def saved(folder: Path, arch: Architecture) -> Path:
    """transformers' own folder of a drawn model made from a config."""
    torch.manual_seed(0)
    if arch.family == "gpt2":
        model: Any = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=40,
                n_positions=12,
                n_embd=24,
                n_layer=3,
                n_head=4,
                n_inner=40,
                layer_norm_epsilon=1e-3,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    else:
        model = transformers.MegatronBertForPreTraining(
            transformers.MegatronBertConfig(
                vocab_size=40,
                hidden_size=24,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=40,
                max_position_embeddings=12,
                layer_norm_eps=1e-3,
                pad_token_id=30,
            )
        )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    if arch.family == "bert":
        pieces = [*(f"w{c}" for c in "abcdefghijklmnopqrstuvwxyz"), *(f"[unused{i}]" for i in range(4)), *SPECIALS]
        (folder / "vocab.txt").write_text("\n".join([*pieces, *"vwxyz"]) + "\n")
    return folder


def logits(folder: Path, arch: Architecture, ids: torch.Tensor) -> torch.Tensor:
    """transformers' logits of the words."""
    kind = "GPT2LMHeadModel" if arch.family == "gpt2" else "MegatronBertForPreTraining"
    with torch.no_grad():
        found = getattr(transformers, kind).from_pretrained(folder).eval()(ids)
    return found.logits if arch.family == "gpt2" else found.prediction_logits


@pytest.mark.parametrize("arch", [GPT2, BERT], ids=lambda arch: arch.family)
def test_import_and_export(arch: Architecture, tmp_path: Path) -> None:
    """The reference model agrees with transformers, whatever the order of the vocabulary; the way back is exact."""
    source = saved(tmp_path / "source", arch)
    found = import_model(source, tmp_path / "run/first")
    assert found.vocabulary["order"] == ("identity" if arch.family == "gpt2" else "merge age")
    theirs = logits(source, arch, IDS)
    with Reader(found.checkpoint) as reader:
        assert Architecture.from_json(reader.manifest.architecture) == arch
        order = torch.arange(40)  # row of the checkpoint -> row of the model
        if arch.family == "bert":
            words = reader.read("weight", "bert.embeddings.word_embeddings.weight", Box.whole((40, 24)))
            stock = transformers.MegatronBertForPreTraining.from_pretrained(source).get_input_embeddings().weight
            order = torch.tensor([int((stock == row).all(1).nonzero()[0, 0]) for row in words])
            assert not torch.equal(order, torch.arange(40))
        back = torch.argsort(order)
        ours = reference.logits(reader.read, arch, back[IDS])[..., back]
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    export(found.checkpoint, tmp_path / "again", shard_bytes=1 << 30)
    assert torch.equal(logits(tmp_path / "again", arch, IDS), theirs)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


@pytest.mark.parametrize("arch", [GPT2, BERT], ids=lambda arch: arch.family)
def test_export_in_shards(arch: Architecture, tmp_path: Path) -> None:
    """A drawn checkpoint, in several files; both heads of BERT."""
    values = random_model(arch)
    state = State(arch, Generations.first(arch), (Birth(0, "first", 0),), Progress(), None)
    imported = {"name": "x", "config": {}, "vocabulary": {"order": "identity", "tokenizer": None, "reason": "none"}}
    fields = state.fields("first", {}, [0])
    fields = type(fields)(**{**vars(fields), "events": ({"stage": "first", "imported": imported},)})
    path = tmp_path / "step-00000000"
    write_checkpoint(path, 0, ["weight"], lambda kind, name, box: values[kind, name][box.slices()], fields, {})
    export(path, tmp_path / "out", shard_bytes=8000, tokenizer=tmp_path)  # there are no files of one
    assert (tmp_path / "out/model.safetensors.index.json").exists()

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return values[kind, name][box.slices()]

    ours, theirs = reference.logits(read, arch, IDS), logits(tmp_path / "out", arch, IDS)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    if arch.family == "bert":
        types = (torch.arange(10) > 4).long().expand_as(IDS)
        model = transformers.MegatronBertForPreTraining.from_pretrained(tmp_path / "out").eval()
        with torch.no_grad():
            found = model(IDS, token_type_ids=types)
        for mine, their in zip(
            BERT_REFERENCE(read, arch, {"inputs": IDS, "types": types}, torch.float32).values(),
            (found.prediction_logits, found.seq_relationship_logits),
            strict=True,
        ):
            assert (mine - their).abs().max() <= 1e-5 * their.abs().max()


def test_what_transformers_cannot_express(tmp_path: Path) -> None:
    from pretrain.hf import form_of

    with pytest.raises(UserError, match="always add up to the hidden size"):
        form_of("gpt2").config(GPT2.replace({"head_dim": 8}))
    config = form_of("bert").config(BERT)
    with pytest.raises(UserError, match="hidden_act = 'relu'"):
        form_of("bert").architecture({**config, "hidden_act": "relu"}, "config.json")
    with pytest.raises(UserError, match="n_embd = None must be there"):
        form_of("gpt2").architecture({**form_of("gpt2").config(GPT2), "n_embd": None}, "config.json")


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """The folder's weights, changed."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone().contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(tensors, file, metadata={"format": "pt"})


TIED = [
    (GPT2, "lm_head.weight", "transformer.wte.weight"),
    (BERT, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    (BERT, "cls.predictions.decoder.bias", "cls.predictions.bias"),
]


@pytest.mark.parametrize(("arch", "name", "other"), TIED, ids=lambda x: x if isinstance(x, str) else "")
def test_an_output_layer_of_its_own(
    arch: Architecture, name: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the embedding, transformers takes it as it is: so it must be equal, to its last row, or is refused."""
    monkeypatch.setattr("pretrain.hf.weights.PIECE", 400)  # several pieces
    source = saved(tmp_path / "source", arch)
    theirs = logits(source, arch, IDS)
    rewritten(source, lambda tensors: {**tensors, name: tensors[other]})
    assert torch.equal(logits(source, arch, IDS), theirs)
    found = import_model(source, tmp_path / "run/equal")
    export(found.checkpoint, tmp_path / "again", shard_bytes=1 << 30)
    assert torch.equal(logits(tmp_path / "again", arch, IDS), theirs)
    last = torch.arange(40) == 39
    last = last.view(40, 1) if name.endswith("weight") else last
    rewritten(source, lambda tensors: {**tensors, name: tensors[other] + last})
    assert not torch.equal(logits(source, arch, IDS), theirs)
    with pytest.raises(UserError, match=f"source: {name} is not {other}: an output layer of its own"):
        import_model(source, tmp_path / "run/own")
    rewritten(source, lambda tensors: {**tensors, name: tensors[other][:-1]})
    with pytest.raises(UserError, match=f"source: {name} is not {other}: an output layer of its own"):
        import_model(source, tmp_path / "run/shorter")


def bare(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2's tensors as openai-community/gpt2 has them: those of the model without its output layer, and masks."""
    mask = torch.ones(12, 12).tril().view(1, 1, 12, 12)
    buffers = {f"h.{layer}.attn.bias": mask for layer in range(3)}
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()} | buffers


def test_gpt2_without_its_output_layer(tmp_path: Path) -> None:
    """Names without "transformer." are the same model, which goes out again with it; an output layer beside them must
    be the embedding here too."""
    source = saved(tmp_path / "source", GPT2)
    usual, theirs = (source / "model.safetensors").read_bytes(), logits(source, GPT2, IDS)
    rewritten(source, bare)
    assert torch.equal(logits(source, GPT2, IDS), theirs)
    found = import_model(source, tmp_path / "run/bare")
    export(found.checkpoint, tmp_path / "again", shard_bytes=1 << 30)
    assert (tmp_path / "again/model.safetensors").read_bytes() == usual
    rewritten(source, lambda tensors: {**tensors, "lm_head.weight": tensors["wte.weight"] + 1})
    assert not torch.equal(logits(source, GPT2, IDS), theirs)
    with pytest.raises(UserError, match=r"lm_head.weight is not wte.weight"):
        import_model(source, tmp_path / "run/own")


def test_bert_without_its_heads(tmp_path: Path) -> None:
    """They would be drawn anew."""
    source = saved(tmp_path / "source", BERT)
    rewritten(source, lambda t: {k.removeprefix("bert."): v for k, v in t.items() if k.startswith("bert.")})
    with pytest.raises(UserError, match=r"of the config are not there, such as bert\.embeddings"):
        import_model(source, tmp_path / "run/bare")
