"""What a running server was started with, as far as it can be seen from outside.

A HUP reads the file again with the variables and in the directory that the arbiter has had since its start. The
settings that need a restart are in the header of its block, except for host and port, which are those of its listening
socket.

Not seen: what a program that embeds the server has set in its own environment after its start; and whether a host name
stood for the address (a HUP compares the texts: `localhost` is not `127.0.0.1`).
"""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from core.settings.config import Config
from core.settings.setting import Value
from mlsdm.block_snapshot import is_foreign
from mlsdm.serve_options import variables_of_command
from shm.block import Block, BlockError, find_blocks


class NoServer(Exception):
    """One sentence for the operator: why nothing is known of a server."""


class RunningServer(NamedTuple):
    """A running server. `directory` is the one in which relative paths of its configuration begin."""

    pid: int  # of the arbiter
    environ: Mapping[str, str]
    directory: Path
    fixed: Mapping[str, Value]  # settings of its block that cannot change while it runs
    rows: int  # for workers: two generations of them at a reload
    listens_on: frozenset[tuple[str, int]]

    def differs_in_address(self, config: Config) -> Iterator[str]:
        """Yield `server.host` and `server.port` if the server does not listen there. Port 0 is any port."""
        if not self.listens_on:
            return
        host, port = config.server.host, config.server.port
        if port and port not in {port for _, port in self.listens_on}:
            yield "server.port"
        addresses = {host}
        with suppress(OSError):
            addresses |= {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        if addresses.isdisjoint({address for address, _ in self.listens_on}):
            yield "server.host"


def find_server(pid: int) -> RunningServer:
    """Return the server that a process belongs to. Raises NoServer."""
    for holder, link in find_blocks(pid):
        try:
            descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
            try:
                block = Block.open(descriptor, writable=False)
            finally:
                os.close(descriptor)
            if is_foreign(holder):
                raise NoServer(f"process {pid} is in another pid namespace: run this in its container")
            return _read(int(block.region("vitals").arbiter_pid) or pid, block)
        except (OSError, BlockError, psutil.Error) as error:
            raise NoServer(f"process {pid} cannot be read ({error}): run this as its user or as root") from None
    if not Path(f"/proc/{pid}").exists():
        raise NoServer(f"there is no process {pid}")
    raise NoServer(f"process {pid} is no process of an mlsdm server, or this user may not read it")


def _read(pid: int, block: Block) -> RunningServer:
    process, layout = psutil.Process(pid), block.layout
    listening = (one for one in process.net_connections(kind="tcp") if one.status == psutil.CONN_LISTEN)
    return RunningServer(
        pid=pid,
        environ={**process.environ(), **variables_of_command(process.cmdline())},
        directory=Path(process.cwd()),
        fixed={
            "dimension": layout.dimension,
            "capacity": layout.capacity,
            "payload_size_max": layout.payload_size_max,
            "log_capacity": layout.log_capacity,
            "idempotency_capacity": layout.receipt_capacity,
        },
        rows=layout.rows,
        listens_on=frozenset((str(one.laddr.ip), int(one.laddr.port)) for one in listening),
    )
