/* The table of namespaces: what a transition reads and changes of a row, and how a changed row is made whole.
 *
 * A row has two copies of its terms, which an operator sets, and two copies of its cell, which decisions change. Each
 * copy has the position that wrote it and a checksum.
 *
 * Invariants: outside of the section both copies are equal. A transition writes one copy of a pair under the intent,
 * commits, and then copies it over the other. So one of the two is whole at any instruction, and it is the newest whole
 * copy at or before the commit word that counts. The intent names the rows until both copies are equal again; whoever
 * enters the section and finds a row named settles it. That undoes a change that was not published, and completes one
 * that was. A copy that a flipped bit has damaged does not count, and is written again from the other one. */

#include "block.h"

enum { COPY_SEED = 9, TENANTS = 8 };

/* -- two copies -- */

/* 1 if a copy of `size` bytes is whole and was written at or before `commit`. */
static int copy_counts(const void *copy, size_t size, uint64_t commit) {
    const uint64_t *words = copy;
    return words[0] <= commit && words[size / 8 - 1] == checksum_of(copy, size - 8, COPY_SEED);
}

/* The newest of two copies that counts, NULL if none does. */
static const void *copy_newest(const void *copies, size_t size, uint64_t commit) {
    const uint64_t *first = copies, *second = first + size / 8;
    int one = copy_counts(first, size, commit), other = copy_counts(second, size, commit);
    if (one && other) return *second > *first ? second : first;
    return one ? first : other ? second : NULL;
}

/* A copy that counts, NULL if none does. Under the lock: there both are equal if both count. */
static const void *copy_either(const void *copies, size_t size, uint64_t commit) {
    if (copy_counts(copies, size, commit)) return copies;
    const void *second = (const uint8_t *)copies + size;
    return copy_counts(second, size, commit) ? second : NULL;
}

static void copy_seal(void *copy, size_t size, uint64_t position) {
    uint64_t *words = copy;
    words[0] = position;
    words[size / 8 - 1] = checksum_of(copy, size - 8, COPY_SEED);
}

/* The copy beside `copy` in its pair. */
static void *copy_beside(void *copies, size_t size, const void *copy) {
    return copy == copies ? (uint8_t *)copies + size : copies;
}

/* Make both copies equal. Returns 1 if they were not, 0 if they were, -1 if none counts. Under the lock. */
static int copies_settle(void *copies, size_t size, uint64_t commit) {
    const void *newest = copy_newest(copies, size, commit);
    if (!newest) return -1;
    void *other = copy_beside(copies, size, newest);
    if (!memcmp(newest, other, size)) return 0;
    memcpy(other, newest, size);
    return 1;
}

/* Settle a row. Returns as copies_settle does. */
static int namespace_settle(const struct mlsdm_map *map, uint32_t row, uint64_t commit) {
    struct mlsdm_namespace *namespace = namespace_at(map, row);
    int cells = copies_settle(namespace->cells, sizeof *namespace->cells, commit);
    int terms = copies_settle(namespace->terms, sizeof *namespace->terms, commit);
    return cells < 0 || terms < 0 ? -1 : cells || terms;
}

/* Write the rows of a new block: they are free and were never used. */
static void namespaces_create(const struct mlsdm_map *map) {
    struct mlsdm_namespace row = {0};
    for (int i = 0; i < 2; i++) {
        copy_seal(&row.cells[i], sizeof *row.cells, 0);
        copy_seal(&row.terms[i], sizeof *row.terms, 0);
    }
    for (uint32_t at = 0; at < map->namespaces; at++) *namespace_at(map, at) = row;
}

/* -- what a transition changes -- */

/* A namespace that a transition changes. */
struct tenant {
    uint32_t row;
    const struct mlsdm_terms *terms; /* in force before the transition */
    const struct mlsdm_cell *before; /* in the table */
    struct mlsdm_cell after;
};

/* The namespaces that a transition changes, the one that it is about first. */
struct tenants {
    uint32_t count;
    int sets_terms; /* 1 if the first one gets the terms `terms` */
    struct tenant list[TENANTS];
    struct mlsdm_terms terms; /* sealed */
};

/* Let a transition from `commit` on change a row. Returns the tenant, which may have been there before; NULL if the row
 * is damaged. */
static struct tenant *tenant_add(const struct mlsdm_map *map, struct tenants *tenants, uint32_t row, uint64_t commit) {
    for (uint32_t i = 0; i < tenants->count; i++)
        if (tenants->list[i].row == row) return &tenants->list[i];
    if (row >= map->namespaces || tenants->count == TENANTS) return NULL;
    struct mlsdm_namespace *namespace = namespace_at(map, row);
    struct tenant *tenant = &tenants->list[tenants->count];
    tenant->row = row;
    tenant->before = copy_either(namespace->cells, sizeof *namespace->cells, commit);
    tenant->terms = copy_either(namespace->terms, sizeof *namespace->terms, commit);
    if (!tenant->before || !tenant->terms) return NULL;
    tenant->after = *tenant->before;
    tenants->count += 1;
    return tenant;
}

/* The same for a namespace in use. Returns OK, UNKNOWN or CORRUPT. */
static int tenant_find(const struct mlsdm_map *map, struct tenants *tenants, uint32_t row, uint32_t generation,
                       uint64_t commit, struct tenant **found) {
    if (row >= map->namespaces) return MLSDM_STATUS_UNKNOWN;
    struct tenant *tenant = *found = tenant_add(map, tenants, row, commit);
    if (!tenant) return MLSDM_STATUS_CORRUPT;
    int used = tenant->terms->flags & MLSDM_NAMESPACE_USED && tenant->terms->generation == generation;
    return used ? MLSDM_STATUS_OK : MLSDM_STATUS_UNKNOWN;
}

/* Memories of a namespace that no other one can evict. */
static uint32_t promised_to(const struct mlsdm_terms *terms, const struct mlsdm_cell *cell) {
    return terms->reserved > cell->pinned ? terms->reserved : (uint32_t)cell->pinned;
}

/* Whoever has searched the table without the lock searches it again. */
static void terms_counted(const struct mlsdm_map *map) { store_release(&lock_of(map)->terms, lock_of(map)->terms + 1); }

/* The rows that a transition changes, as the intent names them. */
static void tenants_name(const struct tenants *tenants, uint64_t names[2]) {
    names[0] = names[1] = 0;
    for (uint32_t i = 0; i < tenants->count; i++) names[i / 4] |= (uint64_t)(tenants->list[i].row + 1) << i % 4 * 16;
}

/* Write one copy of everything that changes, under the intent. No reader counts it before `position` is committed. */
static void tenants_write(const struct mlsdm_map *map, struct tenants *tenants, uint64_t position) {
    for (uint32_t i = 0; i < tenants->count; i++) {
        struct tenant *tenant = &tenants->list[i];
        struct mlsdm_cell *cells = namespace_at(map, tenant->row)->cells;
        copy_seal(&tenant->after, sizeof tenant->after, position);
        *(struct mlsdm_cell *)copy_beside(cells, sizeof *cells, tenant->before) = tenant->after;
    }
    if (!tenants->sets_terms) return;
    struct mlsdm_terms *terms = namespace_at(map, tenants->list[0].row)->terms;
    terms_counted(map);
    *(struct mlsdm_terms *)copy_beside(terms, sizeof *terms, tenants->list[0].terms) = tenants->terms;
}

/* After the commit: make both copies equal again. */
static void tenants_settle(const struct mlsdm_map *map, const struct tenants *tenants) {
    for (uint32_t i = 0; i < tenants->count; i++) {
        const struct tenant *tenant = &tenants->list[i];
        *(struct mlsdm_cell *)tenant->before = tenant->after;
    }
    if (!tenants->sets_terms) return;
    *(struct mlsdm_terms *)tenants->list[0].terms = tenants->terms;
    terms_counted(map);
}
