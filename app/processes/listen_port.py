"""The check that the configured address can be listened on, before Gunicorn tries.

Rejected: leaving it to Gunicorn, which retries for five seconds and names no remedy.
"""

import errno
import socket

from core.settings.config import Config


def require_free_port(config: Config) -> None:
    """Raise ValueError, with a remedy, when the configured host and port cannot be bound."""
    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
            remedy = (
                "stop what listens there, or set another PORT" if taken else "set HOST to an address of this machine"
            )
            raise ValueError(f"cannot listen on {host}:{port} ({error.strerror}): {remedy}") from error
