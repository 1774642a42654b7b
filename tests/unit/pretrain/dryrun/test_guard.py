"""The compiled guard of the dry run."""

from pathlib import Path

from pretrain.dryrun import guard


def test_two_environments_with_one_version_of_torch_have_a_guard_each() -> None:
    one, other = Path("/one/site-packages/torch"), Path("/other/site-packages/torch")
    assert guard.place(one) == guard.place(one)
    assert guard.place(one) != guard.place(other)
