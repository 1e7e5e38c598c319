/* The walk over JSON: checks a text against RFC 8259 and writes its compact form.
 *
 * The compact form has no white space between tokens, and its strings are UTF-8 with no escape but the necessary ones.
 * Numbers keep their digits. So the size of a value does not depend on how it was spelled, and no number is rounded.
 *
 * A NUL follows the last byte of every text and is no part of JSON: scanning stops there without comparing with the
 * size. */

#include "walk.h"

#define NUMBER_SIZE_MAX 1000 /* Jackson, a common reader of Java, refuses longer ones */

/* 2^1024 − 2^970: from here on a number rounds to infinity. */
static const char OVERFLOW_DIGITS[] =
    "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587"
    "207096330286416692887910946555547851940402630657488671505820681908902000708383676273854845817711"
    "531764475730270069855571366959622842914819860834936475292719074168444365510704342711559699508093"
    "042880177904174497792";
#define OVERFLOW_SIZE 309

static place walk_json_value(struct walk *w, place at);

static inline place walk_space(place at) {
    while (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t') at++;
    return at;
}
static inline int is_digit(uint8_t byte) { return (uint8_t)(byte - '0') < 10; }

/* A fault where something else must stand, or where the text ends. */
static place walk_unexpected(struct walk *w, uint32_t kind, place at) {
    return at >= w->end ? walk_fail(w, MLSDM_FAULT_TRUNCATED, w->end, 0) : walk_fail(w, kind, at, 1);
}

/* Append to the output. Returns 0 if it does not fit. */
static inline int put(struct walk *w, place from, size_t size) {
    if (!w->to) return 1;
    if ((size_t)(w->to_end - w->to) < size) return walk_fail(w, MLSDM_FAULT_TOO_LARGE, from, size), 0;
    memcpy(w->to, from, size);
    w->to += size;
    return 1;
}
static inline int put_byte(struct walk *w, place from) {
    if (!w->to) return 1;
    if (w->to == w->to_end) return walk_fail(w, MLSDM_FAULT_TOO_LARGE, from, 1), 0;
    *w->to++ = *from;
    return 1;
}

/* -- strings -- */

/* Skip ASCII but quotes, backslashes and control characters, eight bytes at a time. The lowest flag of a word is exact:
 * a borrow can only set flags above it. */
static inline place skip_plain(place at, place end) {
    const uint64_t ones = UINT64_C(0x0101010101010101), highs = ones << 7;
    for (; end - at >= 8; at += 8) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        uint64_t quote = word ^ ones * '"', slash = word ^ ones * '\\';
        uint64_t found = word | ((word - ones * 0x20) & ~word) | ((quote - ones) & ~quote) | ((slash - ones) & ~slash);
        if (found & highs) return at + (__builtin_ctzll(found & highs) >> 3);
    }
    while (*at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\') at++; /* the NUL ends it */
    return at;
}

/* The value of four hexadecimal digits, -1 if there are none. */
static int32_t hex4(place at) {
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        uint8_t byte = at[i], letter = byte | 0x20;
        int digit = is_digit(byte) ? byte - '0' : letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
        if (digit < 0) return -1; /* also at the NUL, so nothing behind the text is read */
        value = value << 4 | digit;
    }
    return value;
}

/* Write a character: as UTF-8, or as the shortest escape if JSON requires one. */
static int put_character(struct walk *w, place from, uint32_t c) {
    static const char shorts[] = "btn?fr", hex[] = "0123456789abcdef"; /* U+0008 … U+000D; U+000B has no short one */
    uint8_t out[6];
    size_t size;
    if (c == '"' || c == '\\') {
        out[0] = '\\', out[1] = (uint8_t)c, size = 2;
    } else if (c >= 8 && c <= 13 && c != 11) {
        out[0] = '\\', out[1] = (uint8_t)shorts[c - 8], size = 2;
    } else if (c < 0x20) {
        memcpy(out, "\\u00", 4);
        out[4] = (uint8_t)hex[c >> 4], out[5] = (uint8_t)hex[c & 15], size = 6;
    } else if (c < 0x80) {
        out[0] = (uint8_t)c, size = 1;
    } else if (c < 0x800) {
        out[0] = (uint8_t)(0xC0 | c >> 6), out[1] = (uint8_t)(0x80 | (c & 63)), size = 2;
    } else if (c < 0x10000) {
        out[0] = (uint8_t)(0xE0 | c >> 12), out[1] = (uint8_t)(0x80 | (c >> 6 & 63));
        out[2] = (uint8_t)(0x80 | (c & 63)), size = 3;
    } else {
        out[0] = (uint8_t)(0xF0 | c >> 18), out[1] = (uint8_t)(0x80 | (c >> 12 & 63));
        out[2] = (uint8_t)(0x80 | (c >> 6 & 63)), out[3] = (uint8_t)(0x80 | (c & 63)), size = 4;
    }
    if (!w->to) return 1;
    if ((size_t)(w->to_end - w->to) < size) return walk_fail(w, MLSDM_FAULT_TOO_LARGE, from, size), 0;
    memcpy(w->to, out, size);
    w->to += size;
    return 1;
}

/* `at` is on the backslash. */
static place walk_escape(struct walk *w, place at) {
    static const char letters[] = "bfnrt\"\\/", meanings[] = "\b\f\n\r\t\"\\/";
    if (at + 1 >= w->end) return walk_unexpected(w, MLSDM_FAULT_ESCAPE, w->end);
    if (at[1] != 'u') {
        const char *letter = at[1] ? strchr(letters, at[1]) : NULL;
        if (!letter) return walk_fail(w, MLSDM_FAULT_ESCAPE, at, 2);
        return put_character(w, at, (uint8_t)meanings[letter - letters]) ? at + 2 : NULL;
    }
    int32_t c = hex4(at + 2);
    if (c < 0) {
        place bad = at + 2;
        while (is_digit(*bad) || ((*bad | 0x20) >= 'a' && (*bad | 0x20) <= 'f')) bad++;
        return bad >= w->end ? walk_unexpected(w, MLSDM_FAULT_ESCAPE, w->end)
                             : walk_fail(w, MLSDM_FAULT_ESCAPE, at, (size_t)(bad - at) + 1);
    }
    size_t size = 6;
    if (c >= 0xD800 && c < 0xE000) {
        int32_t low = c < 0xDC00 && at[6] == '\\' && at[7] == 'u' ? hex4(at + 8) : -1;
        if (low < 0xDC00 || low >= 0xE000) return walk_fail(w, MLSDM_FAULT_SURROGATE, at, 6);
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        size = 12;
    }
    return put_character(w, at, (uint32_t)c) ? at + size : NULL;
}

/* `at` is on the opening quote. */
static place walk_json_string(struct walk *w, place at) {
    if (!put_byte(w, at++)) return NULL;
    for (;;) {
        place from = at;
        at = skip_plain(at, w->end);
        while (*at >= 0x80) {
            do {
                size_t size = utf8_size(at, w->end);
                if (!size) return walk_fail(w, MLSDM_FAULT_NOT_UTF8, at, 1);
                at += size;
            } while (*at >= 0x80);
            at = skip_plain(at, w->end);
        }
        if (!put(w, from, (size_t)(at - from))) return NULL;
        if (*at == '"') return put_byte(w, at) ? at + 1 : NULL;
        if (*at != '\\') return walk_unexpected(w, MLSDM_FAULT_CONTROL, at);
        if (!(at = walk_escape(w, at))) return NULL;
    }
}

/* -- numbers -- */

/* 1 if a whole number lies within -2^63 … 2^64 - 1, the range of msgpack. */
static int fits_64_bits(place digits, size_t count, int negative) {
    const char *limit = negative ? "9223372036854775808" : "18446744073709551615";
    size_t size = strlen(limit);
    return count < size || (count == size && memcmp(digits, limit, size) <= 0);
}

/* 1 if a number with a fraction or an exponent rounds to infinity. */
static int overflows(place at, place end) {
    int64_t scale = 0, exponent = 0; /* the value is 0.d… × 10^(scale + exponent), d the first digit that is not 0 */
    place first = NULL, digit = at;
    for (int behind = 0; digit < end && (*digit | 0x20) != 'e'; digit++) {
        if (*digit == '.') {
            behind = 1;
        } else {
            if (!first && *digit != '0') first = digit;
            if (!behind)
                scale += first != NULL;
            else
                scale -= !first;
        }
    }
    if (!first) return 0;
    if (digit < end) {
        int negative = *++digit == '-';
        digit += negative || *digit == '+';
        for (; digit < end && exponent < 1000000; digit++) exponent = exponent * 10 + (*digit - '0');
        if (negative) exponent = -exponent;
    }
    if (scale + exponent != OVERFLOW_SIZE) return scale + exponent > OVERFLOW_SIZE;
    for (int i = 0; i < OVERFLOW_SIZE; first++) {
        if (first < end && *first == '.') continue;
        int ours = first < end && is_digit(*first) ? *first : '0';
        if (ours != OVERFLOW_DIGITS[i]) return ours > OVERFLOW_DIGITS[i];
        if (first >= end || !is_digit(*first)) first--; /* no more digits: zeros */
        i++;
    }
    return 1;
}

static place walk_json_number(struct walk *w, place at) {
    place from = at;
    at += *at == '-';
    place digits = at;
    while (is_digit(*at)) at++;
    size_t count = (size_t)(at - digits);
    int is_whole = 1, is_number = count > 0 && (count == 1 || *digits != '0');
    if (is_number && *at == '.') {
        place fraction = ++at;
        while (is_digit(*at)) at++;
        is_whole = 0, is_number = at > fraction;
    }
    if (is_number && (*at | 0x20) == 'e') {
        at++;
        at += *at == '-' || *at == '+';
        place exponent = at;
        while (is_digit(*at)) at++;
        is_whole = 0, is_number = at > exponent;
    }
    if (!is_number) {
        if (count == 0 && !strncmp((const char *)at, "Infinity", 8)) return walk_fail(w, MLSDM_FAULT_NAN, from, 9);
        size_t size = (size_t)(at - from);
        return at >= w->end ? walk_fail(w, MLSDM_FAULT_TRUNCATED, w->end, 0)
                            : walk_fail(w, MLSDM_FAULT_NUMBER, from, size ? size : 1);
    }
    if (w->flags & MLSDM_WALK_STRICT) {
        size_t size = (size_t)(at - from);
        if (is_whole && count >= 19 && !fits_64_bits(digits, count, *from == '-'))
            return walk_fail(w, MLSDM_FAULT_WHOLE_RANGE, from, size);
        if (!is_whole && overflows(digits, at)) return walk_fail(w, MLSDM_FAULT_FLOAT_RANGE, from, size);
        if (size > NUMBER_SIZE_MAX) return walk_fail(w, MLSDM_FAULT_NUMBER_LONG, from, size);
    }
    return put(w, from, (size_t)(at - from)) ? at : NULL;
}

/* -- values -- */

static place walk_json_array(struct walk *w, place at) {
    struct mlsdm_step *step = walk_enter(w, at);
    if (!step || !put_byte(w, at)) return NULL;
    at = walk_space(at + 1);
    for (uint64_t i = 0; *at != ']' || i; i++) {
        step->index = i;
        if (!(at = walk_json_value(w, at))) return NULL;
        at = walk_space(at);
        if (*at == ']') break;
        if (*at != ',') return walk_unexpected(w, MLSDM_FAULT_NO_COMMA, at);
        if (!put_byte(w, at)) return NULL;
        at = walk_space(at + 1);
    }
    w->found->depth--;
    return put_byte(w, at) ? at + 1 : NULL;
}

static place walk_json_object(struct walk *w, place at) {
    struct mlsdm_step *step = walk_enter(w, at);
    uint32_t first = w->name_count;
    if (!step || !put_byte(w, at)) return NULL;
    step->is_member = 1;
    at = walk_space(at + 1);
    for (int more = 0; *at != '}' || more; more = 1) {
        step->name = step->name_size = 0;
        if (*at != '"') return walk_unexpected(w, MLSDM_FAULT_NO_NAME, at);
        place from = at, out = w->to;
        if (!(at = walk_json_string(w, at))) return NULL;
        step->name = (uint64_t)(from + 1 - w->text), step->name_size = (uint32_t)(at - from - 2);
        if (w->flags & MLSDM_WALK_NAMES) {
            struct name name = {.at = from + 1, .in_text = from + 1, .size = step->name_size};
            name.size_in_text = name.size;
            if (out) name.at = out + 1, name.size = (uint32_t)(w->to - out - 2);
            if (!names_add(w, name)) return NULL;
        }
        at = walk_space(at);
        if (*at != ':') return walk_unexpected(w, MLSDM_FAULT_NO_COLON, at);
        if (!put_byte(w, at)) return NULL;
        if (!(at = walk_json_value(w, walk_space(at + 1)))) return NULL;
        at = walk_space(at);
        if (*at == '}') break;
        if (*at != ',') return walk_unexpected(w, MLSDM_FAULT_NO_COMMA, at);
        if (!put_byte(w, at)) return NULL;
        at = walk_space(at + 1);
    }
    if ((w->flags & MLSDM_WALK_NAMES) && !names_close(w, first, step)) return NULL;
    w->found->depth--;
    return put_byte(w, at) ? at + 1 : NULL;
}

static place walk_json_word(struct walk *w, place at) {
    static const char *const words[] = {"true", "false", "null"};
    static const char *const nans[] = {"NaN", "Infinity", "nan", "inf", "Inf"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t size = strlen(words[i]);
        if (!strncmp((const char *)at, words[i], size)) return put(w, at, size) ? at + size : NULL;
        if ((size_t)(w->end - at) < size && at < w->end && !strncmp((const char *)at, words[i], (size_t)(w->end - at)))
            return walk_fail(w, MLSDM_FAULT_TRUNCATED, w->end, 0);
    }
    for (size_t i = 0; i < sizeof nans / sizeof *nans; i++)
        if (!strncmp((const char *)at, nans[i], strlen(nans[i])))
            return walk_fail(w, MLSDM_FAULT_NAN, at, strlen(nans[i]));
    return walk_unexpected(w, MLSDM_FAULT_NO_VALUE, at);
}

static place walk_json_value(struct walk *w, place at) {
    if (*at == '"') return walk_json_string(w, at);
    if (*at == '-' || is_digit(*at)) return walk_json_number(w, at);
    if (*at == '{') return walk_json_object(w, at);
    if (*at == '[') return walk_json_array(w, at);
    return walk_json_word(w, at);
}

int mlsdm_walk_json(const uint8_t text[], size_t size, uint32_t flags, uint32_t depth_max, uint8_t to[],
                    size_t capacity, struct mlsdm_walk *found) {
    struct walk w;
    walk_begin(&w, text, size, flags, found);
    w.to = to, w.to_end = to ? to + capacity : NULL, w.depth_max = depth_max;
    place at = walk_json_value(&w, walk_space(text));
    if (at && (at = walk_space(at)) != w.end) at = walk_fail(&w, MLSDM_FAULT_NO_END, at, 1);
    if (at && to) found->written = (uint64_t)(w.to - to);
    walk_end(&w);
    return at != NULL;
}
