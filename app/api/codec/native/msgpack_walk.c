/* The walk over msgpack: checks bytes against the specification, and against what JSON can express.
 *
 * It reads no byte behind the end, which no NUL marks here. */

#include "walk.h"

static place walk_packed(struct walk *w, place at);

static inline uint64_t big_endian(place at, size_t size) {
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++) value = value << 8 | at[i];
    return value;
}

static place walk_packed_string(struct walk *w, place at, uint64_t size) {
    if ((uint64_t)(w->end - at) < size) return walk_fail(w, MLSDM_FAULT_TRUNCATED, w->end, 0);
    for (place end = at + size; at < end;) {
        size_t one = utf8_size(at, end);
        if (!one) return walk_fail(w, MLSDM_FAULT_NOT_UTF8, at, 1);
        at += one;
    }
    return at;
}

static place walk_packed_array(struct walk *w, place from, place at, uint64_t count) {
    struct mlsdm_step *step = walk_enter(w, from);
    if (!step) return NULL;
    for (uint64_t i = 0; i < count; i++) {
        step->index = i;
        if (!(at = walk_packed(w, at))) return NULL;
    }
    w->found->depth--;
    return at;
}

static int is_string(uint8_t head) { return (head & 0xE0) == 0xA0 || (head >= 0xD9 && head <= 0xDB); }

static place walk_packed_map(struct walk *w, place from, place at, uint64_t count) {
    struct mlsdm_step *step = walk_enter(w, from);
    uint32_t first = w->name_count;
    if (!step) return NULL;
    step->is_member = 1;
    for (uint64_t i = 0; i < count; i++) {
        step->name = step->name_size = 0;
        place key = at;
        int named = at < w->end && is_string(*at);
        if (at < w->end && !named && (w->flags & MLSDM_WALK_STRICT)) return walk_fail(w, MLSDM_FAULT_KEY, at, 1);
        if (!(at = walk_packed(w, at))) return NULL;
        if (named) {
            key += *key < 0xC0 ? 1 : 1 + ((size_t)1 << (*key - 0xD9));
            step->name = (uint64_t)(key - w->text), step->name_size = (uint32_t)(at - key);
            struct name name = {key, key, step->name_size, step->name_size};
            if ((w->flags & MLSDM_WALK_NAMES) && !names_add(w, name)) return NULL;
        }
        if (!(at = walk_packed(w, at))) return NULL;
    }
    if ((w->flags & MLSDM_WALK_NAMES) && !names_close(w, first, step)) return NULL;
    w->found->depth--;
    return at;
}

static place walk_packed_float(struct walk *w, place at, size_t size) {
    uint64_t bits = big_endian(at + 1, size), exponent = size == 4 ? UINT64_C(0x7F800000) : UINT64_C(0x7FF) << 52;
    if ((w->flags & MLSDM_WALK_STRICT) && (bits & exponent) == exponent)
        return walk_fail(w, MLSDM_FAULT_NOT_FINITE, at, 1 + size);
    return at + 1 + size;
}

/* `at` is on the head, `head` its size with the length, `size` that of the data, the type of an extension included. */
static place walk_packed_octets(struct walk *w, place at, size_t head, uint64_t size, uint32_t kind) {
    if ((uint64_t)(w->end - at) < head + size) return walk_fail(w, MLSDM_FAULT_TRUNCATED, w->end, 0);
    if (kind == MLSDM_FAULT_EXTENSION && at[head] == 0xFF) kind = MLSDM_FAULT_TIMESTAMP;
    if (w->flags & MLSDM_WALK_STRICT) return walk_fail(w, kind, at, head);
    return at + head + size;
}

static place walk_packed(struct walk *w, place at) {
    /* Bytes behind the head 0xC0 + i: of a number itself, of the length of anything else. */
    static const uint8_t fixed[32] = {0, 0, 0, 0, 1, 2, 4, 1, 2, 4, 4, 8, 1, 2, 4, 8,
                                      1, 2, 4, 8, 0, 0, 0, 0, 0, 1, 2, 4, 2, 4, 2, 4};
    if (at >= w->end) return walk_fail(w, MLSDM_FAULT_TRUNCATED, w->end, 0);
    uint8_t head = *at;
    if (head < 0x80 || head >= 0xE0) return at + 1;
    if (head < 0x90) return walk_packed_map(w, at, at + 1, head & 15);
    if (head < 0xA0) return walk_packed_array(w, at, at + 1, head & 15);
    if (head < 0xC0) return walk_packed_string(w, at + 1, head & 31);
    size_t size = fixed[head - 0xC0];
    if ((size_t)(w->end - at) <= size) return walk_fail(w, MLSDM_FAULT_TRUNCATED, w->end, 0);
    uint64_t length = big_endian(at + 1, size);
    switch (head) {
    case 0xC1:
        return walk_fail(w, MLSDM_FAULT_RESERVED, at, 1);
    case 0xC4:
    case 0xC5:
    case 0xC6:
        return walk_packed_octets(w, at, 1 + size, length, MLSDM_FAULT_BIN);
    case 0xC7:
    case 0xC8:
    case 0xC9:
        return walk_packed_octets(w, at, 1 + size, length + 1, MLSDM_FAULT_EXTENSION);
    case 0xCA:
    case 0xCB:
        return walk_packed_float(w, at, size);
    case 0xD4:
    case 0xD5:
    case 0xD6:
    case 0xD7:
    case 0xD8:
        return walk_packed_octets(w, at, 1, 1 + (UINT64_C(1) << (head - 0xD4)), MLSDM_FAULT_EXTENSION);
    case 0xD9:
    case 0xDA:
    case 0xDB:
        return walk_packed_string(w, at + 1 + size, length);
    case 0xDC:
    case 0xDD:
        return walk_packed_array(w, at, at + 1 + size, length);
    case 0xDE:
    case 0xDF:
        return walk_packed_map(w, at, at + 1 + size, length);
    default:
        return at + 1 + size; /* nil, true, false, integers */
    }
}

int mlsdm_walk_msgpack(const uint8_t packed[], size_t size, uint32_t flags, uint32_t depth_max,
                       struct mlsdm_walk *found) {
    struct walk w;
    walk_begin(&w, packed, size, flags, found);
    w.depth_max = depth_max;
    place at = walk_packed(&w, packed);
    if (at && at != w.end) at = walk_fail(&w, MLSDM_FAULT_NO_END, at, 1);
    walk_end(&w);
    return at != NULL;
}
