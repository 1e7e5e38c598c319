"""`mlsdm modules`: the modules of a running server, each with its state and, if it is not ready, the reason.

Asks GET /modules, with the key in API_KEY when there is one. Exit status: 0 every module is ready; 1 one is not, or the
server cannot be asked.
"""

import argparse
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Final

import msgspec

from app.routes.modules import Modules
from mlsdm import server_url

SECONDS_MAX: Final = 10.0  # timeout of the request
_COLUMNS: Final = ("module", "state", "since", "load ms", "required", "reason")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--url", type=http_url, default="http://127.0.0.1:8000", help="the server (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the document as the server sent it")


def run(arguments: argparse.Namespace) -> int:
    """Print the report of a server; return the exit status."""
    request = urllib.request.Request(f"{arguments.url}/modules")  # noqa: S310 - `http_url` has checked the scheme
    if key := os.environ.get("API_KEY", "").strip():
        request.add_header("X-API-Key", key)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_MAX) as answer:  # noqa: S310 - as above
            text = answer.read()
        report = msgspec.json.decode(text, type=Modules)
    except urllib.error.HTTPError as error:
        hint = ": set API_KEY to a key of this server" if error.code in (401, 403) else ""
        print(f"mlsdm modules: {arguments.url} answered {error.code} {error.reason}{hint}", file=sys.stderr)
        return 1
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        cause = getattr(error, "reason", error)
        print(f"mlsdm modules: {arguments.url} cannot be asked: {cause}; is a server running there?", file=sys.stderr)
        return 1
    print(text.decode() if arguments.json else "\n".join(lines_of(report)))
    return int(any(module.state != "ready" for module in report.modules))


def http_url(text: str) -> str:
    """Return the URL of a server without a slash at its end; raises ArgumentTypeError for any other text."""
    try:
        server_url.parse(text)
    except server_url.InvalidUrl as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text.rstrip("/")


def lines_of(report: Modules) -> Iterator[str]:
    """Yield the report as a table for people."""
    rows = [_COLUMNS]
    for module in report.modules:
        rows.append(
            (module.name, module.state, module.since[:19], f"{module.load_ms:.1f}",
             "yes" if module.required else "no", module.reason)
        )  # fmt: skip
        rows += [
            (
                f"  {child.name}",
                "up" if child.up else "down" if child.is_missed else "finished",
                "",
                "",
                "",
                f"{child.starts} starts {child.reason}".strip(),
            )
            for child in module.children
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
