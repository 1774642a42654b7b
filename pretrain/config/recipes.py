"""Published recipes of growth, as the keys of `grow` that they stand for.

In a stage `grow: {recipe: NAME}` is read as these keys; what stands beside it, or at the top of the file, wins. A
stage's config.yaml has the keys and not the name. What else belongs to a recipe (when to grow, how long a stage is, the
shape of the schedule) is the curriculum's, and named in each recipe's text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pretrain.config.reading import did_you_mean
from pretrain.errors import UserError

Keys = dict[str, Any]
RECIPES: dict[str, Callable[[int, int], Keys]] = {}
"""By name, a function from the numbers of layers before and after to keys of `grow`."""


def _recipe(make: Callable[[int, int], Keys]) -> Callable[[int, int], Keys]:
    RECIPES[make.__name__] = make
    return make


def _wider(operator: str, **options: Any) -> Keys:
    """The same operator, with the same options, for all that a width is made of."""
    return {axis: {"operator": operator, **options} for axis in ("hidden", "heads", "ffn")}


@_recipe
def stacking(old: int, new: int) -> Keys:
    """The layers on top of themselves; every stage has its own optimizer and schedule. Gong et al. 2019, "Efficient
    training of BERT by progressively stacking", section 3. Stages of L, 2 L and 4 L layers."""
    return {"layers": "stack", "moments": "reset", "schedule": "restart"}


@_recipe
def g_stack(old: int, new: int) -> Keys:
    """The whole stack several times (x 4), then a training as if from the beginning. Du et al. 2024, "Stacking your
    transformers", section 3 and 4.2: the small model trains as long as `train: {until: gstack}` says."""
    return {"layers": "stack", "moments": "reset", "schedule": "restart"}


@_recipe
def midas(old: int, new: int) -> Keys:
    """Of blocks of as many layers as are new the middle one, ceil(n / 2) of n, once more after itself, at each of
    several equally spaced events; one schedule, and Adam's moments copied with the layers. Saunshi et al. 2024, "On the
    inductive bias of stacking", section 3. (The operator `middle` takes the exact middle, whatever the blocks.)"""
    block = max(1, new - old)
    end = (max(1, old // block) + 1) // 2 * block
    at = [{"index": end + i, "source": end - block + i} for i in range(block)]
    return {"layers": {"operator": "insert", "init": "copy", "at": at}, "moments": "copy", "schedule": "continue"}


@_recipe
def hypercloning(old: int, new: int) -> Keys:
    """Twice as wide by copies, without noise; a training of its own. Samragh et al. 2024, "Scaling smart", section 3:
    copies stay copies until something parts them (dropout, or noise)."""
    return {**_wider("replicate", snr_db=None), "moments": "reset", "schedule": "restart"}


@_recipe
def hypercloning_noise(old: int, new: int) -> Keys:
    """As hypercloning, with noise of 10 dB in what reads copies that sums to nothing over them. Samragh et al. 2024,
    section 4.4."""
    return {**_wider("replicate", snr_db=10.0), "moments": "reset", "schedule": "restart"}


@_recipe
def lemon(old: int, new: int) -> Keys:
    """Lossless in width, by copies with unequal shares, which part them, and in depth, by layers that are the identity;
    then the same peak over fewer tokens. Wang et al. 2023, "LEMON: lossless model expansion", sections 3 and 4: there a
    share is drawn for each weight, here 0.7 and 0.3."""
    return {
        **_wider("replicate", snr_db=None, split=0.7),
        "layers": "identity",
        "moments": "reset",
        "schedule": "restart",
    }


@_recipe
def bert2bert_fpi(old: int, new: int) -> Keys:
    """Function-preserving initialization: channels, heads and neurons copied at random, what reads them divided; deeper
    by stacking. Chen et al. 2022, "bert2BERT", sections 3.2 and 3.4."""
    wide = _wider("net2net", mapping="random", snr_db=None)
    return {**wide, "layers": "stack", "moments": "reset", "schedule": "restart"}


@_recipe
def bert2bert_aki(old: int, new: int) -> Keys:
    """Advanced knowledge initialization: as bert2bert_fpi, but new channels, heads and neurons are made of those of the
    layer above, which breaks the symmetry and does not keep the function. Chen et al. 2022, "bert2BERT", section
    3.3."""
    return {**bert2bert_fpi(old, new), **_wider("aki", mapping="random")}


@_recipe
def ligo(old: int, new: int) -> Keys:
    """New weights are linear maps of all old ones, learned in 100 steps on these maps alone; then a training of its
    own. Wang et al. 2023, "Learning to grow pretrained models for efficient transformer training" (LiGO), section 3.2:
    there what reads an axis has the map of what writes it, and each kind of matrix its own sums over layers; here
    readers have a map of their own, and the layers one for all that is in them."""
    return {"learn": {"steps": 100}, "moments": "reset", "schedule": "restart"}


@_recipe
def staged(old: int, new: int) -> Keys:
    """Exact operators (copies in width, the identity in depth), with moments and the schedule carried on, as if the
    model had always been so large. Shen et al. 2022, "Staged training for transformer language models", sections 3.1
    and 3.2; their copies stand side by side and stay copies, here noise that cancels parts them."""
    return {**_wider("replicate"), "layers": "identity", "moments": "transform", "schedule": "continue"}


@_recipe
def mslt(old: int, new: int) -> Keys:
    """Copies of the top layers are put on top, and nothing else trains; a last stage of the same shape, without this
    recipe, trains all of it. Yang et al. 2020, "Progressively stacking 2.0", section 3."""
    top = max(0, old - (new - old))
    at = [{"index": index, "source": top + (index - old) % max(1, old - top)} for index in range(old, new)]
    return {"layers": {"operator": "insert", "init": "copy", "at": at}, "old_lr": 0, "schedule": "restart"}


@_recipe
def zero_layers(old: int, new: int) -> Keys:
    """An embedding and a head (`model: {layers: 0, order: ""}`) become the whole model, late, as in one_layer; its
    layers are fresh. Bu 2025, 2511.04981."""
    return {"layers": {"operator": "insert", "init": "random", "at": list(range(new))}, "schedule": "continue"}


@_recipe
def one_layer(old: int, new: int) -> Keys:
    """One layer becomes all of them, late (at 0.8 of the tokens, with `schedule: wsd`), as copies; no new warm-up. Bu
    2025, "Deep progressive training: scaling up depth capacity of zero/one-layer models", 2511.04981."""
    return {"layers": "stack", "moments": "copy", "schedule": "continue"}


@_recipe
def llama_pro(old: int, new: int) -> Keys:
    """Blocks that are the identity between the old ones, which do not train any more. Wu et al. 2024, "LLaMA Pro",
    section 3.2."""
    return {"layers": "identity", "old_lr": 0, "schedule": "restart"}


@_recipe
def solar(old: int, new: int) -> Keys:
    """The model on top of itself, where the first loses its last layers and the second its first ones, so that the seam
    is less of a break; all of it trains. Kim et al. 2023, "SOLAR 10.7B: depth up-scaling", section 2: 32 layers become
    48, so each loses 8. For an even number of layers up to twice the old one."""
    cut = max(0, old - new // 2)
    at = [{"index": old - 2 * cut + layer, "source": layer} for layer in range(cut, old - cut)]
    return {"layers": {"operator": "insert", "init": "copy", "at": at}, "schedule": "restart"}


@_recipe
def sparkling(old: int, new: int) -> Keys:
    """Twice as wide by copies, so that the mean square of the residual stream stays; the moments of the new half alone
    are reset and its rate alone warms up again, which parts the copies. 2026, "SPARKLING", 2602.02472: in the middle of
    the training, with a warm-up (`train: {warmup: 0.05}`, say) in the stage that is wider."""
    return {**_wider("replicate", snr_db=None, born=True), "moments": "default", "schedule": "rewarm"}


def expand(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The document with the keys that a recipe stands for in place of its name, in each of its stages.

    document: with defaults merged under its stages. Raises UserError for a name that is no recipe's.
    """
    stages = document.get("stages")
    if not isinstance(stages, list):
        return dict(document)
    made, before = [], 0
    for number, stage in enumerate(stages):
        grow = stage.get("grow") if isinstance(stage, Mapping) else None
        begin, end = _layers(stage)
        if isinstance(grow, Mapping) and "recipe" in grow:
            name = grow["recipe"]
            if not isinstance(name, str) or name not in RECIPES:
                hint = did_you_mean(str(name), RECIPES)
                raise UserError(
                    f"{where}: stages[{number}].grow.recipe: {name!r} is no recipe{hint}; choose {', '.join(RECIPES)}"
                )
            given = {key: value for key, value in grow.items() if key != "recipe"}
            stage = {**stage, "grow": {**RECIPES[name](before or begin, begin), **given}}
        made.append(stage)
        before = end
    return {**document, "stages": made}


def _layers(stage: Any) -> tuple[int, int]:
    """The layers of a stage at its beginning and at its end, as far as it says so."""
    model = stage.get("model") if isinstance(stage, Mapping) else None
    layers = model.get("layers", 0) if isinstance(model, Mapping) else 0
    layers = layers if isinstance(layers, int) else 0
    patches = stage.get("patches", ()) if isinstance(stage, Mapping) else ()
    return layers, layers + (len(patches) if isinstance(patches, list) else 0)
