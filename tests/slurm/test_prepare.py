"""A pipeline of text as arrays of jobs: a host's power fails in the middle, and the corpus is that of one machine."""

import json
from pathlib import Path

import yaml

from tests.slurm.cluster import Cluster

TASKS = 4


def write(folder: Path, text: list[str], output: Path) -> Path:
    """A pipeline of four tasks over the chapters, some of them twice."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(TASKS):
        (folder / f"text-{number}.jsonl").write_text("\n".join(text[number::TASKS] + text[:5]) + "\n")
    pipeline = {
        "output": str(output),
        "tasks": TASKS,
        "read": {"files": [str(folder / "text-*.jsonl")]},
        "filters": [{"language": {"keep": ["en"]}}, {"gopher_repetition": {}}],
        "near": {"bands": 3, "rows": 4},
        "tokens": {"vocab_size": 800, "least": 64},
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    return folder / "pipeline.yaml"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_power_cut(cluster: Cluster, corpus: Path, code: Path, tmp_path: Path) -> None:
    """Tasks of a host that is gone run again elsewhere; called again, prepare.sh submits nothing twice."""
    text = (corpus.parent / "text.jsonl").read_text().splitlines()
    file = write(tmp_path / "text", text, tmp_path / "corpus")
    cluster.run("bash", code / "slurm/prepare.sh", "--here", file, cwd=tmp_path)
    expected = contents(tmp_path / "corpus")
    assert json.loads(expected["corpus.json"])["documents"] > 50
    (tmp_path / "corpus").rename(tmp_path / "here")

    said = cluster.run("bash", code / "slurm/prepare.sh", file, cwd=tmp_path)
    assert "near-find is job" in said
    jobs = [line.split(" is job ")[1].split(":")[0] for line in said.splitlines()]
    assert "in the queue already" in cluster.run("bash", code / "slurm/prepare.sh", file, cwd=tmp_path)

    def hosts() -> list[str]:
        return cluster.run("squeue", "--noheader", "--states=RUNNING", "--format=%N").split()

    cluster.until(hosts, "a task runs")
    node = hosts()[0]
    cluster.cut(node)
    cluster.boot(node)
    cluster.until(lambda: not cluster.jobs(), f"all of {jobs} have ended")
    assert contents(tmp_path / "corpus") == expected
    assert "is there already" in cluster.run("bash", code / "slurm/prepare.sh", file, cwd=tmp_path)
