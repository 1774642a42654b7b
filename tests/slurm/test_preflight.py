"""A node that is not fit to train on."""

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun
from tests.slurm.run import Run

pytestmark = pytest.mark.long


def test_a_bad_node_is_left_out(cluster: Cluster, new_run: NewRun, undisturbed: Run) -> None:
    """Its /dev/shm is full: the job goes to the other two, and so does every later start of it."""
    run = new_run("seed")
    with cluster.full_shm("node1"):
        job = run.submit("wide")["wide"]
        assert cluster.ended(job) == "COMPLETED", run.log("wide")
    assert run.happened("wide") == ["preflight found bad hosts, node1; requeued", "finished"]
    assert "node1: 0 GB free in /dev/shm, and 1 are wanted" in run.log("wide")
    assert cluster.job(job)["ExcNodeList"] == "node1"
    assert cluster.job(job)["NodeList"] == "node[2-3]"
    run.same_as(undisturbed, "wide")
