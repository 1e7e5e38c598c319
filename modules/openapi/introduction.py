"""Introduction: the prose of the API documents, for readers who have never seen this server.

CommonMark, as OpenAPI requires for `info.description`; only headings, paragraphs and `code`, so that
`modules.openapi.page` renders it without a parser. Figures are those of the configuration.
"""

from collections.abc import Mapping
from typing import Final

from app.api.codec.body_sizes import event_size_max, query_size_max
from core.limits import PAYLOAD_DEPTH
from core.settings.config import Config
from core.settings.tiers import tiers

# By the module of a route, in the order of the routes.
GROUPS: Final[Mapping[str, str]] = {
    "events": "Decide events. This is what the server exists for.",
    "recall": "Find the memories nearest to a vector. Exact: equal to a comparison with every memory.",
    "memories": "Read and delete one memory by its id.",
    "decisions": "Read the log of every change of the state, with a cursor.",
    "state": "Read threshold, phase and counters at one position of the log.",
    "governor": "Read and change the settings that decide, reset them, and stop or resume admissions.",
    "probes": "For Kubernetes, Prometheus and operators. They need no key, and answer while others cannot.",
    "modules": "Read the state of every module of the platform, with the reason if one is not ready.",
    "documentation": "This document, and its page.",
}

_TEXT: Final = """\
mlsdm decides, event by event, what an AI application remembers, and finds the memories nearest to a vector, exactly. \
An event is an embedding of {dimension} numbers with a moral value from 0 to 1. An adaptive threshold accepts or \
rejects it. Every decision has a number, a reason, and a position in a log that can be replayed.

## Authentication

Send a key as `Authorization: Bearer KEY` or as `X-API-Key: KEY`; two different keys in one request are refused. A key \
has a role, `read` < `write` < `admin`; each operation names the lowest role that may call it. Probes and metrics \
require no key and read none{docs}. A server without any keys, as in development, is open to every client that can \
reach it.

## Bodies

A body is JSON, msgpack with the same members, or plain bytes: `application/octet-stream` is little-endian float32 and \
by far the fastest. A vector in JSON is an array of numbers, or the base64 of those bytes. Members of a body and \
parameters of a query that are unknown or repeated are refused, not ignored, and so is a body where none is taken; \
only GET and HEAD ignore a body, and only routes that need no key their query. Headers that an operation does not know \
are ignored. Whole numbers are written without a fraction: `1.0` is refused. Members of a response that have no value \
are left out; later versions may add members to responses. An event takes at most {event_size} bytes in any form, \
white space included; a batch takes that many for each of its events, and the query of a recall takes {query_size}.

A payload is any JSON value of at most {payload_size} bytes, measured as it is stored and returned: compact JSON in \
UTF-8, without white space between tokens and unnecessary escapes. It holds what every reader of JSON can read back: \
whole numbers of 64 bits, other numbers finite as float64, no half surrogate pairs, each name once in an object, at \
most {payload_depth} levels. What comes as msgpack and has no JSON form (bin, extension types, timestamps, NaN, keys \
that are not str) is refused, not converted.

## Idempotency

An event with an `Idempotency-Key` (any word that the client chooses, such as a UUID) may be sent again, to any \
worker: the retry gets the first response again, marked `Idempotency-Replayed: true`, and nothing is decided twice. In \
a batch every event has a receipt of its own, so an interrupted batch can be sent again as a whole. A key belongs to \
one client, one route and the decoded events, however they are spelled: Content-Type, white space and the form of a \
vector do not count. It is refused with any other request. The newest {receipts} receipts are kept. A refused \
request leaves no receipt.

## Rate limits

One event or one recall costs one token, a batch of n events costs n, and nothing else costs anything. Tokens belong \
to the key, or to the address on a server without keys, and refill at the rate of its tier up to its burst: {tiers}. \
Rate limits are {switch} on this server. `RateLimit` states how many tokens are left (r) and in how many seconds the \
bucket is full again (t); `RateLimit-Policy` states the burst (q) and the seconds in which it refills (w). A refused \
request costs nothing. A request that is answered 500 keeps its price, because its effect is unknown.

## Refusals

Every refusal is a problem document (RFC 9457): `code` is stable and for programs, `detail` is for people, `field` \
names the value at fault, and `expected` states what would be valid. 400 is for bytes that cannot be parsed, 422 for \
values that can be parsed and are wrong, 503 for a server that cannot serve the request now; `Retry-After` states when \
to retry. A refused request has changed nothing, with two exceptions: `batch_interrupted` lists what it did, and \
after a 500, `out_of_memory` or `outcome_unknown` the effect is not known.

## Every request

Every response carries `X-Request-ID`: the client's own if it is valid (up to 128 characters), otherwise one that the \
server made. `traceparent` (W3C Trace Context) is passed on. Every GET has a HEAD, and OPTIONS lists the methods of a \
route. Positions and ids belong to the `log_id` that they came with: the store lives as long as the server, and a \
restart begins with an empty one.
"""


def introduction(config: Config) -> str:
    """Return the introduction for a server with this configuration."""
    named = [f"`{name}` {tier.rate:,g} per second up to {tier.burst:,}" for name, tier in tiers(config).items()]
    return _TEXT.format(
        docs=", and neither does this document" if config.security.docs_open else "",
        dimension=config.dimension,
        event_size=f"{event_size_max(config.dimension, config.payload_size_max):,}",
        payload_size=f"{config.payload_size_max:,}",
        payload_depth=PAYLOAD_DEPTH.value,
        query_size=f"{query_size_max(config.dimension):,}",
        receipts=f"{config.idempotency_capacity:,}",
        tiers=", ".join(named),
        switch="enabled" if config.security.rate_limiting.enabled else "disabled",
    )
