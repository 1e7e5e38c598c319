"""Query string: its parameters by name, each of them known and given once.

An unknown parameter is refused, not ignored: with a misspelt `boot_id` a client would delete the wrong memory. So is a
repeated parameter: RFC 3986 §3.4 does not define repetition, some readers take the first value and some the last, and a
proxy that checks requests must not see another value than the one that takes effect.
"""

from collections.abc import Mapping
from typing import Final, cast

import falcon

from app.api.operation import Parameter
from app.api.problem import Problem, invalid

_QUOTE_LENGTH_MAX: Final = 40  # characters
BOOT_ID: Final = Parameter("boot_id", "query", str, "The store of the ids and positions; another one is refused (410).")


def parse_parameters(request: falcon.Request, *names: str) -> Mapping[str, str]:
    """Return the decoded parameters of a request. Raises 422 for one that is repeated or not in `names`."""
    for name, value in request.params.items():
        if name not in names:
            raise invalid(name[:_QUOTE_LENGTH_MAX], "field_unknown", "is unknown", "one of " + ", ".join(names))
        if not isinstance(value, str):  # Falcon makes a list of repeated values
            raise invalid(name, "field_repeated", f"is given {len(value)} times", "one value")
    return cast(Mapping[str, str], request.params)


def parse_parameters_of_boot(request: falcon.Request, boot_id: str, *names: str) -> Mapping[str, str]:
    """Return the decoded parameters of a request, of which `boot_id` and `names` are known.

    Raises 422 like `parse_parameters`, and 410 if `boot_id` is not that of this store.
    """
    given = parse_parameters(request, BOOT_ID.name, *names)
    named = given.get(BOOT_ID.name, boot_id)
    if named != boot_id:
        detail = f"is {named[:_QUOTE_LENGTH_MAX]!r}, another store than this one, which began empty"
        raise Problem(410, "other_boot", f"boot_id: {detail}; expected {boot_id}", field="boot_id", expected=boot_id)
    return given
