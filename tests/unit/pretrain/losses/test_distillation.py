"""What is learned from a teacher, beside a slow reference with the attention of transformers' models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.losses import relations
from pretrain.losses.relations import Attended, divergence
from pretrain.losses.soft_labels import SoftLabels

BATCH, LENGTH, VOCAB = 3, 10, 37
SHAPES = {"teacher": (32, 4), "student": (16, 4), "other": (24, 2)}
KINDS = [("bert", "minilm"), ("bert", "minilm2"), ("gpt2", "minilm"), ("gpt2", "minilm2")]


@pytest.fixture(scope="module")
def samples() -> dict[str, Tensor]:
    """Of three lengths; padding is at the end."""
    torch.manual_seed(0)
    valid = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [7], [4]])).float()
    return {"inputs": torch.randint(VOCAB, (BATCH, LENGTH)), "valid": valid}


def model_of(family: str, name: str) -> torch.nn.Module:
    import transformers

    hidden, heads = SHAPES[name]
    how: dict[str, Any] = dict(vocab_size=VOCAB, attn_implementation="eager")
    torch.manual_seed(hidden)
    if family == "bert":
        sizes = dict(hidden_size=hidden, num_hidden_layers=2, num_attention_heads=heads, intermediate_size=24)
        return transformers.BertModel(transformers.BertConfig(**sizes, **how)).double().eval()
    sizes = dict(n_embd=hidden, n_layer=2, n_head=heads, n_positions=LENGTH)
    return transformers.GPT2Model(transformers.GPT2Config(**sizes, **how)).double().eval()


def seen(family: str, name: str, model: torch.nn.Module, samples: dict[str, Tensor]) -> tuple[Tensor, Attended]:
    """The attention of the last layer as transformers has it, [B, N, S, S]; and what entered it."""
    caught: list[Tensor] = []
    core = model.encoder.layer[-1].attention.self if family == "bert" else model.h[-1].attn
    parts = [core.query, core.key, core.value] if family == "bert" else [core.c_attn]
    hooks = [part.register_forward_hook(lambda *_: caught.append(_[2])) for part in parts]
    found = model(samples["inputs"], attention_mask=samples["valid"], output_attentions=True).attentions[-1]
    for hook in hooks:
        hook.remove()
    qkv = caught if family == "bert" else caught[0].chunk(3, dim=-1)
    heads = SHAPES[name][1]
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in qkv)
    return found, Attended(q, k, v, q.shape[-1] ** -0.5, causal=family == "gpt2")


def slow(teacher: Tensor, student: Tensor, valid: Tensor, causal: bool) -> Tensor:
    """From the definition: of two relations [A, S, S] of each sample, token by token, over what a token may see."""
    heads, total = teacher.shape[1], torch.zeros((), dtype=torch.float64)
    for sample in range(BATCH):
        length = int(valid[sample].sum())
        for head in range(heads):
            for token in range(length):
                end = token + 1 if causal else length
                p, q = (x[sample, head, token, :end] for x in (teacher, student))
                total = total + (p * (p / q).log()).sum() / heads
    return total


def relation(x: Tensor, heads: int, valid: Tensor, causal: bool) -> Tensor:
    """softmax(x x^T / sqrt(width)) of [S, B, N, H], its heads cut anew into `heads`."""
    joined = x.transpose(0, 1).flatten(2)
    parts = joined.chunk(heads, dim=-1)
    hidden = ~valid.bool()[:, None, :] | (torch.ones(LENGTH, LENGTH).triu(1).bool() if causal else False)
    scores = [(part @ part.transpose(1, 2)) / part.shape[-1] ** 0.5 for part in parts]
    return torch.stack([score.masked_fill(hidden, -torch.inf).softmax(-1) for score in scores], 1)


def reference(kind: str, ours: Any, theirs: Any, valid: Tensor) -> Tensor:
    (our_attention, student), (their_attention, teacher) = ours, theirs
    causal = student.causal
    if kind == "minilm":
        values = [relation(x.value, x.value.shape[2], valid, causal) for x in (teacher, student)]
        return slow(their_attention, our_attention, valid, causal) + slow(*values, valid, causal)
    parts = zip(teacher[:3], student[:3], strict=True)
    return sum(slow(relation(t, 8, valid, causal), relation(s, 8, valid, causal), valid, causal) for t, s in parts)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_values_and_gradients_are_those_of_the_definition(
    family: str, kind: str, samples: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of transformers' models in eager mode, in double precision, with padding; three heads at a time."""
    monkeypatch.setattr(relations, "CPU_CHUNK", 3 * BATCH * LENGTH * LENGTH)
    name = "student" if kind == "minilm" else "other"
    student, teacher = model_of(family, name), model_of(family, "teacher")
    with torch.no_grad():
        theirs = seen(family, "teacher", teacher, samples)
    found = []
    for way in (reference, None):
        student.zero_grad()
        ours = seen(family, name, student, samples)
        loss = (
            reference(kind, ours, theirs, samples["valid"]) if way else divergence(kind, ours[1], theirs[1], samples, 8)
        )
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in student.parameters() if p.grad is not None)])
    assert found[0][0] > 1e-3
    assert len(found[0]) == len(found[1])
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("kind", ["minilm", "minilm2"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: str, samples: dict[str, Tensor]) -> None:
    draw = torch.randn(3, LENGTH, BATCH, 4, 8).requires_grad_()
    same = Attended(*draw, 8**-0.5, causal=False)
    loss = divergence(kind, same, same, samples, 8)
    loss.backward()
    assert loss == 0
    assert not draw.grad.any()


def grouped() -> Iterator[Attended]:
    """Four query heads; two kv groups, and the same repeated."""
    torch.manual_seed(1)
    q, k, v = torch.randn(LENGTH, BATCH, 4, 8), *torch.randn(2, LENGTH, BATCH, 2, 8)
    yield Attended(q, k, v, 0.3, causal=True)
    yield Attended(q, *(torch.stack((x[:, :, 0], x[:, :, 0], x[:, :, 1], x[:, :, 1]), 2) for x in (k, v)), 0.3, True)


@pytest.mark.parametrize("kind", ["minilm", "minilm2"])
def test_shared_keys_and_values_are_repeated_for_their_queries(kind: str, samples: dict[str, Tensor]) -> None:
    shared, repeated = grouped()
    teacher = Attended(*torch.randn(3, LENGTH, BATCH, 4, 8), 0.3, causal=True)
    a, b = (divergence(kind, each, teacher, samples, 8) for each in (shared, repeated))
    torch.testing.assert_close(a, b)


def test_samples_without_padding_need_no_mask() -> None:
    inputs = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    student, teacher = (Attended(*torch.randn(3, LENGTH, BATCH, 4, 8), 0.3, causal=True) for _ in range(2))
    bare, full = {"inputs": inputs}, {"inputs": inputs, "valid": torch.ones(BATCH, LENGTH)}
    assert divergence("minilm2", student, teacher, bare, 8) == divergence("minilm2", student, teacher, full, 8)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_labels_are_those_of_the_definition(temperature: float) -> None:
    """Of transformers' logits, with tokens that do not count and rows that are padding of the vocabulary."""
    torch.manual_seed(2)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]).double()
    student = torch.randn(5, VOCAB + 3).double().requires_grad_()
    teacher = torch.randn(5, VOCAB + 3).double()
    value = SoftLabels.apply(student, teacher, weight, VOCAB, temperature, None)
    (found,) = torch.autograd.grad(value, student)
    p, q = ((x[:, :VOCAB] / temperature).softmax(-1) for x in (teacher, student))
    expected = (((p * (p / q).log()).sum(-1)) * weight).sum() * temperature**2
    (gradient,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close((value, found), (expected, gradient), rtol=1e-5, atol=1e-12)
    same = SoftLabels.apply(student, student.detach(), weight, VOCAB, temperature, None)
    assert same == 0
    assert not torch.autograd.grad(same, student)[0].any()
