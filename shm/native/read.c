/* Validated reads: copy, then check that nothing of the copy can have changed meanwhile.
 *
 * Three tries without the lock, then one with it: the readers of a sequence lock starve under a busy writer, but reads
 * that never take the lock do not slow the writers down. A process that maps the block read-only has wait_ms = 0: it
 * never takes the lock and returns BUSY instead. docs/design/linearizability.md has the argument. */

#include "block.h"

#define TRIES 3

/* Run `copy` until the commit word has not moved during it. */
#define VALIDATED(map, commit, copy)                        \
    int status = MLSDM_STATUS_BUSY;                         \
    for (int try = 0; try <= TRIES; try++) {                \
        int locked = try == TRIES && (map)->wait_ms;        \
        if (locked && (status = section_enter(map))) break; \
        uint64_t commit = commit_of(map);                   \
        status = MLSDM_STATUS_CORRUPT;                      \
        if (commit != DAMAGED) {                            \
            status = MLSDM_STATUS_OK;                       \
            copy;                                           \
        }                                                   \
        int valid = locked || still_at(map, commit);        \
        if (locked) section_leave(map, status);             \
        if (valid || commit == DAMAGED) break;              \
        status = MLSDM_STATUS_BUSY;                         \
    }                                                       \
    return status

static int state_copy(const struct mlsdm_map *map, uint64_t commit, struct mlsdm_state *state, float *levels) {
    if (commit == 0) return MLSDM_STATUS_UNFORMED;
    if (commit == DAMAGED) return MLSDM_STATUS_CORRUPT;
    *state = *state_at(map, commit);
    if (levels) memcpy(levels, levels_at(map, state->levels), levels_size(map));
    if (state->position != commit || state->checksum != state_checksum(state)) return MLSDM_STATUS_CORRUPT;
    if (levels && levels_checksum(map, levels) != state->levels_checksum) return MLSDM_STATUS_CORRUPT;
    return MLSDM_STATUS_OK;
}

int mlsdm_state_read(struct mlsdm_map *map, struct mlsdm_state *state, float levels[]) {
    VALIDATED(map, commit, status = state_copy(map, commit, state, levels));
}

void mlsdm_levels_norms(struct mlsdm_map *map, const float levels[], double norms[]) {
    for (int level = 0; level < 3; level++) {
        const float *x = levels + (size_t)level * map->padded;
        norms[level] = sqrt(dot(x, x, map->padded));
    }
}

static void tallies_sum(const struct mlsdm_map *map, uint64_t commit, uint64_t *accepted, uint64_t *rejected) {
    *accepted = *rejected = 0;
    for (uint32_t row = 0; row < map->rows; row++) {
        const struct mlsdm_tally *cells = row_at(map, row)->tally, *newest = NULL;
        for (int cell = 0; cell < 2; cell++)
            if (cells[cell].position <= commit && (!newest || cells[cell].position > newest->position))
                newest = &cells[cell];
        if (!newest) return; /* both cells are newer: `commit` is stale, and the validation will detect it */
        *accepted += newest->accepted;
        *rejected += newest->rejected;
    }
}

uint64_t mlsdm_position(const struct mlsdm_map *map) { return commit_of(map); }

int mlsdm_tallies_read(struct mlsdm_map *map, uint64_t *accepted, uint64_t *rejected, uint64_t *position) {
    VALIDATED(map, commit, tallies_sum(map, commit, accepted, rejected); *position = commit);
}

/* Entries are overwritten from the oldest on, so an entry that can be read after the copy could be read during it. */
int mlsdm_entries_read(struct mlsdm_map *map, uint64_t first, uint32_t count, struct mlsdm_entry entries[],
                       uint32_t *copied, uint64_t *oldest) {
    uint64_t newest = commit_of(map);
    *copied = 0, *oldest = 0;
    if (newest == DAMAGED) return MLSDM_STATUS_CORRUPT;
    if (first > newest + 1) return MLSDM_STATUS_UNKNOWN;
    for (uint64_t at = first; at <= newest && *copied < count; at++) entries[(*copied)++] = *entry_at(map, at);
    atomic_thread_fence(memory_order_acquire);
    if ((newest = commit_of(map)) == DAMAGED) return MLSDM_STATUS_CORRUPT;
    /* The place of entry newest + 1 − log_capacity may already hold entry newest + 1, half-written. */
    *oldest = newest + 1 > map->log_capacity ? newest + 2 - map->log_capacity : 1;
    if (first < *oldest) return MLSDM_STATUS_GONE;
    for (uint32_t i = 0; i < *copied; i++)
        if (entries[i].position != first + i || entries[i].checksum != entry_checksum(&entries[i])) {
            *copied = i;
            return MLSDM_STATUS_CORRUPT;
        }
    return MLSDM_STATUS_OK;
}

/* Copy the memory in slot + 1 `found`. */
static int memory_copy(const struct mlsdm_map *map, uint64_t commit, uint64_t id, uint32_t found,
                       struct mlsdm_slot *slot, float *vector, uint8_t *payload) {
    if (commit == 0) return MLSDM_STATUS_UNFORMED;
    const struct mlsdm_state *state = committed_state(map, commit);
    if (!state) return MLSDM_STATUS_CORRUPT;
    if (id == 0 || id > state->scalars.newest_id) return MLSDM_STATUS_UNKNOWN;
    if (found == 0 || found > map->slots) return MLSDM_STATUS_GONE;
    *slot = *slot_at(map, found - 1);
    if (slot_lives(map, found - 1, commit) != 1 || !slot_sound(map, found - 1) || slot->id != id ||
        bytes_of(slot) > map->payload_stride)
        return MLSDM_STATUS_CORRUPT;
    memcpy(vector, vector_at(map, found - 1), map->dimension * sizeof(float));
    memcpy(payload, payload_at(map, found - 1), bytes_of(slot));
    return MLSDM_STATUS_OK;
}

/* A miss of the index counts only between two equal even readings of `caches`; the commit word is compared in any case.
 * The last try is made under the lock; a process that cannot have it looks into every slot. */
int mlsdm_memory_read(struct mlsdm_map *map, uint64_t memory_id, struct mlsdm_slot *slot, float vector[],
                      uint8_t payload[]) {
    for (int try = 0;; try++) {
        int last = try == TRIES, status = last && map->wait_ms ? section_enter(map) : MLSDM_STATUS_LOST;
        if (status == MLSDM_STATUS_BUSY) return status;
        int locked = status == MLSDM_STATUS_OK;
        uint64_t caches = load_acquire(&lock_of(map)->caches), commit = commit_of(map);
        uint32_t found = last && !locked ? slots_search(map, memory_id, commit) : index_find(map, memory_id, commit);
        if (locked && found == BROKEN && commit != DAMAGED) {
            caches_rebuild(map, commit);
            found = index_find(map, memory_id, commit);
        }
        status = memory_copy(map, commit, memory_id, found, slot, vector, payload);
        int valid = locked || commit == DAMAGED || still_at(map, commit);
        int hit = last || (found && found != BROKEN) || status == MLSDM_STATUS_UNKNOWN;
        if (!hit) valid = valid && found != BROKEN && !(caches & 1) && caches == load_acquire(&lock_of(map)->caches);
        if (locked) section_leave(map, status);
        if (valid) return status;
        if (last) return MLSDM_STATUS_BUSY;
    }
}

/* The bytes of a slot are not written twice for one position: if they are sound after the copy, and of this position,
 * they were during it. Otherwise the memory is damaged only if the slot still says that it lives: the bytes are written
 * or erased after that has changed. */
int mlsdm_written_read(struct mlsdm_map *map, const struct mlsdm_entry *entry, struct mlsdm_slot *slot, float vector[],
                       uint8_t payload[], struct mlsdm_members *members) {
    uint64_t at = (uint64_t)((const struct mlsdm_decided *)entry->detail)->slot - 1;
    if (at >= map->slots) return MLSDM_STATUS_GONE;
    *slot = *slot_at(map, at);
    memcpy(vector, vector_at(map, at), map->dimension * sizeof(float));
    memcpy(payload, payload_at(map, at), bytes_of(slot) <= map->payload_stride ? bytes_of(slot) : 0);
    *members = (struct mlsdm_members){0};
    members_copy(map, at, members);
    atomic_thread_fence(memory_order_acquire);
    if (slot->position == entry->position && slot_at(map, at)->position == entry->position && slot_sound(map, at))
        return MLSDM_STATUS_OK;
    atomic_thread_fence(memory_order_acquire);
    return mark_of(map, at) == live_since(entry->position) ? MLSDM_STATUS_CORRUPT : MLSDM_STATUS_GONE;
}

/* 1 if both marks of a slot are sound and agree. */
static int marks_sound(const struct mlsdm_map *map, uint64_t at, uint64_t commit) {
    int line = mark_lives(load_acquire(&slot_at(map, at)->mark), commit);
    return line >= 0 && line == mark_lives(load_acquire(&code_at(map, at)->mark), commit);
}

int mlsdm_slot_check(struct mlsdm_map *map, uint64_t at, uint64_t *id) {
    for (int try = 0; try < 2; try++) { /* a slot that changes during the check is checked again in the next round */
        uint64_t commit = commit_of(map);
        if (commit == 0 || commit == DAMAGED) return 1;
        *id = load_acquire(&link_at(map, at)->id);
        if (marks_sound(map, at, commit) &&
            (!slot_lives(map, at, commit) || (!code_at(map, at)->excluded && slot_sound(map, at))))
            return 1;
        if (still_at(map, commit)) return 0;
    }
    return 1;
}

/* If the memory is sound, its marks say so afterwards; if the slot is free, so do they. */
int mlsdm_slot_repair(struct mlsdm_map *map, uint64_t at) {
    struct mlsdm_state state;
    int status = section_enter(map);
    if (status) return status;
    uint64_t commit = commit_of(map);
    if ((status = state_copy(map, commit, &state, NULL))) return section_leave(map, status);
    if (slot_is_live(map, at)) {
        if (!slot_sound(map, at)) return section_leave(map, MLSDM_STATUS_CORRUPT);
        slot_mark(map, at, live_since(slot_at(map, at)->position));
        code_at(map, at)->excluded = 0;
    } else {
        slot_mark(map, at, mark_lives(mark_of(map, at), commit) ? free_since(commit) : mark_of(map, at));
    }
    return section_leave(map, MLSDM_STATUS_OK);
}

int mlsdm_links_check(struct mlsdm_map *map, uint32_t slot, uint32_t count, uint32_t *rebuilt) {
    struct mlsdm_state state;
    int status = section_enter(map);
    if (status) return status;
    uint64_t commit = commit_of(map);
    if ((status = state_copy(map, commit, &state, NULL))) return section_leave(map, status);
    uint64_t live = state.scalars.live;
    int agree = list_agrees(map, FREE_SLOTS, map->slots - live) && list_agrees(map, MEMORIES, live) &&
                list_at(map, FREE_SLOTS)->oldest == reference_to(state.spare);
    for (uint32_t at = slot; agree && at < slot + count; at++) agree = caches_agree(map, at);
    *rebuilt = (uint32_t)!agree;
    if (!agree) caches_rebuild(map, commit);
    return section_leave(map, MLSDM_STATUS_OK);
}

uint64_t mlsdm_header_checksum(const struct mlsdm_header *header) {
    return checksum_of(header, offsetof(struct mlsdm_header, checksum), 5);
}
