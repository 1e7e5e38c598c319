"""Problem codes: every name under which a request can be refused, with its status and its sentences.

Owns: the one table of codes. Problem documents (RFC 9457) carry a code as `code`; the metric `mlsdm_refusals_total`
counts by it. Codes are stable: programs compare them. OpenAPI, docs/api.md and problem documents quote this table.

Invariants: an operation lists the codes that only it can answer (`Operation.refusals`), by the groups below where
possible; the codes of the connection, the gate, the router and of deferred answers are added where they apply. Statuses
follow from the codes, so no operation documents a status without a reason for it. A test compares this table with the
codes that the sources raise, in both directions.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from core.limits import EMERGENCY_COOLDOWN_SECONDS


class Code(NamedTuple):
    """One code. Its texts are for the author of a client."""

    status: int  # the HTTP status, always the same
    meaning: str  # when it occurs, for the documents
    detail: str = ""  # the `detail` of the problem, where it does not depend on the request; else `meaning`
    retry_after: int | None = None  # seconds after which the same request may succeed

    @property
    def sentence(self) -> str:
        """The `detail` of a problem document, unless the request has one of its own."""
        return self.detail or self.meaning


CODES: Final[Mapping[str, Code]] = {
    # The connection, before any route, in the order in which a request meets them. Their details are written in
    # app/httpd, which imports nothing of this package.
    "too_many_connections": Code(503, "The worker has reached its limit of connections; retry in a second."),
    "pipelines_full": Code(503, "The worker holds too many bytes of waiting requests; retry in a second."),
    "malformed_request": Code(400, "The bytes are not an HTTP/1.1 request."),
    "target_invalid": Code(400, "The request target is neither a path nor an http URI, or it has a fragment."),
    "request_line_too_long": Code(414, "The request line exceeds its limit."),
    "host_missing": Code(400, "HTTP/1.1 requires a Host field."),
    "host_invalid": Code(400, "Host is not a name or an address with an optional port."),
    "duplicate_field": Code(400, "A field that may occur once occurs twice: Host, Content-Type, Authorization …"),
    "too_many_headers": Code(431, "The number of header fields exceeds the limit."),
    "headers_too_large": Code(431, "The header fields together exceed their limit."),
    "headers_timeout": Code(408, "The head of the request was not complete in time."),
    "http_version_unsupported": Code(505, "The HTTP version is neither 1.0 nor 1.1."),
    "method_not_implemented": Code(501, "No route has the method; CONNECT is for proxies, and this is not a proxy."),
    "expectation_failed": Code(417, "Expect has a value other than 100-continue."),
    "content_length_invalid": Code(400, "Content-Length is not a number of at most ten digits."),
    "framing_ambiguous": Code(400, "Content-Length and Transfer-Encoding were both sent; only one is allowed."),
    "transfer_encoding_on_http_1_0": Code(400, "HTTP/1.0 has no Transfer-Encoding."),
    "transfer_encoding_invalid": Code(400, "The last transfer coding is not `chunked`, or `chunked` occurs twice."),
    "transfer_coding_unknown": Code(501, "A transfer coding other than `chunked` was sent."),
    "content_encoding_unsupported": Code(415, "Content-Encoding is neither `gzip` nor `identity`."),
    "content_encoding_invalid": Code(400, "The body is not one complete gzip member, as its Content-Encoding says."),
    "body_ratio_too_high": Code(413, "The body in gzip expands too much; send it without Content-Encoding."),
    "content_range_unsupported": Code(400, "A body with Content-Range is a part of something; bodies are whole here."),
    "body_too_large": Code(413, "The body exceeds its limit."),
    "body_timeout": Code(408, "The body was not complete in time."),
    "bodies_full": Code(503, "The worker holds too many bytes of request bodies; retry in a second."),
    "internal_error": Code(500, "The server met an unexpected error; its log has the details."),
    "out_of_memory": Code(
        503,
        "The worker ran out of memory during the request, which may or may not have been carried out. Only an event "
        "with an Idempotency-Key is safe to send again.",
    ),
    # The gate, the router, the quotas.
    "unauthorised": Code(401, "The request has no key, or one that is unknown or expired."),
    "credentials_conflict": Code(
        400, "Authorization and X-API-Key have two different keys, and each could mean another client; send one."
    ),
    "forbidden": Code(403, "The role of the client is too low for this operation."),
    "misdirected": Code(421, "Host names another server; a server without keys answers only to its own machine."),
    "other_origin": Code(
        403,
        "A page of another origin sent the request to a server without keys.",
        "A page of another origin sent this request, and a server without keys cannot tell whether it may.",
    ),
    "no_such_route": Code(404, "There is no such route."),
    "method_not_allowed": Code(405, "The route does not have this method; the Allow field lists its methods."),
    "rate_limit_exceeded": Code(429, "The client has no tokens left; Retry-After says when there will be enough."),
    "module_unavailable": Code(503, "The module of this route is not ready; GET /modules states why.", retry_after=1),
    # Operations whose answer comes later (`Operation.deferred`).
    "too_many_deferred": Code(
        503, "Too many requests of this worker wait for such an answer; nothing was applied.", retry_after=1
    ),
    "deferred_timeout": Code(
        503, "The answer was not ready in time. Whether the request was carried out, or still will be, is unknown."
    ),
    # Bodies and parameters.
    "unsupported_media_type": Code(415, "The operation does not accept this Content-Type."),
    "malformed_body": Code(400, "The body is not valid JSON, msgpack or UTF-8, whichever its Content-Type declares."),
    "field_missing": Code(422, "A required member or header is missing."),
    "field_unknown": Code(422, "A member, a parameter or a body is unknown to the operation, perhaps misspelt."),
    "field_invalid": Code(422, "A value has the wrong type or form, or is out of range."),
    "field_repeated": Code(422, "A member or parameter occurs twice, so two readers could act on different values."),
    "vector_invalid": Code(422, "The vector is neither an array of numbers nor base64."),
    "dimension_mismatch": Code(422, "The length of the vector differs from the dimension of this server."),
    "not_finite": Code(422, "An element is NaN or infinite as float32."),
    "norm_too_large": Code(422, "The norm of the vector exceeds its limit."),
    "moral_value_out_of_range": Code(422, "The moral value is not a number from 0 to 1."),
    "payload_too_large": Code(413, "The payload, as compact JSON in UTF-8, exceeds the limit of this server."),
    "payload_invalid": Code(
        422, "The payload holds what JSON cannot express, or what some reader of JSON cannot read back."
    ),
    "batch_empty": Code(422, "The batch contains no event."),
    "batch_too_long": Code(422, "The batch contains more events than the limit."),
    "batch_above_burst": Code(422, "The batch contains more events than the burst of the client's tier; send less."),
    "top_k_out_of_range": Code(422, "top_k is not a whole number within its range."),
    "limit_out_of_range": Code(422, "limit is not a whole number within its range."),
    "idempotency_key_invalid": Code(400, "The Idempotency-Key is empty, too long, or not visible ASCII."),
    "idempotency_key_reused": Code(
        422, "This Idempotency-Key was used for another route, or for other moral values, vectors or payloads."
    ),
    # Memories and the log.
    "memory_unknown": Code(404, "No memory has been given this id."),
    "memory_gone": Code(410, "The memory was overwritten, deleted or lost; its id is never used again."),
    "other_boot": Code(410, "The boot_id, log_id or cursor is of another store; this one began empty."),
    "position_unknown": Code(422, "The log has not reached this position."),
    "position_gone": Code(410, "The log has overwritten this position; start again without `after`."),
    # The governor.
    "change_empty": Code(422, "The body changes nothing."),
    "settings_contradict": Code(422, "The change contradicts the other settings."),
    "controller_busy": Code(
        503,
        "The controller did not carry out the command in time; it was withdrawn and nothing was applied.",
        retry_after=1,
    ),
    "outcome_unknown": Code(
        503,
        "The store is stuck, and the command may still be carried out; read GET /governor before you repeat it.",
        retry_after=1,
    ),
    # The store.
    "stopped": Code(503, "An operator has stopped admissions; memories can still be read.", retry_after=60),
    "store_busy": Code(
        503, "The store is busy, or a stuck process is being removed; nothing was applied.", retry_after=1
    ),
    "store_starting": Code(503, "The controller has not set up the store yet; nothing was applied.", retry_after=1),
    "store_corrupt": Code(503, "A checksum of the store does not match; nothing was applied.", retry_after=60),
    "store_lost": Code(503, "The lock of the store cannot be repaired; restart the server.", retry_after=60),
    "memory_exhausted": Code(
        503,
        "The memory of the container is nearly full; events are refused until it has stayed below its limit for the "
        "cooldown. Nothing was applied; memories can still be read.",
        retry_after=EMERGENCY_COOLDOWN_SECONDS.value,
    ),
    "batch_interrupted": Code(
        503,
        "The first events of the batch were decided and are listed in `results`; the rest were not. The whole batch is "
        "safe to send again only with an Idempotency-Key.",
    ),
}

# -- groups, for `Operation.refusals`
CONNECTION: Final = tuple(CODES)[: tuple(CODES).index("unauthorised")]  # any request, whatever its route
# Any operation that needs a role.
GATE: Final = ("unauthorised", "credentials_conflict", "misdirected", "other_origin", "field_unknown", "field_repeated")
STORE: Final = ("store_busy", "store_starting", "store_corrupt", "store_lost")
DEFERRED: Final = ("too_many_deferred", "deferred_timeout")  # any operation whose answer is deferred
COMMAND: Final = (*STORE, "controller_busy", "outcome_unknown")
BODY: Final = (
    "unsupported_media_type", "malformed_body", "field_missing", "field_unknown", "field_invalid", "field_repeated",
)  # fmt: skip
DECIDED: Final = ("vector_invalid", "dimension_mismatch", "not_finite", "norm_too_large", "rate_limit_exceeded", *STORE)
EVENT: Final = (
    *BODY, *DECIDED, "moral_value_out_of_range", "payload_too_large", "payload_invalid", "idempotency_key_invalid",
    "idempotency_key_reused", "stopped", "memory_exhausted",
)  # fmt: skip
