"""The reference models are those of transformers, on the same logical tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from growth import Architecture, Box
from growth.certificate import relative_error
from growth.evaluate.box_values import Read
from pretrain import families
from pretrain.families.reference import logits
from tests.unit.growth.models import tokens, trained


def fill(state: Mapping[str, torch.Tensor], arch: Architecture, read: Read) -> None:
    """Copy every logical tensor into the tensor of the same name."""
    for name, tensor in arch.tensors().items():
        assert state[name].shape == tensor.shape
        state[name].copy_(read("weight", name, Box.whole(tensor.shape)))


def test_llama2() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab": 29, "hidden": 24, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 8, "ffn": 28}
    arch = Architecture("llama2", sizes, {"norm_eps": 1e-3, "rope_theta": 500.0})
    config = LlamaConfig(
        vocab_size=29,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=28,
        rms_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    assert set(model.state_dict()) == set(arch.tensors())
    read = trained(arch, dtype=torch.float32)
    fill(model.state_dict(), arch, read)
    ids = tokens(29, 2, 17)
    with torch.no_grad():
        assert relative_error(logits(read, arch, ids), model(ids).logits) < 1e-5


def test_bert() -> None:
    from transformers import MegatronBertConfig, MegatronBertForPreTraining

    sizes = {
        "vocab": 29,
        "positions": 20,
        "types": 2,
        "labels": 2,
        "hidden": 24,
        "layers": 2,
        "heads": 3,
        "head_dim": 8,
    }
    arch = Architecture("bert", {**sizes, "ffn": 28}, {"norm_eps": 1e-3})
    config = MegatronBertConfig(
        vocab_size=29,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=28,
        max_position_embeddings=20,
        layer_norm_eps=1e-3,
    )
    model = MegatronBertForPreTraining(config).eval()
    state = model.state_dict()
    extra = {"bert.embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert set(state) - extra == set(arch.tensors())
    read = trained(arch, dtype=torch.float32)
    fill(state, arch, read)
    ids = tokens(29, 2, 17)
    types = (torch.arange(17) > 8).long().expand(2, 17)
    for length in (17, 11):
        valid = (torch.arange(17) < length).expand(2, 17)
        with torch.no_grad():
            theirs = model(ids, token_type_ids=types, attention_mask=valid.long())
            samples = {"inputs": ids, "types": types, "valid": valid}
            words, order = families.of(arch.family).reference(read, arch, samples, torch.float32).values()
        assert relative_error(words[valid], theirs.prediction_logits[valid]) < 1e-5
        assert relative_error(order, theirs.seq_relationship_logits) < 1e-5


def test_gpt2() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab": 29, "positions": 20, "hidden": 24, "layers": 2, "heads": 3, "head_dim": 8, "ffn": 28}
    arch = Architecture("gpt2", sizes, {"norm_eps": 1e-3})
    config = GPT2Config(
        vocab_size=29, n_positions=20, n_embd=24, n_layer=2, n_head=3, n_inner=28, layer_norm_epsilon=1e-3
    )
    model = GPT2LMHeadModel(config).eval()
    state = model.state_dict()
    read = trained(arch, dtype=torch.float32)

    def value(name: str) -> torch.Tensor:
        return read("weight", name, Box.whole(arch.tensor(name).shape))

    for name in state:
        if "attn.c_attn" in name:
            parts = torch.cat([value(name.replace("c_attn", f"{p}_proj")) for p in "qkv"])
        else:
            parts = value("transformer.wte.weight" if name == "lm_head.weight" else name)
        transposed = name.endswith("weight") and ("attn." in name or "mlp." in name)  # their Conv1D is [in, out]
        state[name].copy_(parts.T if transposed else parts)
    ids = tokens(29, 2, 17)
    with torch.no_grad():
        assert relative_error(logits(read, arch, ids), model(ids).logits) < 1e-5
