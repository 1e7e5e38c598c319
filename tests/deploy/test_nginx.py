"""nginx's configuration, in nginx itself, in front of a real server.

It runs unchanged except for what belongs to a machine: the server's address, its own port, and in one test a lower
rate. Clients use several addresses of the loopback network.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from app.api.codec.body_sizes import event_size_max
from app.api.problem_codes import CODES
from core.limits import BATCH_COUNT, BODY_SIZE
from core.settings.config import SETTINGS, Config
from core.settings.tiers import tiers
from testing import keys
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import ROOT, Answer, LiveServer, free_port
from tests.app.calm_machine import APPLICATION, calm
from tests.app.httpd.certificate import write_certificate
from tests.conftest import SMALL
from tests.programs import needs

pytestmark = needs("nginx")

VECTOR = np.arange(1, 9, dtype="<f4").tobytes()
RAW = {"Content-Type": "application/octet-stream", "Moral-Value": "0.8"}


class Front:
    """A running nginx."""

    def __init__(self, directory: Path, server_port: int, changes: Mapping[str, str] | None = None) -> None:
        """`changes` are texts of the configuration, each there once, and what stands in their place."""
        self.directory, self.port = directory, free_port()
        text = (ROOT / "deploy/nginx/nginx.conf").read_text()
        for old, new in {
            "server mlsdm-api:8000 ": f"server 127.0.0.1:{server_port} ",
            "listen 8443 ssl backlog=1024": f"listen 0.0.0.0:{self.port} ssl",
            **(changes or {}),
        }.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (directory / "conf" / "tls").mkdir(parents=True)
        (directory / "run").mkdir()
        (directory / "conf" / "nginx.conf").write_text(text)
        certificate, _ = write_certificate(directory / "conf" / "tls")
        self._trust = ssl.create_default_context(cafile=certificate)
        # Where tests run as root, nginx's own choice of a user could not enter the directory of a test.
        user = "user root; " if os.geteuid() == 0 else ""
        self.command = [
            "nginx", "-p", f"{directory}/run/", "-e", "stderr", "-c", f"{directory}/conf/nginx.conf",
            "-g", f"{user}daemon off;",
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Front":
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually(self._listens)
        return self

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(HANG_SECONDS) == 0

    def connect(self, source: str = "127.0.0.1") -> http.client.HTTPSConnection:
        """Return a connection that comes from an address of this machine."""
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=HANG_SECONDS, context=self._trust, source_address=(source, 0)
        )

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> Answer:
        """Send one request on a connection of its own."""
        connection = self.connect(source)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with keys that believes a proxy on 127.0.0.1, as one in compose believes its nginx."""
    directory = tmp_path_factory.mktemp("behind")
    environ = {
        **SMALL,
        "LOG_LEVEL": "DEBUG",
        "MLSDM_SECURITY__KEYS_PATH": str(keys.write(directory / "keys.yaml")),
        "MLSDM_SERVER__TRUSTED_PROXIES": "127.0.0.1",
        **calm(directory),
    }
    server = LiveServer(directory, environ, application=APPLICATION).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def front(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(tmp_path_factory.mktemp("front"), server.port).start()
    yield front
    front.stop()


def lines_of(log: str) -> list[dict[str, Any]]:
    """Return the JSON lines of a log that are complete."""
    return [json.loads(line) for line in log.splitlines(keepends=True) if line.startswith("{") and line[-1] == "\n"]


def problem(answer: Answer) -> tuple[int, str]:
    """Return status and code of a problem document, whose members agree with what carries it."""
    assert answer.headers["content-type"] == "application/problem+json", answer.body
    document: dict[str, Any] = answer.json
    assert document["type"] == "about:blank"
    assert document["status"] == answer.status
    assert document["title"]
    assert document["detail"]
    assert answer.headers["x-request-id"]
    return answer.status, str(document["code"])


def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    """`nginx -t` prints no error and no warning."""
    front = Front(tmp_path, 1)
    done = subprocess.run([*front.command, "-t"], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if not line.endswith(("syntax is ok", "test is successful"))]

    assert (done.returncode, lines) == (0, [])


def test_an_event_passes_through_nginx(server: LiveServer, front: Front) -> None:
    """It passes over TLS with its key and is remembered; the answer is the server's."""
    before = server.request("GET", "/state", headers=keys.bearer("reader")).json["total_events_processed"]
    answer = front.request("POST", "/event", VECTOR, RAW | keys.bearer("writer"))

    assert answer.status == 200
    assert before + 1 == front.request("GET", "/state", headers=keys.bearer("reader")).json["total_events_processed"]
    assert answer.headers["strict-transport-security"]


def test_refusals_of_the_server_pass_unchanged(front: Front) -> None:
    """Its problem documents keep the fields that only the server can fill."""
    answer = front.request("POST", "/event", VECTOR, RAW | {"Moral-Value": "7"} | keys.bearer("writer"))

    assert problem(answer) == (422, "moral_value_out_of_range")
    assert answer.json["field"]
    assert problem(front.request("GET", "/nowhere", headers=keys.bearer("reader"))) == (404, "no_such_route")
    assert problem(front.request("GET", "/state")) == (401, "unauthorised")


@pytest.mark.parametrize("path", ["/health/liveness", "/health/readiness", "/livez", "/readyz"])
def test_liveness_and_readiness_pass(front: Front, path: str) -> None:
    """External balancers and monitors can ask for them, and learn nothing else."""
    assert front.request("GET", path).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/metrics", "/health/metrics", "/metrics/", "/health/metrics?x=1", "//metrics", "/health//metrics",
        "/%6detrics", "/health/%6Detrics", "/health/./metrics", "/state/../metrics", "/METRICS", "/metrics/x",
        "/health%2fmetrics", "/metrics%00", "/metrics%20", "/metrics;a", "/metrics.",
    ],
)  # fmt: skip
def test_metrics_are_blocked(server: LiveServer, front: Front, path: str) -> None:
    """No spelling of their path reaches them from outside; the server itself serves them."""
    answer = front.request("GET", path, headers=keys.bearer("admin"))

    assert answer.status in (400, 404)
    assert b"mlsdm_" not in answer.body
    assert server.get("/metrics").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/health/detailed", "/health/detailed/", "/health/detailed?x=1", "//health//detailed", "/health/%64etailed",
        "/health/./detailed", "/state/../health/detailed", "/HEALTH/Detailed", "/health/detailed/x",
        "/health%2fdetailed", "/health/detailed%00", "/health/detailed%20", "/health/detailed;a", "/health/detailed.",
    ],
)  # fmt: skip
def test_detailed_health_is_blocked(server: LiveServer, front: Front, path: str) -> None:
    """No spelling of its path reveals load or version outside; the server itself serves it."""
    answer = front.request("GET", path, headers=keys.bearer("admin"))

    assert answer.status in (400, 404)
    assert b"cpu_percent" not in answer.body
    assert "cpu_percent" in server.get("/health/detailed").json["system"]


class TestAddress:
    def test_the_server_knows_the_clients_address(self, server: LiveServer, front: Front) -> None:
        """Not the proxy's, and not what the client says of itself."""
        forged = {"X-Forwarded-For": "203.0.113.7", "X-Request-ID": "address-of-a-client"}
        front.request("GET", "/state", headers={"Authorization": "Bearer nobody"} | forged, source="127.0.0.9")
        [line] = eventually(
            lambda: [line for line in lines_of(server.log) if line.get("request_id") == "address-of-a-client"]
        )

        assert (line["event"], line["address"]) == ("auth_failure", "127.0.0.9")

    def test_a_request_has_one_name_everywhere(self, front: Front) -> None:
        """The client's if it gave one, else one that nginx made; it stands in nginx's log and in the answer."""
        given = front.request("GET", "/livez", headers={"X-Request-ID": "given-by-a-client"})
        made = front.request("GET", "/livez")

        assert given.headers["x-request-id"] == "given-by-a-client"
        assert re.fullmatch(r"[0-9a-f]{32}", made.headers["x-request-id"])
        names = {"given-by-a-client", made.headers["x-request-id"]}
        eventually(lambda: names <= {line["request_id"] for line in lines_of(front.log)})


def test_connections_to_the_server_are_reused(server: LiveServer, front: Front) -> None:
    """Many clients, one after the other, share nginx's open connections."""
    front.request("GET", "/livez")
    ports: set[int] = set()
    for _ in range(20):
        assert front.request("GET", "/livez").status == 200
        ports |= held(server)

    assert 1 <= len(ports) <= (os.cpu_count() or 1)  # each process of nginx has its own


def held(server: LiveServer) -> set[int]:
    """Return the ports, on the other side, of the connections that a server's workers have."""
    return {
        connection.raddr.port for worker in psutil.Process(server.pid).children()
        for connection in worker.net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == server.port
    }  # fmt: skip


class TestSizes:
    def test_what_an_event_may_need_passes(self) -> None:
        """The limit of all routes but one is above the largest event that any configuration allows."""
        dimension, payload = (int(SETTINGS[key].range.split()[-1]) for key in ("dimension", "payload_size_max"))

        assert event_size_max(dimension, payload) <= 2**20

    @pytest.mark.parametrize(("path", "size"), [("/event", 2**20), ("/recall", 2**20), ("/events", BODY_SIZE.value)])
    def test_a_larger_body_is_refused_by_nginx(self, front: Front, path: str, size: int) -> None:
        """As soon as its length is announced: no byte of it was sent. The limit itself is the server's to judge."""
        headers = {"Content-Type": "application/json", **keys.bearer("writer")}
        codes = []
        for length in (size, size + 1):
            connection = front.connect()
            connection.putrequest("POST", path)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                connection.putheader(name, value)
            connection.endheaders()
            if length > size:
                response = connection.getresponse()
                found = {k.lower(): v for k, v in response.getheaders()}
                codes.append(problem(Answer(response.status, found, response.read())))
            else:
                connection.send(b" " * length)
                codes.append((connection.getresponse().status, "the server's"))
            connection.close()

        assert codes[1] == (413, "body_too_large")
        assert codes[0][0] in (400, 413)  # no JSON, or more than an event of eight floats can need

    def test_a_batch_comes_through(self, front: Front) -> None:
        """Larger than the limit of other routes, and than what nginx keeps in memory."""
        events = [{"event_vector": [0.5] * 8, "moral_value": 0.8, "payload": "x" * 900} for _ in range(1000)]
        body = json.dumps(events).encode().ljust(2**20 + 1)
        headers = {"Content-Type": "application/json", **keys.bearer("writer")}
        answer = front.request("POST", "/events", body, headers)
        assert answer.status == 200, answer.body

    def test_a_long_head_is_a_problem_too(self, front: Front) -> None:
        """A line or fields above the limits: the codes are the server's."""
        assert problem(front.request("GET", "/" + "x" * 9000)) == (414, "request_line_too_long")
        assert problem(front.request("GET", "/livez", headers={"X-Long": "x" * 9000})) == (431, "headers_too_large")


class TestLimits:
    def test_an_address_may_do_what_a_key_may(self) -> None:
        """Single requests at the rates of the tiers standard and high, and the tier bulk in batches."""
        text = (ROOT / "deploy/nginx/nginx.conf").read_text()
        [rate], [burst] = re.findall(r"rate=(\d+)r/s", text), re.findall(r"burst=(\d+) ", text)
        buckets = tiers(Config())

        assert all(buckets[name].rate < int(rate) for name in ("standard", "high"))
        assert all(buckets[name].burst < int(burst) for name in ("standard", "high"))
        assert buckets["bulk"].rate / BATCH_COUNT.value < int(rate)

    def test_an_address_has_a_rate(self, server: LiveServer, tmp_path: Path) -> None:
        """The burst passes and what follows is 429 with Retry-After; another address is not concerned. Here two for a
        burst of two thousand, and none refills.
        """
        slow = Front(tmp_path, server.port, {"rate=1000r/s": "rate=1r/m", "burst=2000": "burst=2"}).start()
        try:
            answers = [slow.request("GET", "/livez", source="127.0.0.5") for _ in range(4)]
            other = slow.request("GET", "/livez", source="127.0.0.6")
        finally:
            slow.stop()

        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert problem(answers[3]) == (429, "rate_limit_exceeded")
        assert (answers[3].headers["retry-after"], other.status) == ("1", 200)

    def test_an_address_has_so_many_connections(self, server: LiveServer, front: Front) -> None:
        """64 requests at a time: the next one is 429, that of another address is served. As long as their bodies are
        not complete, none of them takes a connection of the server's.
        """
        source = "127.0.0.7"

        def hold_and_ask() -> tuple[tuple[int, str], int, int] | None:
            """Return how one request more of the address and one of another are answered, and the held connections.

            None on a machine so busy that nginx has timed out the first bodies when the last one begins.
            """
            with contextlib.ExitStack() as stack:
                for _ in range(64):
                    connection = stack.enter_context(contextlib.closing(front.connect(source)))
                    connection.putrequest("POST", "/event")
                    connection.putheader("Content-Length", "100000")
                    connection.endheaders()
                    connection.send(b" ")
                refused = front.request("GET", "/livez", source=source)
                if refused.status == 200:
                    return None
                other = front.request("GET", "/livez", source="127.0.0.8")
                return problem(refused), other.status, len(held(server))

        refused, other, held_count = eventually(hold_and_ask)
        assert (refused, other) == ((429, "rate_limit_exceeded"), 200)
        assert held_count <= (os.cpu_count() or 1)
        eventually(lambda: front.request("GET", "/livez", source=source).status == 200)


class TestFailures:
    def test_a_server_that_is_gone_is_a_problem(self, tmp_path: Path) -> None:
        """502 with Retry-After; and one that comes back is found at once."""
        server = LiveServer(tmp_path, dict(SMALL))
        (tmp_path / "front").mkdir()
        front = Front(tmp_path / "front", server.port).start()
        try:
            gone = front.request("POST", "/event", VECTOR, RAW)
            server.start()
            back = front.request("POST", "/event", VECTOR, RAW)
        finally:
            front.stop()
            server.stop()

        assert problem(gone) == (502, "upstream_unavailable")
        assert (gone.headers["retry-after"], back.status) == ("1", 200)

    def test_plain_text_on_a_port_of_tls_is_a_problem(self, front: Front) -> None:
        """Nothing is served without TLS."""
        with socket.create_connection(("127.0.0.1", front.port), timeout=HANG_SECONDS) as plain:
            plain.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            response = http.client.HTTPResponse(plain)
            response.begin()
            found = {k.lower(): v for k, v in response.getheaders()}

            assert problem(Answer(response.status, found, response.read())) == (400, "malformed_request")


def test_nginx_uses_the_servers_codes_where_they_exist() -> None:
    """A status means the same from nginx and from the server; two codes belong to the proxy."""
    text = (ROOT / "deploy/nginx/nginx.conf").read_text()
    codes = {
        code: status for status, code in re.findall(r"^ +(\w+) '\"title\".*\"code\":\"(\w+)\"", text, re.MULTILINE)
    }

    assert {code: status for code, status in codes.items() if code not in CODES} == {
        "upstream_unavailable": "502",
        "upstream_timeout": "504",
    }
    assert {
        code: status
        for code, status in codes.items()
        if code in CODES and status != "default" and CODES[code].status != int(status)
    } == {}
