"""A real server for tests and measurements: all processes as operators run them, on a free port of 127.0.0.1.

Invariants: nothing is mocked. The server runs in a session of its own. `stop` ends it with SIGTERM, as Kubernetes does,
  and asserts that no process is left. `block()` maps the block read-only, as `mlsdm stat` does.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from shm.block import Block, find_blocks
from shm.store import Store
from testing.eventually import HANG_SECONDS, eventually

ROOT = Path(__file__).resolve().parent.parent
_ports_held: list[socket.socket] = []  # one descriptor for each server of this process


def free_port() -> int:
    """Return a free port, reserved for the life of this process.

    The port stays bound here without listening. A server that sets SO_REUSEADDR or SO_REUSEPORT can still bind it, and
    every server here does; the kernel gives it to no bind to port 0 and to no outgoing connection. Rejected: bind and
    close. Tests run side by side, and another one can get the port before the server has started.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    _ports_held.append(held)
    return int(held.getsockname()[1])


@dataclass
class Answer:
    """An HTTP answer. `json` decodes the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def is_lock_held(answer: Answer) -> bool:
    """Return whether an answer says that the lock was held for too long, and that nothing was applied."""
    return answer.status == 503 and answer.json["code"] == "store_busy"


@dataclass
class LiveServer:
    """One running server.

    `environ` are its variables besides PATH and HOME; `application` is what Gunicorn serves, with `options`. `launcher`
    is a command that executes the command that follows it.
    """

    directory: Path
    environ: dict[str, str]
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    application: str = "app.main:app"
    options: Sequence[str] = ()
    launcher: Sequence[str] = ()

    @property
    def log_path(self) -> Path:
        return self.directory / f"server-{self.port}.log"

    @property
    def log(self) -> str:
        """Everything that the server has logged so far."""
        return self.log_path.read_text(encoding="utf-8")

    @property
    def pid(self) -> int:
        """The arbiter's pid."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> Self:
        """Start the server and wait until all its workers serve."""
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
        gunicorn = str(Path(sys.executable).with_name("gunicorn"))
        command = [*self.launcher, gunicorn, "-c", "gunicorn.conf.py", *self.options, self.application]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**kept, "PORT": str(self.port), "WORKERS": "2", **self.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            eventually(self._all_workers_serve)
        except AssertionError as error:
            raise AssertionError(self.log) from error
        return self

    def _all_workers_serve(self) -> bool:
        """Return whether the store is healthy and the metric of live workers has reached their number."""
        assert self.process is not None
        assert self.process.poll() is None, "the server ended while it started"
        try:
            if not self.get("/health/detailed").json["checks"]["memory_manager"]["healthy"]:
                return False
            live = re.search(r"^mlsdm_workers (\d+)", self.get("/health/metrics").body.decode(), re.MULTILINE)
        except OSError:
            return False
        return live is not None and int(live[1]) >= int(self.environ.get("WORKERS", "2"))

    def reload(self) -> None:
        """Have it read its configuration again; wait until its old workers have ended and all new ones serve."""
        block = self.block()
        old = set(self._worker_processes(block))
        os.kill(self.pid, signal.SIGHUP)
        eventually(lambda: old.isdisjoint(self._worker_processes(block)) and self._all_workers_serve())

    def stop(self) -> None:
        """End it with SIGTERM and assert exit status 0 and that no process is left."""
        if self.process is None:
            return
        children = psutil.Process(self.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(HANG_SECONDS) == 0, self.log
            _, alive = psutil.wait_procs(children, timeout=HANG_SECONDS)
            assert alive == []
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL every process of its session."""
        if self.process is not None:
            for member in psutil.process_iter(["pid"]):
                try:
                    if os.getsid(member.pid) == self.process.pid:
                        member.kill()
                except (ProcessLookupError, psutil.NoSuchProcess):
                    continue
            self.process.wait(HANG_SECONDS)
            self.process = None

    # -- talking to it -------------------------------------------------------------------------------------------------

    def connect(self) -> http.client.HTTPConnection:
        """Return a keep-alive connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_SECONDS)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def connect_to_both_workers(self) -> tuple[http.client.HTTPConnection, http.client.HTTPConnection]:
        """Return a connection to each of two workers, told apart by the first 16 characters of their request ids."""
        found: dict[str, http.client.HTTPConnection] = {}
        while len(found) < 2:
            connection = self.connect()
            name = self.request("GET", "/livez", connection=connection).headers["x-request-id"][:16]
            if found.setdefault(name, connection) is not connection:
                connection.close()
        first, second = found.values()
        return first, second

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """Send one request and return its answer; without a `connection`, open one for it."""
        used = connection or self.connect()
        try:
            used.request(method, path, body, dict(headers or {}))
            response = used.getresponse()
            # RFC 9110 §5.3: fields of one name are joined by commas.
            headers = {name.lower(): ", ".join(response.headers.get_all(name, [])) for name in response.headers}
            return Answer(response.status, headers, response.read())
        finally:
            if connection is None:
                used.close()

    def get(self, path: str, **headers: str) -> Answer:
        """GET a path."""
        return self.request("GET", path, headers=headers)

    def post(self, path: str, document: Any, **headers: str) -> Answer:
        """POST a JSON document."""
        return self.request(
            "POST", path, json.dumps(document).encode(), {"Content-Type": "application/json", **headers}
        )

    def event(self, vector: Any, moral: float, connection: http.client.HTTPConnection | None = None) -> dict[str, Any]:
        """POST one raw event and return its decision.

        An event that found the lock held for too long was not decided and is sent again: a busy machine may take the
        processor from the holder.
        """
        headers = {"Content-Type": "application/octet-stream", "Moral-Value": repr(float(moral))}
        body = np.asarray(vector, "<f4").tobytes()

        def send() -> Answer | None:
            answer = self.request("POST", "/event", body, headers, connection)
            return None if is_lock_held(answer) else answer

        answer = eventually(send)
        assert answer.status == 200, answer.body
        decision: dict[str, Any] = answer.json
        return decision

    def state(self) -> dict[str, Any]:
        """Return GET /state."""
        state: dict[str, Any] = self.get("/state").json
        return state

    def failed_checks(self) -> set[str]:
        """Return the readiness checks that fail, except that of the CPU, which other programs may have used up."""
        checks = self.get("/health/readiness").json["checks"]
        return {name for name, check in checks.items() if not check["healthy"]} - {"system_cpu"}

    # -- looking into it -----------------------------------------------------------------------------------------------

    def block(self) -> Block:
        """Map its block, read-only."""
        _, link = next(iter(find_blocks(self.pid)))
        descriptor = os.open(link, os.O_RDONLY)
        try:
            return Block.open(descriptor, writable=False)
        finally:
            os.close(descriptor)  # the mapping has one of its own

    def store(self) -> Store:
        """Return a read-only store on its block."""
        return Store(self.block())

    def workers(self, block: Block) -> list[int]:
        """Return the pids of live workers in row order.

        A killed worker's row stays occupied until a successor takes it; the successor may take another free row.
        """
        return [owner.pid for _, owner in block.live_workers()]

    def controller(self, block: Block) -> int:
        """Return the pid of the controller that wrote the vitals last. Wait for the first one.

        It writes them after the state, so a server whose workers serve may have no vitals yet; and a signal for pid 0
        reaches every process of the caller's own group.
        """
        return eventually(lambda: int(block.region("vitals").controller_pid))

    def _worker_processes(self, block: Block) -> list[int]:
        """Return the pids of workers that have not ended, be they known to the block or not."""
        ended = {process.pid for process in psutil.Process(self.pid).children() if process.status() == "zombie"}
        return [pid for pid in self.workers(block) if psutil.pid_exists(pid) and pid not in ended]
