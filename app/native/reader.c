/* The reader: events and vectors as JSON text (RFC 8259), read in one pass.
 *
 * It answers 1 when the text is exactly what is expected, and 0 for everything else, good or bad: members that it does
 * not know or that are repeated, escapes, numbers of more than 19 digits or beyond 10^±27. Whoever gets 0 decodes the
 * text again with a parser that knows all of JSON and says what is wrong. So this file needs to be right only about
 * what it accepts, and it may be short.
 *
 * Every text ends with a NUL behind its last byte, which is no part of JSON: scanning stops there without a look at the
 * size. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct cursor {
    const uint8_t *at, *end;
};

static void skip_space(struct cursor *in) {
    while (*in->at == ' ' || *in->at == '\n' || *in->at == '\r' || *in->at == '\t') in->at++;
}

static int take(struct cursor *in, uint8_t byte) {
    skip_space(in);
    if (*in->at != byte) return 0;
    in->at++;
    return 1;
}

/* -- numbers -- */

static const double TENS[23] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
#define FIVES_MAX 27 /* 5^27 is the last that fits 64 bits */

static const uint64_t FIVES[FIVES_MAX + 1] = {
    1,
    5,
    25,
    125,
    625,
    3125,
    15625,
    78125,
    390625,
    1953125,
    9765625,
    48828125,
    244140625,
    1220703125,
    6103515625,
    30517578125,
    152587890625,
    762939453125,
    3814697265625,
    19073486328125,
    95367431640625,
    476837158203125,
    2384185791015625,
    11920928955078125,
    59604644775390625,
    298023223876953125,
    1490116119384765625,
    7450580596923828125,
};

/* digits / 10^places to the nearest double, ties to even, 0 ≤ places ≤ 27, digits > 0.
 *
 * digits / 5^places is divided as integers, so that the quotient has 64 significant bits and the remainder says whether
 * anything is left over: rounding is exact. The quotient is below 2^64 because the numerator's high half is below the
 * divisor. No result is subnormal: the smallest is 10^-27. */
static double divide(uint64_t digits, int places) {
    int up = __builtin_clzll(digits), down = __builtin_clzll(FIVES[places]);
    uint64_t numerator = digits << up, divisor = FIVES[places] << down;
    int halved = numerator >= divisor;
    unsigned __int128 wide = (unsigned __int128)numerator << (64 - halved);
    uint64_t quotient = (uint64_t)(wide / divisor);
    uint64_t sticky = (uint64_t)wide != quotient * divisor; /* modulo 2^64: the remainder is below the divisor */
    uint64_t kept = quotient >> 11, cut = quotient & 0x7FF;
    kept += cut > 0x400 || (cut == 0x400 && (sticky || (kept & 1)));
    /* kept is 2^52 … 2^53; the value is quotient · 2^(halved - 64 - up + down - places). */
    uint64_t exponent = (uint64_t)(1023 + 52 + 11 + halved - 64 - up + down - places);
    uint64_t bits = (exponent << 52) + (kept - (UINT64_C(1) << 52)); /* a carry to 2^53 moves into the exponent */
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int take_digits(struct cursor *in, uint64_t *digits, int *count) {
    const uint8_t *from = in->at;
    for (; (uint8_t)(*in->at - '0') < 10; in->at++) {
        if (*digits) *count += 1;
        *digits = *digits * 10 + (uint64_t)(*in->at - '0');
        if (*count > 18) return 0; /* the twentieth digit might not fit */
    }
    return in->at != from;
}

/* A number of RFC 8259 §6, to the nearest double, ties to even. */
static int take_number(struct cursor *in, double *value) {
    skip_space(in);
    int negative = *in->at == '-', count = 0, places = 0;
    in->at += negative;
    uint64_t digits = 0;
    int leads = *in->at == '0';
    const uint8_t *from = in->at;
    if (!take_digits(in, &digits, &count) || (leads && in->at - from > 1)) return 0;
    if (*in->at == '.') {
        from = ++in->at;
        if (!take_digits(in, &digits, &count)) return 0;
        if (in->at - from > 1000) return 0;
        places = (int)(in->at - from);
    }
    if ((*in->at | 0x20) == 'e') {
        in->at++;
        int down = *in->at == '-', exponent = 0;
        in->at += down || *in->at == '+';
        from = in->at;
        for (; (uint8_t)(*in->at - '0') < 10; in->at++) {
            exponent = exponent * 10 + (*in->at - '0');
            if (exponent > 1000) return 0;
        }
        if (in->at == from) return 0;
        places += down ? exponent : -exponent;
    }
    double magnitude;
    if (digits == 0)
        magnitude = 0.0;
    else if (digits <= UINT64_C(1) << 53 && places >= -22 && places <= 22)
        /* Both operands are exact, so one operation rounds once (Clinger 1990, doi:10.1145/93542.93557). */
        magnitude = places < 0 ? (double)digits * TENS[-places] : (double)digits / TENS[places];
    else if (places >= 0 && places <= FIVES_MAX)
        magnitude = divide(digits, places);
    else
        return 0;
    *value = negative ? -magnitude : magnitude;
    return 1;
}

/* -- vectors -- */

static int take_array(struct cursor *in, uint32_t dimension, float *vector) {
    for (uint32_t i = 0; i < dimension; i++) {
        double value;
        if (!take_number(in, &value) || !take(in, i + 1 < dimension ? ',' : ']')) return 0;
        vector[i] = (float)value; /* what overflows is an infinity, and refused as such */
    }
    return 1;
}

/* The six bits that a character of base64 stands for (RFC 4648 §4), 64 for any other. */
static const uint8_t SIXES[256] = {
#define X64 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64
    X64, X64, 64,  64,  64,  64,  64,  64,  64, 64, 64, 64, 64, 62, 64, 64, 64, 63, /* + / */
    52,  53,  54,  55,  56,  57,  58,  59,  60, 61, 64, 64, 64, 64, 64, 64,         /* 0 … 9 */
    64,  0,   1,   2,   3,   4,   5,   6,   7,  8,  9,  10, 11, 12, 13, 14,         /* A … O */
    15,  16,  17,  18,  19,  20,  21,  22,  23, 24, 25, 64, 64, 64, 64, 64,         /* P … Z */
    64,  26,  27,  28,  29,  30,  31,  32,  33, 34, 35, 36, 37, 38, 39, 40,         /* a … o */
    41,  42,  43,  44,  45,  46,  47,  48,  49, 50, 51, 64, 64, 64, 64, 64,         /* p … z */
    X64, X64, X64, X64, X64, X64, X64, X64,
#undef X64
};

/* Base64 of float32[dimension], little-endian, padded, and the quote behind it. */
static int take_base64(struct cursor *in, uint32_t dimension, float *vector) {
    size_t size = (size_t)dimension * 4, whole = size / 3, rest = size % 3;
    if ((size_t)(in->end - in->at) < 4 * whole + (rest ? 4 : 0) + 1) return 0;
    uint8_t *to = (uint8_t *)vector, bad = 0;
    const uint8_t *from = in->at;
    for (size_t i = 0; i < whole; i++, from += 4, to += 3) {
        uint8_t a = SIXES[from[0]], b = SIXES[from[1]], c = SIXES[from[2]], d = SIXES[from[3]];
        bad |= a | b | c | d;
        to[0] = (uint8_t)(a << 2 | b >> 4), to[1] = (uint8_t)(b << 4 | c >> 2), to[2] = (uint8_t)(c << 6 | d);
    }
    if (rest) {
        uint8_t a = SIXES[from[0]], b = SIXES[from[1]], c = rest == 2 ? SIXES[from[2]] : 0;
        bad |= a | b | c;
        uint8_t left = rest == 2 ? (uint8_t)(c << 6) : (uint8_t)(b << 4); /* bits that stand for nothing must be 0 */
        if (left || from[3] != '=' || (rest == 1 && from[2] != '=')) return 0;
        to[0] = (uint8_t)(a << 2 | b >> 4);
        if (rest == 2) to[1] = (uint8_t)(b << 4 | c >> 2);
        from += 4;
    }
    in->at = from;
    return !(bad & 64) && *in->at++ == '"';
}

static int take_vector(struct cursor *in, uint32_t dimension, float *vector) {
    return take(in, '[') ? take_array(in, dimension, vector) : take(in, '"') && take_base64(in, dimension, vector);
}

/* -- events -- */

/* Step over one value. What its brackets and quotes enclose is not checked. */
static int take_any(struct cursor *in) {
    int depth = 0;
    skip_space(in);
    const uint8_t *from = in->at;
    do {
        uint8_t byte = *in->at;
        if (byte == '"') {
            for (in->at++; *in->at != '"'; in->at++) {
                if (*in->at == '\\') in->at++;
                if (in->at >= in->end) return 0;
            }
        } else if (byte == '{' || byte == '[') {
            depth++;
        } else if (byte == '}' || byte == ']') {
            if (depth-- == 0) break;
        } else if (byte == ',' && depth == 0) {
            break;
        }
        if (in->at >= in->end) return 0;
        in->at++;
    } while (1);
    while (in->at > from && (in->at[-1] == ' ' || in->at[-1] == '\n' || in->at[-1] == '\r' || in->at[-1] == '\t'))
        in->at--;
    return in->at != from;
}

static int take_name(struct cursor *in, const char *name, size_t size) {
    if ((size_t)(in->end - in->at) < size || memcmp(in->at, name, size)) return 0;
    in->at += size;
    return 1;
}

/* Read the body of an event. Each member at most once, vector and moral value at all. */
int mlsdm_read_event(const uint8_t *text, size_t size, uint32_t dimension, float *vector, struct mlsdm_event *event) {
    struct cursor in = {text, text + size};
    enum { VECTOR = 1, MORAL = 2, PAYLOAD = 4 };
    int found = 0, member;
    event->payload = event->payload_size = 0;
    if (!take(&in, '{')) return 0;
    do {
        if (!take(&in, '"')) return 0;
        if (take_name(&in, "event_vector\"", 13) && take(&in, ':')) {
            member = VECTOR;
            if (!take_vector(&in, dimension, vector)) return 0;
        } else if (take_name(&in, "moral_value\"", 12) && take(&in, ':')) {
            member = MORAL;
            if (!take_number(&in, &event->moral)) return 0;
        } else if (take_name(&in, "payload\"", 8) && take(&in, ':')) {
            member = PAYLOAD;
            skip_space(&in);
            event->payload = (uint64_t)(in.at - text);
            if (!take_any(&in)) return 0;
            event->payload_size = (uint64_t)(in.at - text) - event->payload;
        } else {
            return 0;
        }
        if (found & member) return 0;
        found |= member;
    } while (take(&in, ','));
    if (!take(&in, '}')) return 0;
    skip_space(&in);
    return in.at == in.end && (found & (VECTOR | MORAL)) == (VECTOR | MORAL);
}

/* Read a vector: an array of numbers, or a string of base64. */
int mlsdm_read_vector(const uint8_t *text, size_t size, uint32_t dimension, float *vector) {
    struct cursor in = {text, text + size};
    if (!take_vector(&in, dimension, vector)) return 0;
    skip_space(&in);
    return in.at == in.end;
}
