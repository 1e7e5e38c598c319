/* The JSON reader: parses an event or a vector from JSON text (RFC 8259) in one pass.
 *
 * Invariants: it accepts a text only if a complete parser would read the same numbers from it, bit for bit. It rejects
 * whatever is rare (see api.h), and the caller decodes that again with a complete parser. So this file must be right
 * about what it accepts, and it can be short. A NUL follows the last byte of every text and is no part of JSON:
 * scanning stops there without comparing with the size. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "walk.h"

/* Each parse and match function gets the place to read from. It returns the place behind what it read, or NULL if the
 * text there is something else. */

static inline place match_byte(place at, uint8_t byte) {
    at = walk_space(at);
    return *at == byte ? at + 1 : NULL;
}

/* -- numbers -- */

static const double TENS[23] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
static const uint64_t POWERS[9] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};
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
 * digits / 5^places is an integer division whose quotient has 64 significant bits; with the remainder the rounding is
 * exact. The quotient is below 2^64 because the numerator's high half is below the divisor. No result is subnormal: the
 * smallest is 10^-27. */
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

/* Append a run of digits to `digits`, eight at a time. A byte that is not a digit produces a carry, which gives the
 * number of digits among the next eight bytes. These digits are shifted to the end of the word, which puts zeros before
 * them, and added up in pairs. The caller counts the digits: beyond 19, `digits` has overflowed. */
static inline place skip_digits(place at, place end, uint64_t *digits) {
    uint64_t sum = *digits;
    while (end - at >= 8) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        word ^= UINT64_C(0x3030303030303030);
        uint64_t others = ((word + UINT64_C(0x7676767676767676)) | word) & UINT64_C(0x8080808080808080);
        int count = others ? __builtin_ctzll(others) >> 3 : 8;
        if (count == 0) break;
        word <<= 64 - 8 * count;
        word = (word * 10 + (word >> 8)) & UINT64_C(0x00FF00FF00FF00FF);
        word = (word * 100 + (word >> 16)) & UINT64_C(0x0000FFFF0000FFFF);
        word = (word * 10000 + (word >> 32)) & UINT64_C(0x00000000FFFFFFFF);
        sum = sum * POWERS[count] + word;
        at += count;
        if (count < 8) break;
    }
    if (end - at < 8)
        for (; (uint8_t)(*at - '0') < 10; at++) sum = sum * 10 + (uint64_t)(*at - '0');
    *digits = sum;
    return at;
}

/* A number of RFC 8259 §6, to the nearest double, ties to even. */
static inline place parse_number(place at, place end, double *value) {
    at = walk_space(at);
    uint64_t negative = *at == '-', digits = 0;
    at += negative;
    place from = at;
    int64_t places = 0, count;
    if ((uint8_t)(at[0] - '0') < 10 && (uint8_t)(at[1] - '0') >= 10)
        digits = (uint64_t)(*at++ - '0'); /* the usual case: one digit before the point */
    else
        at = skip_digits(at, end, &digits);
    count = at - from;
    if (count == 0 || (count > 1 && *from == '0')) return NULL;
    /* The complete parser reads -0 without a fraction as an integer, which has no sign. */
    if (digits == 0 && *at != '.' && (*at | 0x20) != 'e' && negative) return NULL;
    if (*at == '.') {
        from = ++at;
        if (digits == 0) {
            while (*at == '0') at++;
            count = 0;
        }
        place significant = at;
        at = skip_digits(at, end, &digits);
        places = at - from;
        count += at - significant;
        if (places == 0) return NULL;
    }
    if ((*at | 0x20) == 'e') {
        at++;
        int down = *at == '-', exponent = 0;
        at += down || *at == '+';
        from = at;
        for (; (uint8_t)(*at - '0') < 10; at++) {
            exponent = exponent * 10 + (*at - '0');
            if (exponent > 1000) return NULL;
        }
        if (at == from) return NULL;
        places += down ? exponent : -exponent;
    }
    double magnitude;
    if (count > 19)
        return NULL;
    else if (digits <= UINT64_C(1) << 53 && places >= 0 && places <= 22)
        /* Both operands are exact, so one operation rounds once (Clinger 1990, doi:10.1145/93542.93557). */
        magnitude = (double)digits / TENS[places];
    else if (digits == 0)
        magnitude = 0.0;
    else if (digits <= UINT64_C(1) << 53 && places >= -22 && places < 0)
        magnitude = (double)digits * TENS[-places];
    else if (places >= 0 && places <= FIVES_MAX)
        magnitude = divide(digits, (int)places);
    else
        return NULL;
    uint64_t bits;
    memcpy(&bits, &magnitude, sizeof bits);
    bits |= negative << 63; /* without a branch: signs are random, so a branch would be mispredicted */
    memcpy(value, &bits, sizeof bits);
    return at;
}

/* -- vectors -- */

static place parse_array(place at, place end, uint32_t dimension, float *vector) {
    for (uint32_t i = 0; i < dimension; i++) {
        double value;
        if (!(at = parse_number(at, end, &value)) || !(at = match_byte(at, i + 1 < dimension ? ',' : ']'))) return NULL;
        vector[i] = (float)value; /* an overflow becomes an infinity, which the caller refuses */
    }
    return at;
}

/* The six bits of a base64 character (RFC 4648 §4), 64 for any other byte. */
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

/* Parse padded base64 of float32-LE[dimension] and the closing quote. */
static place parse_base64(place at, place end, uint32_t dimension, float *vector) {
    size_t size = (size_t)dimension * 4, whole = size / 3, rest = size % 3;
    if ((size_t)(end - at) < 4 * whole + (rest ? 4 : 0) + 1) return NULL;
    uint8_t *to = (uint8_t *)vector, bad = 0;
    for (size_t i = 0; i < whole; i++, at += 4, to += 3) {
        uint8_t a = SIXES[at[0]], b = SIXES[at[1]], c = SIXES[at[2]], d = SIXES[at[3]];
        bad |= a | b | c | d;
        to[0] = (uint8_t)(a << 2 | b >> 4), to[1] = (uint8_t)(b << 4 | c >> 2), to[2] = (uint8_t)(c << 6 | d);
    }
    if (rest) {
        uint8_t a = SIXES[at[0]], b = SIXES[at[1]], c = rest == 2 ? SIXES[at[2]] : 0;
        bad |= a | b | c;
        uint8_t left = rest == 2 ? (uint8_t)(c << 6) : (uint8_t)(b << 4); /* unused bits must be 0 */
        if (left || at[3] != '=' || (rest == 1 && at[2] != '=')) return NULL;
        to[0] = (uint8_t)(a << 2 | b >> 4);
        if (rest == 2) to[1] = (uint8_t)(b << 4 | c >> 2);
        at += 4;
    }
    return !(bad & 64) && *at == '"' ? at + 1 : NULL;
}

static place parse_vector(place at, place end, uint32_t dimension, float *vector) {
    at = walk_space(at);
    if (*at == '[') return parse_array(at + 1, end, dimension, vector);
    return *at == '"' ? parse_base64(at + 1, end, dimension, vector) : NULL;
}

/* -- events -- */

static place match_name(place at, place end, const char *name, size_t size) {
    return (size_t)(end - at) >= size && !memcmp(at, name, size) ? match_byte(at + size, ':') : NULL;
}

static int parse_event(struct walk *w, uint32_t dimension, float vector[], struct mlsdm_event *event) {
    enum { VECTOR = 1, MORAL = 2, PAYLOAD = 4 };
    place at = match_byte(w->text, '{'), end = w->end, value;
    uint8_t *payload = w->to;
    int found = 0, member;
    event->payload_size = 0;
    while (at && (at = match_byte(at, '"'))) {
        if ((value = match_name(at, end, "event_vector\"", 13))) {
            member = VECTOR;
            at = parse_vector(value, end, dimension, vector);
        } else if ((value = match_name(at, end, "moral_value\"", 12))) {
            member = MORAL;
            at = parse_number(value, end, &event->moral);
        } else if ((value = match_name(at, end, "payload\"", 8))) {
            member = PAYLOAD;
            at = walk_json_value(w, walk_space(value));
            event->payload_size = (uint64_t)(w->to - payload);
        } else {
            return 0;
        }
        if (!at || found & member) return 0;
        found |= member;
        at = walk_space(at);
        if (*at == '}') return walk_space(at + 1) == end && (found & (VECTOR | MORAL)) == (VECTOR | MORAL);
        at = match_byte(at, ',');
    }
    return 0;
}

int mlsdm_read_event(const uint8_t text[], size_t size, uint32_t dimension, float vector[], uint8_t payload[],
                     size_t payload_size_max, uint32_t payload_depth_max, struct mlsdm_event *event) {
    struct walk w;
    struct mlsdm_walk found;
    walk_begin(&w, text, size, MLSDM_WALK_STRICT | MLSDM_WALK_NAMES, &found);
    w.to = payload, w.to_end = payload + payload_size_max, w.depth_max = payload_depth_max;
    int is_event = parse_event(&w, dimension, vector, event);
    walk_end(&w);
    return is_event;
}

int mlsdm_read_vector(const uint8_t text[], size_t size, uint32_t dimension, float vector[]) {
    place at = parse_vector(text, text + size, dimension, vector);
    return at && walk_space(at) == text + size;
}
