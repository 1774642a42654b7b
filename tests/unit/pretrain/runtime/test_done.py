"""The marker of a finished stage: whatever it holds, it says a finite number, or nothing, or what is wrong with it."""

import json
from math import inf, isfinite, nan
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.errors import UserError
from pretrain.runtime.files import bits_per_byte, is_done, mark_done

BITS = "validation_bits_per_byte"
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([BITS, "step"]), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(("value", "known"), [(1.5, 1.5), (nan, None), (inf, None)])
def test_what_is_written_is_json(tmp_path: Path, value: float, known: float | None) -> None:
    mark_done(tmp_path, {"step": 3, BITS: value})
    assert is_done(tmp_path)
    assert json.loads((tmp_path / "DONE").read_text(), parse_constant=pytest.fail) == {"step": 3, BITS: known}
    assert bits_per_byte(tmp_path) == known


@pytest.mark.parametrize("text", ["", " \n", "{}", '{"step": 3}'])
def test_one_that_was_made_by_hand(tmp_path: Path, text: str) -> None:
    (tmp_path / "DONE").write_text(text)
    assert bits_per_byte(tmp_path) is None


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20), st.integers(0, 30))
def test_a_damaged_one_is_the_users_error(tmp_path: Path, data: bytes, cut: int) -> None:
    (tmp_path / "DONE").write_bytes(data[: max(0, len(data) - cut)] if cut < 10 else data)
    try:
        found = bits_per_byte(tmp_path)
    except UserError as error:
        said = str(error)
    else:
        said = f"{tmp_path / 'DONE'}: "
        assert found is None or isfinite(found)
    assert said.startswith(f"{tmp_path / 'DONE'}: ")
    assert "\n" not in said
