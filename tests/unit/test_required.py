"""CI fails when a suite that must run has not: whatever the reason, and however green pytest was."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import required

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest
def test_passes(): pass
@pytest.mark.parametrize("n", range(3))
def test_passes_as_well(n): print("with output")
def test_is_skipped(): pytest.skip("NOT TESTED")
@pytest.fixture
def cluster(): pytest.skip("NOT TESTED: there is no SLURM")
def test_has_no_cluster(cluster): pass
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What pytest says of 4 tests that pass and 2 that are skipped, in tests/unit."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tests/unit").mkdir(parents=True)
    (folder / "tests/unit/test_some.py").write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\n")
    words = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--junit-xml=result.xml"]
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=folder, check=True, capture_output=True)
    return required.passed([folder / "result.xml"])


@pytest.mark.parametrize(
    ("line", "missed"),
    [
        ("tests/unit 4", []),
        ("tests/unit 5", ["tests/unit: 4 tests passed, and 5 must have, by required.txt"]),
        ("tests/slurm 17", ["tests/slurm: 0 tests passed, and 17 must have, by required.txt"]),
        ("tests/un 1", ["tests/un: 0 tests passed, and 1 must have, by required.txt"]),
        ("tests/slurm 17 true && test a = a", ["tests/slurm: 0 tests passed, and 17 must have, by required.txt"]),
        ("tests/slurm 17 false", []),
    ],
)
def test_only_what_passed_counts(modules: list[str], line: str, missed: list[str]) -> None:
    assert list(required.missing(f"# a comment\n\n{line}\n", modules)) == missed


def test_every_suite_is_required() -> None:
    """A new folder of tests is not forgotten, and what is listed, a folder or a file in one, is there."""
    listed = {line.split()[0] for line in required.LIST.read_text().splitlines() if line.startswith("tests/")}
    folders = {f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if any(path.glob("**/test_*.py"))}
    assert folders <= listed
    assert [suite for suite in listed if not ((ROOT / suite).is_dir() or (ROOT / f"{suite}.py").is_file())] == []


@pytest.mark.parametrize("there", [["slurmctld"], ["ip", "unshare", "nsenter"], []])
def test_every_program_of_a_cluster_is_looked_for_by_itself(tmp_path: Path, there: list[str]) -> None:
    """One that is there does not stand for the others."""
    for name in (*there, "bash"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    script = (ROOT / "tests/slurm/absent.sh").read_text()
    (tmp_path / "absent.sh").write_text(script.replace("$PATH:/usr/sbin:/sbin", str(tmp_path)))
    said = subprocess.run(["/bin/bash", tmp_path / "absent.sh"], check=True, capture_output=True, text=True)
    absent = said.stdout.split()
    assert not set(absent) & set(there)
    assert len(absent) == 11 - len(there)


@pytest.mark.skipif(bool(os.geteuid()), reason="NOT TESTED: what CI installs, which it does as root alone")
def test_ci_ends_where_it_cannot_install(tmp_path: Path) -> None:
    """Before anything is tested: neither .ci/run nor the cluster's installation goes on without what it wanted."""
    for name in ("bash", "dirname", "paste", "tail"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    shutil.copytree(ROOT / "tests/slurm", tmp_path / "slurm")
    absent = tmp_path / "slurm/absent.sh"
    absent.write_text(absent.read_text().replace("$PATH:/usr/sbin:/sbin", str(tmp_path)))
    for script, reason in (
        (ROOT / ".ci/run", "g++ could not be installed"),
        (tmp_path / "slurm/install.sh", "apt-get could not install SLURM"),
    ):
        ended = subprocess.run(
            ["/bin/bash", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
        )
        assert (ended.returncode, reason in ended.stderr) == (1, True), ended.stderr


@pytest.mark.skipif(bool(os.geteuid()), reason="NOT TESTED: a leftover cluster, which root alone can have")
@pytest.mark.parametrize("owner", ["tests that live", "tests that were killed", "a person"])
def test_a_cluster_that_killed_tests_have_left_does_not_stop_ci(tmp_path: Path, owner: str) -> None:
    """It is stopped; one that somebody uses is not touched, and named."""
    (tmp_path / "cambium0").mkdir()
    (tmp_path / "cambium0/ifalias").write_text(f"{tmp_path}\n")
    shutil.copytree(ROOT / "tests/slurm", tmp_path / "slurm")
    (tmp_path / "slurm/absent.sh").write_text("")
    (tmp_path / "slurm/cluster.sh").write_text('echo "$@" >"$2/stopped"')
    install = tmp_path / "slurm/install.sh"
    install.write_text(install.read_text().replace("/sys/class/net", str(tmp_path)))
    lock = (tmp_path / "tests").open("w") if owner != "a person" else None
    if lock and owner == "tests that live":
        fcntl.flock(lock, fcntl.LOCK_EX)
    ended = subprocess.run(["bash", install], capture_output=True, text=True, check=False)
    if owner == "tests that were killed":
        assert (ended.returncode, (tmp_path / "stopped").read_text()) == (0, f"stop {tmp_path}\n"), ended.stderr
    else:
        assert (ended.returncode, (tmp_path / "stopped").exists()) == (1, False)
        assert f"cluster.sh stop {tmp_path}" in ended.stderr
