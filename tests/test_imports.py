"""The import rules of the project. Each rule is one line of RULES; a violation is reported with file and line.

Every import counts, even inside a function or under TYPE_CHECKING, because a reader has to follow it.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
OURS: Final = ("app", "core", "shm", "modules", "mlsdm", "testing", "tests", "loadtests", "deploy", "sdk")
# What no import of a module may load: libraries that cost memory or time, and drivers.
HEAVY: Final = frozenset(
    {
        "numpy", "sqlite3", "apsw", "psycopg", "redis", "argon2", "jwt", "nats", "onnxruntime", "opentelemetry",
        "matplotlib", "multiprocessing", "http.client", "urllib.request",
    }
)  # fmt: skip
# What a server with the default configuration has no use for. The arbiter's modules are memory of every server.
UNUSED: Final = frozenset(
    {
        "psutil", "difflib", "numpy", "multiprocessing", "opentelemetry", "core.reference", "core.settings_manual",
        "app.telemetry.spans", "modules.openapi.document", "modules.openapi.page", "mlsdm",
    }
)  # fmt: skip


class Import(NamedTuple):
    """One arrow: `importer` imports `imported`, both as dotted names of files."""

    importer: str
    imported: str
    line: int


class Rule(NamedTuple):
    """`forbids(importer, imported)` says whether an arrow breaks the rule; `example` is one that does."""

    name: str
    forbids: Callable[[str, str], bool]
    example: tuple[str, str]


def within(name: str, *packages: str) -> bool:
    """Return whether a file is one of `packages` or stands below one of them."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def owner(name: str) -> str:
    """Return the module of the platform that a file of modules/ belongs to."""
    return ".".join(name.split(".")[:2])


HTTPD_NAMES: Final = ("app.httpd.request", "app.httpd.request_names")
# Modules of the platform that another one may import, because it names them in `requires`.
REQUIRES: Final[Mapping[str, tuple[str, ...]]] = {}

RULES: Final = (
    Rule("shm imports nothing of ours",
         lambda a, b: within(a, "shm") and within(b, *OURS) and not within(b, "shm"), ("shm.store", "core.limits")),
    Rule("core imports shm only",
         lambda a, b: within(a, "core") and within(b, *OURS) and not within(b, "core", "shm"),
         ("core.startup", "app.main")),
    Rule("core outside reference imports neither core.reference nor NumPy",
         lambda a, b: within(a, "core") and not within(a, "core.reference") and within(b, "core.reference", "numpy"),
         ("core.regime", "numpy")),
    Rule("the server imports neither core.reference nor NumPy",
         lambda a, b: within(a, "app", "modules", "shm") and within(b, "core.reference", "numpy")
         and (a, b.split(".")[0]) != ("shm.numpy_views", "numpy"),
         ("app.main", "numpy")),
    Rule("of shm, core and app only the block, whose views need it, and core.reference import shm.numpy_views",
         lambda a, b: within(a, "app", "core", "modules", "shm") and b == "shm.numpy_views"
         and a != "shm.block" and not within(a, "core.reference"),
         ("core.memory_view", "shm.numpy_views")),
    Rule("psutil is for `mlsdm stat`, tests and load tests: the server reads /proc itself",
         lambda a, b: within(a, "app", "core", "shm", "modules", "mlsdm", "deploy") and within(b, "psutil")
         and a not in ("mlsdm.process_usage", "mlsdm.running_server"),
         ("core.machine.host", "psutil")),
    Rule("app.httpd imports core.limits only",
         lambda a, b: within(a, "app.httpd") and within(b, *OURS) and not within(b, "app.httpd", "core.limits"),
         ("app.httpd.connection", "app.api.operation")),
    Rule("only main, server and processes import app.httpd; api, routes and telemetry take its request files",
         lambda a, b: within(a, "app", "modules", "mlsdm") and within(b, "app.httpd")
         and not within(a, "app.httpd", "app.main", "app.server", "app.processes")
         and not (within(a, "app.api", "app.routes", "app.telemetry") and b in HTTPD_NAMES),
         ("app.routes.events", "app.httpd.connection")),
    Rule("app.api imports neither routes nor processes nor lifecycle",
         lambda a, b: within(a, "app.api") and within(b, "app.routes", "app.processes", "app.lifecycle"),
         ("app.api.context", "app.processes.child")),
    Rule("app.telemetry imports neither api nor routes",
         lambda a, b: within(a, "app.telemetry") and within(b, "app.api", "app.routes"),
         ("app.telemetry.series", "app.api.problem_codes")),
    Rule("app.processes imports neither api nor routes",
         lambda a, b: within(a, "app.processes") and within(b, "app.api", "app.routes"),
         ("app.processes.supervisor", "app.routes.health")),
    Rule("a route imports no other route",
         lambda a, b: within(a, "app.routes") and within(b, "app.routes") and a not in (b, "app.routes.table")
         and b != "app.routes", ("app.routes.state", "app.routes.health")),
    Rule("only shm imports shm._native",
         lambda a, b: within(a, "app", "core", "modules", "mlsdm", "deploy") and b == "shm._native",
         ("app.routes.recall", "shm._native")),
    Rule("modules import the contract, app.api, core and app.processes.child only",
         lambda a, b: within(a, "modules") and within(b, *OURS)
         and not within(b, "modules", "core", "app.api", "app.lifecycle.contract", "app.processes.child"),
         ("modules.openapi.page", "app.telemetry.spans")),
    Rule("a module imports another one only if it requires it",
         lambda a, b: within(a, "modules") and within(b, "modules") and b != "modules"
         and owner(b) != owner(a) and owner(b) not in REQUIRES.get(owner(a), ()),
         ("modules.archive.module", "modules.openapi.page")),
    Rule("app imports no module of the platform",
         lambda a, b: within(a, "app", "core", "shm") and within(b, "modules"), ("app.main", "modules.openapi.module")),
    Rule("the sdk imports nothing of ours",
         lambda a, b: within(a, "sdk") and within(b, *OURS) and not within(b, "sdk"),
         ("sdk.python.client", "core.limits")),
    Rule("testing imports neither tests nor loadtests",
         lambda a, b: within(a, "testing") and within(b, "tests", "loadtests"), ("testing.keys", "tests.conftest")),
    Rule("the product imports neither testing nor tests nor loadtests",
         lambda a, b: within(a, "app", "core", "shm", "modules", "mlsdm", "deploy")
         and within(b, "testing", "tests", "loadtests"), ("app.main", "testing.keys")),
)  # fmt: skip

# Files that may make, open or adopt the shared block; all others are handed what they need.
OPENERS: Final = frozenset({"app/main.py", "app/server.py", "app/processes/child.py", "app/processes/block_startup.py"})


def files() -> dict[str, Path]:
    """Return every Python file of the repository by its dotted name."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): ROOT / path for path in listed}


FILES: Final = files()


def imports_of(name: str, path: Path) -> Iterator[Import]:
    """Yield the arrows of one file. `from package import name` leads to the file `package/name.py` if there is one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                known = inner in FILES or inner == "shm._native"
                yield Import(name, inner if known else str(node.module), node.lineno)


@cache
def arrows() -> list[Import]:
    """Return the arrows of all files. PERF: not while tests are collected, which every process of a run does."""
    return [arrow for name, path in FILES.items() for arrow in imports_of(name, path)]


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule.name.replace(" ", "_")) for rule in RULES])
def test_rule_holds(rule: Rule) -> None:
    """No file breaks the rule, and the rule finds the example that does."""
    broken = [f"{arrow.importer}:{arrow.line} imports {arrow.imported}" for arrow in arrows()
              if rule.forbids(arrow.importer, arrow.imported)]  # fmt: skip

    assert broken == []
    assert rule.forbids(*rule.example)


def test_only_composition_roots_open_the_block() -> None:
    """In app/ and modules/: whoever calls Block.open or Block.create is one of OPENERS."""
    calls = {
        str(path.relative_to(ROOT))
        for name, path in FILES.items()
        if within(name, "app", "modules")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("open", "create")
        and isinstance(node.value, ast.Name)
        and node.value.id == "Block"
    }

    assert calls
    assert calls <= OPENERS


@pytest.mark.parametrize("packages", [("app",), ("core",), ("shm",), ("modules",), ("app", "core", "shm", "modules")])
def test_no_file_imports_itself_through_others(packages: tuple[str, ...]) -> None:
    """No circle of imports, whether a circle loads or not."""
    graph = {name: set[str]() for name in FILES if within(name, *packages)}
    for arrow in arrows():
        if arrow.importer in graph and arrow.imported in graph and arrow.imported != arrow.importer:
            graph[arrow.importer].add(arrow.imported)
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]

    assert sorted(graph) == []


def test_importing_a_module_loads_nothing_heavy() -> None:
    """Every built-in module, imported as the arbiter imports it: contract and settings, and no library of weight."""
    program = (
        "import sys, importlib\n"
        "import app.main\n"
        "before = set(sys.modules)\n"
        "from app.lifecycle.loader import BUILT_IN\n"
        "assert BUILT_IN\n"
        "for path in BUILT_IN.values(): importlib.import_module(path)\n"
        f"print(*sorted((set(sys.modules) - before) & {set(HEAVY)!r}), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_a_server_loads_nothing_that_it_does_not_use() -> None:
    """What the arbiter has loaded before its first fork, with the default configuration."""
    program = (
        "import sys, mimetypes\n"
        "from app.server import server\n"
        "import app.main, app.httpd.gunicorn_worker\n"
        "server.gunicorn_settings()\n"
        f"print(*sorted(set(sys.modules) & {set(UNUSED)!r}), *mimetypes.knownfiles, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={}, capture_output=True, text=True, check=True
    )  # fmt: skip

    assert done.stdout.split() == []
