"""Texts of validations: a stage that starts again has each once."""

import json
from pathlib import Path

from pretrain.stage.write import FILE, forget


def test_steps_that_are_trained_again_write_anew(tmp_path: Path) -> None:
    """Back to step 20, whose validation comes again; a line that a kill has cut off goes too."""
    lines = [json.dumps({"step": step, "text": f"of {step}"}) + "\n" for step in (10, 20, 30)]
    (tmp_path / FILE).write_text("".join(lines) + '{"step": 4')
    forget(tmp_path, 20)
    assert (tmp_path / FILE).read_text() == lines[0]
    forget(tmp_path / "elsewhere", 20)
