"""FLOPs against PyTorch's own counter on transformers' model."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from growth import Architecture
from pretrain import flops


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "seq_len"),
    [(64, 3, 4, 4, 16, 176, 500, 96), (96, 2, 6, 2, 32, 256, 300, 40)],
)
def test_against_the_flop_counter(
    hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, ffn: int, vocab: int, seq_len: int
) -> None:
    sizes = dict(
        vocab=vocab, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ffn=ffn
    )
    model = LlamaForCausalLM(
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
    with FlopCounterMode(display=False) as counter:
        loss = model(torch.zeros(2, seq_len, dtype=torch.long), use_cache=False).logits.sum()
        forward = counter.get_total_flops()
        loss.backward()
    expected = flops.forward_flops_per_token(Architecture("llama2", sizes), seq_len)
    # RoPE's outer product is the only product that we leave out.
    assert sum(expected.values()) == pytest.approx(forward / (2 * seq_len), rel=1e-2)
    assert flops.training_flops(Architecture("llama2", sizes), seq_len) == pytest.approx(
        counter.get_total_flops() / (2 * seq_len), rel=1e-2
    )


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
