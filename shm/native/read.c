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
    *copied = 0;
    if (newest == DAMAGED) return MLSDM_STATUS_CORRUPT;
    if (first > newest + 1) return MLSDM_STATUS_UNKNOWN;
    for (uint64_t at = first; at <= newest && *copied < count; at++) entries[(*copied)++] = *entry_at(map, at);
    atomic_thread_fence(memory_order_acquire);
    if ((newest = commit_of(map)) == DAMAGED) return MLSDM_STATUS_CORRUPT;
    /* The place of entry newest + 1 − log_capacity may already hold entry newest + 1, half-written. */
    *oldest = newest + 1 > map->log_capacity ? newest + 2 - map->log_capacity : 1;
    if (first < *oldest) return MLSDM_STATUS_GONE;
    for (uint32_t i = 0; i < *copied; i++)
        if (entries[i].position != first + i || entries[i].checksum != entry_checksum(&entries[i]))
            return MLSDM_STATUS_CORRUPT;
    return MLSDM_STATUS_OK;
}

static int memory_copy(const struct mlsdm_map *map, uint64_t commit, uint64_t id, struct mlsdm_slot *slot,
                       float *vector, uint8_t *payload) {
    if (commit == 0) return MLSDM_STATUS_UNFORMED;
    const struct mlsdm_state *state = committed_state(map, commit);
    if (!state) return MLSDM_STATUS_CORRUPT;
    uint64_t newest = state->scalars.newest_id, at = slot_of(map, id);
    if (id == 0 || id > newest) return MLSDM_STATUS_UNKNOWN;
    if (id + map->capacity <= newest) return MLSDM_STATUS_GONE;
    *slot = *slot_at(map, at);
    int lives = slot_lives(map, at, commit);
    if (lives == 0) return MLSDM_STATUS_GONE;
    if (lives < 0 || !slot_sound(map, at) || slot->id != id || slot->payload_size > map->payload_stride)
        return MLSDM_STATUS_CORRUPT;
    memcpy(vector, vector_at(map, at), map->dimension * sizeof(float));
    memcpy(payload, payload_at(map, at), slot->payload_size);
    return MLSDM_STATUS_OK;
}

int mlsdm_memory_read(struct mlsdm_map *map, uint64_t memory_id, struct mlsdm_slot *slot, float vector[],
                      uint8_t payload[]) {
    VALIDATED(map, commit, status = memory_copy(map, commit, memory_id, slot, vector, payload));
}

/* The id of the visible memory in a slot, 0 for none: the newest id of that slot, unless it has left the window. */
static uint64_t resident_id(const struct mlsdm_map *map, uint64_t at, uint64_t newest) {
    uint64_t id = newest - (newest + map->capacity + 1 - at) % ((uint64_t)map->capacity + 1);
    return id > newest || id + map->capacity <= newest ? 0 : id;
}

int mlsdm_slot_check(struct mlsdm_map *map, uint64_t at, uint64_t *id) {
    for (int try = 0; try < 2; try++) { /* a slot that changes during the check is checked again in the next round */
        uint64_t commit = commit_of(map);
        if (commit == 0 || commit == DAMAGED) return 1;
        *id = resident_id(map, at, state_at(map, commit)->scalars.newest_id);
        int line = mark_lives(load_acquire(&slot_at(map, at)->mark), commit);
        int code = mark_lives(load_acquire(&code_at(map, at)->mark), commit);
        if (line == 0 && code == 0) return 1;
        if (line == 1 && code == 1 && *id && slot_at(map, at)->id == *id && !code_at(map, at)->excluded &&
            slot_sound(map, at))
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
    struct mlsdm_slot *slot = slot_at(map, at);
    uint64_t id = resident_id(map, at, state.scalars.newest_id);
    if (id && slot_is_live(map, at)) {
        if (slot->id != id || !slot_sound(map, at)) return section_leave(map, MLSDM_STATUS_CORRUPT);
        slot_mark(map, at, live_since(slot->position));
        code_at(map, at)->excluded = 0;
    } else {
        slot_mark(map, at, mark_lives(mark_of(map, at), commit) ? free_since(commit) : mark_of(map, at));
    }
    return section_leave(map, MLSDM_STATUS_OK);
}

uint64_t mlsdm_header_checksum(const struct mlsdm_header *header) {
    return checksum_of(header, offsetof(struct mlsdm_header, checksum), 5);
}
