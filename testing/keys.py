"""The keys of the tests: one per role, with fixed tokens, and the keys file with their digests."""

from hashlib import sha256
from pathlib import Path
from typing import Final

from testing.live_server import LiveServer

API_KEY: Final = "an-Api~Key+with.dots/and=signs"
# id → role, tier, expires
KEYS: Final = {
    "reader": ("read", "bulk", None),
    "writer": ("write", "bulk", None),
    "second": ("write", "bulk", None),
    "admin": ("admin", "bulk", None),
    "slow": ("write", "standard", None),
    "meek": ("write", "standard", None),
    "thrifty": ("write", "standard", None),
    "quick": ("write", "high", None),
    "expired": ("admin", "bulk", "2020-01-01T00:00:00Z"),
}
TOKENS: Final = {name: f"{name}.{sha256(b'secret of ' + name.encode()).hexdigest()}" for name in KEYS}
SECRETS: Final = (API_KEY, *(token.partition(".")[2] for token in TOKENS.values()))


def bearer(name: str) -> dict[str, str]:
    """Return the headers with the token of a key."""
    return {"Authorization": f"Bearer {TOKENS[name]}"}


def write(path: Path, *names: str) -> Path:
    """Write a keys file with the keys of these names, all of them by default; return its path."""
    lines = ["keys:"]
    for name in names or KEYS:
        role, tier, expires = KEYS[name]
        digest = sha256(TOKENS[name].encode()).hexdigest()
        lines.append(f"  - {{id: {name}, digest: {digest}, role: {role}, tier: {tier}}}")
        if expires:
            lines[-1] = lines[-1].replace("}", f", expires: {expires}}}")
    path.write_text("\n".join(lines) + "\n")
    return path


def leaked(server: LiveServer) -> list[str]:
    """Return the tokens, secrets and digests in a server's stderr, where none may be."""
    digests = [sha256(token.encode()).hexdigest() for token in (API_KEY, *TOKENS.values())]
    return [secret for secret in (*SECRETS, *digests) if secret in server.log]
