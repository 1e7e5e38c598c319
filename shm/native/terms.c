/* Terms: the transitions by which an operator creates, changes, closes and frees namespaces, and resets the governor of
 * one; and reads of the table.
 *
 * core/reference/store.py defines them; a property test holds both equal. namespace.c says how a row changes.
 *
 * Invariants: as in governor.c, a *_make changes nothing that a reader can see. The table is searched for a name and
 * for a free row without the lock, because that takes longer than a section may; `terms` of the lock record tells under
 * the lock whether the search is out of date. */

#include "block.h"

enum { SEARCHES = 8 };

/* -- transitions -- */

/* 1 if the entry at `position` may give a free row: no entry that names its last namespace is in reach any more. */
static int can_be_given(const struct mlsdm_map *map, const struct mlsdm_terms *terms, uint64_t position) {
    return terms->generation == 0 || terms->freed + map->log_capacity <= position;
}

/* Set what the operator names: limit, share, lifetime and governor, which begins at its initial threshold when the
 * namespace gets one. Returns OK, INVALID or PROMISED. */
static int terms_set(const struct mlsdm_map *map, const struct transition *t, struct mlsdm_terms *terms,
                     struct mlsdm_cell *cell, const struct mlsdm_terms *given) {
    uint32_t had = t->owner->terms->flags & MLSDM_NAMESPACE_OWN, own = given->flags & MLSDM_NAMESPACE_OWN;
    terms->flags = MLSDM_NAMESPACE_USED | own;
    terms->limit = given->limit, terms->reserved = given->reserved, terms->ttl_ns = given->ttl_ns;
    terms->governor = own ? given->governor : (struct mlsdm_governor){0};
    terms->mode = own ? given->mode : 0;
    if (!own)
        cell->theta = cell->ema = 0.0;
    else if (!had)
        cell->theta = given->governor.initial_threshold, cell->ema = 0.5;
    else
        cell->theta = clamp(cell->theta, given->governor.min_threshold, given->governor.max_threshold);
    if (terms->reserved > (terms->limit ? terms->limit : map->capacity) || terms->ttl_ns < 0)
        return MLSDM_STATUS_INVALID;
    uint64_t others = t->before->promised - promised_to(t->owner->terms, t->owner->before);
    return others + promised_to(terms, cell) > map->capacity ? MLSDM_STATUS_PROMISED : MLSDM_STATUS_OK;
}

/* Take one step of a namespace. `given` is read by create and change; of its flags only that for an own governor, and
 * its name only by create, for which `generation` is not read. Returns the statuses of the functions below. */
static int terms_make(const struct mlsdm_map *map, struct transition *t, uint32_t step, uint32_t row,
                      uint32_t generation, const struct mlsdm_terms *given) {
    int status = MLSDM_STATUS_OK;
    if (step == MLSDM_STEP_CREATE) {
        t->owner = tenant_add(map, &t->tenants, row, t->before->position);
        if (!t->owner) return MLSDM_STATUS_CORRUPT;
        if (t->owner->terms->flags || !can_be_given(map, t->owner->terms, t->position))
            return MLSDM_STATUS_NAMESPACES_FULL;
    } else if ((status = tenant_find(map, &t->tenants, row, generation, t->before->position, &t->owner))) {
        return status;
    }
    const struct mlsdm_terms *before = t->owner->terms;
    struct mlsdm_terms *terms = &t->tenants.terms;
    struct mlsdm_cell *cell = &t->owner->after;
    int closing = before->flags & MLSDM_NAMESPACE_CLOSING;
    if (closing && step != MLSDM_STEP_FREE) return MLSDM_STATUS_CLOSING;
    *terms = *before;
    switch (step) {
    case MLSDM_STEP_CREATE:
        *terms = (struct mlsdm_terms){.generation = before->generation + 1};
        memcpy(terms->name, given->name, sizeof terms->name);
        *cell = (struct mlsdm_cell){0};
        status = terms_set(map, t, terms, cell, given);
        break;
    case MLSDM_STEP_CHANGE:
        status = terms_set(map, t, terms, cell, given);
        break;
    case MLSDM_STEP_CLOSE:
        terms->flags |= MLSDM_NAMESPACE_CLOSING, terms->reserved = 0;
        if (row == 0) status = MLSDM_STATUS_INVALID;
        break;
    case MLSDM_STEP_FREE:
        *terms = (struct mlsdm_terms){.generation = before->generation, .freed = t->position};
        *cell = (struct mlsdm_cell){0};
        if (!closing || t->owner->before->live) status = closing ? MLSDM_STATUS_NOT_EMPTY : MLSDM_STATUS_INVALID;
        break;
    default:
        status = MLSDM_STATUS_INVALID;
    }
    if (status) return status;
    t->tenants.sets_terms = 1;
    copy_seal(terms, sizeof *terms, t->position);
    const struct mlsdm_cell *first = step == MLSDM_STEP_CREATE ? cell : t->owner->before;
    *(struct mlsdm_changed *)t->entry->detail = (struct mlsdm_changed){
        .namespace = row,
        .step = step,
        .own_theta = {first->theta, cell->theta},
        .own_ema = {first->ema, cell->ema},
        .terms = step == MLSDM_STEP_FREE ? *before : *terms,
    };
    return transition_describe(map, t);
}

/* Reset the own governor of a namespace. Returns OK, UNKNOWN, INVALID: it has none, or CORRUPT. */
static int own_reset_make(const struct mlsdm_map *map, struct transition *t, uint32_t row, uint32_t generation) {
    int status = tenant_find(map, &t->tenants, row, generation, t->before->position, &t->owner);
    if (status) return status;
    const struct mlsdm_terms *terms = t->owner->terms;
    if (!(terms->flags & MLSDM_NAMESPACE_OWN)) return MLSDM_STATUS_INVALID;
    t->owner->after.theta = terms->governor.initial_threshold, t->owner->after.ema = 0.5;
    return transition_describe(map, t);
}

/* Run a step, or with step `none` a reset, and leave the section. */
static int terms_commit(const struct mlsdm_map *map, struct transition *t, uint32_t step, uint32_t row,
                        uint32_t generation, const struct mlsdm_terms *given, struct mlsdm_entry *entry) {
    int status = step ? terms_make(map, t, step, row, generation, given) : own_reset_make(map, t, row, generation);
    if (status) return section_leave(map, status);
    transition_commit(map, t);
    *entry = *t->entry;
    return section_leave(map, MLSDM_STATUS_OK);
}

static int terms_step(const struct mlsdm_map *map, int64_t time_ns, uint32_t step, uint32_t row, uint32_t generation,
                      const struct mlsdm_terms *given, struct mlsdm_entry *entry) {
    int status = section_enter(map);
    if (status) return status;
    struct transition t;
    status = transition_begin(map, &t, step ? MLSDM_KIND_NAMESPACE : MLSDM_KIND_RESET, time_ns);
    if (status) return section_leave(map, status);
    return terms_commit(map, &t, step, row, generation, given, entry);
}

int mlsdm_namespace_change(struct mlsdm_map *map, int64_t time_ns, uint32_t row, uint32_t generation,
                           const struct mlsdm_terms *terms, struct mlsdm_entry *entry) {
    return terms_step(map, time_ns, MLSDM_STEP_CHANGE, row, generation, terms, entry);
}

int mlsdm_namespace_close(struct mlsdm_map *map, int64_t time_ns, uint32_t row, uint32_t generation,
                          struct mlsdm_entry *entry) {
    return terms_step(map, time_ns, MLSDM_STEP_CLOSE, row, generation, NULL, entry);
}

int mlsdm_namespace_free(struct mlsdm_map *map, int64_t time_ns, uint32_t row, uint32_t generation,
                         struct mlsdm_entry *entry) {
    return terms_step(map, time_ns, MLSDM_STEP_FREE, row, generation, NULL, entry);
}

int mlsdm_namespace_reset(struct mlsdm_map *map, int64_t time_ns, uint32_t row, uint32_t generation,
                          struct mlsdm_entry *entry) {
    return terms_step(map, time_ns, MLSDM_STEP_NONE, row, generation, NULL, entry);
}

/* -- reads -- */

/* Copy what counts of a row at `commit`, also without the lock: where one copy is being written while the other is
 * read, it is read again. Returns OK or CORRUPT. */
static int row_copy(const struct mlsdm_map *map, uint32_t row, uint64_t commit, struct mlsdm_terms *terms,
                    struct mlsdm_cell *cell) {
    for (int try = 0; try < SEARCHES; try++) {
        struct mlsdm_namespace copy = *namespace_at(map, row);
        atomic_thread_fence(memory_order_acquire);
        const struct mlsdm_terms *one = copy_newest(copy.terms, sizeof *copy.terms, commit);
        const struct mlsdm_cell *other = copy_newest(copy.cells, sizeof *copy.cells, commit);
        if (!one || !other) continue;
        *terms = *one, *cell = *other;
        return MLSDM_STATUS_OK;
    }
    return MLSDM_STATUS_CORRUPT;
}

static int rows_copy(const struct mlsdm_map *map, uint64_t commit, uint32_t first, uint32_t count,
                     struct mlsdm_terms terms[], struct mlsdm_cell cells[]) {
    if (commit == 0) return MLSDM_STATUS_UNFORMED;
    int status = MLSDM_STATUS_OK;
    for (uint32_t i = 0; i < count && !status; i++) status = row_copy(map, first + i, commit, terms + i, cells + i);
    return status;
}

int mlsdm_namespaces_read(struct mlsdm_map *map, uint32_t first, uint32_t count, struct mlsdm_terms terms[],
                          struct mlsdm_cell cells[]) {
    VALIDATED(map, commit, status = rows_copy(map, commit, first, count, terms, cells));
}

int mlsdm_namespaces_check(struct mlsdm_map *map, uint32_t first, uint32_t count, uint32_t *mended) {
    int status = section_enter(map);
    if (status) return status;
    uint64_t commit = commit_of(map);
    if (!committed_state(map, commit)) return section_leave(map, MLSDM_STATUS_CORRUPT);
    *mended = 0;
    for (uint32_t row = first; row < first + count; row++) {
        int settled = namespace_settle(map, row, commit);
        if (settled < 0)
            status = MLSDM_STATUS_CORRUPT;
        else
            *mended += (uint32_t)settled;
    }
    return section_leave(map, status);
}

/* -- the search for a row -- */

/* Search for a name and for the lowest row that can be given. `row` receives it, map->namespaces if there is none, and
 * `until` the position from which on a lower one can be given. Returns OK, EXISTS or CORRUPT. */
static int row_search(const struct mlsdm_map *map, const uint8_t *name, uint64_t commit, uint32_t *row,
                      uint64_t *until) {
    *row = map->namespaces, *until = UINT64_MAX;
    for (uint32_t at = 0; at < map->namespaces; at++) {
        struct mlsdm_terms terms;
        struct mlsdm_cell cell;
        if (row_copy(map, at, commit, &terms, &cell)) return MLSDM_STATUS_CORRUPT;
        if (terms.flags & MLSDM_NAMESPACE_USED) {
            if (!memcmp(terms.name, name, sizeof terms.name)) return MLSDM_STATUS_EXISTS;
        } else if (*row == map->namespaces) {
            if (can_be_given(map, &terms, commit + 1))
                *row = at;
            else if (terms.freed + map->log_capacity < *until)
                *until = terms.freed + map->log_capacity;
        }
    }
    return MLSDM_STATUS_OK;
}

int mlsdm_namespace_create(struct mlsdm_map *map, int64_t time_ns, const struct mlsdm_terms *terms,
                           struct mlsdm_entry *entry) {
    for (int try = 0; try < SEARCHES; try++) {
        uint64_t searched = load_acquire(&lock_of(map)->terms), until = 0;
        uint64_t commit = commit_of(map);
        uint32_t row;
        int found = row_search(map, terms->name, commit, &row, &until), status = section_enter(map);
        if (status) return status;
        struct transition t;
        if ((status = transition_begin(map, &t, MLSDM_KIND_NAMESPACE, time_ns))) return section_leave(map, status);
        if (lock_of(map)->terms == searched && t.position < until) {
            if (found) return section_leave(map, found);
            if (row == map->namespaces) return section_leave(map, MLSDM_STATUS_NAMESPACES_FULL);
            return terms_commit(map, &t, MLSDM_STEP_CREATE, row, 0, terms, entry);
        }
        section_leave(map, MLSDM_STATUS_OK);
    }
    return MLSDM_STATUS_BUSY;
}
