import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, ready
from tests.slurm.run import ROOT, Run, checkout, write_config

CHAPTERS = 150


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := ready():
        # CI has asked for the cluster: see tests/slurm/possible.sh.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"NOT TESTED: the cluster: {reason}")
    with Cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first chapters of the demo's text, with a tokenizer for its last stage."""
    folder = tmp_path_factory.mktemp("corpus")
    python = [sys.executable, str(ROOT / "tools")]
    subprocess.run([python[0], f"{python[1]}/demo_corpus.py", folder / "all.jsonl"], check=True)
    text = (folder / "all.jsonl").read_text().splitlines()[:CHAPTERS]
    (folder / "text.jsonl").write_text("".join(f"{json.dumps(json.loads(line))}\n" for line in text))
    words = [folder / "text.jsonl", "--output", folder / "prepared", "--vocab-size", "4096"]
    subprocess.run([python[0], f"{python[1]}/prepare_data.py", *words], check=True)
    return folder / "prepared"


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("home") / "my cambium")  # a blank is legal in a path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster, corpus: Path, code: Path) -> Run:
    """The whole curriculum on this machine, without SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Run(cluster, code, write_config(folder / "demo.yaml", corpus, folder / "runs"), folder / "runs/demo")
    cluster.run("bash", code / "slurm/curriculum.sh", "--here", run.config, cwd=folder)
    return run


NewRun = Callable[..., Run]


@pytest.fixture
def new_run(tmp_path: Path, cluster: Cluster, corpus: Path, code: Path, undisturbed: Run) -> Iterator[NewRun]:
    """Makes a run of its own in which the named stages are finished already; leaves no job and no host down."""

    def make(*finished: str) -> Run:
        run = Run(
            cluster, code, write_config(tmp_path / "demo.yaml", corpus, tmp_path / "runs"), tmp_path / "runs/demo"
        )
        for stage in finished:
            shutil.copytree(undisturbed.folder / stage, run.folder / stage)
        return run

    yield make
    cluster.run("scancel", "--user", str(os.geteuid()))
    cluster.until(lambda: not cluster.jobs(), "the queue is empty")
    cluster.all_idle()
