/* Duplicates: the memory of an event's namespace that is nearest to it, at the position before the event.
 *
 * The memories are searched without the lock, as for a recall of one. What was written since is compared under the
 * lock, in the section that decides the event; if that is too much, the section is left and the search goes on.
 *
 * core/reference/store.py defines what becomes of an event that has a duplicate. */

#include "block.h"

#define AGAIN (-1) /* no status of the contract: the search has to go on before the event can be decided */

struct duplicate {
    uint32_t policy; /* MLSDM_DECIDED_KEEP, _SKIP or _SUPERSEDE */
    uint64_t id;
    double score;
};

/* The search for the duplicate of one event. */
struct duplicates {
    struct search search;
    struct mlsdm_query query;
    struct mlsdm_namespace_id namespace;
    int far;    /* 1 if too much was written since the search to be read under the lock */
    int misled; /* 1 if the search has met damage */
};

static int duplicates_prepare(const struct mlsdm_map *map, struct duplicates *d, const struct mlsdm_event *event,
                              const struct memory *memory) {
    d->namespace = (struct mlsdm_namespace_id){event->namespace, event->generation};
    d->query = (struct mlsdm_query){.vector = memory->vector,
                                    .k = 1,
                                    .phase_masks = {3, 3},
                                    .namespace_count = 1,
                                    .namespaces = &d->namespace,
                                    .bounds = event->bounds};
    d->misled = 0;
    return search_prepare(map, &d->search, &d->query);
}

/* Begin attempt `attempt`. A memory that has expired at `time_ns` has expired at the time of the event, too. */
static int duplicates_begin(struct mlsdm_map *map, struct duplicates *d, int64_t time_ns, int attempt) {
    struct mlsdm_state state;
    int status = mlsdm_state_read(map, &state, NULL);
    if (status) return status;
    search_begin(map, &d->search, &state, time_ns > state.time_ns ? time_ns : state.time_ns, spare_of(attempt));
    return MLSDM_STATUS_OK;
}

/* Look without the lock at what was written since. Returns OK; AGAIN if the log does not tell. */
static int duplicates_follow(struct mlsdm_map *map, struct duplicates *d) {
    struct mlsdm_state state;
    int status = mlsdm_state_read(map, &state, NULL);
    if (status) return status;
    if (state.position - d->search.seen >= map->log_capacity || !scan_since(map, &d->search, state.position))
        return AGAIN;
    shortlist_check(map, &d->search);
    return MLSDM_STATUS_OK;
}

/* Under the lock, before a transition at `time_ns`: find the duplicate of an event in the committed state; its id is 0
 * if there is none. Returns OK or AGAIN. */
static int duplicates_settle(const struct mlsdm_map *map, struct duplicates *d, const struct mlsdm_state *state,
                             int64_t time_ns, const struct mlsdm_event *event, struct duplicate *duplicate) {
    struct scored nearest;
    uint64_t corrupt_id;
    uint32_t found;
    d->far = !search_is_close(map, &d->search, state->position);
    if (d->far) return AGAIN;
    d->search.instant_ns = time_ns;
    int settled = search_settle(map, &d->search, state->position, &nearest, &found, &corrupt_id);
    d->misled = settled == SHORT && search_is_misled(&d->search, state->position);
    if (settled != SETTLED || !tags_still_wanted(map, &d->search, state)) return AGAIN;
    if (found && nearest.score >= event->dedupe_threshold)
        *duplicate = (struct duplicate){.policy = event->dedupe, .id = nearest.id, .score = nearest.score};
    return MLSDM_STATUS_OK;
}
