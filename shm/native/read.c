/* Validated reads: copy, then prove that nothing of the copy can have changed meanwhile.
 *
 * Three tries without the lock, then one with it: readers of a sequence lock starve under a hot writer, and a lock
 * that is never taken first is never contended by monitoring. A process that maps the block read-only (`attached`)
 * never takes it and answers BUSY instead. */

#include "block.h"

#define TRIES 3

/* Run `copy` until the position it read at still holds. */
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

/* The committed state, and its levels (float32[3][padded]) unless NULL. */
int mlsdm_state_read(struct mlsdm_map *map, struct mlsdm_state *state, float *levels) {
    VALIDATED(map, commit, status = state_copy(map, commit, state, levels));
}

/* Norms of levels 1 to 3, as the cascade computes them. */
void mlsdm_levels_norms(struct mlsdm_map *map, const float *levels, double *norms) {
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
        if (!newest) return; /* overtaken twice: `commit` is stale, and the validation will say so */
        *accepted += newest->accepted;
        *rejected += newest->rejected;
    }
}

/* The committed position; UINT64_MAX where the commit word is damaged. */
uint64_t mlsdm_position(const struct mlsdm_map *map) { return commit_of(map); }

/* What the workers' own tallies sum up to, at one position. */
int mlsdm_tallies_read(struct mlsdm_map *map, uint64_t *accepted, uint64_t *rejected, uint64_t *position) {
    VALIDATED(map, commit, tallies_sum(map, commit, accepted, rejected); *position = commit);
}

/* Up to `count` log entries from `first` on. `copied` is how many there were. GONE when `first` was overwritten,
 * UNKNOWN when it has not happened. Entries are overwritten from the oldest on, so what was in reach after the copy
 * was in reach all the time. */
int mlsdm_entries_read(struct mlsdm_map *map, uint64_t first, uint32_t count, struct mlsdm_entry *out, uint32_t *copied,
                       uint64_t *oldest) {
    uint64_t newest = commit_of(map);
    *copied = 0;
    if (newest == DAMAGED) return MLSDM_STATUS_CORRUPT;
    if (first > newest + 1) return MLSDM_STATUS_UNKNOWN;
    for (uint64_t at = first; at <= newest && *copied < count; at++) out[(*copied)++] = *entry_at(map, at);
    atomic_thread_fence(memory_order_acquire);
    if ((newest = commit_of(map)) == DAMAGED) return MLSDM_STATUS_CORRUPT;
    /* While `newest` + 1 is being written, its place is that of newest + 1 − log_capacity. */
    *oldest = newest + 1 > map->log_capacity ? newest + 2 - map->log_capacity : 1;
    if (first < *oldest) return MLSDM_STATUS_GONE;
    for (uint32_t i = 0; i < *copied; i++)
        if (out[i].position != first + i || out[i].checksum != entry_checksum(&out[i])) return MLSDM_STATUS_CORRUPT;
    return MLSDM_STATUS_OK;
}

static int memory_copy(const struct mlsdm_map *map, uint64_t commit, uint64_t id, struct mlsdm_slot *slot,
                       float *vector, uint8_t *payload) {
    if (commit == 0) return MLSDM_STATUS_UNFORMED;
    const struct mlsdm_state *state = state_found(map, commit);
    if (!state) return MLSDM_STATUS_CORRUPT;
    uint64_t newest = state->scalars.accepted, at = slot_of(map, id);
    if (id == 0 || id > newest) return MLSDM_STATUS_UNKNOWN;
    if (id + map->capacity <= newest) return MLSDM_STATUS_GONE;
    *slot = *slot_at(map, at);
    uint64_t deleted_at = unseal(slot->deleted_at);
    if (deleted_at && deleted_at <= commit) return MLSDM_STATUS_GONE;
    if (deleted_at == DAMAGED || !slot_sound(map, at) || slot->id != id || slot->payload_size > map->payload_stride)
        return MLSDM_STATUS_CORRUPT;
    memcpy(vector, vector_at(map, at), map->dimension * sizeof(float));
    memcpy(payload, payload_at(map, at), slot->payload_size);
    return MLSDM_STATUS_OK;
}

/* One memory by id: its line, float32[dimension] and payload. UNKNOWN when never given, GONE when overwritten or
 * deleted. */
int mlsdm_memory_read(struct mlsdm_map *map, uint64_t id, struct mlsdm_slot *slot, float *vector, uint8_t *payload) {
    VALIDATED(map, commit, status = memory_copy(map, commit, id, slot, vector, payload));
}

/* The id of the visible memory in a slot, 0 when it holds none: the newest that belongs there, unless it has left the
 * window. */
static uint64_t resident(const struct mlsdm_map *map, uint64_t at, uint64_t newest) {
    uint64_t id = newest - (newest + map->capacity + 1 - at) % ((uint64_t)map->capacity + 1);
    return id > newest || id + map->capacity <= newest ? 0 : id;
}

/* 1 when the visible memory in a slot fits its checksum, mark and hint, and when the slot holds none; 0 when it does
 * not, with its id. */
int mlsdm_slot_check(struct mlsdm_map *map, uint64_t at, uint64_t *id) {
    for (int try = 0; try < 2;
         try++) { /* a slot that changes under the check is a slot in use: seen again at the next round */
        uint64_t commit = commit_of(map);
        if (commit == 0 || commit == DAMAGED) return 1;
        *id = resident(map, at, state_at(map, commit)->scalars.accepted);
        uint64_t deleted_at = unseal(slot_at(map, at)->deleted_at);
        if (*id == 0 || (deleted_at && deleted_at != DAMAGED)) return 1;
        if (!deleted_at && slot_at(map, at)->id == *id && code_at(map, at)->live == 1 && slot_sound(map, at)) return 1;
        if (still_at(map, commit)) return 0;
    }
    return 1;
}

/* What slot_check has found, judged again under the lock, and mended where its bytes tell what it was: mark and hint of
 * a memory that is whole, the mark of one that was erased. OK: it is right now. CORRUPT: its bytes are not what was
 * remembered, and nothing but forgetting helps. */
int mlsdm_slot_repair(struct mlsdm_map *map, uint64_t at) {
    struct mlsdm_state state;
    int status = section_enter(map);
    if (status) return status;
    uint64_t commit = commit_of(map);
    if ((status = state_copy(map, commit, &state, NULL))) return section_leave(map, status);
    struct mlsdm_slot *slot = slot_at(map, at);
    uint64_t id = resident(map, at, state.scalars.accepted);
    if (id && lives_at(map, at)) {
        if (slot->id != id || !slot_sound(map, at)) return section_leave(map, MLSDM_STATUS_CORRUPT);
        store_release(&slot->deleted_at, 0);
        code_at(map, at)->live = 1;
    } else if (unseal(slot->deleted_at) == DAMAGED) {
        store_release(&slot->deleted_at, seal(commit));
    }
    return section_leave(map, MLSDM_STATUS_OK);
}

uint64_t mlsdm_header_checksum(const struct mlsdm_header *header) {
    return checksum_of(header, offsetof(struct mlsdm_header, checksum), 5);
}
