"""GET /modules: the state of each module, since when it holds, and the reason."""

from collections.abc import Mapping
from typing import ClassVar

import falcon
import msgspec

from app.api.codec.media_types import JSON, encode
from app.api.operation import Operation
from app.lifecycle.report import ModuleReport, Report
from core.access.keys import Role


class Modules(msgspec.Struct):
    """The modules that the configuration enables, in the order in which they are opened."""

    modules: list[ModuleReport]


class ModulesResource:
    """The report of the modules."""

    operations: ClassVar[Mapping[str, Operation]] = {
        "GET": Operation(
            "Report the state of every module, with the reason if a module is not ready.", Role.READ, Modules
        )
    }

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Return the report."""
        response.content_type = JSON
        response.data = encode(Modules(self._report.modules()))

    on_head = on_get  # RFC 9110 §9.1: every GET has a HEAD; the server omits the body
