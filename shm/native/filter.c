/* Filters: whether a query selects a memory, by the words of its metadata and, where these do not suffice, by bytes.
 *
 * core/reference/filter_words.py is the definition; shm/filters.py makes the compiled form (api.h). Words decide
 * everything but whether two strings with equal hashes are equal: then the answer is UNDECIDED, unless the caller asks
 * for the bytes to be compared.
 *
 * Invariants: nothing here trusts what it reads from a slot, which may be damaged or be overwritten at the same time:
 * sizes and indices are bounded before they are used. So an answer about such a slot may be wrong, but no byte outside
 * of its regions is read. */

#include "block.h"

#define MEMBER_HEAD 7 /* bytes of a member before its name: kind (1), size of the name (2), size of the value (4) */

enum { NO, YES, UNDECIDED };

/* A field of a memory: its kind, VALUE_NONE if it is absent, and its word. The word of a number is a key (see
 * `key_of`), that of a time or an id the integer itself. `member` is the place of a member. */
struct value {
    uint32_t kind, member;
    uint64_t word;
};

/* -- the words of a memory -- */

/* One bit for each of eight members, the top bit of its byte: set if the byte has the top six bits of the hash of a
 * name, and perhaps for a member behind such a one. `kinds` are the bytes of the members. */
static inline uint64_t members_like(uint64_t kinds, uint64_t name) {
    const uint64_t ones = UINT64_C(0x0101010101010101);
    uint64_t differ = (kinds ^ ones * (name >> 58 << 2)) & ones * 0xFC;
    return (differ - ones) & ~differ & ones * 0x80;
}

/* The first member that may have a name, MEMBERS_MAX if none may. */
static inline uint32_t member_guess(const uint8_t *kinds, uint64_t name) {
    for (uint32_t half = 0; half < MLSDM_MEMBERS_MAX; half += 8) {
        uint64_t eight, found;
        memcpy(&eight, kinds + half, sizeof eight);
        if (!eight) break;
        if ((found = members_like(eight, name))) return half + (uint32_t)__builtin_ctzll(found) / 8;
    }
    return MLSDM_MEMBERS_MAX;
}
/* The bits of a double as an integer of the same order; of a finite one, and -0.0 is no word. */
static inline uint64_t key_of(uint64_t bits) { return bits ^ ((uint64_t)((int64_t)bits >> 63) >> 1); }

static inline uint64_t key_of_double(double number) {
    uint64_t bits;
    number += 0.0; /* -0.0 + 0.0 is 0.0 */
    memcpy(&bits, &number, sizeof bits);
    return key_of(bits);
}

/* The value of the member whose name has this hash. `guess` is the first that may have it. */
static inline struct value member_value(const struct mlsdm_map *map, uint64_t slot, uint64_t name, uint32_t guess) {
    const uint8_t *kinds = kinds_at(map, slot);
    for (; guess < MLSDM_MEMBERS_MAX; guess++) {
        const struct mlsdm_member *member = member_at(map, slot, guess);
        if (member->name != name || !kinds[guess]) continue;
        struct value value = {.kind = kinds[guess] & 3, .member = guess, .word = member->value};
        if (value.kind == MLSDM_VALUE_NUMBER) value.word = key_of(value.word);
        return value;
    }
    return (struct value){0};
}

static struct value value_of(const struct mlsdm_map *map, uint64_t slot, uint32_t tag,
                             const struct mlsdm_condition *condition) {
    struct value value = {.kind = MLSDM_VALUE_NUMBER};
    const struct mlsdm_slot *line = slot_at(map, slot);
    switch (condition->field) {
    case MLSDM_FIELD_MEMBER:
        if (!(tag & MLSDM_TAG_MEMBERS)) return (struct value){0};
        return member_value(map, slot, condition->name, member_guess(kinds_at(map, slot), condition->name));
    case MLSDM_FIELD_CREATED_AT:
        value.word = (uint64_t)line->time_ns;
        break;
    case MLSDM_FIELD_UPDATED_AT:
        value.word = (uint64_t)line->updated_ns;
        break;
    case MLSDM_FIELD_MEMORY_ID:
        value.word = line->id;
        break;
    case MLSDM_FIELD_MORAL_VALUE:
        value.word = key_of_double(line->moral);
        break;
    case MLSDM_FIELD_PHASE:
        value.kind = MLSDM_VALUE_BOOLEAN, value.word = tag & 1;
        break;
    default: /* MLSDM_FIELD_ID */
        value.kind = line->own_id[0] | line->own_id[1] ? MLSDM_VALUE_STRING : MLSDM_VALUE_NONE;
        value.word = line->own_id[0];
    }
    return value;
}

/* -- the bytes of a memory -- */

/* The bytes of a member that is a string, or of the own id. NULL if the bytes of the slot are no such thing. */
static const uint8_t *string_of(const struct mlsdm_map *map, uint64_t slot, uint32_t field, uint32_t member,
                                uint32_t *size) {
    const struct mlsdm_slot *line = slot_at(map, slot);
    const uint8_t *octets = payload_at(map, slot);
    uint64_t at = line->payload_size, end = at + line->metadata_size;
    if (end + line->own_id_size > map->payload_stride) return NULL;
    if (field == MLSDM_FIELD_ID) {
        *size = line->own_id_size;
        return octets + end;
    }
    for (;; member--) {
        uint16_t name_size;
        if (at + MEMBER_HEAD > end) return NULL;
        memcpy(&name_size, octets + at + 1, sizeof name_size);
        memcpy(size, octets + at + 3, sizeof *size);
        uint64_t value = at + MEMBER_HEAD + name_size, next = value + *size;
        if (next > end) return NULL;
        if (member == 0) return octets[at] == MLSDM_VALUE_STRING ? octets + value : NULL;
        at = next;
    }
}

/* -- three-valued logic -- */

static inline int both(int one, int other) { return one == NO || other == NO ? NO : one > other ? one : other; }
static inline int either(int one, int other) { return one == YES || other == YES ? YES : one > other ? one : other; }

/* -- evaluation -- */

/* Whether a value is among the operands of a test, which are sorted by their words. */
static inline int test_among(const struct mlsdm_map *map, uint64_t slot, const struct mlsdm_filter *filter,
                             const struct mlsdm_condition *condition, const struct mlsdm_test *test, struct value value,
                             int exact) {
    const struct mlsdm_operand *operand = filter->operands + test->first;
    uint32_t low = 0;
    for (uint32_t high = test->count; low < high;) {
        uint32_t middle = (low + high) / 2;
        if (operand[middle].word < value.word)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < test->count && operand[low].word == value.word; low++) {
        if (operand[low].kind != value.kind) continue;
        if (value.kind != MLSDM_VALUE_STRING) return YES;
        if (!exact) return UNDECIDED;
        uint32_t size;
        const uint8_t *octets = string_of(map, slot, condition->field, value.member, &size);
        if (octets && size == operand[low].size && !memcmp(octets, filter->octets + operand[low].octets, size))
            return YES;
    }
    return NO;
}

static inline int test_holds(const struct mlsdm_map *map, uint64_t slot, const struct mlsdm_filter *filter,
                             const struct mlsdm_condition *condition, const struct mlsdm_test *test, struct value value,
                             int exact) {
    if (test->operator == MLSDM_OPERATOR_EXISTS) return value.kind != MLSDM_VALUE_NONE;
    if (test->operator == MLSDM_OPERATOR_ABSENT) return value.kind == MLSDM_VALUE_NONE;
    if (test->operator == MLSDM_OPERATOR_RANGE)
        return value.kind == MLSDM_VALUE_NUMBER && (int64_t)value.word >= test->low &&
               (int64_t)value.word <= test->high;
    return value.kind == MLSDM_VALUE_NONE ? NO : test_among(map, slot, filter, condition, test, value, exact);
}

/* Whether all tests of a condition hold for a value. */
static inline int condition_holds(const struct mlsdm_map *map, uint64_t slot, const struct mlsdm_filter *filter,
                                  const struct mlsdm_condition *condition, struct value value, int exact) {
    int holds = YES;
    for (uint32_t i = 0; i < condition->count && holds != NO; i++)
        holds =
            both(holds, test_holds(map, slot, filter, condition, filter->tests + condition->first + i, value, exact));
    return holds;
}

/* Whether a filter selects the memory in a slot. `tag` is that of its code line. Never UNDECIDED if `exact`. */
static int filter_selects(const struct mlsdm_map *map, uint64_t slot, uint32_t tag, const struct mlsdm_filter *filter,
                          int exact) {
    const struct mlsdm_condition *condition = filter->conditions;
    int selects = YES, any = filter->any ? NO : YES;
    for (uint32_t i = 0; i < filter->all + filter->none + filter->any; i++, condition++) {
        int holds = condition_holds(map, slot, filter, condition, value_of(map, slot, tag, condition), exact);
        if (i < filter->all)
            selects = both(selects, holds);
        else if (i < filter->all + filter->none)
            selects = both(selects, holds == UNDECIDED ? UNDECIDED : !holds);
        else
            any = either(any, holds);
    }
    return both(selects, any);
}

/* -- all rows at once --
 *
 * Each row has a mark, which says whether it is still in question; one condition after the other is evaluated for all
 * rows of which it decides something. PERF: so the loops know the field, and the line of a member is prefetched: of
 * 20,000 rows 3 to 8 ns for each and for each condition, instead of 15 to 30. */

#define OUT (-INFINITY)
#define IN 0.0f
#define OPEN 1.0f /* out, unless a condition of the group `any` holds */
#define BLOCK 32  /* rows whose members are prefetched together */

enum group { ALL, NONE, ANY };

static inline float mark_after(enum group group, int holds) {
    if (group == ALL) return holds == NO ? OUT : IN;
    if (group == NONE) return holds == YES ? OUT : IN;
    return holds == NO ? OPEN : IN;
}

/* Evaluate a condition on a member. */
static void rows_by_member(const struct mlsdm_map *map, const struct mlsdm_filter *filter,
                           const struct mlsdm_condition *condition, enum group group, int exact, float *marks) {
    const float asked = group == ANY ? OPEN : IN;
    for (uint64_t first = 0; first < map->slots; first += BLOCK) {
        uint64_t count = map->slots - first < BLOCK ? map->slots - first : BLOCK;
        uint8_t guesses[BLOCK];
        for (uint64_t i = 0; i < count; i++) {
            uint64_t slot = first + i;
            int has = marks[slot] == asked && code_at(map, slot)->tag & MLSDM_TAG_MEMBERS;
            guesses[i] = (uint8_t)(has ? member_guess(kinds_at(map, slot), condition->name) : MLSDM_MEMBERS_MAX);
            if (guesses[i] < MLSDM_MEMBERS_MAX) __builtin_prefetch(member_at(map, slot, guesses[i]));
        }
        for (uint64_t i = 0; i < count; i++) {
            uint64_t slot = first + i;
            if (marks[slot] != asked) continue;
            struct value value = member_value(map, slot, condition->name, guesses[i]);
            marks[slot] = mark_after(group, condition_holds(map, slot, filter, condition, value, exact));
        }
    }
}

/* Evaluate a condition on another field. */
static void rows_by_field(const struct mlsdm_map *map, const struct mlsdm_filter *filter,
                          const struct mlsdm_condition *condition, enum group group, int exact, float *marks) {
    const float asked = group == ANY ? OPEN : IN;
    for (uint64_t slot = 0; slot < map->slots; slot++) {
        if (slot + BLOCK < map->slots) __builtin_prefetch(slot_at(map, slot + BLOCK));
        if (marks[slot] != asked) continue;
        struct value value = value_of(map, slot, code_at(map, slot)->tag, condition);
        marks[slot] = mark_after(group, condition_holds(map, slot, filter, condition, value, exact));
    }
}

/* Evaluate a filter for the rows that are marked as IN: those that it does not select are OUT afterwards. */
static void filter_rows(const struct mlsdm_map *map, const struct mlsdm_filter *filter, int exact, float *marks) {
    const uint32_t counts[] = {filter->all, filter->none, filter->any};
    const struct mlsdm_condition *condition = filter->conditions;
    for (enum group group = ALL; group <= ANY; group++) {
        if (group == ANY && filter->any)
            for (uint64_t slot = 0; slot < map->slots; slot++) marks[slot] = marks[slot] == IN ? OPEN : OUT;
        for (uint32_t i = 0; i < counts[group]; i++, condition++)
            (condition->field == MLSDM_FIELD_MEMBER ? rows_by_member : rows_by_field)(map, filter, condition, group,
                                                                                      exact, marks);
    }
    if (filter->any)
        for (uint64_t slot = 0; slot < map->slots; slot++)
            if (marks[slot] == OPEN) marks[slot] = OUT;
}
