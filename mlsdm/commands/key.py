"""`mlsdm key ID`: a new key, as a token for the client and an entry for the server's keys file.

Two readers are served. The entry goes to stdout, so that it can be appended to the file. The token goes to stderr: with
a sentence around it when a person sees it, alone on its line when a script has redirected it. It is shown this once
and written nowhere, because the server needs its digest only; who loses it makes another.

    echo keys: > keys.yaml                                  # once: what the entries stand under
    mlsdm key web --tier high >> keys.yaml
    mlsdm key web --tier high >> keys.yaml 2> web.token

The arguments are judged by what judges the file (`core.access.key_file`), so an entry that is printed can be read. What
only the file can tell, such as an id that is taken, is said by `mlsdm check-config` and at the start.

Rejected: writing into the file, which would have to keep its comments, its owner and its mode; `--secret`, because a
secret that a person makes up is the weak one, and would stand in the shell's history.

Exit status: 0 made; 2 an argument is wrong.
"""

import argparse
import secrets
import sys
import time
from collections.abc import Callable
from typing import Final

from core.access.key_file import KEY_MEMBERS, ROLES_BY_NAME, to_yaml_entry
from core.access.keys import token_digest
from core.settings.setting import InvalidText
from core.settings.tiers import STANDARD, TIERS

SECRET_SIZE: Final = 32  # bytes: as many as the digest has; nobody guesses one of 2²⁵⁶


def run(arguments: argparse.Namespace) -> int:
    """Make a key as the arguments say; return the exit status."""
    token = f"{arguments.id}.{secrets.token_urlsafe(SECRET_SIZE)}"
    members = {
        "id": arguments.id,
        "digest": token_digest(token).hex(),
        "role": arguments.role,
        "tier": arguments.tier,
        "expires": arguments.expires,
    }
    print(to_yaml_entry({name: text for name, text in members.items() if text is not None}), end="", flush=True)
    if sys.stderr.isatty():
        print(f"\nThe token of {arguments.id}, which is shown only now:\n\n  {token}\n", file=sys.stderr)
    else:
        print(token, file=sys.stderr)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mlsdm key`."""
    parser.add_argument("id", metavar="ID", type=_member("id"), help=f"who it is for: {KEY_MEMBERS['id'].expected}")
    parser.add_argument("--role", choices=ROLES_BY_NAME, default="write", help="what it may do (default: write)")
    parser.add_argument("--tier", choices=TIERS, default=STANDARD, help=f"how fast it may ask (default: {STANDARD})")
    parser.add_argument(
        "--expires",
        metavar="DATE",
        type=_future,
        help=f"when it ends: {KEY_MEMBERS['expires'].expected} (default: never)",
    )


def _member(name: str) -> Callable[[str], str]:
    """Return what admits a member of the keys file as an argument, as it was written."""
    member = KEY_MEMBERS[name]

    def admit(text: str) -> str:
        try:
            member.parse(text)
        except InvalidText as error:
            raise argparse.ArgumentTypeError(f"{name} {error}: expected {member.expected}") from error
        return text

    return admit


def _future(text: str) -> str:
    """Admit a time that is still to come: a key that has expired when it is made is a mistake."""
    expires = _member("expires")(text)
    if KEY_MEMBERS["expires"].parse(expires) <= time.time():
        raise argparse.ArgumentTypeError(f"expires is {expires}, which is over: expected a time to come")
    return expires
