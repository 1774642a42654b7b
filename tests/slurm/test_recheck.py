"""A host whose arithmetic is wrong now and then: named, left, and kept out of what the stage becomes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun

FAULTY = """

_right, _calls = checksum, []


def checksum(flat):  # memory that is faulty on the hosts of the job's first start
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        _calls.append(flat)
        flat.view(torch.int32)[:1].bitwise_xor_(1 << len(_calls) % 20)
    return _right(flat)
"""


@pytest.mark.long
def test_a_host_that_computes_wrongly_is_left(cluster: Cluster, new_run: NewRun, code: Path, tmp_path: Path) -> None:
    shutil.copytree(code, tmp_path / "faulty", symlinks=True)
    with (tmp_path / "faulty/pretrain/guard/recheck.py").open("a") as module:
        module.write(FAULTY)
    run = replace(new_run(), code=tmp_path / "faulty")
    run.change(guard={"recheck": 2})
    job = run.submit("seed")["seed"]
    assert cluster.ended(job) == "COMPLETED", run.log("seed")
    first, last = run.happened("seed")
    assert first.startswith("wrong gradients from node")
    assert last == "finished"
    bad = first.split()[3].rstrip(";")
    facts = cluster.job(job)
    assert bad in facts["ExcNodeList"]
    assert bad != facts["BatchHost"]
    assert f" on {bad} came out differently" in (run.folder / "seed/guard.jsonl").read_text()
