"""The query string: its parameters by name, each of them known and given once.

An unknown parameter is refused, not ignored: a misspelt `boot_id` would delete another memory than the one that was
meant. So is one that is given twice: RFC 3986 §3.4 says nothing about repetition, some read the first value and some
the last, and who checks a request on its way must not see another value than the one that is acted on.
"""

from collections.abc import Mapping
from typing import Final, cast

import falcon

from app.api.operation import Parameter
from app.api.problem import Problem, invalid

_QUOTE_LENGTH_MAX: Final = 40  # characters
BOOT_ID: Final = Parameter("boot_id", "query", str, "The memory that ids and positions came from; another one is 410.")


def parse_parameters(request: falcon.Request, *names: str) -> Mapping[str, str]:
    """Return the parameters of a request, decoded. Raises 422 for one that is not among `names`, or given twice."""
    for name, value in request.params.items():
        if name not in names:
            raise invalid(name[:_QUOTE_LENGTH_MAX], "field_unknown", "is unknown", "one of " + ", ".join(names))
        if not isinstance(value, str):  # Falcon makes a list of what stands more than once
            raise invalid(name, "field_repeated", f"is given {len(value)} times", "one value")
    return cast(Mapping[str, str], request.params)


def parse_parameters_of_boot(request: falcon.Request, boot_id: str, *names: str) -> Mapping[str, str]:
    """Return the parameters of a request that may name the boot which its ids and positions came from, beside `names`.
    Raises 422 as `parse_parameters` does, and 410 when it names another one than this.
    """
    given = parse_parameters(request, BOOT_ID.name, *names)
    named = given.get(BOOT_ID.name, boot_id)
    if named != boot_id:
        detail = f"is {named[:_QUOTE_LENGTH_MAX]!r}, another memory than this one, which began empty"
        raise Problem(410, "other_boot", f"boot_id: {detail}; expected {boot_id}", field="boot_id", expected=boot_id)
    return given
