/* The transition: governor, rhythm and synaptic cascade compute the next state, which is then committed.
 *
 * core/reference/governor.py, rhythm.py and synapse.py are the same arithmetic, written as the specification. A
 * property test holds both equal to the last bit. -ffp-contract=off, because a fused multiply-add would differ.
 *
 * Invariants: each transition has the same shape. section_enter; transition_begin checks the committed state and copies
 * it to the other buffer; a function *_make changes the copy, writes the entry and, if there is one, the new memory,
 * and nothing that a reader can see; transition_commit changes in place what must be, under the intent, writes the
 * checksum of the state and then the commit word, by one store. A process that dies before that store has changed
 * nothing that a reader can see. Between make and commit a transition can be left without a trace: apply.c compares its
 * entry there. */

#include "block.h"

struct transition {
    const struct mlsdm_state *before; /* the committed one */
    struct mlsdm_state *next;
    struct mlsdm_entry *entry;
    uint64_t position; /* of the next state */
    uint32_t row;      /* whose tally counts the decision */
    struct allocation slots;
    struct tenants tenants;
    struct tenant *owner;                      /* the namespace that it is about, or NULL */
    int erases;                                /* 1 if the bytes of the victim are erased once it has gone */
    const struct mlsdm_idempotency_hash *hash; /* of an event with an idempotency key, else NULL */
    struct mlsdm_idempotency_hash kept_hash;   /* `hash` may point to it */
    struct mlsdm_decision decision;            /* of an event */
};

static struct mlsdm_decided *decided_in(const struct transition *t) { return (struct mlsdm_decided *)t->entry->detail; }

/* -- the governor -- */

static double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

/* The constants of the server's governor, with which its settings begin. */
static const struct mlsdm_governor *governor_in(const struct mlsdm_settings *set) {
    _Static_assert(offsetof(struct mlsdm_settings, initial_threshold) == 0, "the settings begin with a governor");
    _Static_assert(offsetof(struct mlsdm_settings, adaptation_rate) == offsetof(struct mlsdm_governor, adaptation_rate),
                   "in the same order");
    return (const struct mlsdm_governor *)set;
}

/* Decide one moral value and adapt the threshold. Returns 1 if it is accepted. */
static int governor_decide(double *theta, double *ema, const struct mlsdm_governor *set, double moral) {
    int accepted = moral >= set->max_threshold || (moral >= set->min_threshold && moral >= *theta);
    *ema = set->ema_alpha * accepted + (1.0 - set->ema_alpha) * *ema;
    double drift = *ema - 0.5;
    double step = drift > set->dead_band ? set->adaptation_rate : drift < -set->dead_band ? -set->adaptation_rate : 0.0;
    if (step != 0.0) { /* rint: rounding errors of repeated additions must not accumulate in θ */
        double moved = rint((*theta + step) * 1e12) / 1e12;
        *theta = clamp(moved, set->min_threshold, set->max_threshold); /* last: a bound may have more decimals */
    }
    return accepted;
}

/* -- the cascade (Benna & Fusi 2016, doi:10.1038/nn.4401) -- */

MLSDM_WIDE static void decay(float *to, const float *from, float factor, uint32_t padded) {
    for (uint32_t i = 0; i < padded; i++) to[i] = factor * from[i];
}
MLSDM_WIDE static void add(float *to, const float *event, uint32_t padded) {
    for (uint32_t i = 0; i < padded; i++) to[i] += event[i];
}
/* Move the share `gain` of the lower level to the upper one: of all elements, or of those above theta. */
MLSDM_WIDE static void transfer_all(float *lower, float *upper, float gain, uint32_t padded) {
    for (uint32_t i = 0; i < padded; i++) {
        float moved = lower[i] * gain;
        lower[i] -= moved;
        upper[i] += moved;
    }
}
static void transfer_elements(float *lower, float *upper, float gain, double theta, uint32_t padded) {
    for (uint32_t i = 0; i < padded; i++) {
        float moved = (double)lower[i] > theta ? lower[i] * gain : 0.0f;
        lower[i] -= moved;
        upper[i] += moved;
    }
}
static void transfer_gated(float *lower, float *upper, float gain, double theta, uint32_t flags, uint32_t padded) {
    if (flags & MLSDM_FLAG_ELEMENT_GATE)
        transfer_elements(lower, upper, gain, theta, padded);
    else if (sqrt(dot(lower, lower, padded)) > theta)
        transfer_all(lower, upper, gain, padded);
}

/* Run the cascade once, from the levels of the committed state into the other buffer. `event` NULL: consolidation. */
static void cascade(const struct mlsdm_map *map, struct transition *t, const float *event) {
    const struct mlsdm_settings *set = &t->next->settings;
    uint32_t n = map->padded;
    const float *from = levels_at(map, t->next->levels); /* its own output if one transition runs it twice */
    t->next->levels = t->before->levels ^ 1;             /* never the committed buffer */
    float *l1 = levels_at(map, t->next->levels), *l2 = l1 + n, *l3 = l2 + n;
    decay(l1, from, set->decay[0], n);
    decay(l2, from + n, set->decay[1], n);
    decay(l3, from + 2 * n, set->decay[2], n);
    if (event) add(l1, event, n);
    transfer_gated(l1, l2, set->gain12, set->theta_l1, set->flags, n);
    transfer_gated(l2, l3, set->gain23, set->theta_l2, set->flags, n);
    t->next->levels_checksum = levels_checksum(map, l1);
}

/* -- the rhythm -- */

static int consolidates(const struct mlsdm_state *state) {
    return state->scalars.phase == 1 && state->settings.flags & MLSDM_FLAG_CONSOLIDATION;
}
static void rhythm_step(struct mlsdm_scalars *now, const struct mlsdm_settings *set) {
    now->step += 1;
    now->counter -= 1;
    if (now->counter == 0) {
        now->phase ^= 1;
        now->counter = now->phase ? set->sleep_duration : set->wake_duration;
    }
}

/* -- from one committed state to the next -- */

static int transition_begin(const struct mlsdm_map *map, struct transition *t, uint32_t kind, int64_t time_ns) {
    uint64_t commit = commit_of(map);
    t->before = committed_state(map, commit);
    t->next = state_at(map, commit + 1);
    t->entry = entry_at(map, commit + 1);
    t->position = commit + 1;
    t->slots = (struct allocation){0};
    t->tenants.count = 0, t->tenants.sets_terms = 0, t->owner = NULL;
    t->row = map->row, t->erases = 0, t->hash = NULL;
    if (commit == 0) return MLSDM_STATUS_UNFORMED;
    if (!t->before) return MLSDM_STATUS_CORRUPT;
    atomic_thread_fence(memory_order_release); /* readers: see block.h */
    *t->next = *t->before;
    t->next->position = t->position;
    if (time_ns > t->next->time_ns) t->next->time_ns = time_ns;
    *t->entry = (struct mlsdm_entry){
        .position = t->position,
        .kind = kind,
        .row = map->row,
        .time_ns = t->next->time_ns,
        .before = t->before->scalars,
        .state = t->before->checksum,
    };
    return MLSDM_STATUS_OK;
}

/* The namespace of the victim, NULL if its row is damaged; the default one if the slot's line is damaged. */
static struct tenant *victim_tenant(const struct mlsdm_map *map, struct transition *t) {
    const struct mlsdm_slot *slot = slot_at(map, t->slots.freed - 1);
    uint64_t commit = t->before->position;
    if (slot->namespace < map->namespaces) {
        uint32_t count = t->tenants.count;
        struct tenant *tenant = tenant_add(map, &t->tenants, slot->namespace, commit);
        if (tenant && tenant->terms->generation == slot->generation) return tenant;
        t->tenants.count = count;
    }
    return tenant_add(map, &t->tenants, 0, commit);
}

/* The namespace of the victim loses a memory. Returns OK or CORRUPT. */
static int victim_count(const struct mlsdm_map *map, struct transition *t) {
    struct tenant *loser = victim_tenant(map, t);
    if (!loser) return MLSDM_STATUS_CORRUPT;
    loser->after.live -= loser->after.live > 0;
    loser->after.evicted += t->slots.cause == MLSDM_CAUSE_LIMIT || t->slots.cause == MLSDM_CAUSE_CAPACITY;
    decided_in(t)->victim_namespace = loser->row;
    return MLSDM_STATUS_OK;
}

/* The end of each *_make: count for the namespaces what the slots say, and complete entry and state. Returns OK or
 * CORRUPT. */
static int transition_describe(const struct mlsdm_map *map, struct transition *t) {
    struct mlsdm_decided *decided = decided_in(t);
    if (t->slots.freed && victim_count(map, t)) return MLSDM_STATUS_CORRUPT;
    if (t->slots.written) t->owner->after.live += 1;
    if (t->slots.written || t->slots.freed) {
        decided->slot = (uint32_t)t->slots.written, decided->victim_slot = (uint32_t)t->slots.freed;
        decided->victim_id = t->slots.victim_id, decided->cause = t->slots.cause;
        t->next->scalars.live += (uint64_t)(t->slots.written != 0) - (uint64_t)(t->slots.freed != 0);
    }
    if (t->owner && t->entry->kind != MLSDM_KIND_NAMESPACE) {
        decided->namespace = t->owner->row, decided->generation = t->owner->terms->generation;
        decided->own_theta[0] = t->owner->before->theta, decided->own_theta[1] = t->owner->after.theta;
        if (t->owner->terms->flags & MLSDM_NAMESPACE_OWN) decided->flags |= MLSDM_DECIDED_OWN;
        decided->own_ema[0] = t->owner->before->ema, decided->own_ema[1] = t->owner->after.ema;
    }
    for (uint32_t i = 0; i < t->tenants.count; i++) {
        const struct tenant *tenant = &t->tenants.list[i];
        const struct mlsdm_terms *terms = i == 0 && t->tenants.sets_terms ? &t->tenants.terms : tenant->terms;
        t->next->pinned += (uint32_t)(tenant->after.pinned - tenant->before->pinned);
        t->next->promised += promised_to(terms, &tenant->after) - promised_to(tenant->terms, tenant->before);
    }
    t->entry->after = t->next->scalars;
    t->entry->checksum = entry_checksum(t->entry);
    return MLSDM_STATUS_OK;
}

static int levels_sound(const struct mlsdm_map *map, const struct mlsdm_state *state) {
    return levels_checksum(map, levels_at(map, state->levels)) == state->levels_checksum;
}

/* Choose the spare, and a victim unless there is one or there is room. Where lists and slots disagree, the lists are
 * made again. */
static int slots_choose(const struct mlsdm_map *map, struct transition *t) {
    const struct allocation given = t->slots;
    allocation_choose(map, t->before, &t->slots);
    if (t->slots.written == t->before->spare + 1 && allocation_sound(map, t->before, &t->slots)) return MLSDM_STATUS_OK;
    caches_rebuild(map, t->before->position);
    t->slots = given;
    allocation_choose(map, t->before, &t->slots);
    return allocation_sound(map, t->before, &t->slots) ? MLSDM_STATUS_OK : MLSDM_STATUS_CORRUPT;
}

/* Let a memory be the victim, by its id. Returns OK, UNKNOWN or GONE. */
static int slots_find(const struct mlsdm_map *map, struct transition *t, uint64_t id, uint32_t cause) {
    if (id == 0 || id > t->before->scalars.newest_id) return MLSDM_STATUS_UNKNOWN;
    for (int again = 0;; again = 1) {
        uint32_t found = index_find(map, id, t->before->position);
        if (!found) return MLSDM_STATUS_GONE;
        allocation_free(map, &t->slots, found, cause);
        if (found != BROKEN && allocation_sound(map, t->before, &t->slots)) return MLSDM_STATUS_OK;
        if (again) return MLSDM_STATUS_CORRUPT;
        caches_rebuild(map, t->before->position);
    }
}

/* -- the commit -- */

/* Record what is about to change in place; it is undone unless the commit word reaches this position. Names, slots,
 * marks, chain and head are stored before the position: from then on the next lock holder would restore them. `erase`
 * is stored after the position: without it, it would mean a published deletion with bytes left to erase. */
static void intent_write(const struct mlsdm_map *map, const struct transition *t, uint64_t erase,
                         const uint64_t *head) {
    struct mlsdm_lock *lock = lock_of(map);
    const uint64_t slots[2] = {t->slots.written, t->slots.freed};
    uint64_t names[2];
    tenants_name(&t->tenants, names);
    for (int i = 0; i < 2; i++) store_release(&intent_names(map)[i], names[i]);
    for (int i = 0; i < 2; i++) {
        store_release(&lock->intent_slot[i], slots[i]);
        store_release(&lock->intent_mark[i], slots[i] ? mark_of(map, slots[i] - 1) : 0);
    }
    store_release(&lock->intent_row, t->row);
    store_release(&lock->intent_chain, head ? (uint64_t)(head - head_at(map, 0)) + 1 : 0);
    store_release(&lock->intent_head, head ? *head : 0);
    store_release(&lock->intent_position, t->position);
    store_release(&lock->intent_erase, erase);
    atomic_signal_fence(memory_order_seq_cst);
}

/* Change marks, lists and index, under the intent. */
static void slots_change(const struct mlsdm_map *map, struct transition *t) {
    caches_open(map);
    if (t->slots.written) slot_mark(map, t->slots.written - 1, live_since(t->position));
    if (t->slots.freed) slot_mark(map, t->slots.freed - 1, free_since(t->position));
    t->next->spare = allocation_apply(map, &t->slots, decided_in(t)->memory_id);
}

/* Count a decision for a row, in the older of its two cells, under the intent. The position is stored first: from then
 * on the cell does not count until the commit word reaches it. */
static void tally_add(const struct mlsdm_map *map, const struct transition *t) {
    if (t->row >= map->rows) return;
    struct mlsdm_tally *cells = row_at(map, t->row)->tally;
    const struct mlsdm_tally *newer = &cells[cells[1].position > cells[0].position];
    struct mlsdm_tally *older = &cells[cells[1].position <= cells[0].position];
    store_release(&older->position, t->position);
    atomic_signal_fence(memory_order_seq_cst);
    older->accepted = newer->accepted + (t->next->scalars.accepted - t->before->scalars.accepted);
    older->rejected = newer->rejected + (t->next->scalars.rejected - t->before->scalars.rejected);
}

/* Commit a transition that was made. */
static void transition_commit(const struct mlsdm_map *map, struct transition *t) {
    int decides = t->entry->kind == MLSDM_KIND_DECISION, moves = t->slots.written || t->slots.freed;
    uint64_t *head = t->hash ? head_of(map, t->hash->words) : NULL, erase = t->erases ? t->slots.freed : 0;
    if (decides || moves || t->tenants.count) intent_write(map, t, erase, head);
    if (moves) slots_change(map, t);
    tenants_write(map, &t->tenants, t->position);
    if (decides) tally_add(map, t);
    if (head) receipt_write(map, head, t->next->receipts, t->hash, &t->decision);
    t->next->checksum = state_checksum(t->next);
    store_release(commit_word(map), seal(t->position)); /* the linearization point */
    if (moves) caches_close(map);
    if (t->tenants.count) {
        atomic_thread_fence(memory_order_release); /* a reader that sees the second copy also sees the commit */
        tenants_settle(map, &t->tenants);
        intent_names_clear(map);
    }
    if (erase) memory_erase(map, erase - 1);
}

static struct mlsdm_vitals *vitals_of(const struct mlsdm_map *map) { return region(map, MLSDM_REGION_VITALS); }

/* The status of the emergency that the controller has declared, OK if there is none. */
static int emergency_of(const struct mlsdm_map *map) {
    uint64_t reasons = vitals_of(map)->emergency;
    if (!reasons) return MLSDM_STATUS_OK;
    return reasons & MLSDM_EMERGENCY_CORRUPT ? MLSDM_STATUS_CORRUPT
           : reasons & MLSDM_EMERGENCY_LOST  ? MLSDM_STATUS_LOST
                                             : MLSDM_STATUS_EXHAUSTED;
}

/* -- admission: the hot path -- */

/* The instant at which the memory of an event ends, 0 for never. `ttl_ns` is the lifetime for events that name none.
 * Returns OK or INVALID. */
static int expiry_of(const struct mlsdm_event *event, int64_t ttl_ns, int64_t time_ns, int64_t *expires_ns) {
    int has_ttl = event->flags & MLSDM_EVENT_TTL, has_instant = event->flags & MLSDM_EVENT_EXPIRES;
    if (has_ttl && (has_instant || event->ttl_ns < 1)) return MLSDM_STATUS_INVALID;
    if (has_instant && event->expires_ns && event->expires_ns <= time_ns) return MLSDM_STATUS_INVALID;
    if (has_ttl) ttl_ns = event->ttl_ns;
    *expires_ns = has_instant ? event->expires_ns : ttl_ns ? time_ns + ttl_ns : 0;
    return MLSDM_STATUS_OK;
}

/* Say in the entry what a memory is that was written. */
static void describe_memory(struct mlsdm_decided *decided, const struct mlsdm_slot *line) {
    decided->created_ns = line->time_ns, decided->updated_ns = line->updated_ns, decided->expires_ns = line->expires_ns;
    decided->own_id[0] = line->own_id[0], decided->own_id[1] = line->own_id[1];
    decided->scorer = line->scorer, decided->phase = line->phase, decided->moral = line->moral;
    if (line->flags) decided->flags |= MLSDM_DECIDED_DEFAULTED;
}

/* Let a namespace that is not being deleted be what the transition is about. Returns OK, UNKNOWN, CLOSING or CORRUPT.
 */
static int owner_find(const struct mlsdm_map *map, struct transition *t, uint32_t row, uint32_t generation) {
    int status = tenant_find(map, &t->tenants, row, generation, t->before->position, &t->owner);
    if (status) return status;
    return t->owner->terms->flags & MLSDM_NAMESPACE_CLOSING ? MLSDM_STATUS_CLOSING : MLSDM_STATUS_OK;
}

/* Let the namespace of the victim be it; it may be closing. Returns OK or CORRUPT. */
static int owner_of_victim(const struct mlsdm_map *map, struct transition *t) {
    t->owner = victim_tenant(map, t);
    return t->owner ? MLSDM_STATUS_OK : MLSDM_STATUS_CORRUPT;
}

/* The governor that judges an event of the transition's namespace: its own or the server's. */
struct judge {
    double *theta, *ema;
    const struct mlsdm_governor *constants;
    uint32_t mode;
};
static struct judge judge_of(const struct transition *t) {
    struct mlsdm_scalars *now = &t->next->scalars;
    struct tenant *owner = t->owner;
    if (owner->terms->flags & MLSDM_NAMESPACE_OWN)
        return (struct judge){&owner->after.theta, &owner->after.ema, &owner->terms->governor, owner->terms->mode};
    return (struct judge){&now->theta, &now->ema, governor_in(&t->next->settings), t->next->settings.mode};
}

/* Decide an event. `superseded` is the id of the memory whose place it takes if it is accepted, 0 for none.
 * `duplicate` is its duplicate, NULL if it has none or did not ask for it. */
static int decision_make(const struct mlsdm_map *map, struct transition *t, const struct mlsdm_event *event,
                         struct memory *memory, uint64_t superseded, const struct duplicate *duplicate) {
    struct mlsdm_scalars *now = &t->next->scalars;
    struct mlsdm_decided *decided = decided_in(t);
    int status = owner_find(map, t, event->namespace, event->generation);
    if (status) return status;
    struct mlsdm_slot line = {
        .position = t->position,
        .admitted = t->position,
        .queued = t->position,
        .time_ns = event->flags & MLSDM_EVENT_CREATED ? event->created_ns : t->next->time_ns,
        .updated_ns = t->next->time_ns,
        .own_id = {event->own_id_hash[0], event->own_id_hash[1]},
        .moral = event->moral,
        .namespace = event->namespace,
        .generation = event->generation,
        .scorer = event->scorer,
        .phase = (uint8_t)now->phase,
        .flags = (event->flags & MLSDM_EVENT_DEFAULTED) != 0,
    };
    const struct mlsdm_terms *terms = t->owner->terms;
    if ((status = expiry_of(event, terms->ttl_ns, t->next->time_ns, &line.expires_ns))) return status;
    int skips = duplicate && duplicate->policy == MLSDM_DECIDED_SKIP;
    if (duplicate) decided->duplicate_of = duplicate->id, decided->duplicate_score = duplicate->score;
    if (duplicate && duplicate->policy == MLSDM_DECIDED_SUPERSEDE) superseded = duplicate->id;
    if (superseded && (status = slots_find(map, t, superseded, MLSDM_CAUSE_SUPERSEDED))) return status;
    struct judge judge = judge_of(t);
    t->decision = (struct mlsdm_decision){.position = t->position,
                                          .time_ns = t->next->time_ns,
                                          .moral = event->moral,
                                          .theta_before = *judge.theta,
                                          .phase = now->phase};
    int steps = (t->next->settings.flags & MLSDM_FLAG_EVENTS_CLOCK) != 0;
    int judged = judge.mode != MLSDM_MODE_OFF;
    int verdict = judged && governor_decide(judge.theta, judge.ema, judge.constants, event->moral);
    int accepted = verdict || judge.mode != MLSDM_MODE_ENFORCE, stored = accepted && !skips;
    if ((stored || (steps && consolidates(t->next))) && !levels_sound(map, t->next)) return MLSDM_STATUS_CORRUPT;
    now->accepted += (uint64_t)accepted, now->rejected += (uint64_t)!accepted;
    t->owner->after.accepted += (uint64_t)accepted, t->owner->after.rejected += (uint64_t)!accepted;
    if (stored) {
        if ((status = slots_choose(map, t))) return status;
        line.id = t->decision.memory_id = now->newest_id += 1;
        t->erases = superseded != 0;
        cascade(map, t, memory->vector);
        if (superseded) line.time_ns = slot_at(map, t->slots.freed - 1)->time_ns;
        decided->content = memory_write(map, t->slots.written - 1, memory, line);
    } else {
        t->slots = (struct allocation){0};
    }
    t->decision.sequence = now->accepted + now->rejected;
    t->decision.theta_after = *judge.theta, t->decision.ema = *judge.ema;
    t->decision.flags = (uint16_t)((judged ? MLSDM_DECIDED_JUDGED : 0) | (verdict ? MLSDM_DECIDED_VERDICT : 0) |
                                   (stored ? MLSDM_DECIDED_STORED : 0) | (duplicate ? duplicate->policy : 0));
    if (steps) {
        if (consolidates(t->next)) cascade(map, t, NULL);
        rhythm_step(now, &t->next->settings);
    }
    decided->flags = t->decision.flags, decided->memory_id = t->decision.memory_id;
    if (!stored) line.time_ns = line.updated_ns = line.expires_ns = 0;
    describe_memory(decided, &line);
    decided->vector_checksum = memory->vector_checksum, decided->key_id = event->key_id;
    if ((t->hash = event->hash)) {
        decided->receipt = t->next->receipts += 1;
        decided->key[0] = t->hash->words[0], decided->key[1] = t->hash->words[1], decided->body = t->hash->body;
    }
    return transition_describe(map, t);
}

/* Decide an event whose memory is prepared; the rest as in decision_make. Returns AGAIN, without the lock, if the
 * search for its duplicate has to go on. */
static int admit_prepared(const struct mlsdm_map *map, int64_t time_ns, const struct mlsdm_event *event,
                          struct memory *memory, uint64_t superseded, struct duplicates *duplicates,
                          struct mlsdm_decision *decision) {
    int status = section_enter(map);
    if (status) return status;
    struct transition t;
    if ((status = transition_begin(map, &t, MLSDM_KIND_DECISION, time_ns))) return section_leave(map, status);
    if (event->hash && receipt_find(map, t.before->receipts, event->hash, decision, &status))
        return section_leave(map, status);
    if (t.before->scalars.flags & MLSDM_FLAG_STOPPED) return section_leave(map, MLSDM_STATUS_STOPPED);
    struct duplicate duplicate = {0};
    if ((status = emergency_of(map)) ||
        (duplicates && (status = duplicates_settle(map, duplicates, t.before, t.next->time_ns, event, &duplicate))) ||
        (status = decision_make(map, &t, event, memory, superseded, duplicate.id ? &duplicate : NULL)))
        return section_leave(map, status);
    *decision = t.decision;
    transition_commit(map, &t);
    return section_leave(map, MLSDM_STATUS_OK);
}

/* `superseded` as in decision_make. */
static int admit(const struct mlsdm_map *map, int64_t time_ns, const struct mlsdm_event *event, uint64_t superseded,
                 struct mlsdm_decision *decision) {
    struct memory memory;
    memory_prefetch(map);
    int status = memory_prepare(map, &memory, event);
    return status ? status : admit_prepared(map, time_ns, event, &memory, superseded, NULL, decision);
}

/* Decide an event that asks for its duplicate. The attempts and rounds are those of a recall. */
static int admit_deduped(struct mlsdm_map *map, int64_t time_ns, const struct mlsdm_event *event,
                         struct mlsdm_decision *decision) {
    struct memory memory;
    struct duplicates duplicates, *d = &duplicates;
    int excluded = 0, status = memory_prepare(map, &memory, event);
    if (status || (status = duplicates_prepare(map, d, event, &memory))) return status;
    for (int attempt = 1; attempt <= ATTEMPTS_MAX; attempt++) {
        uint64_t corrupt_id;
        if (!excluded && (d->misled || attempt == ATTEMPTS_MAX / 2)) {
            if ((status = quarantine(map, &corrupt_id))) return status;
            excluded = 1;
        }
        if ((status = duplicates_begin(map, d, time_ns, attempt))) return status;
        d->far = 1;
        for (int round = 0; round < ROUNDS_MAX && d->far; round++) {
            if ((status = duplicates_follow(map, d)) == AGAIN) break;
            if (!status) status = admit_prepared(map, time_ns, event, &memory, 0, d, decision);
            if (status != AGAIN) return status;
        }
    }
    return MLSDM_STATUS_BUSY;
}

/* An event of the namespace `default` that has only a moral value, a vector and a payload. */
static struct mlsdm_event plain_event(double moral, const uint8_t *vector, const uint8_t *payload,
                                      uint32_t payload_size, const struct mlsdm_idempotency_hash *hash) {
    return (struct mlsdm_event){.generation = 1,
                                .moral = moral,
                                .vector = vector,
                                .payload = payload,
                                .payload_size = payload_size,
                                .hash = hash};
}

int mlsdm_admit(struct mlsdm_map *map, int64_t time_ns, double moral, const uint8_t *vector, const uint8_t *payload,
                uint32_t payload_size, const struct mlsdm_idempotency_hash *hash, struct mlsdm_decision *decision) {
    const struct mlsdm_event event = plain_event(moral, vector, payload, payload_size, hash);
    return admit(map, time_ns, &event, 0, decision);
}

int mlsdm_admit_event(struct mlsdm_map *map, int64_t time_ns, const struct mlsdm_event *event,
                      struct mlsdm_decision *decision) {
    return event->dedupe ? admit_deduped(map, time_ns, event, decision) : admit(map, time_ns, event, 0, decision);
}

int mlsdm_supersede(struct mlsdm_map *map, int64_t time_ns, uint64_t memory_id, double moral, const uint8_t *vector,
                    const uint8_t *payload, uint32_t payload_size, const struct mlsdm_idempotency_hash *hash,
                    struct mlsdm_decision *decision) {
    if (memory_id == 0) return MLSDM_STATUS_UNKNOWN;
    const struct mlsdm_event event = plain_event(moral, vector, payload, payload_size, hash);
    return admit(map, time_ns, &event, memory_id, decision);
}

int mlsdm_admit_batch(struct mlsdm_map *map, int64_t time_ns, uint32_t count, const double morals[],
                      const float vectors[], const uint8_t payloads[], const uint64_t payload_ends[],
                      const struct mlsdm_idempotency_hash *hash, struct mlsdm_decision decisions[], uint32_t *done) {
    struct mlsdm_idempotency_hash item = {{0, 0}, 0};
    if (hash) item = *hash;
    for (*done = 0; *done < count; *done += 1, item.words[1] += 1) {
        uint32_t i = *done;
        uint64_t start = payload_ends && i ? payload_ends[i - 1] : 0, end = payload_ends ? payload_ends[i] : 0;
        int status = mlsdm_admit(map, time_ns, morals[i], (const uint8_t *)(vectors + (size_t)i * map->dimension),
                                 payloads ? payloads + start : NULL, (uint32_t)(end - start), hash ? &item : NULL,
                                 decisions + i);
        if (status) return status;
    }
    return MLSDM_STATUS_OK;
}

/* Write a new version of a memory, with another payload or, if that is NULL, its own. A whole new slot is written, so
 * that no reader sees a memory change. */
static int update_make(const struct mlsdm_map *map, struct transition *t, uint64_t memory_id, const uint8_t *payload,
                       uint32_t payload_size) {
    struct memory memory;
    int status = slots_find(map, t, memory_id, MLSDM_CAUSE_UPDATED);
    if (status) return status;
    if ((status = owner_of_victim(map, t))) return status;
    if (t->owner->terms->flags & MLSDM_NAMESPACE_CLOSING) return MLSDM_STATUS_CLOSING;
    uint64_t from = t->slots.freed - 1;
    if ((status = memory_again(map, from, &memory, payload, payload_size))) return status;
    struct mlsdm_slot line = *slot_at(map, from);
    if ((status = slots_choose(map, t))) return status;
    line.position = t->position, line.updated_ns = t->next->time_ns;
    struct mlsdm_decided *decided = decided_in(t);
    decided->content = memory_write(map, t->slots.written - 1, &memory, line);
    decided->memory_id = memory_id, decided->vector_checksum = memory.vector_checksum;
    describe_memory(decided, &line);
    t->erases = 1;
    return transition_describe(map, t);
}

int mlsdm_update(struct mlsdm_map *map, int64_t time_ns, uint64_t memory_id, const uint8_t *payload,
                 uint32_t payload_size, struct mlsdm_entry *entry) {
    int status = section_enter(map);
    if (status) return status;
    struct transition t;
    if ((status = transition_begin(map, &t, MLSDM_KIND_UPDATE, time_ns)) ||
        (status = update_make(map, &t, memory_id, payload, payload_size)))
        return section_leave(map, status);
    transition_commit(map, &t);
    *entry = *t.entry;
    return section_leave(map, MLSDM_STATUS_OK);
}

/* The checksum of the vector of a memory when it was admitted, from the entry that its slot names; 0 if the log does
 * not hold that entry, or if the slot's line is damaged. */
static uint64_t admitted_checksum(const struct mlsdm_map *map, const struct mlsdm_slot *slot, uint64_t memory_id) {
    const struct mlsdm_entry *entry = entry_at(map, slot->position);
    const struct mlsdm_decided *decided = (const struct mlsdm_decided *)entry->detail;
    int found = entry->position == slot->position &&
                (entry->kind == MLSDM_KIND_DECISION || entry->kind == MLSDM_KIND_UPDATE) &&
                decided->memory_id == memory_id && entry->checksum == entry_checksum(entry);
    return found ? decided->vector_checksum : 0;
}

/* Remove one memory, which a client has deleted or which is lost. The bytes are erased once that is published. */
static int removal_make(const struct mlsdm_map *map, struct transition *t, uint64_t memory_id) {
    int lost = t->entry->kind == MLSDM_KIND_LOST;
    int status = slots_find(map, t, memory_id, lost ? MLSDM_CAUSE_LOST : MLSDM_CAUSE_DELETED);
    if (status || (status = owner_of_victim(map, t))) return status;
    const struct mlsdm_slot *slot = slot_at(map, t->slots.freed - 1);
    struct mlsdm_decided *decided = decided_in(t);
    decided->memory_id = memory_id;
    if (lost)
        decided->vector_checksum = admitted_checksum(map, slot, memory_id);
    else
        decided->moral = slot->moral;
    t->erases = 1;
    return transition_describe(map, t);
}

/* A sound memory is not lost: then `entry->position` is 0. */
static int memory_remove(struct mlsdm_map *map, uint32_t kind, int64_t time_ns, uint64_t memory_id,
                         struct mlsdm_entry *entry) {
    int status = section_enter(map);
    if (status) return status;
    struct transition t;
    if ((status = transition_begin(map, &t, kind, time_ns)) || (status = removal_make(map, &t, memory_id)))
        return section_leave(map, status);
    entry->position = 0;
    uint64_t at = t.slots.freed - 1;
    if (kind == MLSDM_KIND_LOST && slot_at(map, at)->id == memory_id && slot_sound(map, at))
        return section_leave(map, MLSDM_STATUS_OK);
    transition_commit(map, &t);
    *entry = *t.entry;
    return section_leave(map, MLSDM_STATUS_OK);
}

int mlsdm_forget(struct mlsdm_map *map, int64_t time_ns, uint64_t memory_id, struct mlsdm_entry *entry) {
    return memory_remove(map, MLSDM_KIND_DELETE, time_ns, memory_id, entry);
}

int mlsdm_lose(struct mlsdm_map *map, int64_t time_ns, uint64_t memory_id, struct mlsdm_entry *entry) {
    return memory_remove(map, MLSDM_KIND_LOST, time_ns, memory_id, entry);
}

/* -- what the controller does -- */

/* Form the state with which a block begins, at position 1, and its namespace `default`. `t` is of a block that has
 * none.
 */
static int start_make(const struct mlsdm_map *map, struct transition *t, int64_t time_ns,
                      const struct mlsdm_settings *settings) {
    memset(levels_at(map, 0), 0, levels_size(map));
    *t->next = (struct mlsdm_state){
        .position = 1,
        .settings = *settings,
        .configured = settings_checksum(settings),
        .time_ns = time_ns,
        .spare = refers_to(map, list_at(map, FREE_SLOTS)->oldest) - 1,
        .scalars = {.theta = settings->initial_threshold, .ema = 0.5, .counter = settings->wake_duration},
    };
    t->next->levels_checksum = levels_checksum(map, levels_at(map, 0));
    *t->entry = (struct mlsdm_entry){
        .position = 1, .kind = MLSDM_KIND_START, .row = map->row, .time_ns = time_ns, .before = t->next->scalars};
    *(struct mlsdm_regimes *)t->entry->detail = (struct mlsdm_regimes){.replaced = *settings, .settings = *settings};
    if (!tenant_add(map, &t->tenants, 0, 0)) return MLSDM_STATUS_CORRUPT;
    t->tenants.terms = (struct mlsdm_terms){.name = "default", .generation = 1, .flags = MLSDM_NAMESPACE_USED};
    copy_seal(&t->tenants.terms, sizeof t->tenants.terms, 1);
    t->tenants.sets_terms = 1;
    return transition_describe(map, t);
}

/* 1 if no controller has taken over since `epoch` was given. A damaged word is no controller's. Under the lock. */
static int epoch_is(const struct mlsdm_map *map, uint64_t epoch) { return unseal(lock_of(map)->epoch) == epoch; }

uint64_t mlsdm_epoch(const struct mlsdm_map *map) {
    uint64_t epoch = unseal(load_acquire(&lock_of(map)->epoch));
    return epoch == DAMAGED ? unseal(load_acquire(&vitals_of(map)->epoch)) : epoch;
}

int mlsdm_epoch_begin(struct mlsdm_map *map, int64_t time_ns, const struct mlsdm_settings *settings, uint64_t *epoch) {
    int status = section_enter(map);
    if (status) return status;
    struct transition t;
    status = transition_begin(map, &t, MLSDM_KIND_START, time_ns);
    uint64_t newest = mlsdm_epoch(map);
    if (newest == DAMAGED) status = MLSDM_STATUS_CORRUPT;
    if (status && status != MLSDM_STATUS_UNFORMED) return section_leave(map, status);
    if (status == MLSDM_STATUS_UNFORMED) {
        if ((status = start_make(map, &t, time_ns, settings))) return section_leave(map, status);
        transition_commit(map, &t);
    }
    *epoch = newest + 1;
    /* The vitals first: from the store of the other word on, they must not lead back to an epoch that was given. */
    store_release(&vitals_of(map)->epoch, seal(*epoch));
    store_release(&lock_of(map)->epoch, seal(*epoch));
    return section_leave(map, MLSDM_STATUS_OK);
}

static int tick_make(const struct mlsdm_map *map, struct transition *t) {
    if (consolidates(t->next)) {
        if (!levels_sound(map, t->next)) return MLSDM_STATUS_CORRUPT;
        cascade(map, t, NULL);
    }
    rhythm_step(&t->next->scalars, &t->next->settings);
    return transition_describe(map, t);
}

int mlsdm_tick(struct mlsdm_map *map, int64_t time_ns, uint64_t epoch, struct mlsdm_entry *entry) {
    int status = section_enter(map);
    if (status) return status;
    struct transition t;
    if ((status = transition_begin(map, &t, MLSDM_KIND_TICK, time_ns))) return section_leave(map, status);
    if (!epoch_is(map, epoch)) return section_leave(map, MLSDM_STATUS_STALE);
    if ((status = tick_make(map, &t))) return section_leave(map, status);
    transition_commit(map, &t);
    *entry = *t.entry;
    return section_leave(map, MLSDM_STATUS_OK);
}

/* The slot keeps the last command. Its checksum is compared, so that a damaged word cannot make a command pending that
 * was carried out or withdrawn. */
int mlsdm_command_pending(struct mlsdm_map *map) {
    const struct mlsdm_command *command = command_of(map);
    uint64_t ticket = load_acquire(&command->ticket);
    return ticket > state_at(map, commit_of(map))->ticket && ticket != load_acquire(&command->withdrawn) &&
           command->checksum == command_checksum(command);
}

/* Carry out the command of the entry's kind. `settings` and `configured` are read for a configure only. */
static void command_make(const struct mlsdm_map *map, struct transition *t, uint64_t ticket,
                         const struct mlsdm_settings *settings, uint64_t configured) {
    struct mlsdm_scalars *now = &t->next->scalars;
    struct mlsdm_settings *set = &t->next->settings;
    t->entry->ticket = t->next->ticket = ticket;
    t->next->ticket_position = t->position;
    switch (t->entry->kind) {
    case MLSDM_KIND_CONFIGURE: {
        *(struct mlsdm_regimes *)t->entry->detail = (struct mlsdm_regimes){.replaced = *set, .settings = *settings};
        t->entry->flags = configured ? MLSDM_FLAG_CONFIGURED : 0;
        *set = *settings;
        if (configured) t->next->configured = configured;
        now->theta = clamp(now->theta, set->min_threshold, set->max_threshold);
        uint32_t duration = now->phase ? set->sleep_duration : set->wake_duration;
        if (now->counter > duration) now->counter = duration;
        break;
    }
    case MLSDM_KIND_RESET:
        now->theta = set->initial_threshold, now->ema = 0.5, now->phase = 0, now->counter = set->wake_duration;
        t->next->levels ^= 1;
        memset(levels_at(map, t->next->levels), 0, levels_size(map));
        t->next->levels_checksum = levels_checksum(map, levels_at(map, t->next->levels));
        break;
    case MLSDM_KIND_STOP:
        now->flags |= MLSDM_FLAG_STOPPED;
        break;
    case MLSDM_KIND_RESUME:
        now->flags &= (uint16_t)~MLSDM_FLAG_STOPPED;
    }
    transition_describe(map, t);
}

int mlsdm_command_apply(struct mlsdm_map *map, int64_t time_ns, uint64_t epoch, struct mlsdm_entry *entry) {
    entry->position = 0;
    if (!mlsdm_command_pending(map)) return MLSDM_STATUS_OK;
    int status = section_enter(map);
    if (status) return status;
    const struct mlsdm_command *command = command_of(map);
    struct transition t;
    if ((status = transition_begin(map, &t, (uint32_t)command->kind, time_ns))) return section_leave(map, status);
    if (!epoch_is(map, epoch)) return section_leave(map, MLSDM_STATUS_STALE);
    if (!mlsdm_command_pending(map)) return section_leave(map, MLSDM_STATUS_OK);
    command_make(map, &t, command->ticket, &command->settings, command->configured);
    if (command->kind == MLSDM_KIND_RESUME) {
        /* Here too, so that the command takes effect even if the controller dies before it writes its next vitals.
         * Those restore the reasons that cannot be overruled. */
        struct mlsdm_vitals *vitals = vitals_of(map);
        uint64_t overruled = vitals->emergency_overruled | (vitals->emergency & MLSDM_EMERGENCY_MEMORY);
        store_release(&vitals->emergency_overruled, overruled);
        store_release(&vitals->emergency, 0);
    }
    transition_commit(map, &t);
    *entry = *t.entry;
    return section_leave(map, MLSDM_STATUS_OK);
}

int mlsdm_vitals_write(struct mlsdm_map *map, uint64_t epoch, const struct mlsdm_vitals *vitals) {
    int status = section_enter(map);
    if (status) return status;
    if (!committed_state(map, commit_of(map))) return section_leave(map, MLSDM_STATUS_CORRUPT);
    if (!epoch_is(map, epoch)) return section_leave(map, MLSDM_STATUS_STALE);
    struct mlsdm_vitals next = *vitals;
    next.epoch = seal(epoch);
    memcpy(vitals_of(map), &next, sizeof next);
    return section_leave(map, MLSDM_STATUS_OK);
}

int mlsdm_vitals_write_unlocked(struct mlsdm_map *map, uint64_t predecessor, const struct mlsdm_vitals *vitals) {
    uint64_t words[sizeof *vitals / 8], *shared = region(map, MLSDM_REGION_VITALS);
    _Atomic uint64_t *signer = (_Atomic uint64_t *)&vitals_of(map)->controller_pid;
    if (atomic_load(signer) != vitals->controller_pid &&
        !atomic_compare_exchange_strong(signer, &predecessor, vitals->controller_pid))
        return MLSDM_STATUS_STALE;
    memcpy(words, vitals, sizeof words);
    for (size_t i = 0; i < sizeof words / 8; i++)
        if (i != offsetof(struct mlsdm_vitals, epoch) / 8) store_release(shared + i, words[i]);
    return MLSDM_STATUS_OK;
}

/* -- the command slot -- */

int mlsdm_command_post(struct mlsdm_map *map, uint32_t kind, const struct mlsdm_settings *settings, uint64_t configured,
                       uint64_t after, uint64_t *ticket) {
    int status = section_enter(map);
    if (status) return status;
    struct mlsdm_command *command = command_of(map);
    const struct mlsdm_state *state = committed_state(map, commit_of(map));
    if (!state) return section_leave(map, MLSDM_STATUS_CORRUPT);
    if (mlsdm_command_pending(map) || (after != UINT64_MAX && after != state->ticket))
        return section_leave(map, MLSDM_STATUS_TAKEN);
    struct mlsdm_command next = *command;
    next.kind = kind;
    next.configured = configured;
    if (settings) next.settings = *settings;
    /* No ticket is given twice. */
    next.ticket = (command->ticket > state->ticket ? command->ticket : state->ticket) + 1;
    if (next.withdrawn >= next.ticket) next.withdrawn = 0; /* it is damaged: the new command is not withdrawn */
    next.checksum = command_checksum(&next);
    memcpy((uint8_t *)command + sizeof next.ticket, (uint8_t *)&next + sizeof next.ticket,
           sizeof next - sizeof next.ticket);
    store_release(&command->ticket, *ticket = next.ticket);
    return section_leave(map, MLSDM_STATUS_OK);
}

uint64_t mlsdm_settings_checksum(const struct mlsdm_settings *settings) { return settings_checksum(settings); }

int mlsdm_command_withdraw(struct mlsdm_map *map, uint64_t ticket) {
    int status = section_enter(map);
    if (status) return status;
    struct mlsdm_command *command = command_of(map);
    const struct mlsdm_state *state = committed_state(map, commit_of(map));
    if (!state) return section_leave(map, MLSDM_STATUS_CORRUPT);
    int sound = command->checksum == command_checksum(command);
    int ours = sound ? command->ticket == ticket && mlsdm_command_pending(map) : ticket > state->ticket;
    if (!ours) return section_leave(map, MLSDM_STATUS_TAKEN);
    store_release(&command->withdrawn, ticket); /* from here on the checksum is wrong, or the command is withdrawn */
    command->ticket = ticket;
    command->checksum = command_checksum(command);
    return section_leave(map, MLSDM_STATUS_OK);
}
