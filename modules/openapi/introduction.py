"""The introduction: the prose of the API's documents, for people who have never seen it.

CommonMark, which is what OpenAPI wants (`info.description`); of it only headings, paragraphs and `code`, so that the
page of `modules.openapi.page` can render it without a parser. Figures are those of the configuration that it is given.
"""

from collections.abc import Mapping
from typing import Final

from app.api.codec.body_sizes import event_size_max, query_size_max
from core.settings.config import Config
from core.settings.tiers import tiers

# By the noun of a route's module; in the order of the routes.
GROUPS: Final[Mapping[str, str]] = {
    "events": "What this service is for: events go in, decisions come out.",
    "recall": "The memories nearest to a vector. Exact: equal to comparing with every one of them.",
    "memories": "One memory by its id.",
    "decisions": "The log of everything that changed the state, with a cursor.",
    "state": "Threshold, phase and counters, at one position of the log.",
    "governor": "What decides: its settings at run time, its start, and the emergency stop.",
    "probes": "For Kubernetes, Prometheus and people. They need no key, cost nothing and answer while others cannot.",
    "documentation": "This document, and its page.",
}

_TEXT: Final = """\
mlsdm decides, event by event, what an AI application remembers, and gives back the memories nearest to a vector, \
exactly. An event is an embedding of {dimension} numbers with a moral value from 0 to 1: an adaptive threshold \
accepts or rejects it, and every decision has a number, a reason and a place in a log that can be replayed.

## Authentication

Show a key as `Authorization: Bearer KEY` or as `X-API-Key: KEY`. A key has a role, `read` < `write` < `admin`, and \
each operation names the lowest that may call it. Probes and metrics need no key and read none. A server that has no \
keys at all, as in development, is open to everybody who can reach it.

## Bodies

JSON, msgpack with the same members, or plain bytes: `application/octet-stream` is little-endian float32 and by far \
the fastest. A vector in JSON is an array of numbers or the base64 of those bytes. Members that are unknown or stand \
twice are refused, not ignored, and a whole number is written without a fraction: `1.0` is none. Members of an answer \
that have no value are left out; more members may be added to answers in time. An event takes at most {event_size} \
bytes in any form, white space included, a batch as many for each of its events, and the query of a recall \
{query_size}.

## Idempotency

An event that was sent with an `Idempotency-Key`, a word of the client's choice such as a UUID, may be sent again, to \
any worker: the retry gets the first answer, marked `Idempotency-Replayed: true`, and nothing is decided twice. In a \
batch every event has a receipt of its own, so a batch that was interrupted can be sent again whole. A key belongs to \
one client and one request; with anything else it is refused. The newest {receipts} receipts are kept, and a refused \
request leaves none.

## Rate limits

One event or recall costs one token, a batch of n events costs n, and nothing else costs anything. Tokens belong to \
the key, or without keys to the address, and refill at the rate of its tier up to its burst: {tiers}. Limits are \
switched {switch} on this server. `RateLimit` says how many tokens are left (r) and in how many seconds there are as \
many as there can be (t); `RateLimit-Policy` says the burst (q) and the seconds in which it refills (w). A refused \
request costs nothing; one that is answered with 500 keeps its price, because nobody knows what it has done.

## Refusals

Whatever is refused is answered with a problem document (RFC 9457): `code` is stable and for programs, `detail` is \
for people, `field` says what was to blame and `expected` what would have been right. 400 is for bytes that cannot be \
read, 422 for values that can be and are wrong, 503 for a server that cannot do it now and says with `Retry-After` \
when to come back. A refused request has changed nothing; the only exception is `batch_interrupted`, which says what \
it did.

## Every request

Every answer carries `X-Request-ID`: the client's own when it sent a sane one, of up to 128 characters. `traceparent` \
(W3C Trace Context) is passed on. What has GET has HEAD, and OPTIONS tells the methods of a route. Positions and ids \
belong to the `boot_id` that they came with: memory lives as long as the server does, and a new start begins empty.
"""


def introduction(config: Config) -> str:
    """Return the introduction for a server with this configuration."""
    named = [f"`{name}` {tier.rate:,g} per second up to {tier.burst:,}" for name, tier in tiers(config).items()]
    return _TEXT.format(
        dimension=config.dimension,
        event_size=f"{event_size_max(config.dimension, config.payload_size_max):,}",
        query_size=f"{query_size_max(config.dimension):,}",
        receipts=f"{config.idempotency_capacity:,}",
        tiers=", ".join(named),
        switch="on" if config.security.rate_limiting.enabled else "off",
    )
