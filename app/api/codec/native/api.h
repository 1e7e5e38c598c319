/* The contract of the JSON reader. cffi reads this file, and shm/native_stubs.py makes _json_reader.pyi of it, so it
 * keeps to plain declarations.
 *
 * Rules for both functions: the caller owns all memory and passes no NULL; nothing is kept after the call. text[size]
 * is a NUL that is no part of the text (every Python bytes object ends so). The result is 1 if the text is exactly what
 * is expected. It is 0 for everything else, be it valid JSON or not; then the outputs are undefined, and the caller
 * decodes the text again with a complete parser, which tells what is wrong. No locks, no global state: any thread of
 * any process may call. */

/* An event without its vector. */
struct mlsdm_event {
    double moral;          /* any number; its range is not checked */
    uint64_t payload;      /* offset of the payload's first byte in the text, 0 if there is none */
    uint64_t payload_size; /* bytes, 0 if there is none. That these bytes are valid JSON is not checked */
};

/* Read the body of an event: an object with the members event_vector, moral_value and, if there is one, payload.
 *
 * text       uint8[size + 1], UTF-8.
 * dimension  of the vector: an array of that many numbers, or a string of base64 of float32-LE[dimension].
 * vector     float32[dimension]; receives the vector. A number beyond float32 becomes an infinity.
 * event      receives the rest.
 * Returns    1, or 0: also for an unknown or repeated member, an escape in a name, a number of more than 19 digits or
 *            beyond 10^±27. */
int mlsdm_read_event(const uint8_t text[], size_t size, uint32_t dimension, float vector[], struct mlsdm_event *event);

/* Read a text that is one vector: an array of numbers or a string of base64. Parameters and result as above. */
int mlsdm_read_vector(const uint8_t text[], size_t size, uint32_t dimension, float vector[]);
