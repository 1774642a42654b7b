"""slurm/prepare.sh with a scheduler and a pipeline that are scripts of a few lines."""

import os
import stat
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[4]

PYTHON = """
case "$*" in
*--where) echo "$HERE/corpus" ;;
*--begin) [[ ! -e $HERE/corpus ]] && printf 'clean\\t2\\ntokens\\t2\\n' ;;
esac
exit 0
"""
SBATCH = """
number=$(($(wc -l <"$HERE/queue") + 1))
for option; do case $option in --comment=*) echo "$number|${option#--comment=}" >>"$HERE/queue" ;; esac; done
echo "$number"
"""


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_called_twice_at_once_there_is_one_pipeline(tmp_path: Path) -> None:
    """One of the calls submits all of it, and the others find its jobs in the queue; or the corpus, later."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "queue").touch()
    (tmp_path / "pipeline.yaml").touch()
    for name, text in (
        ("python", PYTHON),
        ("sbatch", SBATCH),
        ("squeue", 'cat "$HERE/queue"'),
        ("scontrol", "echo MaxArraySize = 1001"),
    ):
        script(tmp_path / "bin" / name, text)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment |= {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "bin/python"),
        "HERE": str(tmp_path),
    }
    command = ["bash", str(ROOT / "slurm/prepare.sh"), str(tmp_path / "pipeline.yaml")]

    def call() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    calls = [call() for _ in range(3)]
    said = sorted(process.communicate()[0] for process in calls)
    assert [process.returncode for process in calls] == [0, 0, 0]
    assert said[0] == said[1] == f"{tmp_path}/corpus is in the queue already: jobs 1 2\n"
    assert said[2].startswith("clean is job 1: 2 tasks")
    assert "tokens is job 2" in said[2]
    (tmp_path / "queue").write_text("")
    (tmp_path / "corpus").mkdir()
    assert call().communicate()[0] == f"{tmp_path}/corpus is there already\n"
