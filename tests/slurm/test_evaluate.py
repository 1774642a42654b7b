"""Tasks on checkpoints as jobs of their own, beside the stage that they judge."""

import json
from pathlib import Path

import yaml

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun
from tests.slurm.run import STEPS

TASK = {
    "task": "verse",
    "output_type": "loglikelihood_rolling",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "verses.jsonl"}},
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}


def test_tasks_beside_training(cluster: Cluster, new_run: NewRun, tmp_path: Path) -> None:
    """The stage asks for them at a step and at its end; they come after one another, and their results are kept."""
    (tmp_path / "verses.jsonl").write_text(json.dumps({"text": "In the beginning"}) + "\n")
    (tmp_path / "verse.yaml").write_text(yaml.safe_dump(TASK))
    run = new_run()
    run.change(eval={"tasks": [str(tmp_path / "verse.yaml")], "interval": STEPS // 2})
    job = run.submit("seed")["seed"]
    assert cluster.ended(job) == "COMPLETED", run.log("seed")
    cluster.until(lambda: not cluster.jobs(), "the evaluations have ended")
    folder = run.folder / "seed/evaluations"
    said = "".join(path.read_text() for path in folder.glob("*log*"))
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("step-*.json")}
    assert sorted(results) == [f"step-{step:08d}" for step in (STEPS // 2, STEPS)], said
    assert all(list(result["results"]) == ["verse"] and not result["failed"] for result in results.values()), said
    assert len(list(folder.glob("job-*.log"))) == 2, said
