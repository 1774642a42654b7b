"""Reading curricula: defaults, overrides, and one clear message for everything that is wrong."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import growth
from growth.operators import OPERATORS, default
from pretrain import config
from pretrain.config import orders
from pretrain.config.layouts import misfits
from pretrain.errors import UserError
from pretrain.layout import Layout

DOCUMENT: dict[str, Any] = {
    "name": "test",
    "seed": 7,
    "data": {"corpus": "data/x"},
    "model": {"head_dim": 16},
    "train": {"seq_len": 64, "global_batch": 8, "tokens": 10_000, "lr": 1e-3},
    "stages": [
        {"name": "one", "model": {"vocab": 300, "hidden": 64, "layers": 4, "heads": 4, "ffn": 128}},
        {
            "name": "two",
            "model": {"vocab": 400, "hidden": 128, "layers": 4, "heads": 8, "kv_heads": 4, "ffn": 256},
            "parallel": {"tp": 2, "dp": 1},
            "train": {"lr": 5e-4},
        },
    ],
}


def write(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """A curriculum with some dotted keys ("stages.1.model.hidden") changed; None removes a key."""
    document = copy.deepcopy(DOCUMENT)
    for key, value in (changes or {}).items():
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        node: Any = document
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
        if value is None:
            del node[last]
        else:
            node[last] = value
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def message(folder: Path, changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        config.load(write(folder, changes))
    assert "test.yaml" in str(error.value)
    return str(error.value)


def test_defaults_are_merged_under_every_stage(tmp_path: Path) -> None:
    curriculum = config.load(write(tmp_path))
    one, two = curriculum.stages
    assert (one.seed, two.seed) == (7, 7)
    assert (one.train.lr, two.train.lr) == (1e-3, 5e-4)
    assert one.train.seq_len == two.train.seq_len == 64
    assert (one.model.kv_heads, two.model.kv_heads) == (4, 4)
    assert (one.parallel.tp, two.parallel.tp, one.parallel.dp) == (1, 2, None)
    assert curriculum.folder == Path("runs/test")
    assert curriculum.stage("two") is two
    assert curriculum.parent(two) is one
    assert curriculum.parent(one) is None


def test_head_dim_defaults_to_the_share_of_a_head(tmp_path: Path) -> None:
    curriculum = config.load(write(tmp_path, {"model": None, "stages.1.model.heads": 8}))
    assert [stage.model.head_dim for stage in curriculum.stages] == [16, 16]


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("tokens: 10000", "tokens: 1e4").replace("lr: 0.0005", "lr: 5e-4"))
    assert "1e4" in path.read_text()
    curriculum = config.load(path)
    assert (curriculum.stages[0].train.tokens, curriculum.stages[1].train.lr) == (10_000, 5e-4)


def test_the_written_configuration_is_complete(tmp_path: Path) -> None:
    stage = config.load(write(tmp_path)).stage("two")
    written = yaml.safe_load(config.to_yaml(stage))
    assert written == stage.to_dict()
    assert written["train"]["betas"] == [0.9, 0.95]
    assert set(written) == {field.name for field in dataclasses.fields(stage)}


def test_every_error_at_once_where_it_stands(tmp_path: Path) -> None:
    text = message(
        tmp_path,
        {
            "model.hiden": 3,
            "stages.1.train.shedule": "cosine",
            "stages.0.model.layers": "two",
            "stages.0.model.ffn": None,
        },
    )
    assert "4 errors" in text
    assert "\n  model.hiden: unknown key, did you mean 'hidden'?" in text
    assert text.count("hiden") == 1  # a default is wrong once, not once for each stage
    assert "stages[1].train.shedule: unknown key, did you mean 'schedule'?" in text
    assert "stages[0].model.layers: should be a valid integer" in text
    assert "'two'" in text
    assert "stages[0].model.ffn (or model.ffn for all stages): missing" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"paralel": {"tp": 2}}, ["paralel: unknown key, did you mean 'parallel'?"]),
        ({"stages.1.model.hidden": 32}, ["stages[1].model.hidden: 32 is less than 64 in stage 'one'"]),
        ({"stages.1.model.layers": 3}, ["stages[1].model.layers: 3 is less than 4"]),
        ({"stages.0.model.head_dim": 32}, ["stages[1].model.head_dim: 16 is less than 32"]),
        (
            {"stages.1.model.family": "gpt9"},
            ["model.family: should be one of bert, convolution_attention, ", "not 'gpt9'"],
        ),
        ({"train.layer_drop": 1}, ["train.layer_drop: should be less than 1, not 1"]),
        ({"train.layer_drop": float("inf")}, ["train.layer_drop: should be a finite number, not inf"]),
        (
            {"stages.1.train": {"layer_drop": {"p": -0.1}}},
            ["stages[1].train.layer_drop.p: should be greater than or eq"],
        ),
        ({"model.memory": 64}, ["model.memory: unknown key, did you mean 'train.memory'?", "known keys: "]),
        ({"stages.1.train": {"tp": 2}}, ["stages[1].train.tp: unknown key, did you mean 'parallel.tp'?"]),
        ({"train.layer_drop": {"q": 0.1}}, ["train.layer_drop.q: unknown key", "known keys: p, sublayers"]),
        ({"stages.1.parallel.tp": 3}, ["does not divide model.heads 8", "kv_heads 4", "ffn 256"]),
        ({"stages.1.model.kv_heads": 5}, ["stages[1].model.kv_heads: 5 does not divide model.heads 8"]),
        ({"model.head_dim": 15}, ["stages[0].model.head_dim: 15 is odd"]),
        ({"model": {}, "stages.0.model.heads": 3}, ["stages[0].model.hidden: 64 is not divisible by model.heads 3"]),
        ({"stages.1.parallel": {"pp": 2, "pipeline": "Ett|tL"}}, ["stages[1].parallel.pipeline", "3 layers", "is 4"]),
        ({"stages.1.parallel": {"pp": 2, "pipeline": [3, 2]}}, ["stages[1].parallel.pipeline", "5 layers", "is 4"]),
        ({"stages.1.parallel.pipeline": "Ett|ttL"}, ["stages[1].parallel.pipeline: 2 parts for one pipeline rank"]),
        ({"stages.1.parallel.pipeline": "tt|tt"}, ["stages[1].parallel.pipeline", "tt|tt", "understood"]),
        ({"parallel": {"dp": 2}, "train.micro_batch": 3}, ["train.global_batch: 8", "micro_batch 3 x 2 data-parallel"]),
        (
            {"parallel": {"pp": 2, "pipeline": "Et|t|t|tL"}, "train.micro_batch": 8},
            ["train.global_batch: 8", "no multiple of 16", "8 x parallel.pp 2 of an interleaved pipeline"],
        ),
        ({"stages.1.name": "one"}, ["stages[1].name: 'one' is the name of an earlier stage too"]),
        ({"stages.1.name": "../two"}, ["stages[1].name: '../two' cannot name a folder"]),
        ({"stages.1.seed": 8}, ["stages[1].seed: 8 differs from the curriculum's"]),
        ({"stages.1.grow": {"hidden": "wide"}}, ["stages[1].grow: hidden: there is no operator 'wide'", "zero"]),
        ({"stages.1.grow": {"width": "zero"}}, ["stages[1].grow.width: unknown key", "hidden"]),
        ({"stages.1.grow": {"ffn": {"operator": "zero", "to": 3}}}, ["stages[1].grow: ffn: zero has no option to"]),
        ({"stages.1.grow": {"moments": "reset", "old_lr": 0.0}}, ["stages[1].grow.moments: reset makes all parts new"]),
        ({"stages.1.grow": {"schedule": "cool"}}, ["stages[1].grow.schedule: should be 'continue', 'rewind'"]),
        ({"stages.0.patches": [{"at": 0.5, "index": 5}]}, ["stages[0].patches[0].index: 5", "choose 0 to 4"]),
        (
            {"stages.0.patches": [{"at": 0.5, "index": 4}, {"at": 0.4, "index": 5}]},
            ["stages[0].patches[1].at: 0.4 is not after 0.5", "stages[1].model.layers: 4 is less than 6"],
        ),
        ({"stages.0.patches": [{"at": 1.5, "index": 4}]}, ["stages[0].patches[0].at: should be less than 1, not 1.5"]),
        (
            {"stages.0.patches": [{"at": 0.9729, "index": 4}]},  # steps of 512 tokens, of which 19 come before the last
            ["stages[0].patches[0].at: 0.9729 of train.tokens 10000 comes too late", "begins at 9728", "raise train.t"],
        ),
        (
            {"stages.0.patches": [{"at": 0.96, "index": 4}, {"at": 0.97, "index": 5}]},
            ["stages[0].patches[1].at: 0.97 of train.tokens 10000 comes too late", "a step makes one patch"],
        ),
        ({"stages.0.model.layers": None}, ["stages[0].model.layers: missing; give it, or model.order as a word"]),
        (
            {"model.order": "sffx"},
            ["model.order: should be one of sandwich: k, par: p from 2 on, or a word of s", "not 'sffx'"],
        ),
        ({"model.order": ""}, ["stages[0].model.layers: 4, but model.order spells all 0 sublayers; remove it"]),
        ({"model.order": {}}, ["model.order: should be one of sandwich: k, par: p from 2 on, or a word of s"]),
        (
            {"model.order": {"sandwich": 2, "par": 5}},
            ["model.order: should be one of sandwich: k, par: p from 2 on, or a word"],
        ),
        ({"model.order": {"burger": 2}}, ["model.order"]),
        ({"model.order": {"par": 0}}, ["model.order: should be one of sandwich: k, par: p from 2 on"]),
        ({"model.order": "sfsf"}, ["stages[0].model.layers: 4, but model.order spells all 4 sublayers; remove it"]),
        ({"model.order": {"sandwich": 5}}, ["model.order: sandwich 5 does not fit model.layers 4", "choose 0 to 4"]),
        ({"model.order": {"par": 9}}, ["model.order: par 9 does not fit model.layers 4", "choose 2 to 8"]),
        ({"model.order": {"par": 2}, "stages.0.model.layers": None}, ["model.layers: missing; give half of the"]),
        ({"model.order": {"par": 2}, "model.share": 2}, ["model.share: 2, but model.order is {'par': 2}"]),
        ({"stages.0.model.order": {"par": 2}}, ["stages[1].model.order: None after {'par': 2} in stage 'one'"]),
        (
            {"stages.1.model.order": {"sandwich": 2}},
            ["model.order: {'sandwich': 2} after None in stage 'one'; a layer"],
        ),
        (
            {"model.order": {"par": 2}, "stages.0.patches": [{"at": 0.5, "index": 1}]},
            ["stages[0].patches: they add usual layers, and model.order has other ones"],
        ),
        (
            {"model.order": {"par": 2}, "stages.1.parallel": {"pp": 2, "pipeline": [3, 4]}},
            ["stages[1].parallel.pipeline", "places 7 layers", "(of an order: of sublayers) is 8"],
        ),
        (
            {"stages.0.model.layers": None, "stages.0.model.order": "sfsf", "stages.1.model.order": {"sandwich": 4}},
            ["stages[1].grow: layers: identity keeps the old layers in order"],
        ),
        ({"model.share": 3}, ["stages[0].model.share: 3 does not divide model.layers 4; choose one of 1, 2, 4"]),
        ({"stages.1.model.share": 2}, ["stages[1].model.share: 2 after 1 in stage 'one'", "only untied: choose 1"]),
        (
            {"stages.0.model.layers": 12, "stages.1.model.layers": 12, "stages.0.model.share": 4}
            | {"stages.1.model.share": 3},
            ["stages[1].model.share: 3 after 4", "choose 1, 2, 4"],
        ),
        (
            {"stages.1.train.lora": {"rank": 65}},
            ["stages[1].train.lora: adapters of rank 65: the smallest dimension of a matrix", "choose 1 to 64"],
        ),
        (
            {"stages.1.train.lora": {"rank": 4, "on": ["head"]}},
            ["stages[1].train.lora.on[0]: should be 'attention' or 'mlp', not 'head'"],
        ),
        (
            {"stages.1.train.lora": {"rank": 0, "alpha": 8}},
            ["stages[1].train.lora.alpha: 8.0, but train.lora.rank is 0"],
        ),
        ({"stages.1.train.lora": {"rank": 4, "on": []}}, ["stages[1].train.lora: adapters on nothing"]),
        (
            {"stages.1.train.lora": {"rank": 4}, "stages.1.train.layer_drop": 0.1},
            ["stages[1].train.layer_drop.p: 0.1, but where only train.lora is trained", "or train.lora.rest: train"],
        ),
        ({"train.mup": {"base_ffn": 64}}, ["stages[0].train.mup.base_ffn: 64, but train.mup.base_hidden is 0"]),
        (
            {"train.mup": {"base_hidden": 64}, "stages.1.train.mup": {"base_layers": 2}},
            ["stages[1].train.mup: base_hidden 64, base_layers 2 after base_hidden 64 in stage 'one'; a base model"],
        ),
        (
            {"stages.1.model.span": {"max": 64}},
            ["stages[1].model.span.max: 64 after 0 in stage 'one'; spans are shares"],
        ),
        (
            {"model.span": {"max": 64}, "model.family": "transformer_xl"},
            ["stages[0].model.span: transformer_xl has an attention of its own"],
        ),
        ({"model.span": {"ramp": 8}}, ["stages[0].model.span.ramp: 8, but model.span.max is 0 or missing"]),
        ({"train.lora": {"rank": 4}}, ["stages[0].train.lora.rank: 4, but adapters are of a model that has been"]),
        (
            {"stages.0.model.share": 2, "stages.0.patches": [{"at": 0.5, "index": 1}]},
            ["stages[0].patches: model.share is 2"],
        ),
        ({"model.positions": 64}, ["model.positions: 64, but llama2 has no rows of positions"]),
        ({"model.family": "gpt2", "model.positions": 32}, ["train.seq_len: 64 is more than model.positions 32"]),
        ({"train.epochs": 1.0}, ["train.epochs: 1, but train.tokens is 10000; give one of them"]),
        ({"train.ramp_tokens": 9}, ["stages[0].train.ramp_from: missing"]),
        ({"train.ramp_from": 4}, ["stages[0].train.ramp_tokens: missing"]),
        ({"train.ramp_from": 3, "train.ramp_tokens": 900}, ["train.ramp_from: 3 samples do not grow to", "8 by 3"]),
        ({"train.ramp_from": 8, "train.ramp_tokens": 900}, ["train.ramp_from: 8 samples do not grow to"]),
        ({"train.ramp_from": 4, "train.ramp_tokens": 10_001}, ["train.ramp_tokens: 10001 is more than train.tokens"]),
        ({"train.ramp_from": 4, "train.ramp_tokens": 900, "parallel.dp": 8}, ["train.ramp_from: 4 samples are no mul"]),
        ({"train.tokens": None}, ["train.tokens: missing; give it, or train.epochs"]),
        ({"train.warmup": 0.1, "train.warmup_tokens": 9}, ["train.warmup: 0.1, but train.warmup_tokens is 9"]),
        ({"stacking": {"layers": [3, 6], "epochs": [1, 1]}}, ["stacking: it stands for stages"]),
        ({"stages": None, "stacking": {"layers": [3, 6], "epochs": [1]}}, ["stacking: give two lists of one length"]),
        ({"stages": None, "stacking": {"layers": [6, 3], "epochs": [1, 1]}}, ["stacking.layers: [6, 3] must be whole"]),
        ({"train.schedule": "line"}, ["train.schedule: should be 'cosine', 'linear', 'wsd' or 'constant', not 'line'"]),
        ({"train.recompute": "full", "train.recompute_layers": 3}, ["train.recompute_layers: 3 does not divide"]),
        ({"train.tokens": 100}, ["train.tokens: 100 is less than one step", "512"]),
        ({"train.warmup_tokens": 20_000}, ["train.warmup_tokens: 20000 is more than train.tokens 10000"]),
        ({"train.min_lr": 0.1}, ["train.min_lr: 0.1 is more than the peak train.lr 0.001"]),
        ({"train.betas": [0.9]}, ["train.betas: item 1 is missing"]),
        ({"stages": []}, ["stages: empty"]),
        ({"stages": None}, ["stages: missing"]),
        ({"data.window": 0}, ["data.window: should be greater than 0, not 0"]),
    ],
)
def test_bad_input(tmp_path: Path, changes: dict[str, Any], expected: list[str]) -> None:
    text = message(tmp_path, changes)
    for part in expected:
        assert part in text


def test_a_patch_may_come_before_the_last_step(tmp_path: Path) -> None:
    """Two that are due before one step are made in a row; with epochs or a ramp nobody knows yet."""
    last, late = {"at": 0.9728, "index": 4}, {"at": 0.999, "index": 4}
    config.load(write(tmp_path, {"stages.1.patches": [{"at": 0.86, "index": 4}, {"at": 0.865, "index": 5}, last]}))
    config.load(write(tmp_path, {"train.tokens": None, "train.epochs": 1.0, "stages.1.patches": [late]}))
    config.load(write(tmp_path, {"train.ramp_from": 4, "train.ramp_tokens": 900, "stages.1.patches": [late]}))


def test_orders(tmp_path: Path) -> None:
    """The published ones; as many parameters as by turns; from stage to stage they grow by kind."""
    pairs = {"stages.0.model.layers": 16, "stages.1.model.layers": 16}
    usual = config.load(write(tmp_path, pairs)).stages[0].model.architecture()
    first, _ = (stage.model for stage in config.load(write(tmp_path, {**pairs, "model.order": {"par": 5}})).stages)
    assert first.letters == "sffsfffsffsfffsffsffffffffffffff"
    assert first.architecture().kinds.count("attention") == 6
    first, _ = (stage.model for stage in config.load(write(tmp_path, {**pairs, "model.order": {"sandwich": 6}})).stages)
    assert first.letters == "ssssss" + "sf" * 10 + "ffffff"
    assert first.architecture().parameters() == usual.parameters()
    assert orders.in_words(first.architecture()) == first.letters
    changes = {"stages.0.model.layers": None, "stages.1.model.layers": None, "stages.0.model.order": "ssff"}
    for word, grow in (("sssfff", "stack"), ("ssfsff", "identity"), ("ssff", "identity")):
        wanted = {**changes, "stages.1.model.order": word, "stages.1.grow": {"layers": grow}}
        one, two = config.load(write(tmp_path, wanted)).stages
        assert (one.model.depth, two.model.depth, two.model.layers) == (4, len(word), 0)
    assert "would shrink from 4 to 3" in message(tmp_path, {**changes, "stages.1.model.order": "sff"})
    dropped = {**changes, "stages.1.model.order": "sff", "stages.1.grow": {"layers": "drop"}}
    curriculum = config.load(write(tmp_path, dropped))
    two = curriculum.override(curriculum.stage("two"), ["--model.order", "{sandwich: 1}", "--model.layers", "2"])
    assert two.model.order == {"sandwich": 1}
    assert curriculum.override(curriculum.stage("two"), []) == curriculum.stage("two")
    config.compare_for_resume(two.to_dict(), yaml.safe_load(config.to_yaml(two)))


def test_shared_layers_are_untied(tmp_path: Path) -> None:
    """`layers` counts calls; another depth at once is the operator's to allow."""
    shared = {"stages.0.model.share": 4, "stages.1.model.share": 2}
    one, two = (stage.model.architecture() for stage in config.load(write(tmp_path, shared)).stages)
    assert (one.layers, one.calls, two.layers, two.calls) == (1, (0, 0, 0, 0), 2, (0, 0, 1, 1))
    assert growth.between(one, two, {"vocab": "random"}, seed=0, init_std=0.02).operators[0] == "layers: untie"
    deeper = {**shared, "stages.1.model.layers": 8, "stages.1.grow": {"layers": "stack"}}
    assert config.load(write(tmp_path, deeper)).stages[1].model.architecture().calls == (0, 0, 1, 1, 2, 2, 3, 3)
    assert "untie keeps the blocks" in message(tmp_path, {**deeper, "stages.1.grow": {"layers": "untie"}})


def test_sequence_parallel_needs_a_divisible_sequence(tmp_path: Path) -> None:
    text = message(tmp_path, {"parallel": {"sequence_parallel": True}, "train.seq_len": 63})
    assert "stages[1].parallel.sequence_parallel: parallel.tp 2 does not divide train.seq_len 63" in text
    assert "stages[0]" not in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name: a\nname: b\n", "'name' was given before"),
        ("- a\n- b\n", "a curriculum is a mapping"),
        ("name: [\n", "not valid YAML"),
        ("", "nothing"),
    ],
)
def test_not_a_curriculum(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"bad\.yaml") as error:
        config.load(path)
    assert expected in str(error.value)


def test_a_missing_file_and_a_missing_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        config.load(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match=r"no stage is named 'tow', did you mean 'two'.*its stages are one, two"):
        config.load(write(tmp_path)).stage("tow")


def test_command_line_overrides(tmp_path: Path) -> None:
    curriculum = config.load(write(tmp_path))
    two = curriculum.stage("two")
    changed = curriculum.override(two, ["--train.lr", "3e-4", "--parallel.pp", "2", "--parallel.pipeline", "1", "3"])
    assert (changed.train.lr, changed.parallel.pp, changed.parallel.pipeline) == (3e-4, 2, (1, 3))
    changed = curriculum.override(two, ["--parallel.pp", "2", "--parallel.pipeline", "Et|tttL"])
    assert changed.parallel.pipeline == "Et|tttL"
    assert curriculum.override(two, ["--log.no-wandb"]).log.wandb is False
    changed = curriculum.override(two, ["--grow.vocab", "mean", "--grow.hidden", "{operator: zero}"])
    assert (changed.grow.vocab, changed.grow.hidden) == ("mean", {"operator": "zero"})
    assert curriculum.override(two, []) == two


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--train.lr", "-1"], "train.lr: should be greater than 0, not -1.0"),
        (["--model.hidden", "32"], "model.hidden: 32 is less than 64 in stage 'one'"),
        (["--parallel.tp", "3"], "parallel.tp: 3 does not divide model.heads 8"),
        (["--seed", "3"], "belong to the whole curriculum"),
    ],
)
def test_overrides_are_checked_like_the_file(tmp_path: Path, arguments: list[str], expected: str) -> None:
    curriculum = config.load(write(tmp_path))
    with pytest.raises(UserError, match="command line") as error:
        curriculum.override(curriculum.stage("two"), arguments)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "follows"),
    [
        (["--model.hidden", "128"], "model.head_dim"),
        (["--model.heads", "8", "--model.head_dim", "0"], "model.kv_heads"),
        (["--model.heads", "8", "--model.kv_heads=8"], "model.head_dim"),
    ],
)
def test_an_override_of_what_others_followed_from(tmp_path: Path, arguments: list[str], follows: str) -> None:
    """Kept silently, they would make a model that nobody asked for."""
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({**DOCUMENT, "model": {}, "stages": DOCUMENT["stages"][:1]}))
    curriculum = config.load(path)
    (one,) = curriculum.stages
    with pytest.raises(UserError, match=f"command line: --{follows} followed from what is overridden here"):
        curriculum.override(one, arguments)
    model = curriculum.override(one, [*arguments, f"--{follows}", "0"]).model
    assert (model.kv_heads, model.head_dim) == (model.heads, model.hidden // model.heads)


def test_an_unknown_override_ends_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curriculum = config.load(write(tmp_path))
    with pytest.raises(SystemExit) as error:
        curriculum.override(curriculum.stage("two"), ["--train.learning_rate", "1"])
    assert error.value.code == 2
    assert "--train.learning" in capsys.readouterr().err


def test_every_growth_policy_has_a_key_and_its_default_exists() -> None:
    optimizer = {"moments", "schedule", "rewind", "new_lr", "new_weight_decay", "old_lr", "condense"}
    keys = {field.name for field in dataclasses.fields(config.Grow)} - optimizer - {"trial", "clip", "learn"}
    assert keys == {key for key, operators in OPERATORS.items() if operators}
    small = config.Model(vocab=100, hidden=16, layers=2, heads=2, ffn=32).architecture()
    usual = {key: default(small, small.replace({"layers": 3}), key) for key in OPERATORS}
    assert all(getattr(config.Grow(), key) in (name, "default") for key, name in usual.items())
    assert config.Grow().policy() == {}


def test_moments_are_of_old_elements_and_of_those_made_of_them() -> None:
    """The default keeps the old ones' and resets the others'; a name is for both."""
    assert config.Grow().policy().get("moments") is None
    assert config.Grow(moments="transform").policy()["moments"] == {"old": "transform", "new": "transform"}
    small = config.Model(vocab=100, hidden=16, layers=2, heads=2, ffn=32).architecture()
    given = {key: config.Grow(moments=key).policy() for key in ("default", "transform", "copy", "reset")}
    deep = small.replace({"layers": 4})
    plans = {key: growth.between(small, deep, policy, seed=0, init_std=0.02) for key, policy in given.items()}
    found = {key: next(step.moments for step in plan.steps) for key, plan in plans.items()}
    assert {key: (m.old, m.new) for key, m in found.items()} == {
        "default": ("transform", "reset"),
        "transform": ("transform", "transform"),
        "copy": ("copy", "copy"),
        "reset": ("reset", "reset"),
    }


def test_stacking_expands_to_stages(tmp_path: Path) -> None:
    """Each is its own copy of the configuration, and starts as copies of the layers of the one before."""
    model = {"vocab": 300, "hidden": 64, "heads": 4, "ffn": 128, "family": "bert"}
    changes = {"stages": None, "train.tokens": None, "model": model}
    loaded = config.load(write(tmp_path, {**changes, "stacking": {"layers": [3, 6, 12], "epochs": [1, 1, 3]}}))
    assert [(s.name, s.model.layers, s.train.epochs) for s in loaded.stages] == [
        ("layers-3", 3, 1), ("layers-6", 6, 1), ("layers-12", 12, 3)
    ]  # fmt: skip
    assert all(s.grow.layers == "stack" and s.model.positions == 64 for s in loaded.stages)
    assert loaded.parent(loaded.stages[1]) == loaded.stages[0]


def test_a_stage_from_scratch_has_no_parent(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path, {"stages.1.from_scratch": True, "stages.1.model.hidden": 32}))
    assert loaded.parent(loaded.stages[1]) is None


def test_the_architecture_of_a_stage(tmp_path: Path) -> None:
    arch = config.load(write(tmp_path, {"model.norm_eps": 1e-6})).stage("two").model.architecture()
    assert arch.sizes == {
        "layers": 4, "vocab": 400, "hidden": 128, "heads": 8, "kv_heads": 4, "head_dim": 16, "ffn": 256
    }  # fmt: skip
    assert arch.scalars["norm_eps"] == 1e-6


def test_a_resume_may_change_only_what_is_listed(tmp_path: Path) -> None:
    curriculum = config.load(write(tmp_path))
    two = curriculum.stage("two")
    arguments = ["--parallel.tp", "4", "--train.tokens", "20000", "--log.interval", "1", "--checkpoint.keep", "9"]
    config.compare_for_resume(two.to_dict(), curriculum.override(two, arguments).to_dict())
    changed = curriculum.override(two, ["--train.lr", "1e-4", "--model.vocab", "500", "--parallel.tp", "1"])
    with pytest.raises(UserError) as error:
        config.compare_for_resume(two.to_dict(), changed.to_dict())
    assert "train.lr: 0.0005 in the checkpoint, 0.0001 now" in str(error.value)
    assert "model.vocab: 400 in the checkpoint, 500 now" in str(error.value)
    assert "parallel.tp:" not in str(error.value)


def test_a_checkpoint_from_before_a_key_has_its_default(tmp_path: Path) -> None:
    curriculum = config.load(write(tmp_path))
    two = curriculum.stage("two")
    old = two.to_dict()
    del old["train"]["mup"]
    config.compare_for_resume(old, two.to_dict())
    changed = curriculum.override(two, ["--train.mup.base_hidden", "64"])
    with pytest.raises(UserError, match=r"train.mup.base_hidden: 0 in the checkpoint, 64 now"):
        config.compare_for_resume(old, changed.to_dict())


def test_the_shipped_configurations_load() -> None:
    folder = Path(__file__).parents[4] / "configs"
    paths = sorted(folder.glob("*.yaml"))
    assert folder / "demo.yaml" in paths
    for path in paths:
        config.load(path)


def test_the_batch_is_a_function_of_the_tokens_trained_on() -> None:
    ramp = config.Train(seq_len=10, global_batch=12, lr=1e-3, tokens=1200, ramp_from=4, ramp_by=2, ramp_tokens=400)
    assert [ramp.batch_at(tokens) for tokens in (0, 99, 100, 199, 200, 300, 399, 400, 9999)] == [
        *(4, 4, 6, 6, 8, 10, 10, 12, 12)
    ]
    done = steps = 0
    while done < ramp.tokens:
        done += ramp.batch_at(done) * ramp.seq_len
        steps += 1
    assert ramp.steps() == steps
    doubled = dataclasses.replace(ramp, ramp_by=0)
    assert [doubled.batch_at(tokens) for tokens in (0, 199, 200, 400)] == [4, 4, 8, 12]
    plain = dataclasses.replace(ramp, ramp_from=0, ramp_by=0, ramp_tokens=0)
    assert (plain.batch_at(0), plain.steps()) == (12, 10)


@given(
    seq_len=st.integers(1, 9),
    ramp=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 9)),
    ramp_tokens=st.integers(1, 3000),
    tokens=st.integers(1, 4000),
)
def test_steps_are_counted_without_making_them(
    seq_len: int, ramp: tuple[int, int, int], ramp_tokens: int, tokens: int
) -> None:
    start, by, times = ramp
    train = config.Train(
        seq_len=seq_len,
        global_batch=start + by * times,
        lr=1e-3,
        tokens=tokens,
        ramp_from=start,
        ramp_by=by,
        ramp_tokens=ramp_tokens,
    )
    done = steps = 0
    while done < tokens:
        done += train.batch_at(done) * seq_len
        steps += 1
    assert train.steps() == steps
    assert dataclasses.replace(train, tokens=10**18, ramp_tokens=10**18).steps() > 10**14


def test_a_batch_below_the_smallest_is_advised_once() -> None:
    train = config.Train(seq_len=16, global_batch=4, micro_batch=2, lr=1e-3, tokens=64)
    (problem,) = misfits(train, Layout.make(2, dp=8))
    assert problem.endswith("; use 16")
