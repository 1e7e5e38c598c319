"""A Gunicorn worker process that serves the WSGI application on an event loop.

Owns: the process (signals, heartbeat, exit status) and the order of its steps: fork, drop privileges, load the
application, call its `open(worker)` (which may set `worker.occupancy`), accept connections, drain (on SIGTERM, at
max_requests, or when the reloader saw a change), call the application's `close()`, exit with 0.

Invariants, with their reasons in docs/design/worker-lifecycle.md:
- Nothing is raised from a signal handler.
- The heartbeat comes from the loop, so the arbiter notices a loop that is stuck.
- Once any worker of this server has booted, none exits with status 3 or 4, which would make the arbiter halt.
- A worker does not outlive its arbiter.
"""

import asyncio
import ctypes
import faulthandler
import gc
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import uvloop
from gunicorn.sock import ssl_context  # type: ignore[import-untyped]  # gunicorn carries no types
from gunicorn.workers.base import Worker  # type: ignore[import-untyped]

from app.httpd.acceptor import Acceptor, Occupancy, SingleWorker
from app.httpd.connection_caps import ConnectionCaps, caps_of, count_descriptors
from app.httpd.heap_trim import HeapTrim, share_one_heap
from app.httpd.worker_state import WorkerState

BEAT_SECONDS: Final = 0.25
BOOT_BACKOFF_SECONDS: Final = 0.5
# Before the end of the graceful timeout, deferred answers are cancelled: at its end the arbiter kills the worker.
CANCEL_LEAD_SECONDS: Final = 1.0
EXIT_SECONDS_MAX: Final = 3.0  # for the interpreter, which waits without a limit for threads that are not daemons
# PERF: with Python's default thresholds (700, 10, 10), thousands of connections that open and close trigger full
# collections that traverse all of them: 20 to 150 ms every other second in which no client is served. Connections and
# requests are freed by reference counting (`RequestParser.close`). For the few reference cycles, frequent collections
# of the young generation and rare ones of the old are enough.
GC_THRESHOLDS: Final = (2_000, 100, 100)
_HANDLED_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGUSR1})
# For the arbiter. Sent to its process group, or by name, they reach the workers as well, and would end or stop them.
_ARBITER_SIGNALS: Final = (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH)
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

# One byte, shared by the arbiter and all its workers because the arbiter imports this module before it forks. It is 1
# once a worker has booted. An arbiter that USR2 started is a new program and begins at 0: when its first workers fail,
# it halts, and the old arbiter keeps serving.
_booted = mmap.mmap(-1, 1)


class EventedWorker(Worker):  # type: ignore[misc]  # the base class is untyped
    """A Gunicorn worker that calls its WSGI application inline on a uvloop event loop."""

    #: Returns whether any worker of this server has booted before. A composition root may replace it.
    booted_before: Callable[[], bool] = staticmethod(lambda: _booted[0] == 1)

    #: The connection counts of all workers. The application's `open(worker)` may set it on the instance.
    occupancy: Occupancy

    #: How long the application's `close` may take. `open(worker)` may set it on the instance. A drain leaves that much
    #: of the graceful timeout to it, half of it at most.
    close_seconds: float = 0.0

    loop: asyncio.AbstractEventLoop
    worker_state: WorkerState

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.occupancy = SingleWorker()
        self._booted_here = mmap.mmap(-1, 1)  # the arbiter makes this object, and forks: it sees what is written here
        self._acceptor: Acceptor | None = None
        self._heap_trim = HeapTrim()
        self._drain_until: float | None = None
        self._end_by: float | None = None  # on the monotonic clock; then the arbiter kills this worker

    @property
    def nr(self) -> int:
        """Requests handed to the application so far. The name is Gunicorn's."""
        return self.worker_state.served if "worker_state" in self.__dict__ else 0

    @nr.setter
    def nr(self, value: int) -> None:
        """Ignore the count that the base class sets: `WorkerState.served` is the count."""

    @property
    def has_booted(self) -> bool:
        """Whether this worker has begun to serve. The arbiter may ask."""
        return self._booted_here[0] == 1

    @property
    def seconds_left(self) -> float:
        """Time until the arbiter kills this worker; the graceful timeout as long as it has not been told to end."""
        return float(self.cfg.graceful_timeout) if self._end_by is None else max(0.0, self._end_by - time.monotonic())

    # -- boot --------------------------------------------------------------------------------------------------------

    def init_process(self) -> None:
        """Boot and serve. Return when the worker has drained.

        Exits with 1 instead of the arbiter's "halt" statuses when the boot fails and a worker has booted before. Raises
        nothing but Exception and SystemExit, because this process is a copy of the arbiter: with another exception
        (KeyboardInterrupt, by code of a module) it would return into the arbiter's loop and stop the server.
        """
        try:
            super().init_process()
        except BaseException as error:
            halts = isinstance(error, Exception) or (isinstance(error, SystemExit) and error.code in {3, 4})
            if isinstance(error, (Exception, SystemExit)) and not (halts and self.booted_before()):
                raise
            self.log.exception("Worker failed")
            time.sleep(BOOT_BACKOFF_SECONDS)  # here, because the arbiter replaces the worker at once
            sys.exit(1)

    def init_signals(self) -> None:
        """Set up signals. The base class calls it after dropping privileges and before loading the application."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a log rotation must not kill a worker that is booting
        for number in _ARBITER_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        # The arbiter forks with these signals blocked, so that none reaches a handler of the arbiter in a worker.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)
        faulthandler.enable()
        # Not earlier: a change of credentials clears the setting (prctl(2)).
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.ppid:
            os._exit(1)  # the arbiter died before the line above

    def run(self) -> None:
        """Serve until drained."""
        self.booted = False  # the base class sets it to True before the application is open
        share_one_heap()
        loop = self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(self._log_loop_error)
        # From here on signals wait for the loop, so that a worker that is told to end during `open` still calls
        # `close`. They are blocked meanwhile, because uvloop loses signals that arrive before its first turn.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED_SIGNALS)
        loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, _HANDLED_SIGNALS)
        self._add_signal_handlers()
        self._call_hook("open", self)
        self.worker_state = WorkerState(
            self.wsgi,
            loop,
            self.log.error_log,  # the logger itself, because Gunicorn's wrapper has no isEnabledFor
            scheme="https" if self.cfg.is_ssl else "http",
            served_max=self.max_requests if self.cfg.max_requests else 0,
            retire=self._retire,
        )
        listeners = [listener.sock for listener in self.sockets]
        self._acceptor = Acceptor(self.worker_state, listeners, self.occupancy, self._caps(), self._tls())
        self.booted = True
        _booted[0] = self._booted_here[0] = 1
        gc.freeze()  # objects that exist now live as long as the worker
        gc.set_threshold(*GC_THRESHOLDS)
        self._beat()
        self._acceptor.start()
        try:
            loop.run_forever()
        finally:
            self._clean_up()

    def _caps(self) -> ConnectionCaps:
        """Return how many connections this worker holds, and log when its descriptors do not suffice for all."""
        configured, used = self.cfg.worker_connections, count_descriptors()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        caps = caps_of(configured, sys.maxsize if limit == resource.RLIM_INFINITY else limit, used)
        if caps.connections < configured:
            self.log.warning(
                "This worker holds at most %d connections, not %d: RLIMIT_NOFILE is %d, and %d files are open",
                caps.connections, configured, limit, used,
            )  # fmt: skip
        return caps

    def _tls(self) -> Any:
        if not self.cfg.is_ssl:
            return None
        context = ssl_context(self.cfg)
        context.set_alpn_protocols(["http/1.1"])  # the only protocol here, whatever Gunicorn's http_protocols is
        return context

    def _add_signal_handlers(self) -> None:
        self.loop.add_signal_handler(signal.SIGTERM, self._terminate)
        self.loop.add_signal_handler(signal.SIGQUIT, self._quit)
        self.loop.add_signal_handler(signal.SIGINT, self._quit)
        self.loop.add_signal_handler(signal.SIGUSR1, self.log.reopen_files)
        # The base class's reloader runs in its own thread: it clears `alive` and writes a byte to this pipe.
        self.loop.add_reader(self.PIPE[0], self._on_reload)

    # -- the beat ----------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Notify the arbiter, sweep the deadlines and call the application's `on_beat`; four times a second."""
        self.loop.call_later(BEAT_SECONDS, self._beat)
        self.notify()
        if os.getppid() != self.ppid:
            self.log.warning("The arbiter is gone; worker %s ends", self.pid)
            self.loop.stop()
        self.worker_state.tick()
        self.worker_state.deadline_sweep.start_sweep()
        self._heap_trim.trim_if_due(self.loop.time())
        if self._drain_until is not None:
            self._check_drain()
        self._call_hook("on_beat")

    def _call_hook(self, name: str, *arguments: object) -> None:
        method = getattr(self.wsgi, name, None)
        if method is not None:
            method(*arguments)

    def _log_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.log.error("%s", context.get("message"), exc_info=context.get("exception"))

    # -- the end -----------------------------------------------------------------------------------------------------

    def _terminate(self) -> None:
        """SIGTERM: drain, after accepting the kernel's backlog, which no other worker will serve."""
        if self._drain_until is None and self._acceptor is not None:
            self._acceptor.accept_waiting()
        self._drain()

    def _retire(self) -> None:
        """max_requests is reached: drain. Called within a request, whose answer already says `Connection: close`."""
        self.log.info("Worker %s has served %d requests and is replaced", self.pid, self.nr)
        self.worker_state.draining = True
        self.loop.call_soon(self._drain)

    def _on_reload(self) -> None:
        os.read(self.PIPE[0], 64)
        self._drain()

    def _drain(self) -> None:
        if self._drain_until is not None:
            return
        assert self._acceptor is not None
        self.alive = False
        self.worker_state.draining = True
        self._end_by = time.monotonic() + self.cfg.graceful_timeout
        self._drain_until = self.loop.time() + self._drain_seconds
        self._acceptor.stop()
        self.worker_state.deadline_sweep.start_sweep()
        self._check_drain()

    @property
    def _drain_seconds(self) -> float:
        timeout: float = self.cfg.graceful_timeout
        return timeout - min(self.close_seconds, timeout / 2)

    def _check_drain(self) -> None:
        assert self._acceptor is not None
        assert self._drain_until is not None
        now = self.loop.time()
        if now >= self._drain_until - min(CANCEL_LEAD_SECONDS, self._drain_seconds / 2):
            self.worker_state.cancel_deferred()
        open_count = self._acceptor.open_count
        if open_count and now >= self._drain_until:
            self.log.warning("%d connections did not end within %d s", open_count, self._drain_seconds)
            open_count = 0
        if not open_count:
            self.loop.stop()

    def _quit(self) -> None:
        """SIGQUIT and SIGINT: stop without draining."""
        self.alive = False
        if self._end_by is None:
            self._end_by = time.monotonic() + self.cfg.graceful_timeout
        self.cfg.worker_int(self)
        self.loop.stop()

    def _clean_up(self) -> None:
        assert self._acceptor is not None
        self._acceptor.stop()
        is_pool_idle = self.worker_state.close()
        self._call_hook("close")
        if not is_pool_idle:
            # A route on the thread pool has not returned. The interpreter would wait for it at exit, without a limit.
            self.log.warning("A request on the thread pool did not end; worker %s leaves without it", self.pid)
            os._exit(1)
        # What the application has left behind may keep the interpreter from ending. Then stderr tells where each thread
        # is, and the process exits with 1.
        faulthandler.dump_traceback_later(EXIT_SECONDS_MAX, exit=True, file=2)
