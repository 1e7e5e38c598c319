"""The client of the benchmark: wrk, an event loop in C that is cheap enough not to be measured itself.

It runs a generated Lua script: `init` reads the requests from a file, `request` returns them in turn, `done` prints
one line of JSON (wrk's own report is rounded). The client polls instead of sleeping (polling.c).

wrk stops in the middle of requests: `completed` ≤ served ≤ `sent`. The server's time is divided by `sent`, which
counts the requests handed out.
"""

import json
import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from loadtests.bench.processor import pinned

PERCENTILES: Final = (50, 99)
_MARK: Final = "MEASURED "
_POLLING: Final = Path(__file__).with_name("polling.c")
# wrk calls `request` once before it connects, so `sent` starts at -1.
_SCRIPT: Final = """
local threads = {}
function setup(thread) table.insert(threads, thread) end

function init(_)
  requests, count, sent = {}, 0, -1
  local file = assert(io.open("@FILE@", "rb"))
  while true do
    local head = file:read(4)
    if not head then break end
    local a, b, c, d = head:byte(1, 4)
    count = count + 1
    requests[count] = file:read(a + 256 * (b + 256 * (c + 256 * d)))
  end
  file:close()
end

function request()
  sent = sent + 1
  local whole = requests[(sent + @OFFSET@) % count + 1]
  @NUMBERED@
  return whole
end

function done(summary, latency, _)
  local sum = 0
  for _, thread in ipairs(threads) do sum = sum + thread:get("sent") end
  local errors = summary.errors
  io.write(string.format(
    '@MARK@{"completed": %d, "sent": %d, "seconds": %.6f, "connect": %d, "read": %d, "write": %d, "status": %d, ' ..
    '"timeout": %d, "latency_us": [@FORMATS@]}\\n',
    summary.requests, sum, summary.duration / 1e6, errors.connect, errors.read, errors.write, errors.status,
    errors.timeout, @LATENCIES@))
end
"""
_NUMBERED: Final = 'whole = whole:gsub("NUMBER#########", string.format("%015d", sent + @OFFSET@ + 1))'


class MeasurementError(Exception):
    """One sentence: why nothing was measured."""


class Sample(NamedTuple):
    """What the client saw. `latency_us` by the percentiles above, in the same order; errors by kind, without zeros."""

    completed: int
    sent: int
    seconds: float
    latency_us: tuple[float, ...]
    errors: dict[str, int]


def require() -> None:
    """Raise MeasurementError when wrk is not installed."""
    if shutil.which("wrk") is None:
        raise MeasurementError("wrk, which sends the requests, is not installed: apt install wrk")


@lru_cache
def _polling(directory: Path) -> Path:
    """Compile the preloaded library that makes the client poll. Raises MeasurementError when that fails."""
    library = directory / "polling.so"
    command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-o", str(library), str(_POLLING), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MeasurementError(
            f"{_POLLING.name} could not be compiled: {getattr(error, 'stderr', None) or error}"
        ) from None
    return library


def script(requests: Path, offset: int, numbered: bool) -> str:
    """Return the Lua script that sends the requests of a file, beginning with number `offset`."""
    text = _SCRIPT.replace("@NUMBERED@", _NUMBERED if numbered else "")
    for name, value in {
        "MARK": _MARK,
        "FILE": str(requests),
        "OFFSET": str(offset),
        "FORMATS": ", ".join(["%d"] * len(PERCENTILES)),
        "LATENCIES": ", ".join(f"latency:percentile({percentile})" for percentile in PERCENTILES),
    }.items():
        text = text.replace(f"@{name}@", value)
    return text


def run(
    port: int,
    requests: Path,
    connections: int,
    seconds: int,
    *,
    core: int,
    offset: int = 0,
    numbered: bool = False,
    polling: bool = True,
) -> Sample:
    """Send requests on `connections` connections for `seconds`. Raises MeasurementError when wrk fails.

    A `polling` client never sleeps (polling.c), so that it needs a core of its own.
    """
    lua = requests.with_suffix(f".{port}.lua")
    lua.write_text(script(requests, offset, numbered), encoding="utf-8")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(lua)]
    with pinned({core}):
        client = subprocess.Popen(
            [*command, f"http://127.0.0.1:{port}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **({"LD_PRELOAD": str(_polling(requests.parent))} if polling else {})},
        )  # fmt: skip
    try:
        said, _ = client.communicate(timeout=seconds + 60)
    except subprocess.TimeoutExpired:
        client.kill()
        client.communicate()
        raise MeasurementError(f"wrk did not end {seconds} s after it began") from None
    return parse(said)


def parse(said: str) -> Sample:
    """Parse wrk's output. Raises MeasurementError when it holds no measurement."""
    line = next((line for line in said.splitlines() if line.startswith(_MARK)), None)
    if line is None:
        raise MeasurementError(f"wrk measured nothing; it said: {said.strip()[-500:] or 'nothing'}")
    reported = json.loads(line.removeprefix(_MARK))
    errors = {kind: reported[kind] for kind in ("connect", "read", "write", "status", "timeout") if reported[kind]}
    latencies = tuple(float(latency) for latency in reported["latency_us"])
    return Sample(reported["completed"], reported["sent"], reported["seconds"], latencies, errors)
