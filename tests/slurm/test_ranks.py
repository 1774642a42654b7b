"""A rank that is killed, and one that hangs."""

import signal

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun
from tests.slurm.run import Run


def test_a_rank_is_killed_and_another_hangs(cluster: Cluster, new_run: NewRun, undisturbed: Run) -> None:
    run = new_run("seed")
    run.change(guard={"hang": 45})
    job = run.submit("wide")["wide"]

    with run.paused_at("wide", job, 2) as ranks:
        ranks[2].signal(signal.SIGKILL)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", f"the job is requeued\n{run.log('wide')}")
    assert run.happened("wide") == ["ended by signal 9; requeued"]

    # The save before the last one is on the disk by then, and neither a save nor a validation is near.
    with run.paused_at("wide", job, run.step("wide") // 4 * 4 + 9) as ranks:
        hangs = ranks.pop(1)  # and is not let go on
    assert hangs.number == 1
    cluster.until(lambda: cluster.job(job)["Restarts"] == "2", f"the job is requeued\n{run.log('wide')}")
    # SLURM wakes rank 1 before it ends it, so that its own watchdog may write as well.
    stacks = {path.name: path.read_text() for path in (run.folder / "wide/stacks").iterdir()}
    stacks.pop("rank-1.txt", None)
    assert stacks.keys() == {"rank-0.txt", "rank-2.txt", "rank-3.txt"}
    for text in stacks.values():
        assert "in _train" in text  # in a step, or in the checkpoint after it

    assert cluster.ended(job) == "COMPLETED", run.log("wide")
    run.same_as(undisturbed, "wide")
