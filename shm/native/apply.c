/* Apply: an entry that was decided elsewhere is applied to this block.
 *
 * The transition is made again. What was asked for comes from the entry and from the memory that it wrote: kind, time,
 * row, moral value, the memory that is named, settings, ticket. Everything else is computed here: threshold, rhythm,
 * levels, slot, victim, ids. Then both entries are compared, byte by byte, and the transition is committed only if they
 * are equal. So a block to which every entry of another one was applied equals it, or says where it does not.
 *
 * Invariants: as in governor.c. What differs is left between make and commit: it has changed nothing that a reader can
 * see. Neither the epoch nor an emergency of this block is looked at, because the entry has been decided.
 * docs/design/follower.md says which bytes of the two blocks are equal. */

#include "block.h"

#define FIELD(name) ((uint32_t)offsetof(struct mlsdm_entry, name))
#define DETAIL(name) (FIELD(detail) + (uint32_t)offsetof(struct mlsdm_decided, name))

/* The offset of the first byte before `end` in which two entries differ, or `end`. */
static uint32_t entry_difference(const struct mlsdm_entry *a, const struct mlsdm_entry *b, uint32_t end) {
    const uint8_t *left = (const uint8_t *)a, *right = (const uint8_t *)b;
    uint32_t at = memcmp(left, right, end) ? 0 : end;
    while (at < end && left[at] == right[at]) at++;
    return at;
}

static const struct mlsdm_decided *decided_by(const struct mlsdm_entry *entry) {
    return (const struct mlsdm_decided *)entry->detail;
}

/* 1 if the entry wrote a memory, whose content is needed to apply it. */
static int entry_writes(const struct mlsdm_entry *entry) {
    return (entry->kind == MLSDM_KIND_DECISION || entry->kind == MLSDM_KIND_UPDATE) && decided_by(entry)->slot;
}

/* The event that an entry tells of. `hash` is where it refers to, if it came with an idempotency key. */
static struct mlsdm_event event_of(const struct mlsdm_decided *decided, struct mlsdm_idempotency_hash *hash) {
    uint32_t flags = MLSDM_EVENT_EXPIRES | MLSDM_EVENT_CREATED;
    if (decided->flags & MLSDM_DECIDED_PINNED) flags |= MLSDM_EVENT_PINNED;
    if (decided->flags & MLSDM_DECIDED_DEFAULTED) flags |= MLSDM_EVENT_DEFAULTED;
    *hash = (struct mlsdm_idempotency_hash){{decided->key[0], decided->key[1]}, decided->body};
    return (struct mlsdm_event){
        .namespace = decided->namespace,
        .generation = decided->generation,
        .moral = decided->moral,
        .flags = flags,
        .own_id_hash = {decided->own_id[0], decided->own_id[1]},
        .expires_ns = decided->expires_ns,
        .created_ns = decided->created_ns,
        .scorer = decided->scorer,
        .key_id = decided->key_id,
        .hash = decided->receipt ? hash : NULL,
    };
}

static int decision_repeat(const struct mlsdm_map *map, struct transition *t, const struct mlsdm_entry *entry,
                           struct memory *memory, uint32_t *differs) {
    const struct mlsdm_decided *decided = decided_by(entry);
    struct mlsdm_event event = event_of(decided, &t->kept_hash);
    struct mlsdm_decision earlier;
    int status = MLSDM_STATUS_OK;
    if (t->before->scalars.flags & MLSDM_FLAG_STOPPED) return MLSDM_STATUS_STOPPED;
    *differs = DETAIL(key);
    if (event.hash && receipt_find(map, t->before->receipts, event.hash, &earlier, &status))
        return status == MLSDM_STATUS_OK ? MLSDM_STATUS_REUSED : status;
    uint64_t superseded = decided->cause == MLSDM_CAUSE_SUPERSEDED ? decided->victim_id : 0;
    const struct duplicate duplicate = {
        .policy = decided->flags & (MLSDM_DECIDED_KEEP | MLSDM_DECIDED_SKIP | MLSDM_DECIDED_SUPERSEDE),
        .id = decided->duplicate_of,
        .score = decided->duplicate_score,
    };
    status = decision_make(map, t, &event, memory, superseded, duplicate.policy ? &duplicate : NULL);
    *differs = status == MLSDM_STATUS_INVALID ? DETAIL(expires_ns) : superseded ? DETAIL(victim_id) : DETAIL(namespace);
    return status;
}

/* Make the transition of an entry. If it returns neither OK nor CORRUPT, the store of this block refuses the transition
 * because of the field at the offset `differs`. */
static int entry_make(const struct mlsdm_map *map, struct transition *t, const struct mlsdm_entry *entry,
                      struct memory *memory, uint32_t *differs) {
    const struct mlsdm_decided *decided = decided_by(entry);
    const struct mlsdm_regimes *regimes = (const struct mlsdm_regimes *)entry->detail;
    int status;
    *differs = FIELD(kind);
    switch (entry->kind) {
    case MLSDM_KIND_DECISION:
        return decision_repeat(map, t, entry, memory, differs);
    case MLSDM_KIND_UPDATE:
        *differs = DETAIL(vector_checksum);
        if (memory->vector_checksum != decided->vector_checksum) return MLSDM_STATUS_DIVERGED;
        *differs = DETAIL(memory_id);
        return update_make(map, t, decided->memory_id, memory->payload, memory->payload_size);
    case MLSDM_KIND_DELETE:
        *differs = DETAIL(memory_id);
        return removal_make(map, t, decided->memory_id);
    case MLSDM_KIND_LOST: /* the memory may be sound here; what the other block's log still held is not known */
        *differs = DETAIL(memory_id);
        status = removal_make(map, t, decided->memory_id);
        decided_in(t)->vector_checksum = decided->vector_checksum;
        return status;
    case MLSDM_KIND_TICK:
        return tick_make(map, t);
    case MLSDM_KIND_NAMESPACE: {
        const struct mlsdm_changed *changed = (const struct mlsdm_changed *)entry->detail;
        *differs = FIELD(detail);
        return terms_make(map, t, changed->step, changed->namespace, changed->terms.generation, &changed->terms);
    }
    case MLSDM_KIND_RESET:
        *differs = DETAIL(namespace);
        if (decided->generation) return own_reset_make(map, t, decided->namespace, decided->generation);
        /* fall through */
    case MLSDM_KIND_CONFIGURE:
    case MLSDM_KIND_STOP:
    case MLSDM_KIND_RESUME:
        command_make(map, t, entry->ticket, &regimes->settings,
                     entry->flags & MLSDM_FLAG_CONFIGURED ? settings_checksum(&regimes->settings) : 0);
        return MLSDM_STATUS_OK;
    }
    return MLSDM_STATUS_DIVERGED;
}

/* An entry whose position has happened: the log has the same, if it still has that position. */
static int entry_repeat(const struct mlsdm_map *map, const struct mlsdm_entry *entry, struct mlsdm_entry *made,
                        uint32_t *differs) {
    const struct mlsdm_entry *held = entry_at(map, entry->position);
    if (held->position == entry->position && held->checksum == entry_checksum(held)) {
        *differs = entry_difference(entry, held, FIELD(checksum));
        *made = *held;
        if (*differs != FIELD(checksum)) return MLSDM_STATUS_DIVERGED;
    }
    made->position = 0;
    return MLSDM_STATUS_OK;
}

/* Under the lock. */
static int entry_apply(const struct mlsdm_map *map, const struct mlsdm_entry *entry, struct memory *memory,
                       int has_content, struct mlsdm_entry *made, uint32_t *differs) {
    uint64_t commit = commit_of(map);
    if (commit == DAMAGED) return MLSDM_STATUS_CORRUPT;
    *made = (struct mlsdm_entry){.position = commit + 1, .checksum = entry_checksum(entry)};
    *differs = FIELD(checksum);
    if (made->checksum != entry->checksum) return MLSDM_STATUS_DIVERGED;
    *differs = FIELD(position);
    if (entry->position == 0) return MLSDM_STATUS_DIVERGED;
    if (entry->position <= commit) return entry_repeat(map, entry, made, differs);
    if (entry->position != commit + 1) return MLSDM_STATUS_GAP;
    *differs = FIELD(kind);
    if ((commit == 0) != (entry->kind == MLSDM_KIND_START)) return MLSDM_STATUS_DIVERGED;
    if (!has_content && entry_writes(entry)) return MLSDM_STATUS_GONE;

    struct transition t;
    int status = transition_begin(map, &t, entry->kind, entry->time_ns);
    if (status == MLSDM_STATUS_CORRUPT) return status;
    t.row = entry->row < map->rows ? entry->row : 0; /* the tallies add up to what the state counts */
    if (status == MLSDM_STATUS_OK)
        status = entry_make(map, &t, entry, memory, differs);
    else
        status = start_make(map, &t, entry->time_ns, &((const struct mlsdm_regimes *)entry->detail)->settings);
    t.entry->row = entry->row;
    *made = *t.entry;
    if (status == MLSDM_STATUS_CORRUPT) return status;
    uint32_t end = FIELD(checksum), earlier = entry_difference(entry, t.entry, status ? FIELD(after) : end);
    if (status && earlier == FIELD(after)) return MLSDM_STATUS_DIVERGED; /* the states agree: `differs` is the reason */
    *differs = earlier;
    if (earlier < end) return MLSDM_STATUS_DIVERGED;
    t.entry->checksum = entry->checksum;
    transition_commit(map, &t);
    return MLSDM_STATUS_OK;
}

/* Of an event that was not stored, the content may be unknown: of its vector the entry has the checksum. */
static void memory_unknown(const struct mlsdm_map *map, struct memory *memory, const struct mlsdm_entry *entry) {
    memset(memory->vector, 0, map->padded * sizeof(float));
    memset(memory->shadow, 0, map->shadow_stride);
    memory->payload = memory->metadata = memory->own_id = NULL;
    memory->payload_size = memory->metadata_size = memory->own_id_size = 0;
    memory->members = NULL;
    memory->code = (struct mlsdm_code){0};
    memory->norm = 0;
    memory->vector_checksum = decided_by(entry)->vector_checksum;
}

int mlsdm_apply(struct mlsdm_map *map, const struct mlsdm_entry *entry, const struct mlsdm_event *content,
                struct mlsdm_entry *made, uint32_t *differs) {
    struct memory memory;
    int status = MLSDM_STATUS_OK;
    memory_prefetch(map);
    if (content)
        status = memory_prepare(map, &memory, content);
    else
        memory_unknown(map, &memory, entry);
    if (!memory.payload) memory.payload = (const uint8_t *)""; /* to update_make, NULL is the payload before */
    if (status || (status = section_enter(map))) return status;
    return section_leave(map, entry_apply(map, entry, &memory, content != NULL, made, differs));
}
#undef FIELD
#undef DETAIL
