"""A server of S3 on this machine, and between it and its clients a proxy that does to requests what networks do.

The server is moto's (see tests/s3.txt), which keeps objects in memory and checks neither signatures nor checksums.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
S3 = ROOT / ".venv" / "s3"
BUCKET = "bucket"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

FAULTS = ("drop", "503", "500", "cut", "lost", "truncate", "damage", "stall", "late", "slow")
"""drop: the connection, before the server has the request; cut: in the middle of what the client sends; lost: the
answer to a request that the server has done; truncate: the answer in its middle; damage: a bit of what is sent or
comes, unseen by TCP; stall: nothing comes until the client gives up; late: nor does
the answer to what the server has done; slow: the answer comes in small pieces."""
KILLS = ("before", "within", "after", "answer")
"""When the client is killed: before the server has the request, in the middle of what is sent, after the server has
done it, and in the middle of its answer."""


class Proxy(ThreadingHTTPServer):
    """fault: the fault of the next request, `asked` for, if any, from its number; kill: (process, number of the
    request, when)."""

    daemon_threads = True

    def __init__(self, server: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = server
        self.requests, self.asked = 0, ""
        self.fault: Callable[[int], str | None] = lambda number: None
        self.kill: tuple[int, int, str] | None = None
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed or give up are what is tested."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _any(self) -> None:
        with self.server.lock:
            number, self.server.asked = self.server.requests, f"{self.command} {self.path}"
            self.server.requests += 1
            fault, kill = self.server.fault(number), self.server.kill
        when = kill[2] if kill and kill[1] == number else None
        if fault == "drop" or when == "before":
            return self._hang_up(when)
        body = self._body(half=fault == "cut" or when == "within")
        if fault == "cut" or when == "within":
            return self._hang_up(when)
        if fault == "stall":
            self.rfile.read(1)
            return self._hang_up(None)
        if fault in ("500", "503"):
            return self._answer(int(fault), [("Content-Type", "application/xml")], SLOW_DOWN)
        if fault == "damage" and self.command == "PUT":
            body = _damaged(body)
        status, headers, data = self._forward(body)
        if fault == "late":
            self.rfile.read(1)
        if fault in ("lost", "late") or when == "after":
            return self._hang_up(when)
        if fault == "damage" and self.command == "GET" and status in (200, 206):
            data = _damaged(data)
        if fault == "truncate" or when == "answer":
            self._answer(status, headers, data, data[: len(data) // 2])
            return self._hang_up(when)
        if fault == "slow":
            pieces = [data[at : at + max(1, len(data) // 8)] for at in range(0, len(data), max(1, len(data) // 8))]
            self._answer(status, headers, data, b"")
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                threading.Event().wait(0.02)
            return None
        return self._answer(status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def _body(self, half: bool) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if half:
                    return b""
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        size = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(size // 2 if half else size)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        left_out = ("transfer-encoding", "content-length", "expect", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
        connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, response.getheaders(), data

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, send: bytes | None = None) -> None:
        self.send_response_only(status)
        own = ("content-length", "transfer-encoding", "connection")
        for name, value in headers:
            if name.lower() not in own or (name.lower() == "content-length" and self.command == "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if send is None else send)
        self.wfile.flush()

    def _hang_up(self, when: str | None) -> None:
        if when and self.server.kill:
            os.kill(self.server.kill[0], signal.SIGKILL)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def _damaged(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(byte ^ 1 for byte in data[len(data) // 2 :][:1]) + data[len(data) // 2 + 1 :]


def environment(endpoint: str) -> dict[str, str]:
    """Of a process that uses the server at an endpoint, and gives up a request after a second."""
    known = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "FSSPEC_"))}
    return {
        **known,
        "PYTHONPATH": f"{S3}:{ROOT}",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "of-a-test",
        "AWS_SECRET_ACCESS_KEY": "of-a-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "FSSPEC_S3": json.dumps(
            {"config_kwargs": {"read_timeout": 1, "connect_timeout": 1, "retries": {"max_attempts": 0}}}
        ),
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def server() -> Iterator[Proxy]:
    """A server with an empty bucket, behind a proxy without faults."""
    assert (S3 / "moto").is_dir(), "there is no server of S3: make installs it (tests/s3.txt)"
    command = [sys.executable, "-u", "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        command, env=environment(""), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    try:
        port = next(
            int(m[1]) for line in process.stderr if (m := re.search(r"Running on http://127.0.0.1:(\d+)", line))
        )
        threading.Thread(target=process.stderr.read, daemon=True).start()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        with Proxy(port) as proxy:
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            yield proxy
            proxy.shutdown()
    finally:
        process.kill()
        process.wait()


class Worker:
    """tests/faults/storage_worker.py, as a client of a proxy. parts: whether it sends files in parts of 5 MiB."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.parts = False
        command = [sys.executable, "-m", "tests.faults.storage_worker"]
        self.process = subprocess.Popen(
            command, env=environment(proxy.url), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def do(
        self, task: str, folder: Path, url: str, kill: tuple[int, str] | None = None, keep: int = 2
    ) -> tuple[int, str]:
        """Does a task in a child and gives its exit code and error; killed, if asked, at so many requests from now."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        with self.proxy.lock:
            stdin.write(
                json.dumps({"do": task, "folder": str(folder), "url": url, "keep": keep, "parts": self.parts}) + "\n"
            )
            stdin.flush()
            pid = int(stdout.readline())
            self.proxy.kill = (pid, self.proxy.requests + kill[0], kill[1]) if kill else None
        end = json.loads(stdout.readline())
        self.proxy.kill = None
        return end["code"], end["error"]
