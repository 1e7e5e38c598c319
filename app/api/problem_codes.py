"""The codes: every name under which a request can be refused, its status, and what it means to whoever reads it.

A problem document (RFC 9457) carries one of these as `code`. They are stable: a program may compare them, a dashboard
count them (`mlsdm_refusals_total`). An operation lists those that are its own (`Operation.refusals`), by the groups
below where it can; what the connection, the gate and the router say to anybody is added where it applies. Statuses are
derived from here, so that no operation documents a status without saying what for.

A test reads the sources for every code that is raised and holds this table against them, both ways.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Code(NamedTuple):
    """One code. `status` is the HTTP status that it always has; `meaning` is a sentence for the client's author."""

    status: int
    meaning: str


CODES: Final[Mapping[str, Code]] = {
    # The connection: before any route, in the order in which a request meets them.
    "too_many_connections": Code(503, "The worker has as many connections as it may; come back in a second."),
    "pipelines_full": Code(
        503, "The worker holds as much of what clients have sent ahead as it may; come back in a second."
    ),
    "malformed_request": Code(400, "The bytes are not HTTP/1.1."),
    "target_invalid": Code(400, "The request target is neither a path nor an http URI, or has a fragment."),
    "request_line_too_long": Code(414, "The request line passes its limit."),
    "host_missing": Code(400, "HTTP/1.1 needs a Host field."),
    "host_invalid": Code(400, "Host is not a name or an address with an optional port."),
    "duplicate_field": Code(400, "A field that may stand once stands twice: Host, Content-Type, Authorization …"),
    "too_many_headers": Code(431, "There are more header fields than the limit."),
    "headers_too_large": Code(431, "The header fields together pass their limit."),
    "headers_timeout": Code(408, "The head was not complete in time."),
    "http_version_unsupported": Code(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here."),
    "method_not_implemented": Code(501, "No route has that method; CONNECT is for proxies, which this is not."),
    "expectation_failed": Code(417, "The only expectation known here is 100-continue."),
    "content_length_invalid": Code(400, "Content-Length is not a number of at most ten digits."),
    "framing_ambiguous": Code(400, "Content-Length and Transfer-Encoding exclude each other."),
    "transfer_encoding_on_http_1_0": Code(400, "HTTP/1.0 has no Transfer-Encoding."),
    "transfer_encoding_invalid": Code(400, "The last transfer coding must be chunked, once."),
    "transfer_coding_unknown": Code(501, "The only transfer coding known here is chunked."),
    "body_too_large": Code(413, "The body passes its limit."),
    "body_timeout": Code(408, "The body was not complete in time."),
    "bodies_full": Code(503, "The worker holds as many bytes of bodies as it may; come back in a second."),
    "internal_error": Code(500, "The server met an error that it did not expect; its log says more."),
    "out_of_memory": Code(
        503,
        "The worker had no memory left for the request. Whether it was carried out is not known; an event with an "
        "Idempotency-Key is safe to send again.",
    ),
    # The gate, the router, the quotas.
    "unauthorised": Code(401, "The request shows no key, or one that opens nothing or has expired."),
    "forbidden": Code(403, "The role of the key is too low for this operation."),
    "misdirected": Code(421, "Host names somebody else than this service, which is open to its own machine."),
    "other_origin": Code(403, "A page of another origin sent this to a service that is open to everybody."),
    "no_such_route": Code(404, "There is no such route."),
    "method_not_allowed": Code(405, "The route does not have that method; the Allow field lists those it has."),
    "rate_limit_exceeded": Code(429, "The tokens are used up; Retry-After says when to come back."),
    # Bodies and parameters.
    "unsupported_media_type": Code(415, "The Content-Type is none that the operation takes."),
    "malformed_body": Code(400, "The body is not what its Content-Type says: no JSON, no msgpack, no UTF-8."),
    "field_missing": Code(422, "A member or header that is required is not there."),
    "field_unknown": Code(422, "A member or parameter is not known; perhaps it is misspelt."),
    "field_invalid": Code(422, "A value has the wrong type or form, or lies outside its range."),
    "field_repeated": Code(422, "A member or parameter is given twice; two readers could act on different values."),
    "vector_invalid": Code(422, "The vector is neither numbers nor base64."),
    "dimension_mismatch": Code(422, "The vector has another length than this server's dimension."),
    "not_finite": Code(422, "An element is NaN or infinite as float32."),
    "norm_too_large": Code(422, "The vector's norm passes its limit."),
    "moral_value_out_of_range": Code(422, "The moral value is not within 0 and 1."),
    "payload_too_large": Code(413, "The payload, as JSON, is larger than this server keeps."),
    "payload_invalid": Code(422, "The payload has no JSON form that every reader understands."),
    "batch_empty": Code(422, "The batch holds no event."),
    "batch_too_long": Code(422, "The batch holds more events than the limit."),
    "batch_above_burst": Code(422, "The batch holds more events than the burst of the key's tier: send smaller ones."),
    "top_k_out_of_range": Code(422, "top_k is no whole number within its range."),
    "limit_out_of_range": Code(422, "limit is no whole number within its range."),
    "idempotency_key_invalid": Code(400, "The Idempotency-Key is empty, too long, or not visible ASCII."),
    "idempotency_key_reused": Code(422, "The Idempotency-Key came with another request before."),
    # Memories and the log.
    "memory_unknown": Code(404, "That id was never given."),
    "memory_gone": Code(410, "The memory was overwritten or deleted; its id never comes back."),
    "other_boot": Code(410, "The boot_id is that of another memory; this one began empty."),
    "position_unknown": Code(422, "The log has not come to that position yet."),
    "position_gone": Code(410, "The log has overwritten that position; start again without `after`."),
    # The governor.
    "change_empty": Code(422, "The body changes nothing."),
    "settings_contradict": Code(422, "The change would contradict the other settings."),
    "controller_busy": Code(503, "The command was not carried out in time, and will not be."),
    "outcome_unknown": Code(503, "The store is stuck; the command may still be carried out: look at GET /governor."),
    # The store.
    "stopped": Code(503, "An operator has stopped admissions; memories can still be read."),
    "store_busy": Code(503, "The store is busy, or a stuck process is being removed; nothing was applied."),
    "store_starting": Code(503, "The controller has not formed the store yet; nothing was applied."),
    "store_corrupt": Code(503, "A checksum of the store does not hold; nothing was applied."),
    "store_lost": Code(503, "The lock of the store is beyond repair; the service must be restarted."),
    "memory_exhausted": Code(
        503, "The container's memory is nearly full; events are refused until it has not been for a while."
    ),
    "batch_interrupted": Code(
        503,
        "The first events of the batch were decided, and stand in `results`; the rest were not. Only with an "
        "Idempotency-Key is the whole batch safe to send again.",
    ),
}

# -- what may be said to whom, for `Operation.refusals`
CONNECTION: Final = tuple(CODES)[: tuple(CODES).index("unauthorised")]  # to anybody, whatever the route
GATE: Final = ("unauthorised", "misdirected", "other_origin")  # wherever a key is needed, or would be if there were any
STORE: Final = ("store_busy", "store_starting", "store_corrupt", "store_lost")
COMMAND: Final = (*STORE, "controller_busy", "outcome_unknown")
BODY: Final = (
    "unsupported_media_type", "malformed_body", "field_missing", "field_unknown", "field_invalid", "field_repeated",
)  # fmt: skip
DECIDED: Final = ("vector_invalid", "dimension_mismatch", "not_finite", "norm_too_large", "rate_limit_exceeded", *STORE)
EVENT: Final = (
    *BODY, *DECIDED, "moral_value_out_of_range", "payload_too_large", "payload_invalid", "idempotency_key_invalid",
    "idempotency_key_reused", "stopped", "memory_exhausted",
)  # fmt: skip
