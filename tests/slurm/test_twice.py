"""curriculum.sh again, at any time."""

import threading

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun
from tests.slurm.run import Run

pytestmark = pytest.mark.long


def test_submitted_twice(cluster: Cluster, new_run: NewRun, undisturbed: Run) -> None:
    """By two people at once, again while a stage runs, and again when everything is done."""
    run = new_run("seed")
    answers: list[dict[str, str]] = []
    people = [threading.Thread(target=lambda: answers.append(run.submit())) for _ in range(2)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert answers[0] == answers[1]
    jobs = answers[0]
    assert list(jobs) == ["wide", "deep"]
    assert sorted(cluster.jobs()) == sorted(jobs.values())
    with run.paused_at("wide", jobs["wide"], 2):
        assert run.submit() == jobs
        assert sorted(cluster.jobs()) == sorted(jobs.values())
        said = cluster.run("bash", run.code / "slurm/status.sh", run.config, cwd=run.config.parent).splitlines()
        assert [line.split()[:2] for line in said[1:]] == [["seed", "done"], ["wide", "running"], ["deep", "pending"]]
        assert said[2].split()[-2:] == ["0", jobs["wide"]]
    for stage in jobs:
        assert cluster.ended(jobs[stage]) == "COMPLETED", run.log(stage)
        assert cluster.job(jobs[stage])["Restarts"] == "0"
    run.same_as(undisturbed, *jobs)
    assert run.submit() == {}
