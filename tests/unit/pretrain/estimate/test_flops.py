"""Model FLOPs against PyTorch's own counter on transformers' models, whose eager attention computes nothing again."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MegatronBertConfig,
    MegatronBertForMaskedLM,
)

from growth import Architecture
from growth.family import family as growth_family
from growth.span import Span
from pretrain.estimate import flops
from pretrain.layout import Layout

SEQ_LEN = 48


def llama2(hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, ffn: int, vocab: int) -> torch.nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=ffn,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )


def gpt2(hidden: int, layers: int, heads: int, head_dim: int, ffn: int, vocab: int) -> torch.nn.Module:
    assert heads * head_dim == hidden
    shape = dict(n_embd=hidden, n_layer=layers, n_head=heads, n_inner=ffn, vocab_size=vocab, n_positions=SEQ_LEN)
    return GPT2LMHeadModel(GPT2Config(**shape, attn_implementation="eager"))


def bert(hidden: int, layers: int, heads: int, head_dim: int, ffn: int, vocab: int) -> torch.nn.Module:
    assert heads * head_dim == hidden
    shape = dict(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ffn)
    return MegatronBertForMaskedLM(MegatronBertConfig(**shape, vocab_size=vocab, attn_implementation="eager"))


MODELS = {"llama2": llama2, "gpt2": gpt2, "bert": bert}


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama2", dict(hidden=64, layers=3, heads=4, kv_heads=4, head_dim=16, ffn=176, vocab=500)),
        ("llama2", dict(hidden=96, layers=2, heads=6, kv_heads=2, head_dim=32, ffn=256, vocab=300)),
        ("gpt2", dict(hidden=64, layers=2, heads=4, head_dim=16, ffn=256, vocab=300)),
        ("bert", dict(hidden=96, layers=2, heads=6, head_dim=16, ffn=384, vocab=300)),
    ],
)
def test_against_the_flop_counter(family: str, sizes: dict[str, int]) -> None:
    model = MODELS[family](**sizes)
    rest = {axis: 4 for axis in growth_family(family).axes if axis not in sizes}  # they take no part in a product
    arch = Architecture(family, {**sizes, **rest})
    with FlopCounterMode(display=False) as counter:
        loss = model(torch.zeros(2, SEQ_LEN, dtype=torch.long)).logits.sum()
        forward = counter.get_total_flops()
        loss.backward()
    # RoPE's outer product is the only product that we leave out.
    assert flops.forward(arch, SEQ_LEN).total == pytest.approx(forward / 2, rel=1e-2)
    assert flops.training_flops(arch, SEQ_LEN) == pytest.approx(counter.get_total_flops() / 2 / SEQ_LEN, rel=1e-2)


def test_llama_2_7b_is_six_times_its_parameters_and_the_attention() -> None:
    sizes = dict(vocab=32000, hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, ffn=11008)
    arch = Architecture("llama2", sizes)
    matrices = arch.parameters() - 32000 * 4096 - (2 * 32 + 1) * 4096  # neither the look-up nor the norms
    assert flops.training_flops(arch, 4096) == 6 * matrices + 12 * 32 * 4096 * 4096


def test_mfu_and_peaks() -> None:
    assert flops.mfu(4e10, 3900, gpus=1, peak_flops=312e12) == pytest.approx(0.5)
    assert flops.mfu(4e10, 3900 * 8, gpus=8, peak_flops=312e12) == pytest.approx(0.5)
    assert flops.peak_flops("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert flops.peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert flops.peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert flops.peak_flops("cpu", "fp32") is None


def test_a_growth_event_costs_its_certificate() -> None:
    sizes = dict(vocab=500, hidden=64, heads=4, kv_heads=4, head_dim=16, ffn=176)
    old, new = (Architecture("llama2", {**sizes, "layers": layers}) for layers in (2, 4))
    before, after = (flops.forward(arch, SEQ_LEN).total for arch in (old, new))
    found = flops.event_flops(old, new, Layout.make(4, dp=2), SEQ_LEN, 3)
    assert found == 3 * 2 * (before + after + 3 * before + 3 * 3 * after)
    # Its heads are too few for the new model's tensor parallelism: twice as many ranks compute all of it.
    few = old.replace({"heads": 1, "kv_heads": 1})
    found = flops.event_flops(few, new, Layout.make(4, tp=2, dp=2), SEQ_LEN, 3)
    assert found == 3 * (4 * 4 * flops.forward(few, SEQ_LEN).total + 2 * 10 * after)


def test_of_a_memory() -> None:
    """Keys and values are made of what is remembered, and each token is related with it."""
    sizes = dict(hidden=96, layers=2, heads=6, kv_heads=2, head_dim=32, ffn=256, vocab=300)
    arch, remembered = Architecture("llama2", sizes), 80
    with_it, without = (flops.forward(arch, SEQ_LEN, seen=seen).total for seen in (SEQ_LEN + remembered, None))
    keys_and_values = 2 * remembered * 96 * (2 * 2 * 32)
    scores = 2 * 2 * SEQ_LEN * remembered * (6 * 32)
    assert with_it - without == 2 * (keys_and_values + scores)


def test_of_a_memory_that_spans_do_not_reach() -> None:
    """Keys and values are made of what the longest span reaches, in whole blocks."""
    sizes = dict(hidden=96, layers=2, heads=6, kv_heads=2, head_dim=32, ffn=256, vocab=300)
    arch = Architecture("llama2", sizes, span=Span(max=60, ramp=32))  # 128 tokens before a block of 64
    with_it, without = (flops.forward(arch, 256, seen=seen).total for seen in (256 + 512, None))
    assert with_it - without == 2 * 2 * 128 * 96 * (2 * 2 * 32)
