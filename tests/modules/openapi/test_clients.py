"""Generated clients: what two common generators make of the document talks to a real server.

A document may be valid and of no use: a generator leaves out what it does not understand, and says so on stderr only.
Each client is generated once and runs in a process of its own, as its user would run it.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing import keys
from testing.bodies import EXAMPLE
from testing.eventually import HANG_SECONDS
from testing.keys import TOKENS
from testing.live_server import LiveServer
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with keys: its document is read without one."""
    directory = tmp_path_factory.mktemp("clients")
    environ = {**SMALL, "MLSDM_SECURITY__KEYS_PATH": str(keys.write(directory / "keys.yaml"))}
    server = LiveServer(directory, {**environ, "MLSDM_COGNITIVE_RHYTHM__CLOCK": "events"})
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def document(server: LiveServer) -> Any:
    """The document."""
    return server.get("/openapi.json").json


@pytest.fixture(scope="module")
def folder(document: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the document, for the generated code."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(document))
    return folder


def run(folder: Path, *arguments: str) -> str:
    """Run Python with `arguments` in the folder; return what it prints."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env={"PATH": os.environ["PATH"], "HOME": str(folder)}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


PYTHON_CLIENT = """
import importlib, io, json, pkgutil, sys
from mlsdm_client import AuthenticatedClient, api
from mlsdm_client.api.decisions import get_decisions
from mlsdm_client.api.events import post_event
from mlsdm_client.api.governor import get_governor, patch_governor
from mlsdm_client.api.probes import get_health_detailed
from mlsdm_client.api.recall import post_recall
from mlsdm_client.api.state import get_state
from mlsdm_client.models import Event, GovernorChange, Query, QueryIncludeItem
from mlsdm_client.types import File

for module in pkgutil.walk_packages(api.__path__, "mlsdm_client.api."):
    importlib.import_module(module.name)
url, token, vector = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
client = AuthenticatedClient(base_url=url, token=token)
event = Event(event_vector=vector, moral_value=0.95, payload={"text": "hello"})
first = post_event.sync(client=client, body=event, idempotency_key="one")
octets = File(payload=io.BytesIO(bytes(32)))
raw = post_event.sync(client=client, body=octets, moral_value=0.1)
recalled = post_recall.sync(client=client, body=Query(vector=vector, include=[QueryIncludeItem.PAYLOAD]))
refused = post_event.sync_detailed(client=client, body=Event(event_vector=[1.0], moral_value=0.5))
stranger = get_state.sync(client=AuthenticatedClient(base_url=url, token="wrong"))
page = get_decisions.sync(client=client, limit=10)
print(json.dumps([
    [first.accepted, raw.accepted],
    [recalled.exact, recalled.scanned, recalled.matches[0].memory_id, recalled.matches[0].payload],
    [int(refused.status_code), refused.parsed.code, refused.parsed.field, stranger.code],
    [entry.kind.value for entry in page.entries if entry.kind.value != "start"],
    [get_state.sync(client=client).dimension, get_governor.sync(client=client).moral_filter.dead_band],
    get_health_detailed.sync(client=client).status.value,
    patch_governor.sync(
        client=client, body=GovernorChange.from_dict({"moral_filter": {"dead_band": 0.04}})
    ).moral_filter.dead_band,
]))
"""


def test_a_generated_python_client_calls_the_api(server: LiveServer, document: Any, folder: Path) -> None:
    """openapi-python-client: functions and types. It leaves out msgpack, which it does not know, and nothing else.

    POST /events is not called: version 0.29 tests a body with `isinstance(body, list[Event])`, which Python refuses.
    """
    (folder / "config.yaml").write_text(
        "post_hooks: []\nproject_name_override: client\npackage_name_override: mlsdm_client\n"
    )
    told = run(
        folder, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--output-path", "client",
        "--config", "config.yaml",
    )  # fmt: skip
    package = folder / "client" / "mlsdm_client"
    functions = [path for path in package.glob("api/*/*.py") if path.name != "__init__.py"]
    operations = {o["operationId"] for methods in document["paths"].values() for o in methods.values()}

    left_out = re.findall(r"^.*(?:Unable|Cannot|Failure|Unsupported|Skipping|rror).*$", told, re.MULTILINE)
    assert set(left_out) == {"Unsupported content type application/msgpack"}, told
    assert {path.stem for path in functions} == operations
    assert [path.stem for path in functions if "response_200 = " not in path.read_text()] == []

    (folder / "client" / "script.py").write_text(PYTHON_CLIENT)
    url = f"http://127.0.0.1:{server.port}"
    found = json.loads(run(folder / "client", "script.py", url, TOKENS["admin"], json.dumps(EXAMPLE)))

    events, recalled, refusals, kinds, figures, status, changed = found
    assert events == [True, False]
    assert changed == 0.04
    assert recalled == [True, 1, 1, {"text": "hello"}]
    assert refusals == [422, "dimension_mismatch", "event_vector", "unauthorised"]
    assert kinds == ["decision"] * 2
    assert figures == [8, 0.05]
    assert status in {"healthy", "degraded", "unhealthy"}


TYPES = """
import http.client, json, sys
import msgspec
from types_of_mlsdm import Decision, Event, Page, Problem, Query, Recalled

port, token, vector = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

def call(method, path, body, *types):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    content = None if body is None else msgspec.json.encode(body)
    headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
    connection.request(method, path, content, headers)
    answer = connection.getresponse()
    return msgspec.json.decode(answer.read(), type=types[0] if answer.status == 200 else Problem)

decision = call("POST", "/event", Event(event_vector=vector, moral_value=0.95), Decision)
recalled = call("POST", "/recall", Query(vector=vector, top_k=1), Recalled)
problem = call("POST", "/event", Event(event_vector=vector[1:], moral_value=0.95), Decision)
page = call("GET", "/decisions?limit=1", None, Page)
print(json.dumps([decision.accepted, recalled.exact, len(recalled.matches), problem.code, len(page.entries)]))
"""


def test_generated_types_hold_what_the_api_sends(server: LiveServer, document: Any, folder: Path) -> None:
    """datamodel-code-generator: a type for each schema, with which bodies are written and answers are checked."""
    run(
        folder, "-m", "datamodel_code_generator", "--input", "openapi.json", "--input-file-type", "openapi",
        "--output", "types_of_mlsdm.py", "--output-model-type", "msgspec.Struct", "--use-annotated",
        "--target-python-version", "3.11", "--disable-warnings",
    )  # fmt: skip
    named = set(
        re.findall(
            r"^(?:class )?(\w+)(?:\(Struct|\(\w*Enum|: TypeAlias| = )",
            (folder / "types_of_mlsdm.py").read_text(),
            re.MULTILINE,
        )
    )

    assert set(document["components"]["schemas"]) - named == set()
    (folder / "script.py").write_text(TYPES)
    found = json.loads(run(folder, "script.py", str(server.port), TOKENS["admin"], json.dumps(EXAMPLE)))
    assert found == [True, True, 1, "dimension_mismatch", 1]


def test_listed_values_have_a_type(document: Any) -> None:
    """Beside every `enum` and `const`: many generators do not infer it, and drop the type that has the member."""
    untyped: list[Any] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if (isinstance(node.get("enum"), list) or isinstance(node.get("const"), str | bool | int)) and (
                "type" not in node
            ):
                untyped.append(node)
            for member in node.values():
                walk(member)
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(document)
    assert untyped == []
