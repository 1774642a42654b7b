"""Stages that fail: nothing after them starts, and nothing is requeued; what cannot run is not even submitted."""

import signal
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun
from tests.slurm.run import Run


def failed(cluster: Cluster, jobs: dict[str, str], first: str, code: int, run: Run) -> None:
    """The job of stage `first` has failed with this exit code, once; those after it never started."""
    assert cluster.ended(jobs[first]) == "FAILED", run.log(first)
    found = cluster.job(jobs[first])
    assert (found["ExitCode"], found["Restarts"]) == (f"{code}:0", "0"), run.log(first)
    for stage in list(jobs)[list(jobs).index(first) + 1 :]:
        assert cluster.ended(jobs[stage]) == "CANCELLED"
        assert run.log(stage) == ""


def test_a_stage_that_crashes(cluster: Cluster, new_run: NewRun) -> None:
    """A file where the trainer wants a folder is nothing that it expects: it crashes at the end of the growth event."""
    run = new_run("seed")
    (run.folder / "wide").mkdir()
    (run.folder / "wide/events").touch()
    failed(cluster, run.submit(), "wide", 1, run)
    assert run.happened("wide") == ["failed with code 1, and nothing saved since the start"]
    assert "FileExistsError" in run.log("wide")
    assert f"{run.folder}/.submitted/" in run.log("wide")  # the code is that of the submission


def test_an_error_of_the_user_after_the_submission(cluster: Cluster, new_run: NewRun, tmp_path: Path) -> None:
    """The corpus goes away while the jobs wait: the first one says so at once."""
    run = new_run("seed")
    (tmp_path / "corpus").symlink_to(run.corpus())
    run.change(data={"corpus": str(tmp_path / "corpus")})
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        jobs = run.submit()
        (tmp_path / "corpus").unlink()
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    failed(cluster, jobs, "wide", 2, run)
    assert run.log("wide").startswith("error: ")
    assert str(tmp_path / "corpus") in run.log("wide")
    assert not (run.folder / "wide/jobs.tsv").exists()


def test_a_stage_that_dies_at_every_start(cluster: Cluster, new_run: NewRun) -> None:
    """It is restarted as often as the site says, and no more."""
    run = new_run()
    jobs = run.submit("seed", "wide", CAMBIUM_MAX_RESTARTS="1")
    for restarts in ("0", "1"):
        cluster.until(lambda count=restarts: cluster.job(jobs["seed"])["Restarts"] == count, "it starts again")
        cluster.until(lambda: cluster.ranks(jobs["seed"]), "there are ranks")
        cluster.ranks(jobs["seed"])[0].signal(signal.SIGKILL)
    assert cluster.ended(jobs["seed"]) == "FAILED"
    assert run.happened("seed")[-1] == "ended by signal 9; not requeued, after 1 restarts"
    assert cluster.ended(jobs["wide"]) == "CANCELLED"


@pytest.mark.parametrize(
    ("stages", "changes", "said"),
    [
        (["wid"], {}, "no stage is named 'wid', did you mean 'wide'"),
        (["deep"], {}, "the parent stage 'wide' has not finished"),
        ([], {"data": {"corpus": "/nowhere"}}, "/nowhere"),
        ([], {"parallel": {"dp": 3}, "train": {"global_batch": 12}}, "3 ranks"),
    ],
)
def test_nothing_is_submitted_that_cannot_run(
    cluster: Cluster, new_run: NewRun, stages: list[str], changes: dict[str, dict[str, object]], said: str
) -> None:
    run = new_run()
    run.change(**changes)
    words = ("bash", run.code / "slurm/curriculum.sh", run.config, *stages)
    answer = cluster.run(*words, cwd=run.config.parent, code=2)
    assert answer.startswith("error: ")
    assert said in answer
    assert not cluster.jobs()
    assert not run.folder.exists()


def test_a_dry_run(cluster: Cluster, new_run: NewRun) -> None:
    """SLURM is asked about each stage, GPUs included, and nothing is left behind."""
    run = new_run()
    words = ("bash", run.code / "slurm/curriculum.sh", "--test-only", run.config)
    answer = cluster.run(*words, cwd=run.config.parent, CAMBIUM_GPUS="1")
    assert answer.count(" to start at ") == 3
    assert "deep: 3 nodes x 2 ranks" in answer
    assert not cluster.jobs()
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("shape", "stage", "said"),
    [
        (["--nodes=1", "--ntasks-per-node=2"], "wide", "sbatch --nodes 2 --ntasks-per-node 2 slurm/stage.sh {} wide"),
        (["--nodes=2", "--ntasks=3"], "wide", "the allocation has unequal nodes"),
        (["--nodes=1", "--ntasks-per-node=2"], "wid", "no stage is named 'wid', did you mean 'wide'"),
        (["--nodes=3", "--ntasks-per-node=2"], "deep", "bash slurm/stage.sh {} wide"),
    ],
)
def test_a_bare_submission_that_does_not_fit(
    cluster: Cluster, new_run: NewRun, shape: list[str], stage: str, said: str
) -> None:
    run = new_run("seed")
    words = ("--parsable", "--comment=bare", "--output=out.log", *shape, run.code / "slurm/stage.sh", run.config, stage)
    job = cluster.run("sbatch", *words, cwd=run.config.parent).strip()
    assert cluster.ended(job) == "FAILED"
    assert (cluster.job(job)["ExitCode"], cluster.job(job)["Restarts"]) == ("2:0", "0")
    answer = (run.config.parent / "out.log").read_text()
    assert answer.startswith("error: ")
    assert said.format(run.config) in answer
    assert not (run.folder / "wide").exists()
