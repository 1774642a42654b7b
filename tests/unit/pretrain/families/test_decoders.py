"""Families of decoders beside LLaMA-2: transformers' models in and out again, exact growth, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from growth import Architecture, GrowthError, between
from growth.certificate import relative_error
from pretrain.checkpoint import Reader
from pretrain.errors import UserError
from pretrain.families import reference
from pretrain.hf.export import export
from pretrain.hf.imports import import_model
from tests.unit.growth.models import STD, reader, tokens, trained

SIZES = {"vocab": 24, "hidden": 12, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "ffn": 16}
CONFIG = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 11,  # layers.10 sorts before layers.2
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 77,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.1,
}
SCALED = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,  # some pairs of a head are slow, some between and some fast
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {"head_dim": 8, "rope_theta": 1e6, "max_window_layers": 28}),
    "qwen3_tied": ("Qwen3", {"head_dim": 6, "rope_theta": 5e3, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"rope_theta": 1e6}),
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True, "sliding_window": 32}),
    "llama3": ("Llama", {"rope_theta": 5e5, "rope_scaling": SCALED}),
    "llama3_tied": ("Llama", {"rope_theta": 1e7, "tie_word_embeddings": True}),
}
IDS = torch.randint(0, 40, (3, 20), generator=torch.Generator().manual_seed(0))


def saved(name: str, folder: Path) -> Path:
    """transformers' own folder of a drawn model, in bf16 and in several files."""
    torch.manual_seed(0)
    kind, more = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{**CONFIG, **more})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16)
    for tensor, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in tensor else 0.0, 0.2)
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors*")}


@pytest.mark.parametrize("name", MODELS)
def test_import_and_export(name: str, tmp_path: Path) -> None:
    """The reference model agrees with transformers; out again byte for byte, with an equal config."""
    source = saved(name, tmp_path / "source")
    found = import_model(source, tmp_path / "run/first")
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()(IDS).logits
    with Reader(found.checkpoint) as read:
        arch = Architecture.from_json(read.manifest.architecture)
        assert arch.family == name
        assert relative_error(reference.logits(read.read, arch, IDS), theirs) < 1e-5
    export(found.checkpoint, tmp_path / "again", dtype="bf16", shard_bytes=40_000)
    assert content(tmp_path / "again") == content(source)
    for file in ("config.json", "generation_config.json"):
        ours, own = (json.loads((folder / file).read_text()) for folder in (tmp_path / "again", source))
        assert ours == own


@pytest.mark.parametrize("name", MODELS)
def test_growth_is_exact(name: str) -> None:
    """What claims to keep the function keeps it in double precision, alone and together."""
    arch = Architecture(name, SIZES)
    read, ids = trained(arch), tokens(24)
    before = reference.logits(read, arch, ids, torch.float64)
    replicate = {"operator": "replicate", "snr_db": None, "split": 0.25}
    events: list[tuple[dict[str, int], dict[str, Any]]] = [
        ({"layers": 4}, {}),
        ({"hidden": 20}, {}),
        ({"hidden": 20}, {"hidden": {"operator": "zero", "keep_eps": True}}),
        ({"hidden": 24}, {"hidden": "replicate"}),
        ({"hidden": 24}, {"hidden": replicate}),
        ({"heads": 8, "kv_heads": 4}, {}),
        ({"heads": 8, "kv_heads": 4}, {"heads": replicate}),
        ({"kv_heads": 4}, {}),
        ({"head_dim": 18}, {}),
        ({"head_dim": 12}, {"head_dim": "rotary_table"}),
        ({"ffn": 20}, {}),
        ({"vocab": 30}, {"vocab": "mean"}),
        ({"vocab": 30, "hidden": 20, "layers": 3, "heads": 8, "head_dim": 12, "ffn": 20}, {"vocab": "mean"}),
    ]
    for sizes, policy in events:
        plan = between(arch, arch.replace(sizes), policy, seed=1, init_std=STD)
        after = reference.logits(reader(plan, read), plan.new, ids, torch.float64)[..., :24]
        assert plan.preserves, sizes
        assert relative_error(after, before) < 1e-12, sizes


def test_heads_of_normed_keys_grow_by_whole_factors() -> None:
    arch = Architecture("qwen3", SIZES)
    with pytest.raises(GrowthError, match="each is copied equally often; choose 12, or add heads"):
        between(arch, arch.replace({"head_dim": 8}), {"head_dim": "rotary_table"}, seed=0, init_std=STD)


REFUSED = {
    "use_sliding_window": (True, "use_sliding_window = True: Cambium's qwen3 has no such thing"),
    "layer_types": (["sliding_attention"] * 11, "layer_types"),
    "attention_bias": (True, "attention_bias = True"),
    "head_dim": (None, "head_dim = None must be there"),
    "rope_scaling": ({"type": "yarn", "factor": 4.0}, "rope_scaling = .*yarn.*: Cambium has plain rotary"),
    "rope_parameters": ({"rope_theta": 1e6, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "rope_scaling, of no band": ({**SCALED, "low_freq_factor": 4.0}, "low_freq_factor = 4 must be below high_freq"),
    "num_experts": (8, "num_experts = 8: unknown to Cambium, so it may change"),
    "auto_map": ({"AutoModelForCausalLM": "mine.Model"}, "auto_map"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_config_may_not_say(key: str, tmp_path: Path) -> None:
    """By name, before anything is read."""
    value, message = REFUSED[key]
    config = transformers.Qwen3Config(**CONFIG, head_dim=8).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, key.partition(",")[0]: value}))
    with pytest.raises(UserError, match=message):
        import_model(tmp_path, tmp_path / "run/first")
