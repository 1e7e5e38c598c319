"""The server, as the arbiter sees it: configuration, block and controller, over reloads, upgrades and deaths.

A composition root. Gunicorn executes gunicorn.conf.py again at every HUP and forgets its globals; this module is
imported once, so the one `server` below is what stays. Nothing here may raise after the first start: an exception in
the arbiter would end it, and with it every memory. So a reload loads and checks everything first and, when anything is
wrong, says all of it in one ERROR and changes nothing.

Four methods of Gunicorn's arbiter are wrapped in `when_ready`, because it has no hooks there: reaping and murdering
also look after the controller (app/processes/supervisor.py), spawning closes a window in which a signal is lost,
stopping gives notice; app/processes/gunicorn_patches.py has more, where it would end with an exception of its own. The
block outlives them all; a new arbiter (USR2) is handed its descriptor through the environment that Gunicorn passes on,
and adopts it.
"""

import errno
import fcntl
import gc
import logging
import mmap
import os
import queue
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from app.processes import file_limits
from app.processes.gunicorn_patches import harden_arbiter
from app.processes.startup_message import log_startup_message
from app.processes.supervisor import Supervisor
from app.telemetry import logging_setup, tracing_setup
from core import startup
from core.clock import boot_clock
from core.limits import COMMAND_WAIT_MILLISECONDS, LOCK_WAIT_MILLISECONDS, VECTOR_NORM
from core.machine.cgroup import Cgroup
from core.regime import Regime
from core.settings.config import Config, effective
from core.startup import ConfigurationError, Loaded, worker_count
from shm.block import Block, BlockError
from shm.errors import StoreError, Taken
from shm.layout import NO_ROW, Layout
from shm.store import Store, settings_checksum

BLOCK_VARIABLE: Final = "_MLSDM_BLOCK_FD"  # hands the descriptor to the next arbiter
METRICS_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
METRICS_PREFIX: Final = "mlsdm-metrics-"
ROWS_PER_WORKER: Final = 4  # old and new workers overlap at a reload, twice at an upgrade
SHARE_MAX: Final = 0.8  # of the available memory that the block may take: processes and page tables need the rest

log = logging.getLogger("mlsdm.server")


class Server:
    """Everything that outlives a worker."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None
        self.block: Block | None = None
        self._metrics_lock = -1
        self._supervisor: Supervisor | None = None
        self._leaving = mmap.mmap(-1, 1)  # a byte shared with this arbiter's workers, not with those of the next one

    # -- configuration: at the start and at every HUP -----------------------------------------------------------------

    def configure(self) -> Loaded:
        """Load the configuration, or keep the one in force when the new one is wrong. Exits only at the first start."""
        try:
            loaded = startup.load(None, os.environ, startup.PLACES)
            if self.loaded is not None:
                problems = startup.unreloadable(self.loaded.config, loaded.config) + self._too_many(loaded.config)
                if problems:
                    raise ConfigurationError(problems)
        except ConfigurationError as error:
            if self.loaded is None:
                sys.exit(f"mlsdm cannot start, the configuration has problems:\n{error}")
            log.error("configuration not reloaded, the old one stays; problems:\n%s", error)
        except Exception:
            if self.loaded is None:
                raise
            log.exception("configuration not reloaded, the old one stays")
        else:
            if self.loaded is not None:  # at the start nothing is logged yet: see when_ready
                _say_loaded(loaded)
            self.loaded = loaded
        assert self.loaded is not None
        return self.loaded

    def _too_many(self, config: Config) -> list[str]:
        """Return the problem with more workers than the rows of the block allow two generations of."""
        assert self.block is not None
        workers, rows = worker_count(config), self.block.layout.rows
        if 2 * workers <= rows:
            return []
        return [f"server.workers: {workers} old and {workers} new ones need more than {rows} worker rows: restart it"]

    def settings(self) -> dict[str, Any]:
        """Return Gunicorn's settings for the configuration in force."""
        loaded = self.configure()
        config = loaded.config
        host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
        return {
            "bind": f"{host}:{config.server.port}",
            "workers": worker_count(config),
            "worker_class": "app.httpd.gunicorn_worker.EventedWorker",
            "worker_connections": config.server.connections_max,
            "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,  # noqa: S108 - a tmpfs: a heartbeat must not wait for a disk
            "preload_app": True,
            "timeout": 30,
            "graceful_timeout": max(1, round(config.resources.shutdown_timeout - config.resources.drain_period)),
            "control_socket_disable": True,
            "logconfig_dict": logging_setup.configuration(
                config.observability.logging.level, config.observability.logging.format
            ),
            "proc_name": "mlsdm",
            "on_starting": self.on_starting,
            "when_ready": self.when_ready,
            "on_reload": self.on_reload,
            "on_exit": self.on_exit,
        }

    def require(self) -> tuple[Block, Loaded]:
        """Return block and configuration, for a worker."""
        if self.block is None or self.loaded is None:
            raise RuntimeError(
                "the block is made by gunicorn.conf.py: start with `gunicorn -c gunicorn.conf.py app.main:app`"
            )
        return self.block, self.loaded

    # -- the life of the arbiter: hooks that Gunicorn calls ------------------------------------------------------------

    def on_starting(self, arbiter: Any) -> None:
        """Make the block, or adopt it from the arbiter that this one replaces."""
        loaded = self.loaded
        assert loaded is not None
        try:
            inherited = os.environ.get(BLOCK_VARIABLE)
            if inherited and "GUNICORN_PID" in os.environ:
                self.block = self._adopted(int(inherited), loaded.config)
            else:
                _check_port(loaded.config)
                self.block = _created(loaded.config, arbiter.cfg.workers)
                os.environ[METRICS_VARIABLE] = _metrics_directory(os.environ.get(METRICS_VARIABLE))
            self._metrics_lock = _held(os.environ[METRICS_VARIABLE])
        except (BlockError, ValueError, OSError) as error:
            sys.exit(f"mlsdm cannot start: {error}")
        # `python -m gunicorn` would be started again as a script of its own directory, whose http shadows Python's.
        arguments = arbiter.START_CTX["args"]
        if Path(arguments[1]).name == "__main__.py":
            arguments[1:2] = ["-m", "gunicorn"]
        file_limits.provide(loaded.config.server.connections_max)
        os.set_inheritable(self.block.fd, True)
        for name, value in (
            (BLOCK_VARIABLE, str(self.block.fd)),
            (METRICS_VARIABLE, os.environ[METRICS_VARIABLE]),
        ):
            os.environ[name] = value
            arbiter.cfg.env_orig[name] = value  # what Gunicorn passes to the next arbiter
        self.block.bind(os.getpid(), NO_ROW, LOCK_WAIT_MILLISECONDS.value, VECTOR_NORM.value)

    @staticmethod
    def _adopted(fd: int, config: Config) -> Block:
        block = Block.open(fd, writable=True)
        wanted = _layout(config, 0)._replace(rows=block.layout.rows)
        if block.layout != wanted:
            raise BlockError(
                f"the running block has {block.layout}, the configuration wants {wanted}: restart instead of USR2"
            )
        log.info("adopted the block of boot %s", block.boot_id)
        return block

    def when_ready(self, arbiter: Any) -> None:
        """Start the controller, wrap what Gunicorn does about its children, and say hello."""
        tracing_setup.prepare(self.require()[1].config)
        gc.collect()
        gc.freeze()  # what exists now is shared by every fork; a collection would copy its pages
        block, loaded = self.require()
        supervisor = self._supervisor = Supervisor(
            block, lambda: self.require()[1].config, lambda: _close(arbiter.LISTENERS)
        )
        reap, murder, spawn, stop = (
            arbiter.reap_workers,
            arbiter.murder_workers,
            arbiter.spawn_worker,
            arbiter.stop,
        )

        def reap_workers() -> None:
            supervisor.reap(respawn=bool(arbiter.LISTENERS))  # without listeners the server is stopping
            reap()

        def murder_workers() -> None:
            if supervisor.watch():
                self._enforce()
            murder()

        def spawn_worker() -> Any:
            if len(arbiter.WORKERS) >= block.layout.rows:
                log.error("no worker is started: %d hold all rows of the block", len(arbiter.WORKERS))
                arbiter.num_workers = min(arbiter.num_workers, block.layout.rows // 2)
                return None
            # A signal between fork and the worker's own handlers would meet the arbiter's, which only queue it: lost,
            # and the arbiter would wait for that worker in vain. So it stays pending until the worker unblocks it.
            signal.pthread_sigmask(signal.SIG_BLOCK, arbiter.SIGNALS)
            try:
                return spawn()
            except OSError as error:  # no descriptors, no processes: the workers there are go on; tried again soon
                log.error("cannot start a worker: %s", error)
                return None
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, arbiter.SIGNALS)

        def stop_in_order(graceful: bool = True) -> None:
            if graceful and arbiter.LISTENERS and not supervisor.superseded:
                self._give_notice(arbiter)
            stop(graceful)

        arbiter.reap_workers, arbiter.murder_workers = reap_workers, murder_workers
        arbiter.spawn_worker, arbiter.stop = spawn_worker, stop_in_order
        harden_arbiter(arbiter)
        supervisor.spawn()
        if not supervisor.formed():
            sys.exit("mlsdm cannot start: the controller did not form the store in time; its log lines say why")
        self._enforce()
        _say_loaded(loaded)
        scheme = "https" if arbiter.cfg.is_ssl else "http"
        log_startup_message(block, loaded, arbiter.cfg.workers, scheme, arbiter.LISTENERS[0].sock.getsockname()[1])

    def on_reload(self, _arbiter: Any) -> None:
        """Bring what was reloaded into force. Reached only with a configuration that is valid as a whole."""
        tracing_setup.prepare(self.require()[1].config)
        if self._supervisor is not None:
            self._supervisor.reload()
        file_limits.provide(self.require()[1].config.server.connections_max)
        self._enforce()

    def _enforce(self) -> None:
        """Have the controller put the configured regime into force, if it is another than the one configured before.

        What it is compared with stands in the block and is not what was loaded last: a reload that failed here, an
        upgrade, or the way back from one may have left another in force. What an operator has changed while the server
        runs (PATCH /governor) holds until the configuration of the governor changes.
        """
        block, loaded = self.require()
        store, record = Store(block), Regime.of(loaded.config).to_record()
        configured = settings_checksum(record)
        deadline = time.monotonic() + COMMAND_WAIT_MILLISECONDS.value / 1e3
        while True:
            try:
                state = store.state()
                if store.command_pending():
                    raise Taken("another command is pending")  # it may be one of a configuration before this
                if state.configured != configured:
                    store.post_command("configure", record, configured, state.ticket)
            except StoreError as error:
                if time.monotonic() > deadline:
                    log.error("governor settings not reloaded, send HUP again: %s", error)
                    return
                time.sleep(0.01)
            else:
                return

    def _give_notice(self, arbiter: Any) -> None:
        """Be unready and serve on for the drain period, so that load balancers look away before anything closes."""
        _, loaded = self.require()
        deadline = time.monotonic() + loaded.config.resources.drain_period
        self._leaving[0] = 1
        while (left := deadline - time.monotonic()) > 0:
            with suppress(queue.Empty):
                if arbiter.SIG_QUEUE.get(timeout=min(left, 0.1)) in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
                    log.info("told twice: stopping without further notice")
                    return
            arbiter.reap_workers()
            arbiter.murder_workers()
            arbiter.manage_workers()

    @property
    def leaving(self) -> bool:
        """True in this arbiter's workers from its SIGTERM on."""
        return self._leaving[0] == 1

    def on_exit(self, _arbiter: Any) -> None:
        """End the controller, and take away what only this arbiter needed."""
        if self._supervisor is not None:
            self._supervisor.end()
        metrics = Path(os.environ[METRICS_VARIABLE])
        if metrics.name.startswith(METRICS_PREFIX):
            with suppress(OSError):  # another arbiter holds it: the one we replaced, or the one that replaces us
                fcntl.flock(self._metrics_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(metrics)


def _say_loaded(loaded: Loaded) -> None:
    """Say which values hold, and whence. None of them is a secret: keys are no part of the tree."""
    extra = {
        "environment": loaded.environment,
        "keys": len(loaded.keyring),
        "settings": effective(loaded.config),
    }
    log.info("Configuration loaded from %s", loaded.source, extra=extra)
    for note in loaded.notes:
        log.warning("%s", note)


def _close(listeners: list[Any]) -> None:
    """Let go of the sockets, in a child that must not hold the port of a server that has stopped."""
    for listener in listeners:
        listener.sock.close()


def _layout(config: Config, workers: int) -> Layout:
    rows = ROWS_PER_WORKER * workers
    return Layout(
        config.dimension, config.capacity, config.payload_size_max, config.log_capacity, rows,
        config.idempotency_capacity,
    )  # fmt: skip


def _created(config: Config, workers: int) -> Block:
    """Make the block, unless it would take nearly all memory that container or machine have left."""
    layout = _layout(config, workers)
    room = Cgroup(Path("/")).tightest_memory_limit()
    host = psutil.virtual_memory().available
    available = host if room is None else min(room.available, host)
    if layout.block_size > available * SHARE_MAX:
        raise BlockError(
            f"the block needs {layout.block_size / 1e6:.0f} MB and may take {SHARE_MAX:.0%} of the "
            f"{available / 1e6:.0f} MB of memory that are left: "
            "lower `capacity`, `dimension`, `payload_size_max` or `log_capacity`, or give it more memory"
        )
    return Block.create(layout, secrets.token_bytes(16), secrets.token_bytes(16), time.time_ns(), boot_clock())


def _metrics_directory(given: str | None) -> str:
    """Return an empty directory for the workers' metrics: the operator's, or one of our own.

    Those of our own that killed servers left behind are removed: those that nobody holds.
    """
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        for file in Path(given).glob("*.db"):
            file.unlink()
        return given
    for left_over in Path(tempfile.gettempdir()).glob(METRICS_PREFIX + "*"):
        with suppress(OSError):
            descriptor = os.open(left_over, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left_over)
            finally:
                os.close(descriptor)
    return tempfile.mkdtemp(prefix=METRICS_PREFIX)


def _held(directory: str) -> int:
    """Return a descriptor that locks the metrics directory against removal as long as this arbiter or a child lives.

    Each arbiter has its own: during an upgrade two share the directory, and either may be the one that stays. Until it
    is locked, a server that starts at the same moment takes it for a left-over and may remove it: then it is made anew.
    """
    while True:
        with suppress(FileNotFoundError):  # removed since the line before
            if not os.path.isdir(directory):  # mkdir's own look is after its attempt, and fails if it vanishes between
                Path(directory).mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.path.exists(directory) and os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                return descriptor
            os.close(descriptor)


def _check_port(config: Config) -> None:
    """Raise BlockError when the port is taken: Gunicorn would try for five seconds and name no remedy."""
    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
            remedy = (
                "stop what listens there, or set another PORT" if taken else "set HOST to an address of this machine"
            )
            raise BlockError(f"cannot listen on {host}:{port} ({error.strerror}): {remedy}") from error


server = Server()
