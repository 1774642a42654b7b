"""Random growth events: models of any family and policies with the sizes that they can reach."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from growth import Architecture, Plan, between
from growth.family import family as table
from tests.unit.growth.models import STD

FAMILIES = ("llama2", "bert", "gpt2", "qwen3", "qwen3_tied", "qwen2_tied", "llama3", "transformer_xl")


@st.composite
def architectures(draw: st.DrawFn, family: str) -> Architecture:
    """A small model; its hidden size is at least 3, so that a LayerNorm leaves something to learn."""
    groups = draw(st.integers(1, 3))
    sizes = {
        "vocab": draw(st.integers(5, 11)),
        "hidden": draw(st.integers(3, 9)),
        "layers": draw(st.integers(1, 3)),
        "heads": groups,
        "head_dim": 2 * draw(st.integers(1, 2)),
        "ffn": draw(st.integers(1, 7)),
    }
    if "kv_heads" in table(family).axes:
        sizes |= {"heads": groups * draw(st.integers(1, 2)), "kv_heads": groups}
    sizes |= {axis: size for axis, size in {"positions": 12, "sinusoid": 4}.items() if axis in table(family).axes}
    if family == "bert":
        sizes |= {"types": 2, "labels": 2}
    return Architecture(family, sizes, {"norm_eps": draw(st.sampled_from([1e-6, 1e-2]))})


@st.composite
def grown(draw: st.DrawFn, old: Architecture, exact: bool = True) -> tuple[dict[str, int], dict[str, Any]]:
    """(new sizes, policy) of one event that some or all axes take part in; `exact` keeps to what may claim that."""
    s = old.sizes
    steps = {key: draw(st.booleans()) for key in ("layers", "hidden", "heads", "head_dim", "ffn", "vocab", "positions")}
    sizes: dict[str, int] = {}
    policy: dict[str, Any] = {}
    if steps["layers"]:
        sizes["layers"], policy["layers"] = draw(depth(s["layers"], exact))
    if steps["hidden"]:
        sizes["hidden"], policy["hidden"] = draw(hidden(old, exact))
    if steps["heads"]:
        new, policy["heads"] = draw(heads(old))
        sizes |= new
    if steps["head_dim"]:
        sizes["head_dim"], policy["head_dim"] = draw(head_dim(old))
    if steps["ffn"]:
        operator = draw(st.sampled_from(["zero", "zero_gate_and_down", "replicate", "net2net"]))
        new_ffn = s["ffn"] * draw(st.integers(2, 3)) if operator == "replicate" else s["ffn"] + draw(st.integers(1, 9))
        sizes["ffn"], policy["ffn"] = new_ffn, {"operator": operator, **draw(copying(operator))}
    if steps["vocab"]:
        sizes["vocab"] = s["vocab"] + draw(st.integers(1, 4))
        policy["vocab"] = draw(st.sampled_from(["random", "zero", "mean", "pieces"]))
    if steps["positions"] and "positions" in s:
        sizes["positions"] = s["positions"] + draw(st.integers(1, 4))
    return sizes, policy


@st.composite
def head_dim(draw: st.DrawFn, arch: Architecture) -> tuple[int, str]:
    old = arch.sizes["head_dim"]
    if "rope_theta" not in arch.scalars:
        return old + draw(st.integers(1, 6)), "zero"
    if arch.table.head_norms:
        operators = ["rotary_table"] if arch.rope_frequencies else ["rotary", "rotary_table"]
        return old * draw(st.integers(2, 3)), draw(st.sampled_from(operators))
    if arch.rope_frequencies or draw(st.booleans()):
        return old + 2 * draw(st.integers(1, 3)), "rotary_table"
    return old * draw(st.integers(2, 3)), "rotary"


@st.composite
def copying(draw: st.DrawFn, operator: str) -> dict[str, Any]:
    """The options of operators that copy."""
    options: dict[str, Any] = {}
    if operator in ("replicate", "net2net"):
        options["snr_db"] = draw(st.sampled_from([None, 10.0]))
    if operator == "replicate":
        options["split"] = draw(st.sampled_from([None, 0.25]))
        options["born"] = draw(st.booleans())
    if operator == "net2net":
        options["mapping"] = draw(st.sampled_from(["round_robin", "random"]))
    return options


@st.composite
def depth(draw: st.DrawFn, old: int, exact: bool) -> tuple[int, dict[str, Any]]:
    operator = draw(st.sampled_from(["identity", "stack", "interleave", "middle", "insert", "average"]))
    new = draw(st.integers(old + 1, 2 * old if operator == "middle" else 2 * old + 2))
    init = "zero" if exact else draw(st.sampled_from(["zero", "copy", "random"]))
    policy: dict[str, Any] = {"operator": operator, "init": init, "noise": draw(st.sampled_from([0.0, 0.1]))}
    if operator == "insert":
        policy["at"] = [
            {"index": draw(st.integers(0, n)), "source": draw(st.sampled_from(["clone", 0, old - 1]))}
            for n in range(old, new)
        ]
    return new, policy


@st.composite
def hidden(draw: st.DrawFn, arch: Architecture, exact: bool) -> tuple[int, dict[str, Any]]:
    old = arch.sizes["hidden"]
    operators = ["zero", "replicate"] if arch.table.pads else ["replicate"]
    operator = draw(st.sampled_from(operators if exact else ["zero", "replicate", "net2net", "aki"]))
    if operator == "zero":
        return old + draw(st.integers(1, 9)), {"operator": operator, "keep_eps": draw(st.booleans())}
    new = old * draw(st.integers(2, 3)) if operator == "replicate" else old + draw(st.integers(1, 9))
    return new, {"operator": operator, **draw(copying(operator))}


@st.composite
def heads(draw: st.DrawFn, arch: Architecture) -> tuple[dict[str, int], dict[str, Any]]:
    s = arch.sizes
    operator = draw(st.sampled_from(["zero", "replicate", "net2net"]))
    policy = {"operator": operator, **draw(copying(operator))}
    more = draw(st.integers(2, 3))
    if "kv_heads" not in s:
        return {"heads": s["heads"] * more}, policy
    per = s["heads"] // s["kv_heads"]
    if operator == "net2net":
        groups = s["kv_heads"] + draw(st.integers(1, 3))
        return {"heads": groups * per, "kv_heads": groups}, policy
    if operator == "replicate":
        return {"heads": s["heads"] * more, "kv_heads": s["kv_heads"] * draw(st.sampled_from([1, more]))}, policy
    parts = draw(st.sampled_from([p for p in range(1, per + 1) if per % p == 0]))
    groups = s["kv_heads"] * parts + draw(st.integers(0, 2))
    new_per = per // parts if parts > 1 else per + draw(st.integers(0, 2))
    return {"heads": groups * new_per, "kv_heads": groups}, policy


@st.composite
def events(draw: st.DrawFn, exact: bool = True, old: Architecture | None = None) -> Plan:
    """One event of a model of any family."""
    old = old or draw(architectures(draw(st.sampled_from(FAMILIES))))
    sizes, policy = draw(grown(old, exact))
    count = sizes.get("vocab", old.sizes["vocab"]) - old.sizes["vocab"]
    ids = st.lists(st.integers(0, old.sizes["vocab"] - 1), min_size=1, max_size=3)
    pieces = draw(st.lists(ids, min_size=count, max_size=count))
    seed = draw(st.integers(0, 99))
    return between(old, old.replace(sizes), policy, seed=seed, init_std=STD, pieces=pieces)
