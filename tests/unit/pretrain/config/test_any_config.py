"""Whatever a file holds, a curriculum loads or the user is told what is wrong, by file and key."""

from __future__ import annotations

import copy
import dataclasses
import os
import typing
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pretrain import config
from pretrain.cli import submission
from pretrain.config import checks, reading
from pretrain.config.curriculum import Curriculum, curriculum_of
from pretrain.errors import UserError

DOCUMENT: dict[str, Any] = {
    "name": "test",
    "seed": 7,
    "data": {"corpus": "data/x"},
    "model": {"head_dim": 16},
    "parallel": {"pipeline": None},
    "train": {"seq_len": 64, "global_batch": 8, "tokens": 10_000, "lr": 1e-3, "plateau": {"threshold": 0.1}},
    "guard": {"loss_spike": 3.0},
    "stages": [
        {
            "name": "one",
            "model": {"vocab": 300, "hidden": 64, "layers": 4, "heads": 4, "ffn": 128},
            "patches": [{"at": 0.5, "index": 1}],
        },
        {
            "name": "two",
            "model": {"vocab": 400, "hidden": 128, "layers": 6, "heads": 8, "kv_heads": 4, "ffn": 256},
            "grow": {
                "hidden": {"operator": "replicate", "snr_db": 10.0},
                "layers": {"operator": "insert", "at": [{"index": 1, "init": "copy"}]},
                "trial": {"candidates": [{"layers": "stack"}]},
            },
        },
    ],
}
TAUGHT = {
    "name": "three",
    "model": {"vocab": 400, "hidden": 128, "layers": 6, "heads": 8, "kv_heads": 4, "ffn": 256},
    "distill": {"teacher": "two", "kind": "logits", "share": 0.5},
}
SECTIONS = ("data", "model", "parallel", "train", "grow", "checkpoint", "guard", "log")
FAMILIES = ("llama2", "gpt2", "bert")
LONG = settings(max_examples=5_000, suppress_health_check=list(HealthCheck))


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of everything in a document."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def keys(kind: Any = config.Stage, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every key that a stage has, and its type in words."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, (*path, name))
        elif "ClassVar" not in str(hint):
            yield (*path, name), str(hint)


def float_keys() -> Iterator[str]:
    """Every key whose type has a float in it."""
    return (".".join(path) for path, hint in keys() if "float" in hint)


def changed(path: tuple[str | int, ...], value: Any, document: dict[str, Any] = DOCUMENT) -> dict[str, Any]:
    document = copy.deepcopy(document)
    if path[0] == "distill":  # of a stage alone, it has no default at the top
        document["stages"].append(copy.deepcopy(TAUGHT))
        path = ("stages", len(document["stages"]) - 1, *path)
    node: Any = document
    for key in path[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    node[path[-1]] = value
    return document


def loads(document: dict[str, Any]) -> Curriculum | str:
    """The curriculum of a document, or what the user is told."""
    try:
        return curriculum_of(document, Path("test.yaml"))
    except UserError as error:
        said = str(error)
    assert said.startswith("test.yaml: ")
    return said


def test_the_document_is_valid_and_has_floats() -> None:
    assert isinstance(loads(DOCUMENT), Curriculum)
    assert len(list(float_keys())) >= 20
    assert {"train.clip", "train.betas", "model.rope_theta", "grow.old_lr", "data.mask_rate"} <= set(float_keys())


@pytest.mark.parametrize("key", float_keys())
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_not_finite_is_refused_by_name(key: str, value: float) -> None:
    """A checkpoint could not hold it, which would be found out at the first save."""
    said = loads(changed(tuple(key.split(".")), [value, value] if key == "train.betas" else value))
    assert isinstance(said, str)
    assert key in said
    if key == "train.clip":
        assert "finite number" in said
        assert "0 is no clipping" in said


FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=150)
@given(st.sampled_from(sorted(set(float_keys()) - {"train.betas"})), FLOATS)
def test_every_float_that_is_accepted_can_be_saved(key: str, value: float) -> None:
    loaded = loads(changed(tuple(key.split(".")), value))
    if isinstance(loaded, str):
        assert key.split(".")[-1] in loaded
    else:
        assert list(checks._finite("", [stage.to_dict() for stage in loaded.stages])) == []


WRITTEN = st.text(max_size=5) | st.sampled_from(
    ["operator", "factors", "sandwich", "par", "at", "index", "init", "noise", "snr_db", "layers"]
)
WORDS = [
    "stack",
    "dense",
    "insert",
    "Et*9|tL",
    "ssff",
    "(t*99)*99",
    "Et*99999999999L",
    "random",
    "replicate",
    "default",
    "nan",
]
NUMBERS = [0, -1, 1, 2, 10**6, 2**31, 2**63, 10**18, 10**30, 10**400, float("inf"), float("nan"), -1e5]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), FLOATS, st.text(max_size=8), st.sampled_from([*WORDS, *NUMBERS])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WRITTEN, inner, max_size=3), max_leaves=8
)
PLACES = sorted({*places(DOCUMENT), *(path for path, _ in keys())}, key=str)
GROW = ("stages", 1, "grow")


@settings(max_examples=250)
@given(st.sampled_from(PLACES), VALUES)
@example((*GROW, "layers"), {"operator": ["stack"]})
@example((*GROW, "layers"), {"operator": "insert", "at": [{1: 2}]})
@example((*GROW, "hidden"), {"operator": "replicate", "snr_db": -100000})
@example((*GROW, "hidden"), {"operator": "replicate", "snr_db": 10**400})
@example((*GROW, "layers"), {"operator": "stack", "noise": 10**400})
@example((*GROW, "positions"), {"operator": "dense", "factors": "x"})
@example((*GROW, "trial"), {"candidates": [{"moments": {"operator": "dense", "factors": "x"}}]})
@example(("parallel", "pipeline"), "Et*99999999999L")
@example(("parallel", "pipeline"), "E" + "(t*2048)*2048" * 2000 + "L")
@example(("model", "layers"), 10**12)
@example(("train", "epochs"), 1e300)
@example(("model", "order"), {"sandwich": 10**6})
@example(("model", "order"), {"par": 0})
@example(("model", "order"), {"par": 2})
@example(("model", "share"), 10**4)
@example(("data", "corpora"), [None])
def test_whatever_stands_at_a_key(path: tuple[str | int, ...], value: Any) -> None:
    loads(changed(path, value))


def several(changes: list[tuple[tuple[str | int, ...], Any]]) -> None:
    document = DOCUMENT
    for path, value in changes:
        with suppress(KeyError, IndexError, TypeError, AttributeError):  # an earlier change has taken its place
            document = changed(path, value, document)
    loads(document)


SMALL = st.one_of(st.integers(0, 9), st.integers(0, 2000), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), SMALL | VALUES), min_size=1, max_size=4)


@settings(max_examples=250)
@given(CHANGES)
@example([(("train", "ramp_tokens"), 900)])
def test_whatever_stands_at_several_keys(changes: list[tuple[tuple[str | int, ...], Any]]) -> None:
    several(changes)


@pytest.mark.long
@LONG
@given(CHANGES)
def test_whatever_stands_at_several_keys_for_long(changes: list[tuple[tuple[str | int, ...], Any]]) -> None:
    several(changes)


def test_merge_keys(tmp_path: Path) -> None:
    """What people use anchors for; a key that is given beside them wins."""
    path = tmp_path / "test.yaml"
    path.write_text(with_anchor())
    one, two = (stage.train for stage in config.load(path).stages)
    assert (one.clip, one.lr, two.clip, two.lr) == (0.25, 7e-4, 0.25, 5e-4)
    assert reading.parse("a: &a {x: 1}\nb: &b {x: 2, y: 3}\nc: {<<: [*a, *b], z: 4}\n")["c"] == {"x": 1, "y": 3, "z": 4}


def with_anchor() -> str:
    one, two = (yaml.safe_dump(stage, default_flow_style=True, width=10**6).strip() for stage in DOCUMENT["stages"])
    first = one[:-1] + ", train: &first {clip: 0.25, lr: 7e-4}}"
    second = two[:-1] + ", train: {<<: *first, lr: 5e-4}}"
    return yaml.safe_dump({**DOCUMENT, "stages": None}).replace("stages: null", f"stages: [{first}, {second}]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("? [1, 2]\n: 3\n", "a key is a word, and this is a list or a mapping (line 1, column 3)"),
        ("1: 2\n", "a key is a word: write '1' in quotation marks"),
        ("null: 2\n", "a key is a word: write 'null'"),
        ("a: 1\na: 2\n", "'a' was given before, and again here: remove one of them (line 2, column 1)"),
        ("a: &a [*a]\n", "a value contains itself"),
        ("&a\nname: y\nstages: *a\n", "a value contains itself"),
        ("a: " + "[" * 1100 + "]" * 1100, "more than 50 deep"),
        ("a: " + "[" * 60 + "]" * 60, "more than 50 deep"),
        ("a: !!int x\n", "'x' is no int"),
        (f"a: {'9' * 5000}\n", "is no int"),
        ("a: !!bool x\n", "'x' is no bool"),
        ("a: !!python/object:os.system x\n", "could not determine a constructor"),
        ("a: !!set {b}\n", "could not determine a constructor"),
        ('a: "\\0"\n', "has a character that is none"),
        ('a: "\\ud800"\n', "has a character that is none"),
        ("<<: 3\n", "expected a mapping or list of mappings for merging"),
        ("a: \x07\n", "special characters are not allowed"),
        ("x0: &x0 [1, 1]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 40)), "100000 values"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "test.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"test\.yaml: not valid YAML: ") as error:
        config.load(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_that_yaml_takes_for_true_is_a_word() -> None:
    assert reading.parse("on: on") == {"on": True}


def test_there_are_no_dates() -> None:
    assert reading.parse("a: 2020-01-01\nb: 2020-01-01 10:00:00\n") == {"a": "2020-01-01", "b": "2020-01-01 10:00:00"}


TEXT = yaml.safe_dump(DOCUMENT)
PARTS = st.sampled_from(
    ["&a ", "*a", "<<: ", "? ", "- ", ": ", "[", "]", "{", "}", "!!int ", "!!set ", "| ", "> ", '"']
)
SPLICES = PARTS | st.text(max_size=4) | st.just("\n") | st.just("\n  ")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 6), SPLICES), min_size=1, max_size=4))
def test_damaged_yaml_is_read_or_refused(edits: list[tuple[int, int, str]]) -> None:
    damaged(edits)


@pytest.mark.long
@LONG
@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 6), SPLICES), min_size=1, max_size=8))
def test_damaged_yaml_is_read_or_refused_for_long(edits: list[tuple[int, int, str]]) -> None:
    damaged(edits)


def damaged(edits: list[tuple[int, int, str]]) -> None:
    """A valid document, with pieces cut out and others put in."""
    text = TEXT
    for at, cut, put in edits:
        text = text[:at] + put + text[at + cut :]
    try:
        found = reading.parse(text)
    except ValueError as error:
        said = str(error)
    else:
        said = "a valid document"
        if isinstance(found, dict):
            loads(found)
    assert said
    assert "\n" not in said


GOOD = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)
BAD = st.text(max_size=110).filter(lambda name: not checks.NAME.fullmatch(name))


@settings(max_examples=60)
@given(GOOD, GOOD, st.booleans())
@example("0..", "a" * 100, False)
def test_a_run_lies_in_its_runs_folder(name: str, stage: str, first: bool) -> None:
    """One rule for the names of curricula and stages, with which no folder is another one's."""
    document = changed(("stages", 0 if first else 1, "name"), stage)
    loaded = loads(document | {"name": name})
    if isinstance(loaded, str):
        assert stage in ("one", "two")
        return
    folder = os.path.normpath(loaded.folder / stage)
    assert Path(folder).parts == ("runs", name, stage)


@settings(max_examples=60)
@given(BAD)
@example("../../escaped")
@example("")
@example(".")
@example("/etc/evil")
@example("a\0b")
@example("a\nb")
@example("a\tb")
@example("c%j\\Ed")
@example("x" * 101)
@example("a\n")
@example("naïve")
def test_any_other_name_is_refused(name: str) -> None:
    said = loads(changed(("stages", 1, "name"), name) | {"name": name})
    assert isinstance(said, str)
    assert "\n  name: " in said
    assert "stages[1].name: " in said
    assert said.count("cannot name a folder and a job") == 2


@pytest.mark.parametrize("folder", ["", "a\nb", "a\\b", "a\0"])
def test_a_folder_of_runs_that_scripts_cannot_name(folder: str) -> None:
    assert "output: " in str(loads(DOCUMENT | {"output": folder}))


def test_overrides_are_read_as_the_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "test.yaml"
    path.write_text(TEXT)
    loaded = config.load(path)
    two = loaded.stage("two")
    for words in (
        ["--grow.layers", "{operator: [stack"],
        ["--grow.trial.candidates", "5"],
        ["--grow.layers", "{1: 2}"],
    ):
        with pytest.raises(SystemExit) as left:
            loaded.override(two, words)
        assert left.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
    for words in (["--train.clip", "inf"], ["--train.lr", "nan"], ["--grow.layers", "{operator: [stack]}"]):
        with pytest.raises(UserError, match="command line"):
            loaded.override(two, words)
    with pytest.raises(UserError, match=r"grow\.layers\.noise: inf is no finite number"):
        loaded.override(two, ["--grow.layers", "{operator: insert, at: [1], noise: .inf}"])


def test_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2, nothing written."""
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({**DOCUMENT, "train": {**DOCUMENT["train"], "clip": float("inf")}}))
    assert submission.main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert list(tmp_path.iterdir()) == [path]
