"""A process that works on mirrors in children, for tests that kill them: a line of JSON on its input is a task.

{"do": "send" | "bring", "folder": ..., "url": ..., "keep": ...}. It says the child's process id, and how it ended: a
JSON of its exit code (0: done, 2: a UserError, -9: killed) and the error. No thread is begun before the fork. What
s3fs tries again by itself, five times, it tries twice here: what is tested is what tries again above it.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from s3fs import S3FileSystem

from pretrain.checkpoint import mirror
from pretrain.errors import UserError
from pretrain.runtime import storage

storage.WAIT = 0.02
S3FileSystem.retries = 2


def work(task: dict[str, Any]) -> str:
    """What went wrong."""
    folder = Path(task["folder"])
    try:
        if task["do"] == "send":
            mirror.send(folder, task["url"], task["keep"], 0)
        elif mirror.bring_back(folder, task["url"]) is None:
            return "nothing there"
    except UserError as error:
        return str(error)
    return ""


def main() -> None:
    for line in sys.stdin:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            error = work(json.loads(line))
            os.write(write, error.encode())
            os._exit(2 if error else 0)
        os.close(write)
        print(pid, flush=True)
        with open(read, errors="replace") as said:
            error = said.read()
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "error": error}), flush=True)


if __name__ == "__main__":
    main()
