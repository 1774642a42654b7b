import json
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from growth.box import Box
from pretrain.checkpoint import CorruptCheckpoint, FileRecord, Manifest
from pretrain.checkpoint.manifest import StoredFile, canonical
from pretrain.checkpoint.places import check_tiling
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
    newer = canonical({"format_version": 2, "hash": "?", "shards": []})
    with pytest.raises(UserError, match=r"format version 2.*update Cambium") as error:
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
