/* The contract of the native readers of bodies and writers of answers. cffi reads this file, and shm/native_stubs.py
 * makes _native.pyi of it, so it keeps to plain declarations.
 *
 * Rules for all functions: the caller owns all memory and passes no NULL, except where a comment allows it; nothing is
 * kept after the call. text[size] is a NUL that is no part of the text (every Python bytes object ends so). No locks,
 * no global state: any thread of any process may call. */

#define MLSDM_DEPTH_MAX 64 /* arrays and objects that a walk can have open */

/* -- walks: what is wrong with a value, and where -- */

/* app/api/codec/faults.py has a sentence for each. */
enum mlsdm_fault {
    MLSDM_FAULT_NONE = 0,
    MLSDM_FAULT_TRUNCATED = 1,  /* the text ends inside the value */
    MLSDM_FAULT_NO_VALUE = 2,   /* something else stands where a value must stand */
    MLSDM_FAULT_NO_NAME = 3,    /* … the name of a member */
    MLSDM_FAULT_NO_COLON = 4,   /* … a colon */
    MLSDM_FAULT_NO_COMMA = 5,   /* … a comma or a closing bracket */
    MLSDM_FAULT_NO_END = 6,     /* … the end of the text */
    MLSDM_FAULT_NAN = 7,        /* NaN or an infinity as a word */
    MLSDM_FAULT_NUMBER = 8,     /* not the number of RFC 8259 §6 that it resembles */
    MLSDM_FAULT_CONTROL = 9,    /* a control character in a string */
    MLSDM_FAULT_ESCAPE = 10,    /* an escape that JSON does not have */
    MLSDM_FAULT_SURROGATE = 11, /* the escape of half a surrogate pair */
    MLSDM_FAULT_NOT_UTF8 = 12,
    MLSDM_FAULT_DEPTH = 13,       /* more arrays and objects are open than depth_max */
    MLSDM_FAULT_RESERVED = 14,    /* msgpack: the byte 0xC1 */
    MLSDM_FAULT_TOO_LARGE = 15,   /* the compact form exceeds the capacity */
    MLSDM_FAULT_NO_MEMORY = 16,   /* an allocation failed; the value may be sound */
    MLSDM_FAULT_REPEATED = 17,    /* with WALK_NAMES: a name occurs twice in an object */
    MLSDM_FAULT_WHOLE_RANGE = 18, /* with WALK_STRICT, this and the following: a whole number beyond -2^63 … 2^64 - 1 */
    MLSDM_FAULT_FLOAT_RANGE = 19, /* a number that rounds to infinity as float64 */
    MLSDM_FAULT_NUMBER_LONG = 20, /* a number of more than 1,000 characters */
    MLSDM_FAULT_NOT_FINITE = 21,  /* msgpack, this and the following: a float that is NaN or infinite */
    MLSDM_FAULT_BIN = 22,
    MLSDM_FAULT_EXTENSION = 23,
    MLSDM_FAULT_TIMESTAMP = 24,
    MLSDM_FAULT_KEY = 25 /* a key of a map that is not a str */
};

#define MLSDM_WALK_STRICT 1 /* refuse what other readers of JSON may not read back, or JSON cannot express */
#define MLSDM_WALK_NAMES 2  /* refuse repeated names in an object */

/* One step from a value to a value in it. */
struct mlsdm_step {
    uint64_t index;     /* of an item, if is_member is 0 */
    uint64_t name;      /* offset in the text of a member's name, escapes not resolved; 0 before the first is read */
    uint32_t name_size; /* bytes */
    uint32_t is_member;
};

/* What a walk has found. */
struct mlsdm_walk {
    uint32_t kind;    /* enum mlsdm_fault; the following fields describe the fault */
    uint32_t depth;   /* steps of the path */
    uint64_t offset;  /* of its first byte in the text */
    uint64_t size;    /* bytes at fault; 0 at the end of the text */
    uint64_t written; /* without a fault: bytes of the compact form, 0 without one */
    struct mlsdm_step path[MLSDM_DEPTH_MAX];
};

/* Check a text that is one JSON value (RFC 8259), and write its compact form: no white space between tokens, strings in
 * UTF-8 with no escape but the necessary ones, numbers as they are. It is never longer than the text.
 *
 * text       uint8[size + 1].
 * flags      MLSDM_WALK_*.
 * depth_max  0 … MLSDM_DEPTH_MAX.
 * to         uint8[capacity], or NULL: then nothing is written, and names are compared without resolving escapes.
 * Returns    1, or 0 if `found` describes a fault; then `to` is undefined. */
int mlsdm_walk_json(const uint8_t text[], size_t size, uint32_t flags, uint32_t depth_max, uint8_t to[] /* or NULL */,
                    size_t capacity, struct mlsdm_walk *found);

/* Check bytes that are one msgpack value. Parameters and result as above; no NUL is needed behind the bytes. */
int mlsdm_walk_msgpack(const uint8_t packed[], size_t size, uint32_t flags, uint32_t depth_max,
                       struct mlsdm_walk *found);

/* -- events and vectors --
 *
 * The result is 1 if the text is exactly what is expected. It is 0 for everything else, be it valid JSON or not; then
 * the outputs are undefined, and the caller decodes the text again with complete parsers, which tell what is wrong. */

/* An event without its vector and the bytes of its payload. */
struct mlsdm_event {
    double moral;          /* any number; its range is not checked */
    uint64_t payload_size; /* bytes of the payload's compact form, 0 if there is none */
};

/* Read the body of an event: an object with the members event_vector, moral_value and, if there is one, payload.
 *
 * text              uint8[size + 1], UTF-8.
 * dimension         of the vector: an array of that many numbers, or a string of base64 of float32-LE[dimension].
 * vector            float32[dimension]; receives the vector. A number beyond float32 becomes an infinity.
 * payload           uint8[payload_size_max]; receives the compact form of the payload, which is checked with all flags.
 * payload_depth_max 0 … MLSDM_DEPTH_MAX.
 * event             receives the rest.
 * Returns           1, or 0: also for an unknown or repeated member, an escape in a name, a payload at fault, a moral
 *                   value or an element of more than 19 digits or beyond 10^±27. */
int mlsdm_read_event(const uint8_t text[], size_t size, uint32_t dimension, float vector[], uint8_t payload[],
                     size_t payload_size_max, uint32_t payload_depth_max, struct mlsdm_event *event);

/* Read a text that is one vector: an array of numbers or a string of base64. Parameters and result as above. */
int mlsdm_read_vector(const uint8_t text[], size_t size, uint32_t dimension, float vector[]);

/* -- answers -- */

#define MLSDM_TIME_SIZE 30      /* bytes of a time as text */
#define MLSDM_DECISION_SIZE 512 /* no decision is longer, without its ids */

/* Write a time as RFC 3339 (§5.6) with nine decimals.
 *
 * time_ns    UTC, any: the years 1677 to 2262.
 * to         uint8[MLSDM_TIME_SIZE]. */
void mlsdm_write_time(int64_t time_ns, uint8_t to[]);

/* Write several times, each with a space behind it.
 *
 * times      the bytes of int64[count], any alignment.
 * to         uint8[count][MLSDM_TIME_SIZE + 1]. */
void mlsdm_write_times(const uint8_t times[], size_t count, uint8_t to[]);

/* Write a decision as JSON: the bytes that msgspec writes for a DecisionView (app/api/decision_view.py).
 *
 * ids        the members boot_id and log_id as they stand in it, with the comma before them.
 * to         uint8[MLSDM_DECISION_SIZE + ids_size].
 * position … phase   the fields of struct mlsdm_decision (shm/layout.py).
 * Returns    the size, or 0 if one of the fractions is not 0, 1 or between 10^-5 and 1, or lies exactly between two
 *            decimals: then `to` is undefined. */
size_t mlsdm_write_decision(const uint8_t ids[], size_t ids_size, uint8_t to[], uint64_t position, uint64_t sequence,
                            uint64_t memory_id, int64_t time_ns, double moral, double theta_before, double theta_after,
                            double ema, uint32_t phase);
