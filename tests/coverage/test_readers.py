"""Ten minutes of fuzzing that is led by coverage: of manifests, and of the headers of safetensors files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 300  # of each


@pytest.mark.long
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("kind", ["manifest", "header"])
def test_nothing_but_a_user_error(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.coverage.target", kind, str(tmp_path), f"-max_total_time={SECONDS}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs
    assert int(runs[1]) > 1000
    assert len(list((tmp_path / "corpus").iterdir())) > 10  # it found its way to other code
