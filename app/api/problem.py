"""Problem: the one form in which a route reports anything that goes wrong, a problem document (RFC 9457).

A `Problem` carries a stable `code` for programs (`app.api.problem_codes`), and for people a sentence that names the
field, what is wrong with it, and what was expected. Errors of Falcon and exceptions of the store are turned into the
same form here. The connection reports its own refusals in the same form (app/httpd/problem_document.py).
"""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, NoReturn, TypeAlias

import falcon
import msgspec
from msgspec import Meta

from app.api.decision_view import DecisionView
from app.api.problem_codes import CODES
from core.limits import BODY_SIZE, Limit
from shm import errors

PROBLEM_JSON: Final = "application/problem+json"
Render: TypeAlias = Callable[[str, str, str, bytes], bytes]  # app.httpd.problem_document, handed in by app/main.py

_Field = Annotated[str, Meta(description="The member, parameter or header at fault.", examples=["moral_value"])]
_Expected = Annotated[str, Meta(description="What was expected instead.", examples=["a number from 0 to 1"])]
_Results = Annotated[list[DecisionView], Meta(description="The decisions of an interrupted batch.")]


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """The members of a problem document."""

    type: Annotated[Literal["about:blank"], Meta(description="Always `about:blank`: `code` identifies the problem.")]
    title: Annotated[str, Meta(description="The phrase of the HTTP status.", examples=["Unprocessable Entity"])]
    status: Annotated[int, Meta(description="The HTTP status.", ge=400, le=599, examples=[422])]
    code: Annotated[str, Meta(description="Stable name of the problem, for programs.", examples=["field_missing"])]
    detail: Annotated[
        str,
        Meta(
            description="What is wrong, as a sentence for people.",
            examples=["moral_value: is 7.0; expected a number from 0 to 1"],
        ),
    ]
    field: _Field | None = None
    expected: _Expected | None = None
    results: _Results | None = None


class _FurtherMembers(msgspec.Struct, omit_defaults=True):
    """The members that only some problems have, in the order of ProblemDocument."""

    field: str | None = None
    expected: str | None = None
    results: list[DecisionView] | None = None


class Problem(falcon.HTTPError):
    """An error that is answered with a problem document."""

    def __init__(
        self,
        http_status: int,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        expected: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
        results: list[DecisionView] | None = None,
    ) -> None:
        """`field` and `expected` name the value at fault; `retry_after` in seconds; `headers` of the response."""
        fields = dict(headers or {})
        if retry_after is not None:
            fields["Retry-After"] = str(retry_after)
        super().__init__(http_status, description=detail, headers=fields)
        self.problem_code = code
        self.field = field
        self.expected = expected
        self.results = results

    @classmethod
    def of_code(cls, code: str) -> "Problem":
        """Return the problem of a code whose sentence does not depend on the request."""
        status, _, _, retry_after = about = CODES[code]
        return cls(status, code, about.sentence, retry_after=retry_after)


def invalid(field: str, code: str, detail: str, expected: str) -> Problem:
    """Return the 422 for a value: `field`: `detail`; expected `expected`."""
    return Problem(422, code, f"{field}: {detail}; expected {expected}", field=field, expected=expected)


def above_limit(limit: Limit, field: str, found: int) -> Problem:
    """Return the problem for a value that exceeds a limit."""
    expected = f"at most {limit.value} {limit.unit}"
    return Problem(limit.status, limit.code, f"{field}: {found} {limit.unit}; expected {expected}", field=field,
                   expected=expected)  # fmt: skip


# The codes of the store's exceptions, unless a route gives them another meaning.
STORE_CODES: Final[dict[type[errors.StoreError], str]] = {
    errors.Busy: "store_busy",
    errors.Unformed: "store_starting",
    errors.Stopped: "stopped",
    errors.Corrupt: "store_corrupt",
    errors.Lost: "store_lost",
    errors.Exhausted: "memory_exhausted",
    errors.Reused: "idempotency_key_reused",
    errors.Taken: "controller_busy",
}


def problem_of_store_error(error: errors.StoreError) -> Problem:
    """Return the problem for an exception of the store that no route has given another meaning."""
    return Problem.of_code(STORE_CODES[type(error)])


def on_store_error(
    _request: falcon.Request, _response: falcon.Response, error: errors.StoreError, _params: Any
) -> NoReturn:
    """Falcon error handler for `shm.errors.StoreError`."""
    raise problem_of_store_error(error) from error


# The codes of the errors that Falcon's router and request parsing raise themselves, by status.
FALCON_CODES: Final = {
    400: "bad_request",
    404: "no_such_route",
    405: "method_not_allowed",
    413: BODY_SIZE.code,
    415: "unsupported_media_type",
    500: "internal_error",
}


def write_problem(response: falcon.Response, error: falcon.HTTPError, render: Render) -> tuple[str, str | None]:
    """Write an error into `response` as a problem document; return its code and the field at fault."""
    status, members = error.status_code, _FurtherMembers()
    if isinstance(error, Problem):
        code, detail = error.problem_code, error.description or ""
        members = _FurtherMembers(error.field, error.expected, error.results)
    else:
        code = FALCON_CODES.get(status, "http_error")
        detail = error.description or (CODES[code].sentence if code in CODES else error.title or "")
    further = msgspec.json.encode(members)[1:-1]
    response.content_type = PROBLEM_JSON
    response.data = render(falcon.code_to_http_status(status), code, detail, further)
    return code, members.field
