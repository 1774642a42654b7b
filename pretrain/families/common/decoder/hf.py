"""What decoders are in transformers: the same tensors, names and rotary convention, and a config.json."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from growth import Architecture, GrowthError
from growth.family import Family as Table
from growth.rotary import SCALING
from pretrain.errors import UserError
from pretrain.families.common.decoder.table import BIASES, EMBEDDING, FINAL_NORM, HEAD, KEY, LAYER, QUERY, has
from pretrain.families.common.hf.form import HfForm
from pretrain.families.common.hf.values import mapping, positive, positives, whole, wholes
from pretrain.runtime.documents import show

SIZES = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
}
KEPT = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "max_position_embeddings", "use_cache"),
    *("attention_dropout", "max_window_layers"),
)
NEUTRAL = frozenset(
    {
        "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path",
        "_attn_implementation_autoset", "output_attentions", "output_hidden_states", "return_dict", "torchscript",
        "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "id2label",
        "label2id", "problem_type", "task_specific_params", "finetuning_task", "tokenizer_class", "prefix",
        "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample",
        "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
        "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty",
        "return_dict_in_generate", "sep_token_id", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
        "max_sequence_length", "pretraining_tp", "sliding_window", "max_window_layers",
    }
)  # fmt: skip
"""Keys of a config.json that say nothing about what a model computes when it is used."""
LONGROPE, LLAMA3, FACTORS = "longrope", "llama3", ("short_factor", "long_factor")
SCALED = dict(
    zip(SCALING, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), strict=True)
)


def rows(table: Table) -> tuple[str, ...]:
    """The tensors in the order of the state_dict of transformers' model."""
    biases = BIASES if has(table, BIASES[0]) else ()
    projections = [
        name
        for part in "qkvo"
        for name in (f"self_attn.{part}_proj.weight", f"self_attn.{part}_proj.bias")
        if name.endswith("weight") or name in biases
    ]
    inside = (
        *projections,
        *((QUERY, KEY) if table.head_norms else ()),
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        *("input_layernorm.weight", "post_attention_layernorm.weight"),
    )
    return (EMBEDDING, *(LAYER + name for name in inside), FINAL_NORM, *(() if table.tied else (HEAD,)))


def config_of(arch: Architecture, model_class: str) -> dict[str, Any]:
    """The keys that follow from the shape and the scalars. Raises UserError for another softmax scale."""
    scale, usual = arch.scalars["softmax_scale"], arch.sizes["head_dim"] ** -0.5
    if not math.isclose(scale, usual, rel_tol=1e-12):
        raise UserError(
            f"transformers' {model_class} cannot express this model: its softmax scale is {scale:g}, and theirs is "
            f"always head_dim ** -0.5 = {usual:g}"
        )
    return {
        **{key: arch.sizes[axis] for axis, key in SIZES.items()},
        "num_key_value_heads": arch.sizes["kv_heads"],
        "head_dim": arch.sizes["head_dim"],
        "rms_norm_eps": arch.scalars["norm_eps"],
        "rope_parameters": _rope(arch),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "tie_word_embeddings": arch.table.tied,
    }


def _rope(arch: Architecture) -> dict[str, Any]:
    """Plain rotary embeddings, or scaled as Llama 3.1's; a table of frequencies as LongRoPE with one list of factors
    for any length, which is how transformers spells frequencies that do not follow from theta."""
    theta = {"rope_theta": arch.scalars["rope_theta"]}
    if arch.rope_frequencies:
        scalars = {name: 1.0 for name in SCALING[:1] if name in arch.scalars}
        factors = (arch.replace(scalars=scalars, rope_frequencies=()).frequencies() / arch.frequencies()).tolist()
        same = dict.fromkeys(("factor", "attention_factor"), 1.0)
        return {**theta, "rope_type": LONGROPE, **same, **dict.fromkeys(FACTORS, factors)}
    if arch.scalars.get(SCALING[0], 1.0) == 1.0:
        return {**theta, "rope_type": "default"}
    scaled = {key: arch.scalars[name] for name, key in SCALED.items()}
    return {**theta, "rope_type": LLAMA3, **scaled, SCALED[SCALING[3]]: round(scaled[SCALED[SCALING[3]]])}


def _is_table(rope: Mapping[str, Any]) -> bool:
    """Whether it is what `_rope` makes of a table of frequencies."""
    factors = [rope.get(key) for key in FACTORS]
    return isinstance(factors[0], list) and factors[0] == factors[1] and rope.get("attention_factor") == 1.0


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of a config.json. kind: its rope_type. factors: of a table of frequencies, the divisors of
    the usual ones; none: they follow from the scalars."""

    kind: str
    scalars: Mapping[str, float]
    factors: tuple[float, ...] = ()


def rope_of(imported: Mapping[str, Any], where: str) -> Rope:
    """The rotary embedding of a config.json of any version of transformers. Raises UserError for one that cannot be
    taken over."""
    # transformers 5 writes rope_parameters; where the older rope_scaling says anything, it counts instead.
    key = "rope_scaling" if imported.get("rope_scaling") else "rope_parameters"
    rope = mapping(imported, key, where)
    kind = rope.get("rope_type", rope.get("type", "default"))
    scalars = {"rope_theta": positive(rope if "rope_theta" in rope else imported, "rope_theta", 1e4, where)}
    if rope.get("partial_rotary_factor", 1.0) == 1.0:
        if kind == LONGROPE and _is_table(rope):
            return Rope(kind, scalars, tuple(positives(rope, FACTORS[0], where)))
        if kind == "default":
            return Rope(kind, scalars)
        if kind == LLAMA3:
            return Rope(kind, scalars | _scaling(rope, where))
    raise UserError(
        f"{where}: {key} = {show(imported[key])}: Cambium has plain rotary embeddings, those scaled as Llama 3.1's are "
        "and tables of frequencies, so this model cannot be imported"
    )


def _scaling(rope: Mapping[str, Any], where: str) -> dict[str, float]:
    scaling = {name: _given(rope, key, where) for name, key in SCALED.items()}
    _, low, high, _ = scaling.values()
    if low >= high:
        raise UserError(f"{where}: low_freq_factor = {low:g} must be below high_freq_factor = {high:g}")
    return scaling


def _given(rope: Mapping[str, Any], key: str, where: str) -> float:
    if key not in rope:
        raise UserError(f"{where}: {key} is missing beside rope_type {LLAMA3}")
    return positive(rope, key, 0.0, where)


def _architecture(
    table: Table,
    own: Callable[[int], Mapping[str, Any]],
    needs: tuple[str, ...],
    imported: Mapping[str, Any],
    where: str,
) -> Architecture:
    """The architecture of a config.json of any version of transformers; see `form`. A key that nobody knows may say
    anything, and is refused. Raises UserError naming what cannot be taken over."""
    given = wholes(imported, [*SIZES.values(), *needs], where)
    fixed = {"hidden_act": "silu", "quantization_config": None, **own(given[SIZES["layers"]])}
    if odd := [k for k, value in fixed.items() if k not in NEUTRAL and imported.get(k) not in (None, value)]:
        shown = ", ".join(f"{key} = {show(imported[key])}" for key in odd)
        raise UserError(f"{where}: {shown}: Cambium's {table.name} has no such thing, so this model cannot be imported")
    known = {*SIZES.values(), *KEPT, *NEUTRAL, *fixed, "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"}
    known |= {"num_key_value_heads", "head_dim", "tie_word_embeddings"}
    if unknown := [key for key, value in imported.items() if key not in known and value not in (None, False)]:
        shown = ", ".join(f"{key} = {show(imported[key])}" for key in unknown)
        raise UserError(
            f"{where}: {shown}: unknown to Cambium, so it may change what the model computes; if it does not, take it "
            "out of the file"
        )
    sizes = {axis: given[key] for axis, key in SIZES.items()}
    sizes["kv_heads"] = whole(imported, "num_key_value_heads", sizes["heads"], where)
    sizes["head_dim"] = whole(imported, "head_dim", sizes["hidden"] // sizes["heads"], where)
    rope, eps = rope_of(imported, where), positive(imported, "rms_norm_eps", 1e-6, where)
    try:
        arch = Architecture(table.name, sizes, {"norm_eps": eps, **_plain(table), **rope.scalars})
        if not rope.factors:
            return arch
        if 2 * len(rope.factors) != sizes["head_dim"]:
            raise UserError(
                f"{where}: {FACTORS[0]} has {len(rope.factors)} factors and head_dim is {sizes['head_dim']}"
            )
        return arch.replace(rope_frequencies=tuple((arch.frequencies() / rope.factors).tolist()))
    except GrowthError as error:
        raise UserError(f"{where}: {error}") from error


def _plain(table: Table) -> dict[str, float]:
    """The scalars that leave frequencies as they are, where a family can scale them."""
    return {name: 1.0 for name in SCALING[:1] if name in table.scalars}


def windows(layers: int) -> dict[str, Any]:
    """The keys of a class whose layers can attend to a window, where none does."""
    never = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": layers}
    return {**never, "layer_types": ["full_attention"] * layers}


def form(
    table: Table,
    model_type: str,
    model_class: str,
    own: Callable[[int], Mapping[str, Any]],
    *,
    needs: tuple[str, ...] = (),
    head_dim: bool = True,
    **more: Any,
) -> HfForm:
    """The form of a family of decoders in transformers.

    own: the keys that its class has beside those of all, from the number of layers, each with the one value that the
    family can have. needs: keys without which the class would take sizes of its own. head_dim: whether it has this key
    where it is hidden_size / num_attention_heads too. more: of HfForm.
    """

    def config(arch: Architecture) -> dict[str, Any]:
        keys = {**config_of(arch, model_class), **own(arch.layers)}
        if not head_dim and arch.sizes["head_dim"] * arch.sizes["heads"] == arch.sizes["hidden"]:
            del keys["head_dim"]
        return keys

    def fits(imported: Mapping[str, Any]) -> bool:
        rope = imported.get("rope_scaling") or imported.get("rope_parameters")
        kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, Mapping) else None
        return bool(imported.get("tie_word_embeddings")) == table.tied and (
            kind != LLAMA3 or SCALING[0] in table.scalars
        )

    return HfForm(
        model_type=model_type,
        model_class=model_class,
        rows=rows(table),
        config=config,
        architecture=partial(_architecture, table, own, needs),
        fits=fits,
        kept=KEPT,
        repeated=("rotary_emb.inv_freq",),  # old folders have it; it follows from the config
        tied={HEAD: EMBEDDING} if table.tied else {},
        base="model." if table.tied else "",
        **more,
    )
