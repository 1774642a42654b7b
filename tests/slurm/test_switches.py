"""The files STOP and SAVE, as a user makes them on a cluster."""

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun
from tests.slurm.run import Run

pytestmark = pytest.mark.long


def test_save_and_stop(cluster: Cluster, new_run: NewRun, undisturbed: Run) -> None:
    run = new_run("seed")
    run.change(checkpoint={"interval": 1000})
    jobs = run.submit()
    folder = run.folder / "wide"

    with run.paused_at("wide", jobs["wide"], 2):
        (folder / "SAVE").touch()
    with run.paused_at("wide", jobs["wide"], 6):
        assert not (folder / "SAVE").exists()
        assert len(list((folder / "checkpoints").glob("step-*"))) == 1
        (folder / "STOP").touch()
    assert cluster.ended(jobs["wide"]) == "FAILED"
    assert cluster.job(jobs["wide"])["ExitCode"] == "3:0"
    assert run.happened("wide") == ["stopped by the switch STOP; submit it again to go on"]
    assert cluster.ended(jobs["deep"]) == "CANCELLED"

    again = run.submit("wide")
    assert cluster.ended(again["wide"]) == "COMPLETED", run.log("wide")
    run.same_as(undisturbed, "wide")
