"""What the server logs about itself: the configuration, and once it is ready, its address and a first request."""

import logging
import time
from collections.abc import Sequence

from app.processes.listen_addresses import Address, curl_of, name_of, url_of
from core.settings.config import effective
from core.startup import Loaded
from shm.block import Block

log = logging.getLogger("mlsdm.server")


def log_configuration(loaded: Loaded) -> None:
    """Log which settings are in force and where they come from. Keys are not among them, so no secret is logged."""
    extra = {
        "environment": loaded.environment,
        "keys": len(loaded.keyring),
        "settings": effective(loaded.config),
    }
    log.info("Configuration loaded from %s", loaded.source, extra=extra)
    for note in loaded.notes:
        log.warning("%s", note)


def log_startup_message(block: Block, loaded: Loaded, workers: int, scheme: str, addresses: Sequence[Address]) -> None:
    """Log that the server is ready; on a terminal, with a request to paste. Secrets are not logged.

    `addresses` are those of its sockets, one at least.
    """
    config = loaded.config
    where = ", ".join(url_of(address, scheme) for address in addresses)
    closed = not loaded.keyring.is_open
    keys = f"a key is needed ({len(loaded.keyring)} known)" if closed else "no key is needed"
    log.info(
        "ready at %s: %d workers, %s; %d slots of %d dimensions, %.0f MB shared; %s configuration from %s",
        where, workers, keys, config.capacity, config.dimension, block.layout.block_size / 1e6, loaded.environment,
        loaded.source,
    )  # fmt: skip
    if not closed:
        log.warning(
            "no API key is set: everybody who can connect to %s may do everything, stopping the server included",
            ", ".join(map(name_of, addresses)),
        )
    if expired := loaded.keyring.expired(time.time()):
        log.warning("expired keys: %s", ", ".join(expired))
    if config.observability.logging.format == "text":
        option, url = curl_of(addresses[0], scheme)
        key = ' -H "Authorization: Bearer $API_KEY"' if closed else ""
        log.info(
            "try it:\ncurl -s%s %s/event%s -H 'Content-Type: application/json' \\\n"
            "  -d '{\"moral_value\": 1.0, \"payload\": \"hello\", \"event_vector\": ['$(seq -s, %d)']}'\n"
            "curl -s%s %s/state%s",
            option, url, key, config.dimension, option, url, key,
        )  # fmt: skip
