/* Exact recall: the k live memories with the largest cosine to a query, equal to brute force at one position of the
 * log. search.c finds them; this file repeats the search until it can be settled, and copies the answer.
 *
 * docs/design/recall.md has the argument. */

#include "block.h"

#define ATTEMPTS_UNLOCKED 3
#define ATTEMPTS_MAX 6 /* two under the lock suffice: one finds the damage, the next works without it */
#define ROUNDS_MAX 8   /* times that the log is read without the lock, because more came */

/* Exclude every damaged memory from the scan, where its bounds are misleading. The scrub finds such slots and enters
 * the memories as lost. Under the lock. */
static void quarantine(const struct mlsdm_map *map, struct mlsdm_recall_result *result) {
    for (uint64_t slot = 0; slot < map->slots; slot++) {
        int lives = slot_is_live(map, slot);
        if (lives && slot_sound(map, slot)) continue;
        if (lives) result->corrupt_id = link_at(map, slot)->id;
        code_at(map, slot)->excluded = MLSDM_EXCLUDED;
    }
}

/* Copy what was found, under the lock. */
static void matches_copy(const struct mlsdm_map *map, const struct mlsdm_query *query, const struct scored *best,
                         uint32_t count, struct mlsdm_match *matches) {
    for (uint32_t i = 0; i < count; i++) {
        uint64_t at = best[i].slot;
        const struct mlsdm_slot *slot = slot_at(map, at);
        matches[i] = (struct mlsdm_match){.id = slot->id,
                                          .score = best[i].score,
                                          .moral = slot->moral,
                                          .time_ns = slot->time_ns,
                                          .phase = slot->phase,
                                          .payload_size = slot->payload_size};
        if (query->vectors)
            memcpy(query->vectors + (size_t)i * map->dimension, vector_at(map, at), map->dimension * sizeof(float));
        if (query->payloads)
            memcpy(query->payloads + (size_t)i * map->payload_stride, payload_at(map, at), slot->payload_size);
    }
}

/* Enter the section for step 3, as soon as few entries of the log are left to be read in it. Returns its status; OK
 * with `lost` = 1 if the lock is lost. `told` becomes 0 if the log does not tell what was written. */
static int settle_begin(struct mlsdm_map *map, struct search *s, int *told, int *lost) {
    for (int round = 0;; round++) {
        struct mlsdm_state state;
        int status = mlsdm_state_read(map, &state, NULL);
        if (status) return status;
        uint64_t new = state.position - s->seen;
        if (new > NEW_MAX) *told = new < map->log_capacity && scan_since(map, s, state.position);
        shortlist_sort(map, s);
        status = section_enter(map);
        if ((*lost = status == MLSDM_STATUS_LOST)) return MLSDM_STATUS_OK;
        if (status || !*told || round == ROUNDS_MAX || commit_of(map) - s->seen <= NEW_MAX) return status;
        section_leave(map, status);
    }
}

/* A lost lock excludes every writer until the server is restarted, so step 3 does without it then. A process that was
 * inside when the lock was lost may still publish once; the commit word is compared to detect that. */
int mlsdm_recall(struct mlsdm_map *map, const struct mlsdm_query *query, struct mlsdm_match matches[],
                 struct mlsdm_recall_result *result) {
    struct search search, *s = &search;
    struct scored best[MLSDM_TOP_K_MAX];
    int status = search_prepare(map, s, query), done = 0;
    *result = (struct mlsdm_recall_result){0};
    for (int attempt = 1; !status && !done; attempt++) {
        if (attempt > ATTEMPTS_MAX) return MLSDM_STATUS_CORRUPT;
        int held = attempt > ATTEMPTS_UNLOCKED;
        struct mlsdm_state state;
        status = held ? section_enter(map) : mlsdm_state_read(map, &state, NULL);
        if (status) break;
        if (held && (status = state_copy(map, commit_of(map), &state, NULL))) return section_leave(map, status);
        s->mask = query->phase_masks[state.scalars.phase];
        s->lowers = s->shortlisted = 0;
        s->scanned = s->candidates = 0;
        s->seen = state.position;
        scan_all(map, s, state.spare);
        int told = 1, lost = 0;
        if (held)
            shortlist_sort(map, s);
        else if ((status = settle_begin(map, s, &told, &lost)))
            return status;
        uint64_t commit = commit_of(map);
        if (!(status = state_copy(map, commit, &state, NULL))) {
            done = told && s->mask == query->phase_masks[state.scalars.phase] &&
                   search_settle(map, s, commit, best, &result->count, &result->corrupt_id);
            if (done) matches_copy(map, query, best, result->count, matches);
            if (held && !done) quarantine(map, result);
            result->as_of = commit, result->time_ns = state.time_ns, result->attempts = (uint32_t)attempt;
            result->scanned = s->scanned, result->candidates = s->candidates;
        }
        if (!lost)
            section_leave(map, status);
        else if (!still_at(map, commit))
            done = 0, status = MLSDM_STATUS_OK;
    }
    return status;
}
