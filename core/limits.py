"""Every bound of the service, declared once: value, unit, reason, and how a client learns that it was passed.

A `Limit` is a row of a table that the HTTP layer, the documents and the metrics read; nothing else in the project
spells one of these numbers. `status` and `code` are what the problem document says (RFC 9457); 0 means that the
connection is closed without an answer because there is nobody left to answer. Each limit that is passed is counted
under its name.

Deployment choices (dimension, capacity, payload size, workers, thresholds) are not here: they have ranges in
`core.settings.config`.
"""

from typing import Final, NamedTuple


class Limit(NamedTuple):
    """One bound.

    `value` is in `unit`; `status` and `code` name the refusal; `reason` says why the number is what it is.
    """

    value: int
    unit: str
    status: int
    code: str
    reason: str


# -- the HTTP connection
# -------------------------------------------------------------------------------------------------
REQUEST_LINE_SIZE: Final = Limit(4_094, "bytes", 414, "request_line_too_long", "no route of ours needs a tenth of it")
HEADER_COUNT: Final = Limit(100, "fields", 431, "too_many_headers", "proxies add a dozen; a hundred is an attack")
HEADERS_SIZE: Final = Limit(8_190, "bytes", 431, "headers_too_large", "the customary 8 kB of Apache and nginx")
CONTENT_LENGTH_DIGITS: Final = Limit(
    10, "digits", 400, "content_length_invalid", "longer ones exist only to wrap a counter"
)
BODY_SIZE: Final = Limit(16_777_216, "bytes", 413, "body_too_large", "a raw batch of 1,000 vectors of 4,096 is 16.4 MB")
BODIES_SIZE: Final = Limit(
    33_554_432, "bytes", 503, "bodies_full", "of bodies over 64 kB, as they come to one worker; two of the largest"
)
PIPELINE_DEPTH: Final = Limit(
    16, "requests", 0, "pipeline_full", "reading pauses; bounds what one connection can queue"
)
PIPELINES_SIZE: Final = Limit(
    16_777_216, "bytes", 503, "pipelines_full", "sent ahead of their answers by the clients of one worker"
)
KERNEL_BUFFER_SIZE: Final = Limit(
    65_536, "bytes", 0, "kernel_buffer_full", "of an answer that are not sent yet; the rest waits where it is counted"
)
ANSWERS_SIZE: Final = Limit(
    33_554_432, "bytes", 0, "answers_full", "left by slow readers of one worker; then the slowest is cut off"
)
WRITE_BUFFER_SIZE: Final = Limit(
    65_536, "bytes", 0, "reader_too_slow", "nothing more is answered until the peer takes what there is"
)

HEADERS_SECONDS: Final = Limit(5, "seconds", 408, "headers_timeout", "absolute, from the first byte of a request")
BODY_SECONDS: Final = Limit(
    10, "seconds", 408, "body_timeout", "absolute, from the end of the headers: 16 MB in 10 s is 13 Mbit/s"
)
WRITE_SECONDS: Final = Limit(10, "seconds", 0, "write_timeout", "a peer that does not read for so long is gone")
KEEPALIVE_SECONDS: Final = Limit(75, "seconds", 0, "keepalive_timeout", "longer than the 60 s of common load balancers")
IDLE_SECONDS: Final = Limit(
    1, "second", 0, "idle_made_room", "silence after which a connection may end for a full or a draining worker's sake"
)
LINGER_SECONDS: Final = Limit(
    2, "seconds", 0, "linger_timeout", "for the peer to read the last answer and close (RFC 9112 §9.6)"
)

# -- requests
# ------------------------------------------------------------------------------------------------------------
BATCH_COUNT: Final = Limit(
    1_000, "events", 422, "batch_too_long", "of 384 floats: 6 ms of a worker raw, 13 in base64, 50 as JSON numbers"
)
TOP_K: Final = Limit(100, "matches", 422, "top_k_out_of_range", "bounds the answer to 100 payloads and vectors")
DECISIONS_PAGE: Final = Limit(
    1_000, "entries", 422, "limit_out_of_range", "one page of the log, made in pieces, is at most 0.7 MB"
)
IDEMPOTENCY_KEY_LENGTH: Final = Limit(
    255, "characters", 400, "idempotency_key_invalid", "a UUID has 36; only its hash is kept"
)
VECTOR_NORM: Final = Limit(
    1_000_000, "norm", 422, "norm_too_large", "keeps the synaptic levels finite in float32 for ever"
)

# -- the native core
# -----------------------------------------------------------------------------------------------------
LOCK_WAIT_MILLISECONDS: Final = Limit(
    40, "milliseconds", 503, "store_busy", "the longest a worker's loop may stand still"
)
COMMAND_WAIT_MILLISECONDS: Final = Limit(
    1_000, "milliseconds", 503, "controller_busy", "a dead controller is back in milliseconds"
)

# -- the machine
# ---------------------------------------------------------------------------------------------------------
MEMORY_PERCENT: Final = Limit(
    95, "percent", 503, "memory_exhausted", "of the container's; above, the kernel may kill a process at any moment"
)
EMERGENCY_COOLDOWN_SECONDS: Final = Limit(
    30, "seconds", 503, "memory_exhausted", "without its cause, until an emergency is over; else it would flap"
)
CPU_PERCENT: Final = 98.0  # of the allowance over 30 s, from which on a server is not ready; it refuses nothing
