"""The module `sample`: a child, an authenticator, a migration, a command, deferred routes, settings.

The variable SAMPLE_FAULTS tells it to fail: `PHASE:KIND` separated by commas. PHASE is a method of the module or of its
settings, `import`, `setting`, `child`, `migration` or `request`. KIND is `raise`, `hang`, `slow` (2 s), `die`, `exit3`
(or another status), `grow`, or `thread` (it leaves one behind that is not a daemon). With SAMPLE_FAULTS_FILE the same
is read from a file at each phase, so that a test can change it while a server runs.
"""

import argparse
import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final
from wsgiref.types import WSGIEnvironment

import falcon
import msgspec

from app.api.access.client import Client, client_of
from app.api.operation import Operation, Resource
from app.lifecycle.contract import Command, Migration, Module, ModuleChild, ModuleContext
from app.processes.child import Access, ChildContext
from core.access.keys import Role
from core.settings.setting import describe
from core.settings.tiers import STANDARD

HANG_SECONDS: Final = 3600.0
_GROWN: Final[list[bytes]] = []  # keeps what was grown


def fail(phase: str) -> None:
    """Fail, when this phase has been told to."""
    told = os.environ.get("SAMPLE_FAULTS", "")
    if path := os.environ.get("SAMPLE_FAULTS_FILE"):
        told = Path(path).read_text(encoding="utf-8").strip()
    kinds = dict(fault.split(":") for fault in told.split(",") if fault)
    match kinds.get(phase):
        case "raise":
            raise RuntimeError(f"told to raise in {phase}")
        case "hang":
            time.sleep(HANG_SECONDS)
        case "slow":
            time.sleep(2.0)
        case "thread":
            threading.Thread(target=time.sleep, args=(HANG_SECONDS,), daemon=False).start()
        case "die":
            os._exit(13)
        case str(kind) if kind.startswith("exit"):
            os._exit(int(kind.removeprefix("exit")))
        case "grow":
            while True:  # 16 MB at a time, touched
                _GROWN.append(b"x" * 16_000_000)
                time.sleep(0.01)
        case None:
            return
        case kind:
            raise ValueError(f"SAMPLE_FAULTS: {kind} is not a kind of fault")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The section `sample`."""

    greeting: Annotated[
        str, describe("What the module greets with.", "text", "a text", lambda _text: fail("setting"), max_length=100)
    ] = "hello"
    children: Annotated[int, describe("Processes of the module.", "processes", ge=0, le=4)] = 1

    def contradictions(self) -> Iterator[str]:
        """Yield none."""
        fail("contradictions")
        yield from ()


class LaterResource:
    """Answers after a while, without holding the loop."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation(
            "Greet after some milliseconds.", Role.READ, dict[str, str], refusals=("module_unavailable",), deferred=True
        )
    }

    def __init__(self, context: ModuleContext) -> None:
        self._context = context
        self._greetings = context.counter("greetings", "Greetings sent.", ())

    def on_get(
        self, request: falcon.Request, _response: falcon.Response, milliseconds: str
    ) -> Awaitable[dict[str, str]]:
        """Return the greeting, later."""
        fail("request")
        client = client_of(request.env)

        async def greet() -> dict[str, str]:
            with self._context.span("greet"):
                await asyncio.sleep(int(milliseconds) / 1e3)
            self._greetings.inc()
            settings = self._context.settings
            assert isinstance(settings, Settings)
            return {"greeting": settings.greeting, "client": client.id}

        return greet()

    on_head = on_get


class SampleAuthenticator:
    """Identifies a client by `Authorization: Sample NAME`, with the role `read`."""

    def identify(self, environ: WSGIEnvironment) -> Client | None:
        """Return the client; None for every other scheme."""
        scheme, _, name = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        return Client(f"sample:{name}", Role.READ, STANDARD) if scheme == "Sample" else None


class Sample(Module):
    """One of everything."""

    name = "sample"
    version = "1.2.3"
    settings = Settings

    def children(self, settings: msgspec.Struct) -> Sequence[ModuleChild]:
        """Declare as many processes as configured."""
        fail("children")
        assert isinstance(settings, Settings)
        return [
            ModuleChild(f"child{number}", _run, Access.READ, silence_seconds=1.0, memory_size_max=100_000_000)
            for number in range(settings.children)
        ]

    def migrations(self) -> Sequence[Migration]:
        """Declare two migrations, which write their names into SAMPLE_DIRECTORY, where there is one."""
        return [Migration(name, _migrate) for name in ("0001", "0002")] if "SAMPLE_DIRECTORY" in os.environ else []

    def commands(self) -> Sequence[Command]:
        """Declare `mlsdm greet`."""
        return [Command("greet", "greet somebody", _add_arguments, _greet)]

    def routes(self, context: ModuleContext) -> Mapping[str, Resource]:
        """Return the deferred route."""
        fail("routes")
        return {"/sample/later/{milliseconds}": LaterResource(context)}

    def authenticators(self, _context: ModuleContext) -> Sequence[SampleAuthenticator]:
        """Return the authenticator."""
        fail("authenticators")
        return [SampleAuthenticator()]

    def open(self, context: ModuleContext) -> None:
        """Open nothing."""
        fail("open")
        context.log.info("sample opened as %s", context.role)

    def check(self) -> str | None:
        """Return what the file named by SAMPLE_WRONG holds."""
        fail("check")
        path = Path(os.environ.get("SAMPLE_WRONG", "/nonexistent"))
        return path.read_text(encoding="utf-8").strip() if path.exists() else None

    def close(self) -> None:
        """Close nothing."""
        fail("close")
        logging.getLogger("mlsdm.sample").info("sample closed in pid=%d", os.getpid())


def _run(context: ModuleContext, child: ChildContext) -> int:
    """Be a child: beat until told to end."""
    beats = context.counter("beats", "Beats of the children.", ())
    assert child.memory is not None
    while not child.wait(0.1):
        fail("child")
        beats.inc()
    return 0


def _migrate(context: ModuleContext) -> None:
    fail("migration")
    with Path(os.environ["SAMPLE_DIRECTORY"], "migrations").open("a", encoding="utf-8") as file:
        file.write(f"{context.role}\n")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")


def _greet(arguments: argparse.Namespace) -> int:
    print(f"hello, {arguments.name}")
    return 0


fail("import")
module = Sample()
