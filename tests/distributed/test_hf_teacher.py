"""A BERT of Devlin's kind out of a Hugging Face folder as a teacher, beside transformers' own attentions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from growth import Architecture
from pretrain import config
from pretrain.checkpoint import find
from pretrain.config import Distill
from pretrain.config.teachers import held
from pretrain.data.corpus.encoders import WordPieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.data.tokenizers.wordpiece import SPECIALS, WordPiece
from pretrain.engine.whole_teacher import WholeTeacher
from pretrain.estimate import cost, teaching
from pretrain.estimate.flops import forward, hardware_flops
from pretrain.estimate.speed import GPUS
from pretrain.estimate.teaching import Taught, teaching_flops
from pretrain.families.hf_teachers import hf_teacher
from pretrain.layout.work import work_of
from pretrain.runtime.ranks import agreed
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_families import BERT
from tests.distributed.test_flops import ON_CPU
from tests.distributed.test_layouts import LAYOUTS, assemble, world
from tests.distributed.test_stage import stage, state

HEADS, LAYERS = 4, 3
CASES = [
    Distill(kind="minilm"),
    Distill(kind="minilm2", relation_heads=8, teacher_layer=2),
    Distill(kind="logits", temperature=2.0),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of sentences of drawn words."""
    folder, draw = tmp_path_factory.mktemp("words"), np.random.default_rng(0)
    known = ["".join(draw.choice(list("abcdefgh"), size=draw.integers(2, 7))) for _ in range(60)]
    with (folder / "text.jsonl").open("w") as out:
        for _ in range(40):
            sentences = [" ".join(draw.choice(known, size=8)).capitalize() + "." for _ in range(6)]
            print(json.dumps({"text": " ".join(sentences)}), file=out)
    prepare(Source((folder / "text.jsonl",)), folder / "prepared", WordPieceEncoder(vocab_size=101))
    return folder / "prepared"


def saved(folder: Path, ours: WordPiece, seed: int) -> Path:
    """A drawn model that knows the pieces of a tokenizer by other ids: words, signs, and specials last.

    Its LayerNorms have the names that they have in what Google published.
    """
    least = ours.least
    pieces = [*ours.pieces[least:], *ours.pieces[len(SPECIALS) : least], *ours.pieces[: len(SPECIALS)]]
    torch.manual_seed(seed)
    sizes = dict(hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=48)
    how = dict(vocab_size=len(pieces), max_position_embeddings=40, initializer_range=0.3)
    transformers.BertForPreTraining(transformers.BertConfig(**sizes, **how)).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    published = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for name in [name for name in weights if name.endswith(tuple(published))]:
        base, ending = name.split("LayerNorm.")
        weights[base + published[f"LayerNorm.{ending}"]] = weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder


@pytest.fixture(scope="module")
def teacher(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("teacher") / "bert", WordPiece.load(words / "tokenizer"), 1)


def student_of(words: Path, distill: Distill) -> Architecture:
    sizes = {"vocab": WordPiece.load(words / "tokenizer").size, "layers": 2}
    return BERT.replace({**sizes, "heads": HEADS if distill.kind == "minilm" else 2})


def taught(hows: list[dict[str, Any]], folder: str, words: str) -> list[Any]:
    """Per layout and case ([(loss, grad norm)] of two steps, the values after them; in one process FLOPs of a token and
    the first loss by hand)."""
    found = []
    for how, distill in product(hows, CASES):
        engine = ranks.engine_for(student_of(Path(words), distill), how)
        ranks.begin(engine)
        known = agreed(lambda: hf_teacher(Path(folder)))  # from rank to rank, as a stage has it
        assert known == hf_teacher(Path(folder))
        assert known is not None
        engine.learn_from(WholeTeacher(known, engine.layout, ranks.FP32, distill, ranks.SEQ_LEN))
        data = ranks.batches(engine.arch, 2)
        alone, flops, expected = engine.layout.world == 1, None, None
        if alone:
            expected = by_hand(engine, distill, folder, words, data[0])
        losses = ranks.train(engine, data)
        values = ranks.collected(engine)
        if alone:
            with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
                engine.backward(data[0])
            flops = counter.get_total_flops() // (ranks.GLOBAL_BATCH * ranks.SEQ_LEN)
        found.append((losses, values, flops, expected))
        engine.free()
    return found


@torch.no_grad()
def by_hand(engine: Any, distill: Distill, folder: str, words: str, samples: Any) -> float:
    """The mean divergence of a batch, out of the attentions and logits that transformers gives."""
    model = transformers.BertForPreTraining.from_pretrained(folder, attn_implementation="eager").eval()
    lines = (Path(folder) / "vocab.txt").read_text().splitlines()
    theirs = torch.tensor([lines.index(piece) for piece in WordPiece.load(Path(words) / "tokenizer").pieces])
    caught: list[Tensor] = []
    layer = distill.teacher_layer or LAYERS
    attention = model.bert.encoder.layer[layer - 1].attention.self
    for part in (attention.query, attention.key, attention.value):
        part.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    output = model(
        input_ids=theirs[samples["inputs"]],
        token_type_ids=samples["types"],
        attention_mask=samples["valid"].long(),
        output_attentions=True,
    )
    valid, (chunk,) = samples["valid"], engine.chunks
    if distill.kind == "logits":
        student = engine.family.model.logits(chunk, samples)
        p, q = ((x / distill.temperature).softmax(-1) for x in (output.prediction_logits[..., theirs], student))
        each = distill.temperature**2 * (p * (p / q).log()).sum(-1)
        return float((each * samples["mask"]).sum() / samples["mask"].sum())
    seen: list[Any] = []
    engine.teacher._run(chunk, samples, seen.append, leave=True)
    ours = [x.transpose(0, 1).flatten(2) for x in seen[0][:3]]
    if distill.kind == "minilm":
        pairs = [
            (output.attentions[layer - 1], relation(ours[0], ours[1], HEADS, valid)),
            tuple(relation(x, x, HEADS, valid) for x in (caught[2], ours[2])),
        ]
    else:
        heads = distill.relation_heads
        pairs = [tuple(relation(x, x, heads, valid) for x in pair) for pair in zip(caught, ours, strict=True)]
    total = sum((p * (p / q).where(p > 0, torch.ones(())).log()).sum(-1).mean(1) for p, q in pairs)
    return float((total * valid).sum() / valid.sum())


def relation(a: Tensor, b: Tensor, heads: int, valid: Tensor) -> Tensor:
    """softmax(a b^T / sqrt(width)) of [B, S, C] in so many heads, of each token to all that are no padding."""
    a, b = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (a, b))
    scores = a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5
    return scores.masked_fill(~valid.bool()[:, None, None], -torch.inf).softmax(-1)


@pytest.fixture(scope="module")
def one_process(teacher: Path, words: Path) -> Any:
    return run(1, taught, [{}], str(teacher), str(words))[0]


def test_losses_are_those_of_transformers_attentions(one_process: Any) -> None:
    """The vocabulary in another order."""
    for distill, (losses, *_, expected) in zip(CASES, one_process, strict=True):
        assert expected > 1e-2
        np.testing.assert_allclose(losses[0][0], expected, rtol=1e-5, err_msg=str(distill))


@pytest.mark.parametrize("names", [("tp2-sp", "dp2"), ("tp2-dp2",)], ids="+".join)
def test_every_layout_agrees_with_one_process(
    names: tuple[str, ...], one_process: Any, teacher: Path, words: Path
) -> None:
    """Losses, gradient norms and what Adam has of two steps."""
    hows = [{"tp": 2, "dp": 2} if name == "tp2-dp2" else LAYOUTS[name] for name in names]
    found = run(world(hows[0]), taught, hows, str(teacher), str(words))
    for number, distill in enumerate(CASES * len(hows)):
        losses, values, *_ = one_process[number % len(CASES)]
        for rank in found:
            np.testing.assert_allclose(rank[number][0], losses, rtol=1e-5, err_msg=str(distill))
        arch = student_of(words, distill)
        expected = assemble(arch, [values])
        for key, value in assemble(arch, [rank[number][1] for rank in found]).items():
            if key[0] != "weight":  # the root of tiny second moments magnifies rounding of the gradients
                np.testing.assert_allclose(value, expected[key], atol=1e-5, err_msg=str(key))


def test_what_it_costs_is_counted(one_process: Any, teacher: Path, words: Path) -> None:
    """FLOPs as they are run; of every tensor-parallel rank its own. Parameters as transformers has them."""
    known = hf_teacher(teacher)
    assert known is not None
    model = transformers.BertForPreTraining.from_pretrained(teacher)
    assert known.arch.parameters() == sum(p.numel() for p in model.parameters())
    for distill, (*_, found, _) in zip(CASES, one_process, strict=True):
        student, what = student_of(words, distill), Taught(held(known.arch, distill), distill, whole=True)
        one, two, three = (teaching_flops(student, what, ranks.SEQ_LEN, tp) for tp in (1, 2, 3))
        expected = hardware_flops(student, ranks.SEQ_LEN) + one
        if distill.kind != "logits":  # the student's last attention does not run
            expected -= work_of(student, ranks.SEQ_LEN)[-1].scores // 2 / ranks.SEQ_LEN
        assert found == pytest.approx(expected, rel=1e-2), distill
        assert three - two == pytest.approx(two - one)
        assert two - one > forward(known.arch, ranks.SEQ_LEN).blocks[0].total / ranks.SEQ_LEN


def curriculum(folder: Path, words: Path, teacher: Path) -> Path:
    """A stage of five steps that learns from the model in a folder."""
    vocab = WordPiece.load(words / "tokenizer").size
    found = {
        "name": "run",
        "output": str(folder),
        "data": {"corpus": str(words), "validation_fraction": 0.1},
        "train": {"seq_len": 32, "global_batch": 4, "micro_batch": 2, "lr": 3e-3, "precision": "fp32"}
        | {"tokens": 5 * 4 * 32, "eval_bytes": 512},
        "checkpoint": {"interval": 100},
        "log": {"interval": 1, "wandb": False},
        "stages": [
            {
                "name": "student",
                "model": {"family": "bert", "vocab": vocab, "hidden": 16, "layers": 1, "heads": 2, "ffn": 32},
                "distill": {"teacher": str(teacher), "relation_heads": 8},
            }
        ],
    }
    folder.mkdir(exist_ok=True)
    path = folder / "curriculum.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


def all_of(alone: str, cut: str, teachers: Sequence[str]) -> list[str]:
    """What users are told of a stage, and of one that is stopped and then called with each of these teachers."""
    said = [stage(alone, "student", []), stage(cut, "student", [], 2)]
    return [*said, *(stage(cut, "student", ["--distill.teacher", teacher]) for teacher in teachers)]


def unlike(teacher: Path, folder: Path) -> dict[Path, str]:
    """Folders with one thing that is not as it should be, and what is said of them."""
    said = {
        "pickled": "pytorch_model.bin: a pickle can run any program",
        "wordless": "has no vocab.txt",
        "cased": "was trained with another tokenizer",
        "smaller": "has 90 pieces and this stage model.vocab",
        "decoding": "is_decoder = True",
        "foreign": "of a model of type 'roberta'; import it first, python tools/import_hf.py",
    }
    pickled, wordless, cased, smaller, decoding, foreign = folders = [folder / name for name in said]
    for each in folders:
        shutil.copytree(teacher, each)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (wordless / "vocab.txt").unlink()
    (cased / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    (smaller / "vocab.txt").write_text("\n".join((teacher / "vocab.txt").read_text().splitlines()[-90:]) + "\n")
    written = json.loads((teacher / "config.json").read_text())
    for each, changes in (
        (smaller, {"vocab_size": 90}),
        (decoding, {"is_decoder": True}),
        (foreign, {"model_type": "roberta"}),
    ):
        (each / "config.json").write_text(json.dumps(written | changes))
    return dict(zip(folders, said.values(), strict=True))


def test_a_stage_is_taught_by_a_folder(words: Path, teacher: Path, tmp_path: Path) -> None:
    """Stopped and resumed it is the same bit for bit. Refused: what cannot teach it, and at a resume another teacher;
    the same one in another place is not."""
    alone, cut = (curriculum(tmp_path / name, words, teacher) for name in ("alone", "cut"))
    other = saved(tmp_path / "other", WordPiece.load(words / "tokenizer"), 2)
    wrong = unlike(teacher, tmp_path)
    moved = shutil.copytree(teacher, tmp_path / "moved")
    teachers = [str(folder) for folder in (*wrong, other, moved)]
    first, begun, *refused, last = run(1, all_of, str(alone), str(cut), teachers)[0]
    assert (first, begun, last) == ("", "", "")
    for said, expected in zip(refused, [*wrong.values(), "distill.teacher_hash"], strict=True):
        assert expected in said
    one, two = (state(tmp_path / name / "run/student/checkpoints") for name in ("alone", "cut"))
    for key, value in one.items():
        assert np.array_equal(value, two[key]), key
    manifest = find(tmp_path / "cut/run/student/checkpoints").manifest
    assert manifest is not None
    assert manifest.config["distill"]["teacher_hash"] == hf_teacher(teacher).hash
    records = [json.loads(line) for line in (tmp_path / "alone/run/student/metrics.jsonl").read_text().splitlines()]
    assert len([record for record in records if "distill_loss" in record]) == 5


def test_the_plan_counts_it(words: Path, teacher: Path, tmp_path: Path) -> None:
    loaded = config.load(curriculum(tmp_path, words, teacher))
    taught = teaching.taught(loaded, loaded.stages[0])
    known = hf_teacher(teacher)
    assert known is not None
    assert taught == Taught(known.arch, loaded.stages[0].distill, whole=True)
    (of_stage,) = cost.of_curriculum(loaded, gpu=GPUS["a100-80gb"], gpus_per_node=1)
    assert of_stage.memory.teacher == 4 * known.arch.parameters()
