"""`mlsdm key ID`: makes a key: a token for the client, and an entry for the server's keys file.

    echo keys: > keys.yaml                                  # once: the parent of the entries
    mlsdm key web --tier high >> keys.yaml
    mlsdm key web --tier high --token web.token >> keys.yaml

The entry goes to stdout, to be appended to the file. The token goes to a new file that only its owner may read, if
`--token` names one; else to stderr: with a sentence for a terminal, alone on its line otherwise. (`2> web.token` would
put errors into that file, too, where nobody reads them.) It is shown once and stored nowhere, because the server needs
only its digest. The arguments are checked by the reader of the file (`core.access.key_file`); `mlsdm check-config`
finds what only the file can tell, such as a duplicate id.

Rejected: writing into the file (its comments, owner and mode would have to be kept); `--secret` (a secret that a person
invents is weak, and would appear in the shell's history).

Exit status: 0 made; 1 the token cannot be written; 2 an argument is wrong.
"""

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable
from typing import Final

from core.access.key_file import KEY_MEMBERS, ROLES_BY_NAME, to_yaml_entry
from core.access.keys import token_digest
from core.settings.setting import InvalidText
from core.settings.tiers import STANDARD, TIERS

SECRET_SIZE: Final = 32  # bytes, as many as the digest: 2²⁵⁶ possible secrets


def run(arguments: argparse.Namespace) -> int:
    """Make a key and return the exit status."""
    token = f"{arguments.id}.{secrets.token_urlsafe(SECRET_SIZE)}"
    members = {
        "id": arguments.id,
        "digest": token_digest(token).hex(),
        "role": arguments.role,
        "tier": arguments.tier,
        "expires": arguments.expires,
    }
    entry = to_yaml_entry({name: text for name, text in members.items() if text is not None})
    if arguments.token is not None:
        return _write_both(entry, token, arguments.token)
    print(entry, end="", flush=True)
    if sys.stderr.isatty():
        print(f"\nThe token of {arguments.id}, shown only this once:\n\n  {token}\n", file=sys.stderr)
    else:
        print(token, file=sys.stderr)
    return 0


def _write_both(entry: str, token: str, path: str) -> int:
    """Write the token to a new file, and then the entry to stdout; leave no token whose entry could not be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        print(f"mlsdm key: cannot write the token to {path}: {error.strerror}: nothing was made", file=sys.stderr)
        return 1
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{token}\n")
        print(entry, end="", flush=True)
    except OSError:
        os.unlink(path)
        raise
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mlsdm key`."""
    parser.add_argument(
        "id", metavar="ID", type=_member_argument("id"), help=f"who it is for: {KEY_MEMBERS['id'].expected}"
    )
    parser.add_argument("--role", choices=ROLES_BY_NAME, default="write", help="what it may do (default: write)")
    parser.add_argument("--tier", choices=TIERS, default=STANDARD, help=f"how fast it may ask (default: {STANDARD})")
    parser.add_argument("--token", metavar="PATH", help="a new file for the token (default: stderr)")
    parser.add_argument(
        "--expires",
        metavar="DATE",
        type=_future_time_argument,
        help=f"when it ends: {KEY_MEMBERS['expires'].expected} (default: never)",
    )


def _member_argument(name: str) -> Callable[[str], str]:
    """Return an argparse type that checks a member of the keys file and returns its text unchanged."""
    member = KEY_MEMBERS[name]

    def admit(text: str) -> str:
        try:
            member.parse(text)
        except InvalidText as error:
            raise argparse.ArgumentTypeError(f"{name} {error}: expected {member.expected}") from error
        return text

    return admit


def _future_time_argument(text: str) -> str:
    """Check a time in the future: a key that is expired when it is made is a mistake."""
    expires = _member_argument("expires")(text)
    if KEY_MEMBERS["expires"].parse(expires) <= time.time():
        raise argparse.ArgumentTypeError(f"expires is {expires}, which is past: expected a time in the future")
    return expires
