"""A process that works on mirrors in children, for tests that kill them: a line of JSON on its input is a task.

{"do": "send" | "bring" | "publish" | "read", "folder": ..., "url": ..., "keep": ..., "parts": ...}. It says the child's
process id, and how it ended: a JSON of its exit code (0: done, 2: a UserError, -9: killed) and the error. No thread is
begun before the fork. What s3fs tries again by itself, five times, it tries twice here: what is tested is what tries
again above it. With `parts` it sends files in parts of 5 MiB, and not of 50, as it does with large ones.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import s3fs.core

from pretrain.checkpoint import mirror
from pretrain.data.corpus import remote
from pretrain.errors import UserError
from pretrain.runtime import storage

storage.WAIT = 0.02
s3fs.core.S3FileSystem.retries = 2


def work(task: dict[str, Any]) -> str:
    """What went wrong."""
    folder = Path(task["folder"])
    if task["parts"]:
        s3fs.core.calculate_chunksize = lambda size, chunksize=None: 5 << 20
    os.environ[storage.CACHE] = str(folder.parent / "cache")
    try:
        if task["do"] == "send":
            mirror.send(folder, task["url"], task["keep"], 0)
        elif task["do"] == "publish":
            remote.publish(folder, task["url"])
        elif task["do"] == "read":
            blocks = remote.Blocks.beside(remote.local(task["url"]) / "tokens.bin")
            assert blocks is not None
            size = (folder / "tokens.bin").stat().st_size
            blocks.want(np.array([0]), np.array([size]))
            return "" if blocks.path.read_bytes() == (folder / "tokens.bin").read_bytes() else "other bytes"
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
