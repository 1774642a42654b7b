"""More neurons in the feed-forward layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from growth.architecture import Architecture
from growth.maps import AxisMap
from growth.operators.registry import operator
from growth.operators.width import ahead, appended, balanced_map, births_of, factor_of, noise_of, shares
from growth.step import Step


def _step(arch: Architecture, new: int, m: AxisMap, approximate: tuple[str, ...] = ()) -> Step:
    return Step(arch, arch.replace({"ffn": new}), (), True, axes={"ffn": m}, approximate=approximate)


@operator("ffn", "zero")
def zero_ffn(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """New neurons with random inputs (gate and up) whose output column (down) is zero: exact, and trainable at once.
    Gesmundo and Maile, 2023, "Composable function-preserving expansions for transformer architectures", section 3.1."""
    old, new = arch.sizes["ffn"], sizes["ffn"]
    return _step(arch, new, AxisMap.make("ffn", old, appended(old, new), zero=("read",)))


@operator("ffn", "zero_gate_and_down")
def dead_ffn(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """The rule "gate = 0 and down = 0", taken literally from the literature: exact, and dead in SwiGLU (all three
    gradients are zero for ever). Here so that it can be measured; use `zero`."""
    old, new = arch.sizes["ffn"], sizes["ffn"]
    return _step(arch, new, AxisMap.make("ffn", old, appended(old, new), zero=("read", "gate")))


def _copied(
    arch: Architecture,
    new: int,
    source: np.ndarray,
    snr_db: float | None,
    split: float | None = None,
    born: bool = False,
) -> Step:
    noise, births, share = noise_of("ffn", snr_db), births_of("ffn", source, born), shares("ffn", source, split)
    m = AxisMap.make("ffn", arch.sizes["ffn"], source, {"read": share}, born=births, noise=noise)
    return _step(arch, new, m, ("ffn: noise changes the gradients of copied neurons",) if noise else ())


@operator("ffn", "replicate")
def replicate_ffn(
    arch: Architecture,
    sizes: Mapping[str, int],
    snr_db: float | None = 10.0,
    split: float | None = None,
    born: bool = False,
) -> Step:
    """Every neuron k times, its output column divided by k (or split: the first copy's share), with noise in the null
    space (null: none); with `born` later copies count as new. Samragh et al., 2024 (HyperCloning)."""
    old, new = arch.sizes["ffn"], sizes["ffn"]
    factor_of("ffn", old, new, "net2net or zero")
    return _copied(arch, new, np.arange(new) % old, snr_db, split, born)


@operator("ffn", "net2net")
def net2net_ffn(
    arch: Architecture,
    sizes: Mapping[str, int],
    seed: int,
    mapping: str = "round_robin",
    snr_db: float | None = 10.0,
) -> Step:
    """Neurons copied along an index map, output columns divided by the number of copies: exact. Chen et al., 2016,
    "Net2Net: accelerating learning via knowledge transfer", section 2.2."""
    old, new = arch.sizes["ffn"], sizes["ffn"]
    return _copied(arch, new, balanced_map("ffn", old, new, mapping, seed), snr_db)


@operator("ffn", "aki")
def aki_ffn(arch: Architecture, sizes: Mapping[str, int], seed: int, mapping: str = "round_robin") -> Step:
    """As net2net, but new neurons are those of the next layer: breaks the symmetry, does not preserve. Chen et al.,
    2022, "bert2BERT", section 3.3 (AKI)."""
    old, new = arch.sizes["ffn"], sizes["ffn"]
    step = _copied(arch, new, balanced_map("ffn", old, new, mapping, seed), None)
    return ahead(step, {"ffn": old}, "neurons")
