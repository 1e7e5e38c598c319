"""The server, as the arbiter sees it: configuration, block and children, across reloads, upgrades and crashes.

A composition root. Owns: everything that outlives a worker. Gunicorn executes gunicorn.conf.py again at every HUP and
forgets its globals; this module is imported once, so the one `server` below stays.

Invariants:
- Nothing raises after the first start: an exception would end the arbiter, and every memory with it. So a reload loads
  and checks everything first; when anything is wrong, one ERROR lists all problems and nothing changes.
- The block outlives every worker and child. A new arbiter (USR2) inherits its descriptor, finds the number in the
  environment that Gunicorn passes on, and adopts the block.

Gunicorn's arbiter has too few hooks for this: app/processes/gunicorn_patches.py holds every patch.
"""

import gc
import logging
import mmap
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from gunicorn import systemd  # type: ignore[import-untyped]  # gunicorn carries no types
from gunicorn.util import set_owner_process  # type: ignore[import-untyped]

from app.lifecycle.loader import FoundModule, load_modules, rehearse_settings, sections_of
from app.lifecycle.plan import Plan
from app.lifecycle.rehearsal import Rehearsals
from app.processes import file_limits
from app.processes.arbiter_record import ArbiterRecord, ReloadResult
from app.processes.block_startup import adopt_block, create_block
from app.processes.child import Child
from app.processes.child_table import ChildState
from app.processes.controller_child import controller_child
from app.processes.gunicorn_patches import Arbiter, harden_arbiter
from app.processes.inherited_sockets import INHERITED_VARIABLE, pass_sockets, take_sockets
from app.processes.listen_addresses import has_inherited_sockets, require_free_addresses
from app.processes.standard_streams import open_missing_streams
from app.processes.startup_message import log_configuration, log_startup_message
from app.processes.supervisor import Supervisor
from app.telemetry import logging_setup, tracing_setup
from app.telemetry.metric_files import METRICS_VARIABLE, lock_directory, make_directory, remove_directory
from app.telemetry.stderr_sink import STDERR, sink_of
from core import startup
from core.commands import post_configured
from core.limits import LOCK_WAIT_MILLISECONDS, VECTOR_NORM
from core.regime import Regime
from core.settings import module_names
from core.startup import ConfigurationError, FoundSections, Loaded, worker_count
from shm.block import Block, BlockError
from shm.errors import StoreError
from shm.layout import NO_ROW
from shm.store import Store

# For the next arbiter, after USR2:
BLOCK_VARIABLE: Final = "_MLSDM_BLOCK_FD"  # the number of its descriptor
CLOSED_VARIABLE: Final = "_MLSDM_CLOSED"  # not empty when clients need a key

log = logging.getLogger("mlsdm.server")


class Server:
    """Everything that outlives a worker."""

    def __init__(self) -> None:
        open_missing_streams()  # the record of the arbiter is the first file that stays open
        self.loaded: Loaded | None = None
        self.block: Block | None = None
        self.plan: Plan | None = None  # the modules of the configuration in force
        self._found: list[FoundModule] = []  # the modules that `modules.enabled` names, as they were found
        self._rehearsals = Rehearsals()  # of this start or reload
        # Returns the children other than the controller; called at the start and at every reload.
        self.children_of: Callable[[Loaded], Sequence[Child]] = lambda _loaded: self.require_plan().children
        self.was_refused = False  # whether `configure` refused the configuration that it read last
        # While a reload is tried, what is still in force: configuration, plan, and modules as they were found.
        self._before: tuple[Loaded, Plan, list[FoundModule]] | None = None
        self._metrics_lock = -1
        self._supervisor: Supervisor | None = None
        self.record = ArbiterRecord()
        self._draining = mmap.mmap(-1, 1)  # a byte shared with this arbiter's workers, not with those of the next one

    # -- configuration: at the start and at every HUP -----------------------------------------------------------------

    def configure(self) -> Loaded:
        """Load the configuration, or keep the one in force when the new one is wrong. Exits only at the first start."""
        self._rehearsals = Rehearsals(self._serve_children)
        if self.loaded is not None:
            self._before = (self.loaded, self.require_plan(), self._found)
        self.was_refused = True
        try:
            arguments = (os.environ, startup.PLACES, self._find_sections, partial(rehearse_settings, self._rehearsals))
            if self.loaded is None:
                loaded = startup.load(None, *arguments)
            else:
                loaded = startup.reload(self.loaded, *arguments)
                assert self.block is not None
                if problems := startup.too_many_workers(loaded.config, self.block.layout.rows):
                    raise ConfigurationError(problems)
                self.plan = self._plan_modules(loaded)
        except ConfigurationError as error:
            if self.loaded is None:
                sys.exit(f"mlsdm cannot start, the configuration has problems:\n{error}")
            log.error("configuration not reloaded, the old one stays; problems:\n%s", error)
        except Exception:
            if self.loaded is None:
                raise
            log.exception("configuration not reloaded, the old one stays")
        else:
            self.loaded, self.was_refused = loaded, False
        assert self.loaded is not None
        return self.loaded

    def commit(self) -> bool:
        """Put what a reload has read into force. To be called when all new workers have booted with it.

        Return False when the children, or the governor's settings, are the old ones nevertheless.
        """
        self._before = None
        loaded = self.require()[1]
        log_configuration(loaded)
        self.require_plan().log_left_out()
        is_complete = True
        if self._supervisor is not None:
            try:
                self._supervisor.reload(self._children())
            except Exception:
                log.exception("the children are not reloaded, the old ones stay")
                is_complete = False
        return self._put_settings_into_force() and is_complete

    def roll_back(self) -> None:
        """Go back to what was in force before a reload that was refused."""
        if self._before is not None:
            self.loaded, self.plan, self._found = self._before
        self._before = None

    def gunicorn_settings(self) -> dict[str, Any]:
        """Return Gunicorn's settings for the configuration in force."""
        loaded = self.configure()
        config = loaded.config
        host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
        return {
            "bind": f"{host}:{config.server.port}",
            "workers": worker_count(config),
            "worker_class": "app.httpd.gunicorn_worker.EventedWorker",
            "worker_connections": config.server.connections_max,
            "worker_tmp_dir": _heartbeat_directory(),
            "preload_app": True,
            "timeout": 30,
            "graceful_timeout": max(1, round(config.resources.shutdown_timeout - config.resources.drain_period)),
            "control_socket_disable": True,
            "logconfig_dict": logging_setup.logging_config(
                config.observability.logging.level, config.observability.logging.format
            ),
            "proc_name": "mlsdm",
            "on_starting": self.on_starting,
            "when_ready": self.when_ready,
            "on_reload": self.on_reload,
            "pre_exec": self.pre_exec,
            "on_exit": self.on_exit,
        }

    def require(self) -> tuple[Block, Loaded]:
        """Return block and configuration. Raises RuntimeError when gunicorn.conf.py was not executed."""
        if self.block is None or self.loaded is None:
            raise RuntimeError(
                "the block is made by gunicorn.conf.py: start with `gunicorn -c gunicorn.conf.py app.main:app`"
            )
        return self.block, self.loaded

    @property
    def in_force(self) -> Loaded:
        """The configuration in force. While a reload is tried, `loaded` is that of the new workers and nobody else."""
        return self.require()[1] if self._before is None else self._before[0]

    def require_plan(self) -> Plan:
        """Return the modules of the configuration in force."""
        assert self.plan is not None
        return self.plan

    def _plan_modules(self, loaded: Loaded) -> Plan:
        """Return the plan of a configuration. Raises ConfigurationError when a required module is left out."""
        assert self.block is not None
        required = module_names.parse(loaded.config.modules.required)
        plan = Plan(
            self._found, loaded.sections, required, self.block.layout.rows, self.plan, rehearsals=self._rehearsals
        )
        if plan.problems:
            raise ConfigurationError(plan.problems)
        return plan

    def _find_sections(self, enabled: tuple[str, ...]) -> FoundSections:
        """Import the enabled modules, and return the sections that modules add to the configuration."""
        self._found = load_modules(enabled, self._rehearsals)
        return sections_of(self._found)

    def _serve_children(self) -> None:
        """Check the children while the arbiter waits for a rehearsal.

        Workers that have ended are not replaced meanwhile: a worker that was forked here would return into the middle
        of the reload.
        """
        if self._supervisor is not None:
            self._supervisor.reap(respawn=True)
            self._supervisor.watch()

    # -- the life of the arbiter: hooks that Gunicorn calls ------------------------------------------------------------

    def on_starting(self, arbiter: Arbiter) -> None:
        """Make the block, or adopt it from the arbiter that this one replaces."""
        loaded = self.loaded
        assert loaded is not None
        owner = (arbiter.cfg.uid, arbiter.cfg.gid)  # of the workers
        try:
            is_upgrade = BLOCK_VARIABLE in os.environ and "GUNICORN_PID" in os.environ
            if is_upgrade:
                self.block = adopt_block(int(os.environ[BLOCK_VARIABLE]), loaded.config)
                take_sockets(arbiter, os.environ)
            else:
                if has_inherited_sockets(arbiter.cfg.address, os.environ):
                    os.environ[INHERITED_VARIABLE] = "1"
                else:
                    os.environ.pop(INHERITED_VARIABLE, None)
                    require_free_addresses(arbiter.cfg.address, reuse_port=arbiter.cfg.reuse_port)
                self.block = create_block(loaded.config, arbiter.cfg.workers)
                os.environ[METRICS_VARIABLE] = make_directory(os.environ.get(METRICS_VARIABLE), *owner)
            self._metrics_lock = lock_directory(os.environ[METRICS_VARIABLE], *owner)
            self.plan = self._plan_modules(loaded)
            was_closed = is_upgrade and bool(os.environ.get(CLOSED_VARIABLE))
            if was_closed and not self.plan.guards and (problems := startup.opened(loaded)):
                raise ConfigurationError(problems)
        except (BlockError, ConfigurationError, ValueError, OSError) as error:
            sys.exit(f"mlsdm cannot start: {error}")
        # USR2 executes these arguments again. After `python -m gunicorn` they begin with the path of __main__.py; as a
        # script it would put Gunicorn's directory first in sys.path, where gunicorn/http hides Python's http.
        arguments = arbiter.START_CTX["args"]
        if Path(arguments[1]).name == "__main__.py":
            arguments[1:2] = ["-m", "gunicorn"]
        file_limits.raise_limit(loaded.config.server.connections_max)
        os.set_inheritable(self.block.fd, True)
        for name, value in (
            (BLOCK_VARIABLE, str(self.block.fd)),
            (METRICS_VARIABLE, os.environ[METRICS_VARIABLE]),
            (INHERITED_VARIABLE, os.environ.get(INHERITED_VARIABLE, "")),
        ):
            os.environ[name] = value
            arbiter.cfg.env_orig[name] = value  # Gunicorn passes this to the next arbiter
        self.block.bind(os.getpid(), NO_ROW, LOCK_WAIT_MILLISECONDS.value, VECTOR_NORM.value)

    def when_ready(self, arbiter: Arbiter) -> None:
        """Start the controller, patch the arbiter, and log that the server is ready."""
        arbiter.systemd = bool(os.environ.get(INHERITED_VARIABLE))
        tracing_setup.import_tracing(self.require()[1].config)
        # What exists now is shared by every fork; a collection would copy its pages. PERF: no gc.collect() before: it
        # took 15 ms of each start and freed 212 objects, because collections run during the imports.
        gc.freeze()
        block, loaded = self.require()
        supervisor = self._supervisor = Supervisor(
            block,
            self._children(),
            lambda: self.in_force.config,
            lambda: _become_unprivileged_child(arbiter),
            self._put_settings_into_force,
        )
        harden_arbiter(
            arbiter, supervisor, self, rows=block.layout.rows, announce_stop=lambda: self._announce_stop(arbiter),
            record=self.record,
        )  # fmt: skip
        if not supervisor.spawn():
            sys.exit("mlsdm cannot start: the controller did not form the store in time; its log lines say why")
        result = ReloadResult.SUCCEEDED if self._put_settings_into_force() else ReloadResult.INCOMPLETE
        self.record.started(result, sink_of(STDERR).lost_lines.descriptor)
        log_configuration(loaded)
        self.require_plan().log_left_out()
        scheme = "https" if arbiter.cfg.is_ssl else "http"
        # With --reuse-port every worker opens sockets of its own.
        addresses = [listener.sock.getsockname() for listener in arbiter.LISTENERS] or arbiter.cfg.address
        log_startup_message(block, loaded, arbiter.cfg.workers, scheme, addresses)

    def pre_exec(self, arbiter: Arbiter) -> None:
        """Prepare the next arbiter, in the process that becomes it."""
        pass_sockets(arbiter)
        is_closed = self.require_plan().guards or not self.in_force.keyring.is_open
        arbiter.cfg.env_orig[CLOSED_VARIABLE] = "1" if is_closed else ""

    def on_reload(self, _arbiter: Arbiter) -> None:
        """Prepare the arbiter for the workers that it forks now, with a configuration that is valid as a whole."""
        config = self.require()[1].config
        tracing_setup.import_tracing(config)
        file_limits.raise_limit(config.server.connections_max)

    def _children(self) -> list[Child]:
        """Return every child that the configuration asks for, the controller first."""
        block, loaded = self.require()
        return [controller_child(block, loaded.config), *self.children_of(loaded)]

    def child_states(self) -> dict[str, ChildState]:
        """Return the state of each supervised child by its name. Works in the arbiter and in every worker."""
        return self._supervisor.states() if self._supervisor is not None else {}

    def _put_settings_into_force(self) -> bool:
        """Have the controller put the configured governor settings into force, if the configuration changed them.

        Return False when that failed, which is logged.
        """
        block, _ = self.require()
        try:
            post_configured(Store(block), Regime.of(self.in_force.config).to_record())
        except StoreError as error:
            log.error("governor settings not reloaded, send HUP again: %s", error)
            return False
        return True

    def _announce_stop(self, arbiter: Arbiter) -> None:
        """Become unready and continue to serve for the drain period, so that load balancers stop sending before
        anything closes.

        A second SIGTERM, SIGINT or SIGQUIT cuts the drain period short. An arbiter that a newer one has replaced
        announces nothing: the newer one serves on the same port.
        """
        if self._supervisor is not None and self._supervisor.superseded:
            return
        _, loaded = self.require()
        deadline = time.monotonic() + loaded.config.resources.drain_period
        self._draining[0] = 1
        while (left := deadline - time.monotonic()) > 0:
            with suppress(queue.Empty):
                if arbiter.SIG_QUEUE.get(timeout=min(left, 0.1)) in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
                    log.info("second stop signal: the drain period is cut short")
                    return
            arbiter.reap_workers()
            arbiter.murder_workers()
            arbiter.manage_workers()

    @property
    def draining(self) -> bool:
        """True in this arbiter's workers from its SIGTERM on."""
        return self._draining[0] == 1

    def on_exit(self, arbiter: Arbiter) -> None:
        """End the children, remove what only this arbiter needed, and name the next arbiter to the service manager.

        Without that, systemd would take the end of its main process for the end of the service, and kill what is left.
        """
        if self._supervisor is not None:
            self._supervisor.end()
        remove_directory(os.environ[METRICS_VARIABLE], self._metrics_lock)
        if arbiter.reexec_pid:  # sd_notify(3); nothing is sent without NOTIFY_SOCKET
            systemd.sd_notify(f"MAINPID={arbiter.reexec_pid}", log)


def _heartbeat_directory() -> str | None:
    """Return the directory for Gunicorn's heartbeats; None: the directory for temporary files.

    The heartbeats belong on a tmpfs, if there is one, so that they do not wait for a disk.
    """
    candidates = ("/dev/shm", os.environ.get(METRICS_VARIABLE, ""))  # noqa: S108 - the files have no names there
    return next((directory for directory in candidates if os.access(directory, os.W_OK)), None)


def _become_unprivileged_child(arbiter: Arbiter) -> None:
    """Close the listening sockets and drop privileges, in a child of the arbiter.

    The sockets, because a child must not hold the port of a server that has stopped. The privileges, because workers
    drop them, too (`gunicorn --user`).
    """
    for listener in arbiter.LISTENERS:
        listener.sock.close()
    set_owner_process(arbiter.cfg.uid, arbiter.cfg.gid, initgroups=arbiter.cfg.initgroups)


server = Server()
