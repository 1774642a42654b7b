"""Published recipes of growth as keys of `grow`: seen in config.yaml, and the rules that their papers give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import growth
from growth import Architecture, Box, Plan
from pretrain import config
from pretrain.config.recipes import RECIPES
from pretrain.errors import UserError
from tools.benchmarks import rules, width_rules
from tools.benchmarks.rules import Grown, Weights

SMALL = {"vocab": 60, "hidden": 16, "heads": 2, "ffn": 24, "layers": 4, "head_dim": 8}
NOTHING: dict[str, Any] = {**SMALL, "layers": 0, "order": ""}
WIDE = {**SMALL, "hidden": 32, "heads": 4, "ffn": 48}
IN_WIDTH = ("hypercloning", "hypercloning_noise", "bert2bert_fpi", "bert2bert_aki", "staged", "sparkling", "lemon")


def loaded(folder: Path, grow: dict[str, Any], before: dict[str, Any], after: dict[str, int]) -> config.Curriculum:
    document = {
        "name": "recipes",
        "data": {"corpus": "data/x"},
        "train": {"seq_len": 8, "global_batch": 2, "tokens": 640, "lr": 1e-3},
        "stages": [{"name": "small", "model": before}, {"name": "large", "model": after, "grow": grow}],
    }
    path = folder / "recipes.yaml"
    path.write_text(yaml.safe_dump(document))
    return config.load(path)


def planned(folder: Path, recipe: str, before: dict[str, int], after: dict[str, int]) -> Plan:
    small, large = loaded(folder, {"recipe": recipe}, before, after).stages
    policy = large.grow.policy()
    return growth.between(small.architecture(), large.architecture(), policy, seed=1, init_std=0.02)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_the_keys_that_it_stands_for(recipe: str, tmp_path: Path) -> None:
    """Loading it checks the growth with them; written out, they say the same without the name."""
    shape = WIDE if recipe in IN_WIDTH else {**SMALL, "layers": 6}
    small = NOTHING if recipe == "zero_layers" else SMALL
    large = loaded(tmp_path, {"recipe": recipe}, small, shape).stages[1]
    keys = RECIPES[recipe](small["layers"], shape["layers"])
    assert "recipe" not in config.to_yaml(large)
    for key, value in keys.items():
        stored = large.to_dict()["grow"][key]
        given = {name: stored[name] for name in value} if isinstance(value, dict) else stored  # the rest are defaults
        assert given == value, key
    assert loaded(tmp_path, keys, small, shape).stages[1] == large


def test_what_stands_beside_a_recipe_wins(tmp_path: Path) -> None:
    grow = loaded(tmp_path, {"recipe": "g_stack", "moments": "copy"}, SMALL, {**SMALL, "layers": 8}).stages[1].grow
    assert (grow.layers, grow.moments, grow.schedule) == ("stack", "copy", "restart")


def test_a_name_that_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stages\[1\].grow.recipe: 'gstack' is no recipe, did you mean 'g_stack'"):
        loaded(tmp_path, {"recipe": "gstack"}, SMALL, WIDE)


def the_draws(arch: Architecture) -> dict[str, Tensor]:
    """The copies that the recipes draw with the seed of `planned`."""
    seeds = {n: np.random.Generator(np.random.Philox(key=1)).integers(0, n, n) for n in (2, 16, 24)}
    return width_rules.maps_of(arch, lambda n: torch.from_numpy(seeds[n]))


def fpi(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    return width_rules.copied(arch, old, the_draws(arch), width_rules.evenly)


def aki(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    return width_rules.copied(arch, old, the_draws(arch), width_rules.evenly, upper=True)


@pytest.mark.parametrize(
    ("recipe", "rule", "shape"),
    [
        ("g_stack", rules.g_stack, {**SMALL, "layers": 8}),
        ("stacking", rules.g_stack, {**SMALL, "layers": 8}),
        ("llama_pro", rules.llama_pro, {**SMALL, "layers": 8}),
        ("midas", rules.middle_block, {**SMALL, "layers": 6}),
        ("mslt", rules.top_layers, {**SMALL, "layers": 6}),
        ("hypercloning", rules.hyper_cloning, WIDE),
        ("sparkling", rules.hyper_cloning, WIDE),
        ("bert2bert_fpi", fpi, WIDE),
        ("bert2bert_aki", aki, WIDE),
    ],
)
def test_weights_are_those_of_the_papers_rule(
    recipe: str, rule: Callable[..., Grown], shape: dict[str, int], tmp_path: Path
) -> None:
    plan = planned(tmp_path, recipe, SMALL, shape)
    generator = torch.Generator().manual_seed(0)
    old = {name: torch.randn(t.shape, generator=generator) for name, t in plan.old.tensors().items()}

    def read(kind: str, name: str, box: Box) -> Tensor:
        return old[name][box.slices()]

    assert plan.old is not None
    published = rule(plan.old, old, generator)
    for name, tensor in plan.new.tensors().items():
        torch.testing.assert_close(plan.evaluate(name, Box.whole(tensor.shape), read), published.weights[name])


def test_midas_copies_the_middle_block(tmp_path: Path) -> None:
    """Blocks of 2: 2, 4, 6, 8 layers, as in "On the inductive bias of stacking", section 3."""
    sources = [
        [entry["source"] for entry in RECIPES["midas"](layers, layers + 2)["layers"]["at"]] for layers in (2, 4, 6)
    ]
    assert sources == [[0, 1], [0, 1], [2, 3]]


@pytest.mark.parametrize(("recipe", "before"), [("zero_layers", NOTHING), ("one_layer", {**SMALL, "layers": 1})])
def test_a_model_without_layers_or_with_one_becomes_deep(recipe: str, before: dict[str, Any], tmp_path: Path) -> None:
    """Bu 2025: what is no layer stays as it is; layers are copies of the one, or as in a fresh model."""
    plan = planned(tmp_path, recipe, before, SMALL)
    assert plan.old is not None
    generator, fresh = torch.Generator().manual_seed(0), growth.initial(plan.new, 1, 0.02)
    old = {name: torch.randn(t.shape, generator=generator) for name, t in plan.old.tensors().items()}
    for name, tensor in plan.new.tensors().items():
        values = plan.evaluate(name, Box.whole(tensor.shape), lambda kind, name, box: old[name][box.slices()])
        source = name if tensor.layer is None else tensor.spec.name.format(layer=0)
        if source in old:
            assert torch.equal(values, old[source]), name
        else:
            wanted = fresh.evaluate(name, Box.whole(tensor.shape), lambda kind, name, box: torch.empty(0))
            torch.testing.assert_close(values.double().std(), wanted.double().std(), rtol=0.2, atol=0, msg=name)


def test_of_a_sparkling_width_the_new_half_alone_is_new(tmp_path: Path) -> None:
    """Its moments are zero and it warms up again; what is old keeps its moments and its rate."""
    (_, large) = loaded(tmp_path, {"recipe": "sparkling"}, SMALL, WIDE).stages
    assert (large.grow.moments, large.grow.schedule, large.grow.old_lr) == ("default", "rewarm", 1.0)
    plan = planned(tmp_path, "sparkling", SMALL, WIDE)
    name = "model.layers.0.mlp.up_proj.weight"

    def read(kind: str, name: str, box: Box) -> Tensor:
        return torch.ones(plan.old.tensors()[name].shape)[box.slices()]

    box = Box.whole(plan.new.tensors()[name].shape)
    new = plan.new_mask(name, box)
    moments = plan.evaluate(name, box, read, "exp_avg")
    assert not moments[new].any()
    assert moments[~new].all()
    assert new.float().mean() == 0.75


def test_solar_leaves_out_the_layers_at_its_seam(tmp_path: Path) -> None:
    """As 32 layers become 48 (Kim et al. 2023, figure 1): 0 to 23, then 8 to 31; other numbers are refused."""
    plan = planned(tmp_path, "solar", {**SMALL, "layers": 32}, {**SMALL, "layers": 48})
    (step,) = plan.steps
    assert step.layers is not None
    assert step.layers.source[:, 0].tolist() == [*range(24), *range(8, 32)]
    assert step.layers.born.tolist() == [24 <= layer < 40 for layer in range(48)]
    for layers in (7, 12):
        with pytest.raises(UserError, match="layers: 4 to"):
            planned(tmp_path, "solar", SMALL, {**SMALL, "layers": layers})
