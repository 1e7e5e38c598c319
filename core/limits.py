"""Every fixed limit of the server: value, unit, refusal and reason, declared once.

The HTTP layer, the documentation and the metrics read these rows; nothing else repeats a value. `status` and `code` are
those of the problem document (RFC 9457). Status 0: the connection is closed, or reading pauses, without an answer. Each
refusal is counted.

Deployment choices (dimension, capacity, payload size, workers, thresholds) are settings: `core.settings.config`.
"""

from typing import Final, NamedTuple

from shm.layout import TOP_K_MAX


class Limit(NamedTuple):
    """One limit: `value` in `unit`; `status` and `code` of the refusal; `reason` for the value."""

    value: int
    unit: str
    status: int
    code: str
    reason: str


# -- the HTTP connection -----------------------------------------------------------------------------------------------
REQUEST_LINE_SIZE: Final = Limit(
    4_094, "bytes", 414, "request_line_too_long", "no route of this server needs a tenth of it"
)
HEADER_COUNT: Final = Limit(100, "fields", 431, "too_many_headers", "proxies add a dozen; a hundred is an attack")
HEADERS_SIZE: Final = Limit(8_190, "bytes", 431, "headers_too_large", "the customary 8 kB of Apache and nginx")
CONTENT_LENGTH_DIGITS: Final = Limit(
    10, "digits", 400, "content_length_invalid", "more digits serve only to overflow a counter"
)
BODY_SIZE: Final = Limit(16_777_216, "bytes", 413, "body_too_large", "a raw batch of 1,000 vectors of 4,096 is 16.4 MB")
BODY_RATIO: Final = Limit(
    100,
    "times",
    413,
    "body_ratio_too_high",
    "expansion of a body in gzip above 64 kB; that of JSON is about ten",
)
BODIES_SIZE: Final = Limit(
    33_554_432,
    "bytes",
    503,
    "bodies_full",
    "bodies over 64 kB that one worker is receiving; room for two of the largest",
)
PIPELINE_DEPTH: Final = Limit(
    16, "requests", 0, "pipeline_full", "bounds the queue of one connection; above, reading pauses"
)
PIPELINES_SIZE: Final = Limit(
    16_777_216, "bytes", 503, "pipelines_full", "waiting requests of all clients of one worker"
)
KERNEL_BUFFER_SIZE: Final = Limit(
    65_536,
    "bytes",
    0,
    "kernel_buffer_full",
    "unsent bytes of an answer in the kernel; the rest stays in the worker, where it is counted",
)
ANSWERS_SIZE: Final = Limit(
    33_554_432, "bytes", 0, "answers_full", "unread answers in one worker; above, the slowest reader is disconnected"
)
WRITE_BUFFER_SIZE: Final = Limit(
    65_536, "bytes", 0, "reader_too_slow", "answering pauses until the peer has read what is written"
)

HEADERS_SECONDS: Final = Limit(
    5, "seconds", 408, "headers_timeout", "from the first byte of a request, not extended by progress"
)
BODY_SECONDS: Final = Limit(
    10,
    "seconds",
    408,
    "body_timeout",
    "from the end of the headers, not extended by progress; 16 MB in 10 s is 13 Mbit/s",
)
WRITE_SECONDS: Final = Limit(
    10, "seconds", 0, "write_timeout", "a peer that reads nothing for this long counts as gone"
)
READ_RATE: Final = Limit(
    4_096,
    "bytes a second",
    0,
    "write_timeout",
    "a peer that reads at this rate gets its whole answer, whatever its size",
)
KEEPALIVE_SECONDS: Final = Limit(75, "seconds", 0, "keepalive_timeout", "longer than the 60 s of common load balancers")
IDLE_SECONDS: Final = Limit(
    1, "second", 0, "idle_made_room", "idle time after which a full or draining worker may close a connection"
)
PROBE_SECONDS: Final = Limit(
    1, "second", 503, "too_many_connections", "time for the request of a client above the cap of connections"
)
LINGER_SECONDS: Final = Limit(
    2, "seconds", 0, "linger_timeout", "time for the peer to read the last answer and close (RFC 9112 §9.6)"
)

# -- requests ----------------------------------------------------------------------------------------------------------
BATCH_COUNT: Final = Limit(
    1_000,
    "events",
    422,
    "batch_too_long",
    "with 384 floats each: 6 ms of a worker raw, 13 ms in base64, 50 ms as JSON numbers",
)
TOP_K: Final = Limit(TOP_K_MAX, "matches", 422, "top_k_out_of_range", "bounds the payloads and vectors of one answer")
DECISIONS_PAGE: Final = Limit(
    1_000, "entries", 422, "limit_out_of_range", "a page of the log, which is generated in chunks, has at most 0.7 MB"
)
IDEMPOTENCY_KEY_LENGTH: Final = Limit(
    255, "characters", 400, "idempotency_key_invalid", "a UUID has 36; only the hash of a key is kept"
)
PAYLOAD_DEPTH: Final = Limit(
    60,
    "levels",
    422,
    "payload_invalid",
    "some readers of JSON stop at 64; a payload lies at the third level of an answer",
)
VECTOR_NORM: Final = Limit(1_000_000, "norm", 422, "norm_too_large", "keeps the synaptic levels finite in float32")

# -- the native core ---------------------------------------------------------------------------------------------------
LOCK_WAIT_MILLISECONDS: Final = Limit(
    40, "milliseconds", 503, "store_busy", "the longest time for which a worker's loop may block"
)
COMMAND_WAIT_MILLISECONDS: Final = Limit(
    1_000, "milliseconds", 503, "controller_busy", "a dead controller is replaced within milliseconds"
)

# -- the machine -------------------------------------------------------------------------------------------------------
MEMORY_PERCENT: Final = Limit(
    95, "percent", 503, "memory_exhausted", "of the container's limit; above, the kernel may kill a process at any time"
)
EMERGENCY_COOLDOWN_SECONDS: Final = Limit(
    30, "seconds", 503, "memory_exhausted", "time without the cause until an emergency ends; prevents flapping"
)
CPU_PERCENT: Final = (
    98.0  # mean use of the allowance over 30 s; at or above, the server is not ready, and no request is refused
)

# Characters of an X-Request-ID that is accepted. A longer one is replaced, not refused, so this is no `Limit`.
REQUEST_ID_LENGTH_MAX: Final = 128
