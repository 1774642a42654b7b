import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from growth.box import Box
from pretrain.checkpoint import CorruptCheckpoint, FileRecord, Manifest
from pretrain.checkpoint.manifest import FORMAT_VERSION, canonical, digest
from pretrain.checkpoint.places import StoredFile, check_tiling
from pretrain.errors import UserError
from tests.unit.pretrain.checkpoint.boxes import fields_of, partition, shapes

HERE = Path("checkpoint/manifest.json")


def manifest() -> Manifest:
    file = StoredFile(96, ("0" * 32,))
    record = FileRecord("weight", "weight-00000.safetensors", file, (("a", Box.whole((2, 3)), 72),))
    return Manifest.build(7, fields_of({"a": (2, 3)}), [record])


def test_round_trip() -> None:
    written = manifest()
    assert Manifest.from_bytes(written.to_bytes(), HERE) == written
    assert written.has("weight")
    assert not written.has("exp_avg")
    assert written.tensors["a"].boxes["weight"][0].box == Box.whole((2, 3))


def test_the_hash_survives_other_formatting_but_no_other_content() -> None:
    body = json.loads(manifest().to_bytes())
    assert Manifest.from_bytes(json.dumps(body, indent=2).encode(), HERE) == manifest()
    body["progress"]["tokens"] += 1
    with pytest.raises(CorruptCheckpoint, match="hash does not match"):
        Manifest.from_bytes(canonical(body), HERE)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"null", b'{"format_version": 1}', b"\xff\xfe"])
def test_no_manifest(data: bytes) -> None:
    with pytest.raises(CorruptCheckpoint, match="no manifest of a checkpoint"):
        Manifest.from_bytes(data, HERE)


def test_a_newer_version_says_update() -> None:
    newer = canonical({"format_version": FORMAT_VERSION + 1, "hash": "?", "shards": []})
    with pytest.raises(UserError, match=rf"format version {FORMAT_VERSION + 1}.*update Cambium") as error:
        Manifest.from_bytes(newer, HERE)
    assert not isinstance(error.value, CorruptCheckpoint)


def test_not_a_number_is_refused() -> None:
    fields = fields_of({})
    fields.progress["seconds"] = float("nan")  # type: ignore[index]
    with pytest.raises(ValueError, match="JSON"):
        Manifest.build(1, fields, [])


@given(st.data(), shapes)
def test_partitions_tile(data: st.DataObject, shape: tuple[int, ...]) -> None:
    boxes = [box for rank in data.draw(partition(shape, 3)) for box in rank]
    check_tiling("t", shape, boxes)
    gone = data.draw(st.sampled_from(boxes))
    with pytest.raises(ValueError, match="hold"):
        check_tiling("t", shape, [box for box in boxes if box is not gone])
    with pytest.raises(ValueError, match="overlap"):
        check_tiling("t", shape, [*boxes, gone])


def test_a_box_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        check_tiling("t", (4,), [Box((0,), (5,))])


def test_a_hash_that_is_right_does_not_make_a_manifest() -> None:
    body = {"format_version": 1, "step": 3}
    with pytest.raises(CorruptCheckpoint, match="not the manifest of a format 1 checkpoint"):
        Manifest.from_bytes(canonical({**body, "hash": xxhash.xxh3_128_hexdigest(canonical(body))}), HERE)


def _file(body: dict[str, Any], new: str) -> None:
    body["files"][new] = body["files"].pop("weight-00000.safetensors")
    body["tensors"]["a"]["boxes"]["weight"][0][0] = new


def _box(body: dict[str, Any], at: int, value: Any) -> None:
    body["tensors"]["a"]["boxes"]["weight"][0][at] = value


FILE = "weight-00000.safetensors"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda b: _file(b, "../weight-00000.safetensors"), "should match pattern"),
        (lambda b: _file(b, "/etc/weight-00000.safetensors"), "should match pattern"),
        (lambda b: _file(b, "exp_avg-00000.safetensors"), "of another kind"),
        (lambda b: _box(b, 0, "weight-00001.safetensors"), "no file of this checkpoint"),
        (lambda b: b["files"].update({"weight-00001.safetensors": {"size": 9, "blocks": ["0" * 32]}}), "no tensor"),
        (lambda b: b["tensors"]["a"]["boxes"].update({"momentum": []}), "'weight', 'exp_avg' or 'exp_avg_sq'"),
        (lambda b: _box(b, 1, 10**9), "where the header is|end at byte"),
        (lambda b: _box(b, 1, 0), "where the header is"),
        (lambda b: _box(b, 1, 1.5), "no box"),
        (lambda b: _box(b, 1, True), "no box"),
        (lambda b: _box(b, 3, [2, 2]), "hold 4 of the 6"),
        (lambda b: _box(b, 3, [2]), "number of dimensions"),
        (lambda b: b["files"][FILE].update(blocks=[]), "0 blocks for 96 bytes"),
        (lambda b: b["files"][FILE].update(blocks=["0" * 32] * 2), "2 blocks for 96 bytes"),
        (lambda b: b["files"][FILE].update(size=97), "end at byte 96"),
        (lambda b: b["files"][FILE].update(size=None), "should be a valid integer"),
        (lambda b: b["tensors"]["a"].update(shape=[2, 10**19]), "less than or equal"),
        (lambda b: b.update(step=-1), "greater than or equal"),
        (lambda b: b["progress"].update(tokens="many"), "progress.tokens"),
        (lambda b: b["architecture"]["sizes"].update(hidden=None), "architecture.sizes.hidden"),
        (lambda b: b.update(events=[[]]), r"events\[0\]"),
        (lambda b: b.pop("cursor"), "cursor: missing"),
    ],
)
def test_what_others_may_write(change: Callable[[dict[str, Any]], object], why: str) -> None:
    """With the right hash: each is refused, by name, before anything is opened."""
    body = json.loads(manifest().to_bytes())
    body.pop("hash")
    change(body)
    with pytest.raises(CorruptCheckpoint, match=why) as error:
        Manifest.from_bytes(canonical({**body, "hash": digest(body)}), HERE)
    assert "\n" not in str(error.value)


def test_numbers_that_are_none_in_json() -> None:
    text = manifest().to_bytes().decode()
    for number in ("NaN", "Infinity", "1e999", "9" * 5000):
        with pytest.raises(CorruptCheckpoint, match="no manifest of a checkpoint"):
            Manifest.from_bytes(text.replace('"seconds":0.1', f'"seconds":{number}').encode(), HERE)
