"""Problem documents (RFC 9457): the one form in which anything that goes wrong reaches a client.

A `Problem` names a stable `code` for programs, and for people the field, what was wrong with it and what was expected.
Falcon's own errors (unknown route, method not allowed) and the exceptions of the store are turned into the same form
here, so no other kind of error leaves this service. The connection's own refusals, below HTTP routing, are written in
app/httpd/wsgi_call.py.
"""

from typing import Annotated, Any, Final, Literal, NoReturn

import falcon
import msgspec
from msgspec import Meta

from app.api.decision_view import DecisionView
from core.limits import BODY_SIZE, EMERGENCY_COOLDOWN_SECONDS, Limit
from shm import errors

PROBLEM_JSON: Final = "application/problem+json"


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """The members of a problem document."""

    type: Annotated[Literal["about:blank"], Meta(description="The status says it all; `code` says it exactly.")]
    title: Annotated[str, Meta(description="The status in words.", examples=["Unprocessable Entity"])]
    status: Annotated[int, Meta(description="The HTTP status.", ge=400, le=599, examples=[422])]
    code: Annotated[
        str, Meta(description="What is wrong, for programs: stable.", examples=["moral_value_out_of_range"])
    ]
    detail: Annotated[
        str,
        Meta(description="What is wrong, for people.", examples=["moral_value: is 7.0; expected a number from 0 to 1"]),
    ]
    field: Annotated[str, Meta(description="What is to blame.", examples=["moral_value"])] | None = None
    expected: Annotated[str, Meta(description="What was expected there.", examples=["a number from 0 to 1"])] | None = (
        None
    )
    results: Annotated[list[DecisionView], Meta(description="Of an interrupted batch: what was decided.")] | None = None


class Problem(falcon.HTTPError):
    """What a handler raises: HTTP status, stable code, a sentence, and when a field is to blame its name and what was
    expected.
    """

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
        fields = dict(headers or {})
        if retry_after is not None:
            fields["Retry-After"] = str(retry_after)
        super().__init__(http_status, description=detail, headers=fields)
        self.problem_code = code
        self.field = field
        self.expected = expected
        self.results = results


def invalid(field: str, code: str, detail: str, expected: str) -> Problem:
    """Return the 422 for a value: which field, what is wrong with it, what was expected."""
    return Problem(422, code, f"{field}: {detail}; expected {expected}", field=field, expected=expected)


def malformed(detail: str) -> Problem:
    """Return the 400 for a body that cannot be parsed."""
    return Problem(400, "malformed_body", detail)


def over(limit: Limit, field: str, found: int) -> Problem:
    """Return the refusal for a passed limit."""
    expected = f"at most {limit.value} {limit.unit}"
    return Problem(limit.status, limit.code, f"{field}: {found} {limit.unit}; expected {expected}", field=field,
                   expected=expected)  # fmt: skip


# What the store says → what a client is told: status, code, sentence, Retry-After in seconds.
_STORE: Final[dict[type[errors.StoreError], tuple[int, str, str, int | None]]] = {
    errors.Busy: (503, "store_busy", "The store is busy or a stuck process is being removed; nothing was applied.", 1),
    errors.Unformed: (503, "store_starting", "The controller has not formed the store yet; nothing was applied.", 1),
    errors.Stopped: (503, "stopped", "An operator has stopped admissions; memories can still be read.", 60),
    errors.Corrupt: (503, "store_corrupt", "A checksum of the store does not hold; nothing was applied.", 60),
    errors.Lost: (503, "store_lost", "The lock of the store is beyond repair; the service must be restarted.", 60),
    errors.Exhausted: (
        503,
        "memory_exhausted",
        "The service has no memory left to be safe with; nothing was applied, memories can still be read.",
        EMERGENCY_COOLDOWN_SECONDS.value,
    ),
    errors.Reused: (422, "idempotency_key_reused", "This Idempotency-Key came with another request before.", None),
    errors.Taken: (
        503,
        "controller_busy",
        "The controller did not carry it out in time; nothing was applied, and nothing will be.",
        1,
    ),
}


def problem_of_store_error(error: errors.StoreError) -> Problem:
    """Return the problem for an exception of the store that no handler has given a meaning of its own."""
    http_status, code, detail, retry_after = _STORE[type(error)]
    return Problem(http_status, code, detail, retry_after=retry_after)


def on_store_error(
    _request: falcon.Request, _response: falcon.Response, error: errors.StoreError, _params: Any
) -> NoReturn:
    """Falcon error handler for `shm.errors.StoreError`."""
    raise problem_of_store_error(error) from error


# Falcon's own errors: the code and the sentence for each status that its router and request parsing can raise.
_FALCON: Final = {
    400: ("bad_request", "The request cannot be understood."),
    404: ("no_such_route", "There is no such route."),
    405: ("method_not_allowed", "This route does not have that method; the Allow header lists those it has."),
    413: (BODY_SIZE.code, "The body is too large."),
    500: ("internal_error", "The server met an error it did not expect; its log says more."),
    415: ("unsupported_media_type", "The body is of a type that this route does not take."),
}


def write_problem(
    _request: falcon.Request, response: falcon.Response, error: falcon.HTTPError
) -> tuple[str, str | None]:
    """Falcon error serialiser: every error becomes a problem document. Returns its code and the field to blame."""
    if isinstance(error, Problem):
        code, detail, field, expected = error.problem_code, error.description or "", error.field, error.expected
        results = error.results
    else:
        code, detail = _FALCON.get(error.status_code, ("http_error", error.title or ""))
        detail, field, expected, results = error.description or detail, None, None, None
    title = falcon.code_to_http_status(error.status_code).partition(" ")[2]
    response.content_type = PROBLEM_JSON
    response.data = msgspec.json.encode(
        ProblemDocument("about:blank", title, error.status_code, code, detail, field, expected, results)
    )
    return code, field
