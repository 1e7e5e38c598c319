/* Exact recall: the k live memories with the largest cosine to a query, equal to brute force at one position of the
 * log. search.c finds them; this file repeats the search until it can be settled, and copies the answer.
 *
 * Invariants: a section is short. The scan, the scores, the checksums of the best and the copies of their bytes are
 * made without the lock; under it their slots are looked at once more, and the few newest entries of the log are read.
 *
 * docs/design/recall.md has the argument, and says why the attempts end. */

#include "block.h"

#define COPY_SIZE 65536 /* bytes that are copied under the lock: under 10 µs */

/* -- the copies -- */

/* Bytes of payload, metadata and own id; bounded, because they may be torn or damaged, as the version will tell. */
static uint64_t octets_of(const struct mlsdm_map *map, uint64_t slot) {
    uint64_t size = bytes_of(slot_at(map, slot));
    return size < map->payload_stride ? size : map->payload_stride;
}
static uint64_t copy_size(const struct mlsdm_map *map, const struct mlsdm_query *query, uint64_t slot) {
    return (query->vectors ? map->dimension * sizeof(float) : 0) + (query->payloads ? octets_of(map, slot) : 0);
}

/* Copy the bytes of a memory to a place of the answer. */
static void bytes_copy(const struct mlsdm_map *map, const struct mlsdm_query *query, uint64_t slot, uint32_t place) {
    if (query->vectors)
        memcpy(query->vectors + (size_t)place * map->dimension, vector_at(map, slot), map->dimension * sizeof(float));
    if (query->payloads)
        memcpy(query->payloads + (size_t)place * map->payload_stride, payload_at(map, slot), octets_of(map, slot));
}

/* Give each of some memories a place of the answer of its own; of those that have none yet, copy the bytes to it. */
static void places_take(const struct mlsdm_map *map, const struct mlsdm_query *query, struct scored **some,
                        uint32_t count) {
    uint8_t taken[MLSDM_TOP_K_MAX] = {0};
    uint32_t place = 0;
    for (uint32_t i = 0; i < count; i++)
        if (some[i]->copied) taken[some[i]->copied - 1] = 1;
    for (uint32_t i = 0; i < count; i++) {
        if (some[i]->copied) continue;
        while (taken[place]) place++;
        bytes_copy(map, query, some[i]->slot, place);
        some[i]->copied = (uint16_t)++place;
    }
}

/* Copy the best of the shortlist, without the lock: whether the bytes are those of the memory, its version tells under
 * the lock. */
static void shortlist_copy(const struct mlsdm_map *map, struct search *s) {
    struct scored *some[MLSDM_TOP_K_MAX];
    uint32_t count = 0;
    for (uint32_t i = s->shortlisted; i; i--) {
        struct scored *one = &s->shortlist[i - 1];
        if (one->checked != GONE && count < s->query->k)
            some[count++] = one;
        else
            one->copied = 0;
    }
    places_take(map, s->query, some, count);
}

/* Complete the answer under the lock. Returns 0 if too much is left to be copied. */
static int matches_copy(const struct mlsdm_map *map, const struct mlsdm_query *query, struct scored *best,
                        uint32_t count, struct mlsdm_match *matches) {
    struct scored *some[MLSDM_TOP_K_MAX];
    uint64_t left = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (left > COPY_SIZE) return 0;
        if (!best[i].copied) left += copy_size(map, query, best[i].slot);
        some[i] = &best[i];
    }
    places_take(map, query, some, count);
    for (uint32_t i = 0; i < count; i++) {
        const struct mlsdm_slot *slot = slot_at(map, best[i].slot);
        matches[i] = (struct mlsdm_match){.id = slot->id,
                                          .score = best[i].score,
                                          .moral = slot->moral,
                                          .time_ns = slot->time_ns,
                                          .updated_ns = slot->updated_ns,
                                          .expires_ns = slot->expires_ns,
                                          .version = slot->position,
                                          .namespace = {slot->namespace, slot->generation},
                                          .payload_size = slot->payload_size,
                                          .metadata_size = slot->metadata_size,
                                          .own_id_size = slot->own_id_size,
                                          .scorer = slot->scorer,
                                          .phase = slot->phase,
                                          .flags = slot->flags,
                                          .pinned = slot->queued == 0,
                                          .place = best[i].copied - 1u};
    }
    return 1;
}

/* -- the attempts -- */

/* The instant at which an answer in a state judges expiry. The clock is read after the position is fixed: otherwise a
 * memory could be found at a position after one at which it had expired. */
static int64_t instant_of(const struct mlsdm_map *map, const struct mlsdm_query *query,
                          const struct mlsdm_state *state) {
    int64_t clock_ns = query->clock_ns ? query->clock_ns : log_time_now(map);
    return clock_ns > state->time_ns ? clock_ns : state->time_ns;
}

/* Step 3 of one attempt. Each round reads without the lock what has come meanwhile, and then enters the section. `done`
 * becomes 1 when the answer is complete, `misled` when the search has met damage.
 *
 * A lost lock excludes every writer until the server is restarted, so this does without it then. A process that was
 * inside when the lock was lost may still publish once; the commit word is compared to detect that. */
static int attempt_settle(struct mlsdm_map *map, struct search *s, struct mlsdm_match *matches,
                          struct mlsdm_recall_result *result, int *done, int *misled) {
    struct scored best[MLSDM_TOP_K_MAX];
    for (int round = 0; round < ROUNDS_MAX; round++) {
        struct mlsdm_state state;
        int status = mlsdm_state_read(map, &state, NULL), settled = UNTOLD;
        if (status) return status;
        if (state.position - s->seen >= map->log_capacity || !scan_since(map, s, state.position)) break;
        s->instant_ns = instant_of(map, s->query, &state);
        shortlist_check(map, s);
        if (s->query->vectors || s->query->payloads) shortlist_copy(map, s);
        status = section_enter(map);
        int lost = status == MLSDM_STATUS_LOST;
        if (status && !lost) return status;
        uint64_t commit = commit_of(map);
        status = state_copy(map, commit, &state, NULL);
        int near = !status && search_is_close(map, s, commit) && tags_still_wanted(map, s, &state);
        if (near) s->instant_ns = instant_of(map, s->query, &state);
        if (near) settled = search_settle(map, s, commit, best, &result->count, &result->corrupt_id);
        *done = settled == SETTLED && matches_copy(map, s->query, best, result->count, matches);
        result->as_of = commit, result->time_ns = state.time_ns;
        if (!lost)
            section_leave(map, status);
        else if (!still_at(map, commit))
            *done = near = 0, status = MLSDM_STATUS_OK;
        if (status || *done) return status;
        if (near && (settled == UNTOLD || settled == DIFFERENT)) break;
        if (settled == SHORT) {
            *misled = search_is_misled(s, commit);
            break;
        }
    }
    return MLSDM_STATUS_OK;
}

int mlsdm_recall(struct mlsdm_map *map, const struct mlsdm_query *query, struct mlsdm_match matches[],
                 struct mlsdm_recall_result *result) {
    struct search search, *s = &search;
    int status = search_prepare(map, s, query), done = 0, misled = 0, excluded = 0;
    *result = (struct mlsdm_recall_result){0};
    for (int attempt = 1; !status && !done; attempt++) {
        if (attempt > ATTEMPTS_MAX) return MLSDM_STATUS_BUSY;
        if (!excluded && (misled || attempt == ATTEMPTS_MAX / 2)) {
            if ((status = quarantine(map, &result->corrupt_id))) break;
            excluded = 1;
        }
        struct mlsdm_state state;
        if ((status = mlsdm_state_read(map, &state, NULL))) break;
        search_begin(map, s, &state, instant_of(map, query, &state), spare_of(attempt));
        status = attempt_settle(map, s, matches, result, &done, &misled);
        result->scanned = s->scanned, result->candidates = s->candidates, result->attempts = (uint32_t)attempt;
    }
    return status;
}
