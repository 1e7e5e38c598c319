"""Query string: its parameters by name, each of them declared by the operation and given once.

An unknown parameter is refused, not ignored: with a misspelt `boot_id` a client would delete the wrong memory, and with
an invented `dry_run` it would reset the governor. So is a repeated parameter: RFC 3986 §3.4 does not define repetition,
some readers take the first value and some the last, and a proxy that checks requests must not see another value than
the one that takes effect.

The gate checks every query before the route runs (`app.api.access.gate`); routes read values only.
"""

from collections.abc import Mapping
from typing import Final, cast

import falcon
from falcon.uri import parse_query_string

from app.api.context import Context
from app.api.operation import Operation, Parameter
from app.api.problem import Problem, invalid

_QUOTE_LENGTH_MAX: Final = 40  # characters
BOOT_ID: Final = Parameter("boot_id", "query", str, "The store of the ids and positions; another one is refused (410).")
LOG_ID: Final = Parameter("log_id", "query", str, "The history of the ids and positions; another one is refused (410).")


def check_query(query: str, operation: Operation) -> None:
    """Raise 422 for a parameter that `operation` does not declare, or that is repeated.

    `query` is the query string as it was sent, without its question mark.
    """
    names = [parameter.name for parameter in operation.parameters if parameter.place == "query"]
    # The same parser, with the same options, as that of `falcon.Request.params`.
    for name, value in parse_query_string(query, keep_blank=True, csv=False).items():
        if name not in names:
            expected = "one of " + ", ".join(names) if names else "no query parameters"
            raise invalid(name[:_QUOTE_LENGTH_MAX] or "query", "field_unknown", "is unknown", expected)
        if not isinstance(value, str):  # Falcon makes a list of repeated values
            raise invalid(name, "field_repeated", f"is given {len(value)} times", "one value")


def parameters_of(request: falcon.Request) -> Mapping[str, str]:
    """Return the decoded parameters of a request whose query has been checked."""
    return cast(Mapping[str, str], request.params)


def parameters_of_log(request: falcon.Request, context: Context) -> Mapping[str, str]:
    """Return the decoded parameters of a request.

    Raises 410 if `boot_id` or `log_id` is among them and not that of this store.
    """
    given = parameters_of(request)
    for name, own in ((BOOT_ID.name, context.boot_id), (LOG_ID.name, context.log_id)):
        if given.get(name, own) != own:
            raise _other_log(name, given[name], own)
    return given


def parse_cursor(given: Mapping[str, str], name: str, log_id: str, high: int) -> int:
    """Return the position of a cursor, `log_id:position` or a bare position; -1 if it is missing.

    Raises 410 for a position of another history, 422 `field_invalid`.
    """
    text = given.get(name)
    if text is None:
        return -1
    history, colon, position = text.rpartition(":")
    if colon and history != log_id:
        raise _other_log(name, text, f"{log_id}:position")
    if not (position.isascii() and position.isdigit() and len(position) <= 19 and int(position) <= high):
        expected = f"a position, a whole number from 0 to {high}, or log_id:position"
        raise invalid(name, "field_invalid", f"is {text[:_QUOTE_LENGTH_MAX]!r}", expected)
    return int(position)


def _other_log(name: str, found: str, expected: str) -> Problem:
    detail = f"{name}: is {found[:_QUOTE_LENGTH_MAX]!r}, another store than this one, which began empty"
    return Problem(410, "other_boot", f"{detail}; expected {expected}", field=name, expected=expected)


def parse_whole_number(given: Mapping[str, str], name: str, default: int, low: int, high: int, *, code: str) -> int:
    """Return a parameter as a whole number from `low` to `high`, or `default` if it is missing. Raises 422 `code`."""
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and low <= int(text) <= high):
        raise invalid(name, code, f"is {text[:_QUOTE_LENGTH_MAX]!r}", f"a whole number from {low} to {high}")
    return int(text)
