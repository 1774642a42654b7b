"""The processes of the devices end with the tests."""

from collections.abc import Iterator

import pytest

from tests.cuda.devices import end_all


@pytest.fixture(scope="session", autouse=True)
def _processes() -> Iterator[None]:
    yield
    end_all()
