/* Walk: what the walks over JSON and over msgpack share: where they are, what they have found, names, UTF-8.
 *
 * A walk reads one value from its first byte to its last, and stops at the first fault. Each walk and parse function
 * returns the place behind what it read, or NULL after it has noted a fault. */

#ifndef MLSDM_WALK_H
#define MLSDM_WALK_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef const uint8_t *place;

#define NAMES_LOCAL 64  /* names of open objects that need no allocation */
#define PAIRWISE_MAX 12 /* names that are compared with each other; more are sorted first */

struct name {
    place at; /* compared: in the output if there is one, where escapes are resolved, else in the text */
    place in_text;
    uint32_t size, size_in_text;
};

struct walk {
    place text, end;
    uint8_t *to, *to_end; /* to: where the next byte of the output goes; NULL without output */
    uint32_t flags, depth_max;
    struct name *names; /* of all objects that are open */
    uint32_t name_count, names_max;
    struct name names_local[NAMES_LOCAL];
    struct mlsdm_walk *found;
};

static void walk_begin(struct walk *w, place text, size_t size, uint32_t flags, struct mlsdm_walk *found) {
    w->text = text, w->end = text + size, w->to = w->to_end = NULL;
    w->flags = flags, w->depth_max = MLSDM_DEPTH_MAX;
    w->names = w->names_local, w->name_count = 0, w->names_max = NAMES_LOCAL;
    w->found = found;
    found->kind = found->depth = 0, found->offset = found->size = found->written = 0;
}
static void walk_end(struct walk *w) {
    if (w->names != w->names_local) free(w->names);
}

static __attribute__((cold, noinline)) place walk_fail(struct walk *w, uint32_t kind, place at, size_t size) {
    w->found->kind = kind, w->found->offset = (uint64_t)(at - w->text), w->found->size = size;
    return NULL;
}

/* Enter an array or object. Returns its step of the path, NULL if it is nested too deeply. */
static inline struct mlsdm_step *walk_enter(struct walk *w, place at) {
    if (w->found->depth >= w->depth_max) {
        walk_fail(w, MLSDM_FAULT_DEPTH, at, 1);
        return NULL;
    }
    struct mlsdm_step *step = &w->found->path[w->found->depth++];
    *step = (struct mlsdm_step){0};
    return step;
}

/* -- names -- */

static int names_add(struct walk *w, struct name name) {
    if (w->name_count == w->names_max) {
        struct name *old = w->names == w->names_local ? NULL : w->names;
        struct name *new = realloc(old, 2 * (size_t)w->names_max * sizeof *new);
        if (!new) return walk_fail(w, MLSDM_FAULT_NO_MEMORY, w->text, 0), 0;
        if (!old) memcpy(new, w->names_local, sizeof w->names_local);
        w->names = new, w->names_max *= 2;
    }
    w->names[w->name_count++] = name;
    return 1;
}

static int names_order(const void *a, const void *b) {
    const struct name *x = a, *y = b;
    if (x->size != y->size) return x->size < y->size ? -1 : 1;
    int order = memcmp(x->at, y->at, x->size);
    if (order) return order;
    return x->in_text < y->in_text ? -1 : x->in_text > y->in_text; /* the second one is reported */
}
static int names_equal(const struct name *x, const struct name *y) {
    return x->size == y->size && !memcmp(x->at, y->at, x->size);
}

/* Forget the names from `first` on, which are those of one object. Returns 0 and notes a fault if two are equal. */
static int names_close(struct walk *w, uint32_t first, struct mlsdm_step *step) {
    struct name *names = w->names + first, *twice = NULL;
    uint32_t count = w->name_count - first;
    w->name_count = first;
    if (count <= PAIRWISE_MAX) {
        for (uint32_t i = 1; i < count && !twice; i++)
            for (uint32_t j = 0; j < i; j++)
                if (names_equal(&names[i], &names[j])) twice = &names[i];
    } else {
        qsort(names, count, sizeof *names, names_order);
        for (uint32_t i = 1; i < count; i++)
            if (names_equal(&names[i], &names[i - 1])) twice = &names[i];
    }
    if (!twice) return 1;
    step->is_member = 1, step->name = (uint64_t)(twice->in_text - w->text), step->name_size = twice->size_in_text;
    walk_fail(w, MLSDM_FAULT_REPEATED, twice->in_text, twice->size_in_text);
    return 0;
}

/* -- UTF-8 -- */

/* The number of bytes of the character at `at`, 0 if they are not UTF-8 (RFC 3629 §4: no surrogates, nothing overlong,
 * nothing above U+10FFFF). */
static inline size_t utf8_size(place at, place end) {
    size_t left = (size_t)(end - at);
    if (left < 1) return 0;
    uint8_t a = at[0];
    if (a < 0x80) return 1;
    if (a < 0xC2 || left < 2 || (at[1] & 0xC0) != 0x80) return 0;
    if (a < 0xE0) return 2;
    if (left < 3 || (at[2] & 0xC0) != 0x80) return 0;
    if (a < 0xF0) return (a == 0xE0 && at[1] < 0xA0) || (a == 0xED && at[1] >= 0xA0) ? 0 : 3;
    if (left < 4 || (at[3] & 0xC0) != 0x80) return 0;
    return a > 0xF4 || (a == 0xF0 && at[1] < 0x90) || (a == 0xF4 && at[1] >= 0x90) ? 0 : 4;
}

#endif
