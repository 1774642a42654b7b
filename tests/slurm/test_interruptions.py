"""What ends a job that is at no fault: preemption, a requeue, the time limit, and scancel."""

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun
from tests.slurm.run import Run

WARNED = "wide: SLURM asks for the nodes"


def test_preemption_requeue_and_time_limit(cluster: Cluster, new_run: NewRun, undisturbed: Run) -> None:
    run = new_run("seed")
    job = run.submit("wide")["wide"]
    run.config.rename(run.config.with_suffix(".old"))  # the job has a copy of its own

    with run.paused_at("wide", job, 2):
        words = ("--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true")
        urgent = cluster.run("sbatch", *words, cwd=run.folder).strip()
        cluster.until(lambda: cluster.state(job) != "RUNNING", "the job is preempted")
    assert cluster.ended(urgent) == "COMPLETED"

    first = run.step("wide")
    with run.paused_at("wide", job, first + 2):
        cluster.run("scontrol", "requeue", job)
        cluster.until(lambda: cluster.state(job) != "RUNNING", "the job is requeued")

    with run.paused_at("wide", job, run.step("wide") + 2):
        warnings = run.log("wide").count(WARNED)
        minutes = cluster.seconds(job) // 60 + 3  # so it ends in two to three: within stage.sh's warning of 180 s
        cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        cluster.until(lambda: run.log("wide").count(WARNED) > warnings, "SLURM warns of the time limit")
    cluster.until(lambda: cluster.job(job)["Restarts"] == "3", "the job is requeued")
    assert run.happened("wide")[-1] == "stopped on request; requeued"
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED")

    assert cluster.ended(job) == "COMPLETED", run.log("wide")
    assert cluster.job(job)["Restarts"] == "3"
    assert run.happened("wide")[-1] == "finished"
    run.same_as(undisturbed, "wide")


def test_a_stage_that_is_cancelled(cluster: Cluster, new_run: NewRun, undisturbed: Run) -> None:
    """It does not come back by itself, whether its ranks could save in KillWait or not; submitted again, it goes on."""
    run = new_run("seed")
    job = run.submit("wide")["wide"]
    with run.paused_at("wide", job, 2):
        cluster.run("scancel", job)
        cluster.until(lambda: cluster.state(job) != "RUNNING", "the job is cancelled")
    cluster.until(lambda: job not in cluster.jobs(), "the job is gone")
    assert cluster.state(job) == "CANCELLED", run.log("wide")
    assert all(what.endswith("; SLURM ends the job") for what in run.happened("wide"))

    again = run.submit("wide")["wide"]
    assert again != job
    assert cluster.ended(again) == "COMPLETED", run.log("wide")
    run.same_as(undisturbed, "wide")
