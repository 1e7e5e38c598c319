/* The search for the memories that are nearest to a vector: a scan and a shortlist without the lock, and the best of
 * them under it. recall.c answers queries with it.
 *
 * (1) Scan the int8 shadows, a quarter of the vectors' bytes. Each row gives an interval that holds its cosine. L is
 * the k-th largest lower end: only rows whose upper end reaches L can be among the best k, about a hundred of 20,000 on
 * real data. (2) Score these candidates in full and keep the best ones on a shortlist, in order. (3) Under the lock,
 * drop from the shortlist what has gone meanwhile, and score what the log entries since the scan have written.
 *
 * A candidate is a slot and a version, the position that wrote the slot: if the slot still holds that version under the
 * lock, it has not changed since the scan began.
 *
 * A row counts if its tag is wanted (phase and namespace), it has not expired at the instant of the answer, and the
 * filter selects it. The scan lets the words of its metadata decide. Where they cannot, because a string has the hash
 * of one in the filter, the row counts until the best are compared by their bytes; if one of them differs, the search
 * is repeated with `exact` set, and then the scan compares bytes, too.
 *
 * docs/design/recall.md proves the interval and the exactness of step 3. */

#include "block.h"

#define SPARE_MAX 1024 /* memories beyond the best k that a search can look for, in case that some of the best go */
#define KEEP_MAX (MLSDM_TOP_K_MAX + SPARE_MAX)
#define SHORTLIST_MAX (KEEP_MAX + 32)
#define SLACK 1e-6f         /* covers three float32 roundings of numbers below 1.01 and a float64 score: under 3e-7 */
#define BATCH 64            /* candidates that are scored together */
#define PREFETCH_AHEAD 5120 /* bytes of shadow that are prefetched ahead of the row that is scanned */
#define ATTEMPTS_MAX 16
#define ROUNDS_MAX 32                   /* of one attempt: the log is read without the lock, because more came */
#define NEW_MAX 16                      /* log entries since the scan that are read under the lock */
#define NEW_SIZE 65536                  /* bytes of memories that are read for them: under 10 µs */
#define TAGS (2 * MLSDM_NAMESPACES_MAX) /* a phase and a namespace */

enum { UNCHECKED, SOUND, GONE };

struct scored {
    double score;
    uint64_t id, version;
    uint32_t slot;
    uint16_t checked; /* UNCHECKED, SOUND: its checksum and its strings were compared, or GONE: it does not count */
    uint16_t copied;  /* the place of the answer that its bytes were copied to, + 1; 0 for none */
};

struct search {
    const struct mlsdm_query *query;
    float vector[DIMENSION_MAX];
    int16_t codes[DIMENSION_MAX];
    double norm;
    float scale, stretch, offset; /* of the query's codes; error = stretch · e + offset */
    uint32_t wanted[TAGS / 32];   /* a bit for each tag: 1 if rows with this tag match */
    int64_t instant_ns;           /* rows that have expired at this log time do not match; it only grows */
    int has_expired;              /* 1 if some of the best have expired since the scan */
    int exact;                    /* 1 if the scan compares strings, 0 if it only compares their hashes */
    int differs;                  /* 1 if strings with equal hashes differ: the search must be repeated with `exact` */
    uint32_t keep;                /* k and the spare ones */
    float lower[KEEP_MAX];        /* min-heap of the `keep` largest lower ends */
    uint32_t lowers;
    struct scored shortlist[SHORTLIST_MAX]; /* min-heap of the best; sorted, worst first, it is still one */
    uint32_t shortlisted, shortlist_size;   /* in it; at most */
    int is_sorted;
    double last_score;
    double duplicate_score;
    float duplicate[DIMENSION_MAX]; /* a private copy of a vector that two memories share */
    int has_duplicate;
    uint64_t scanned, candidates;
    uint64_t begun; /* position at which the scan began */
    uint64_t seen;  /* position up to which memories were looked at without the lock */
};

static int search_prepare(const struct mlsdm_map *map, struct search *s, const struct mlsdm_query *query) {
    int status = vector_accept(map, s->vector, query->vector, &s->norm);
    if (status) return status;
    s->query = query;
    s->last_score = NAN;
    s->has_duplicate = 0;
    s->differs = 0;
    memset(s->codes, 0, sizeof s->codes);
    s->scale = 0, s->stretch = 1, s->offset = SLACK;
    double most = magnitude_max(s->vector, map->padded);
    if (most > 0) {
        double finest = 2147483647.0 / (127.0 * map->dimension), left = 0;
        if (finest > 32767) finest = 32767;
        s->scale = (float)(most / s->norm / floor(finest));
        for (uint32_t i = 0; i < map->dimension; i++) {
            double unit = s->vector[i] / s->norm;
            s->codes[i] = (int16_t)rint(s->vector[i] * (floor(finest) / most));
            left += (unit - (double)s->scale * s->codes[i]) * (unit - (double)s->scale * s->codes[i]);
        }
        float error = nextafterf((float)(sqrt(left) * (1.0 + 1e-9)), INFINITY);
        s->stretch = nextafterf(1.0f + error, INFINITY), s->offset = error + SLACK;
    }
    return MLSDM_STATUS_OK;
}

static inline __attribute__((always_inline)) float center_of(const struct search *s, const struct mlsdm_code *code,
                                                             const int8_t *shadow, uint32_t stride) {
    int32_t dot = 0;
    for (uint32_t i = 0; i < stride; i++) dot += (int32_t)s->codes[i] * shadow[i];
    return (float)dot * (s->scale * code->scale);
}
static inline float radius_of(const struct search *s, const struct mlsdm_code *code) {
    return s->stretch * code->error + s->offset;
}

static void heap_replace_least(float *heap, uint32_t count, float value) { /* replace the smallest */
    uint32_t at = 0;
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] < heap[child]) child++;
        if (value <= heap[child]) break;
        heap[at] = heap[child];
    }
    heap[at] = value;
}
static void lower_offer(struct search *s, float lower) {
    if (s->lowers == s->keep) {
        if (lower > s->lower[0]) heap_replace_least(s->lower, s->lowers, lower);
        return;
    }
    uint32_t at = s->lowers++;
    for (uint32_t parent; at && s->lower[parent = (at - 1) / 2] > lower; at = parent) s->lower[at] = s->lower[parent];
    s->lower[at] = lower;
}
/* L: no memory below it can be among the best `keep`. */
static float lower_bound(const struct search *s) { return s->lowers == s->keep ? s->lower[0] : -INFINITY; }

/* 1 if no memory of a row can be in the answer at position `commit`. A mark that is damaged does not hide a memory.
 *
 * PERF: the seal is computed only where the number in the mark says that no memory lives: in few rows. */
static inline int row_is_out(const struct mlsdm_code *code, uint64_t commit) {
    uint64_t said = code->mark & SEALED_MAX;
    return code->excluded == MLSDM_EXCLUDED ||
           (((said & 1) || said >> 1 > commit) && mark_lives(code->mark, commit) == 0);
}

/* 1 if a namespace is in use and not being deleted at position `commit`. The default one always is. */
static int namespace_is_open(const struct mlsdm_map *map, const struct mlsdm_namespace_id *id, uint64_t commit) {
    if (id->number == 0) return id->generation == 1;
    if (id->number >= map->namespaces) return 0;
    const struct mlsdm_terms *terms = copy_newest(namespace_at(map, id->number)->terms, sizeof *terms, commit);
    return terms && terms->generation == id->generation &&
           (terms->flags & (MLSDM_NAMESPACE_USED | MLSDM_NAMESPACE_CLOSING)) == MLSDM_NAMESPACE_USED;
}

/* Set the tags that a query wants in a state: of its namespaces that are open, in the phases that it asks for while the
 * rhythm is in that phase. */
static void tags_want(const struct mlsdm_map *map, const struct mlsdm_query *query, const struct mlsdm_state *state,
                      uint32_t wanted[TAGS / 32]) {
    memset(wanted, 0, TAGS / 8);
    for (uint32_t i = 0; i < query->namespace_count; i++) {
        if (!namespace_is_open(map, query->namespaces + i, state->position)) continue;
        uint32_t tag = tag_of(0, query->namespaces[i].number);
        wanted[tag / 32] |= (query->phase_masks[state->scalars.phase & 1] & 3) << tag % 32;
    }
}

/* 1 if the same tags are wanted at the position of `state`. */
static int tags_still_wanted(const struct mlsdm_map *map, const struct search *s, const struct mlsdm_state *state) {
    uint32_t wanted[TAGS / 32];
    tags_want(map, s->query, state, wanted);
    return !memcmp(wanted, s->wanted, sizeof wanted);
}

/* 1 if the memory in a row has expired. Only of rows whose tag says so the slot's line is read. */
static inline int row_has_expired(const struct mlsdm_map *map, const struct search *s, uint32_t tag, uint64_t slot) {
    if (!(tag & MLSDM_TAG_EXPIRES)) return 0;
    int64_t expires_ns = slot_at(map, slot)->expires_ns;
    return expires_ns && expires_ns <= s->instant_ns;
}
/* 1 if a row counts as far as its tag and its expiry say. */
static inline int row_is_wanted(const struct mlsdm_map *map, const struct search *s, uint32_t tag, uint64_t slot) {
    return (s->wanted[tag % TAGS / 32] >> tag % 32 & 1) && !row_has_expired(map, s, tag, slot);
}
/* NO, YES, or UNDECIDED: whether the filter of the query selects the memory in a row. */
static inline int row_is_selected(const struct mlsdm_map *map, const struct search *s, uint32_t tag, uint64_t slot) {
    return s->query->filter ? filter_selects(map, slot, tag, s->query->filter, s->exact) : YES;
}

/* Put the interval of one row into `upper` and the heap of lower ends. */
static inline __attribute__((always_inline)) void row_scan(const struct mlsdm_map *map, struct search *s,
                                                           const struct mlsdm_code *code, const int8_t *shadow,
                                                           float *upper) {
    float center = center_of(s, code, shadow, map->shadow_stride), radius = radius_of(s, code);
    *upper = center + radius;
    lower_offer(s, center - radius);
    s->scanned += 1;
}
static inline __attribute__((always_inline)) void shadow_prefetch(const struct mlsdm_map *map, const int8_t *shadow) {
    for (uint32_t at = 0; at < map->shadow_stride; at += 64) __builtin_prefetch(shadow + PREFETCH_AHEAD + at);
}

/* Step 1 without a filter.
 *
 * PERF: the processor's own prefetching stops at the end of each 4 KiB page; this one does not (what it fetches behind
 * the last row is wasted). 20,000 × 384 take 345 µs instead of 410 from a cache that all cores share; only reading
 * these bytes takes 250. */
MLSDM_WIDE static void scan(const struct mlsdm_map *map, struct search *s, uint64_t commit) {
    const struct mlsdm_code *code = code_at(map, 0);
    const int8_t *shadow = shadow_at(map, 0);
    for (uint64_t i = 0; i < map->slots; i++, code++, shadow += map->shadow_stride) {
        shadow_prefetch(map, shadow);
        s->query->bounds[i] = OUT;
        if (row_is_out(code, commit) || !row_is_wanted(map, s, code->tag, i)) continue;
        row_scan(map, s, code, shadow, s->query->bounds + i);
    }
}

/* Mark the rows that count: their bound becomes IN, that of the others OUT. */
static void rows_mark(const struct mlsdm_map *map, const struct search *s, uint64_t commit) {
    const struct mlsdm_code *code = code_at(map, 0);
    for (uint64_t i = 0; i < map->slots; i++, code++)
        s->query->bounds[i] = row_is_out(code, commit) || !row_is_wanted(map, s, code->tag, i) ? OUT : IN;
    filter_rows(map, s->query->filter, s->exact, s->query->bounds);
}
/* Step 1 for the rows that are marked. */
MLSDM_WIDE static void scan_selected(const struct mlsdm_map *map, struct search *s) {
    const struct mlsdm_code *code = code_at(map, 0);
    const int8_t *shadow = shadow_at(map, 0);
    uint64_t ahead = PREFETCH_AHEAD / map->shadow_stride;
    for (uint64_t i = 0; i < map->slots; i++, code++, shadow += map->shadow_stride) {
        if (i + ahead < map->slots && s->query->bounds[i + ahead] == IN) shadow_prefetch(map, shadow);
        if (s->query->bounds[i] == IN) row_scan(map, s, code, shadow, s->query->bounds + i);
    }
}

/* The cosine, clamped: rounding takes that of a vector with itself to 1 + 2^-52. NaN stays NaN. */
static double cosine(const struct mlsdm_map *map, const struct search *s, const float *vector, double norm) {
    if (!(s->norm > 0 && norm > 0)) return 0.0;
    double score = dot(s->vector, vector, map->padded) / (s->norm * norm);
    return score > 1.0 ? 1.0 : score < -1.0 ? -1.0 : score;
}

/* The score of one memory. Where many memories share a vector, the bound excludes none of them: from the second one on
 * they are recognised, which costs reading them. */
static double score_of(const struct mlsdm_map *map, struct search *s, uint64_t slot) {
    const float *vector = vector_at(map, slot);
    size_t size = map->padded * sizeof(float);
    if (s->has_duplicate && !memcmp(s->duplicate, vector, size)) return s->duplicate_score;
    double score = cosine(map, s, vector, slot_at(map, slot)->norm);
    if (score == s->last_score) { /* of the copy: the original may be overwritten at any time */
        memcpy(s->duplicate, vector, size);
        s->duplicate_score = cosine(map, s, s->duplicate, sqrt(dot(s->duplicate, s->duplicate, map->padded)));
        s->has_duplicate = 1;
    }
    s->last_score = score;
    return score;
}
static int ranks_below(const struct scored *a, const struct scored *b) {
    return a->score < b->score || (a->score == b->score && a->id < b->id);
}

/* Put one memory on the shortlist if it is among the best so far. */
static void shortlist_offer(struct search *s, struct scored new) {
    struct scored *heap = s->shortlist;
    if (isnan(new.score)) new.score = INFINITY; /* a damaged memory: ranked first, so that its checksum is compared */
    uint32_t at = 0;
    if (s->shortlisted < s->shortlist_size) {
        at = s->shortlisted++;
        for (uint32_t parent; at && ranks_below(&new, &heap[parent = (at - 1) / 2]); at = parent)
            heap[at] = heap[parent];
    } else {
        if (ranks_below(&new, &heap[0])) return;
        for (uint32_t child; (child = 2 * at + 1) < s->shortlist_size; at = child) {
            if (child + 1 < s->shortlist_size && ranks_below(&heap[child + 1], &heap[child])) child++;
            if (ranks_below(&new, &heap[child])) break;
            heap[at] = heap[child];
        }
    }
    heap[at] = new;
    s->is_sorted = 0;
}
static int by_rank(const void *a, const void *b) { return ranks_below(a, b) ? -1 : ranks_below(b, a) ? 1 : 0; }

/* Score some memories and offer them to the shortlist. `found` has them in descending order of their slots, which is
 * that from the newest on unless memories were deleted: of equal scores the newest ranks first, so that the older ones
 * are rejected at once. The last is scored first: where nearly all are candidates, that is the direction in which the
 * processor prefetches.
 *
 * PERF: 20,000 identical vectors of 384 dimensions take 1.7 ms; with the newest scored first 3.3 ms. */
static void shortlist_fill(const struct mlsdm_map *map, struct search *s, struct scored *found, uint32_t count) {
    for (uint32_t i = count; i--;) found[i].score = score_of(map, s, found[i].slot);
    for (uint32_t i = 0; i < count; i++) shortlist_offer(s, found[i]);
    s->candidates += count;
}

/* The position that wrote the memory in a slot: by its marks, unless they are damaged, or about to free the slot. */
static uint64_t version_of(const struct mlsdm_map *map, uint64_t slot) {
    uint64_t said = unseal(mark_of(map, slot));
    return said == 0 || said & 1 ? slot_at(map, slot)->position : said >> 1; /* DAMAGED is odd */
}

/* Step 2 for one row that was scanned: 1 if it is a candidate, which is written to `found`. What was written after the
 * scan began comes from the log. */
static int candidate(const struct mlsdm_map *map, const struct search *s, float bound, uint64_t slot,
                     struct scored *found) {
    if (!(s->query->bounds[slot] >= bound && s->query->bounds[slot] > -INFINITY)) return 0; /* false for NaN, too */
    *found = (struct scored){.version = version_of(map, slot), .id = slot_at(map, slot)->id, .slot = (uint32_t)slot};
    return found->version <= s->seen;
}

/* Steps 1 and 2 for every memory that lives in a state and has not expired at `instant_ns`. The answer can be settled
 * as long as no more than `spare` of the best go meanwhile. */
static void search_begin(const struct mlsdm_map *map, struct search *s, const struct mlsdm_state *state,
                         int64_t instant_ns, uint32_t spare) {
    tags_want(map, s->query, state, s->wanted);
    s->instant_ns = instant_ns, s->has_expired = 0, s->exact = s->differs;
    s->keep = s->query->k + spare, s->shortlist_size = s->keep + 32;
    s->lowers = s->shortlisted = 0;
    s->scanned = s->candidates = 0;
    s->begun = s->seen = state->position;
    if (s->query->filter) {
        rows_mark(map, s, s->seen);
        scan_selected(map, s);
    } else {
        scan(map, s, s->seen);
    }
    float bound = lower_bound(s);
    struct scored found[BATCH];
    uint32_t run = 0;
    for (uint64_t i = 0, slot = state->spare % map->slots; i < map->slots; i++) {
        slot = slot ? slot - 1 : map->slots - 1;
        run += (uint32_t)candidate(map, s, bound, slot, found + run);
        if (run == BATCH) shortlist_fill(map, s, found, run), run = 0;
    }
    shortlist_fill(map, s, found, run);
}

/* The slot + 1 that the log entry of a position wrote, 0 for none; more than any slot if the entry is damaged. */
static uint64_t slot_written(const struct mlsdm_map *map, uint64_t position) {
    const struct mlsdm_entry *entry = entry_at(map, position);
    if (entry->position != position || entry->checksum != entry_checksum(entry)) return UINT64_MAX;
    int writes =
        entry->kind == MLSDM_KIND_DECISION || entry->kind == MLSDM_KIND_UPDATE || entry->kind == MLSDM_KIND_RESTORE;
    return writes ? ((const struct mlsdm_decided *)entry->detail)->slot : 0;
}

/* Steps 1 and 2, still without the lock, for what was written after `s->seen`, up to position `commit`. Returns 0 if
 * the log does not tell. */
static int scan_since(const struct mlsdm_map *map, struct search *s, uint64_t commit) {
    uint64_t first = s->seen + 1;
    s->seen = commit;
    for (uint64_t at = first; at <= commit; at++) {
        uint64_t slot = slot_written(map, at);
        if (slot == 0) continue;
        if (slot-- > map->slots) return 0;
        const struct mlsdm_code *code = code_at(map, slot);
        s->query->bounds[slot] = OUT;
        if (!row_is_out(code, commit) && row_is_wanted(map, s, code->tag, slot) &&
            row_is_selected(map, s, code->tag, slot) != NO)
            row_scan(map, s, code, shadow_at(map, slot), s->query->bounds + slot);
        struct scored found;
        if (candidate(map, s, lower_bound(s), slot, &found) && found.version == at) shortlist_fill(map, s, &found, 1);
    }
    return 1;
}

/* 1 if a slot holds the memory that was written at position `version`. Under the lock. */
static int still_holds(const struct mlsdm_map *map, uint64_t slot, uint64_t version) {
    return slot_is_live(map, slot) && version_of(map, slot) == version;
}

/* Compare the checksum of a memory, and the strings of which so far only the hashes were compared. Returns SOUND,
 * UNCHECKED if the memory is damaged, or GONE if the filter does not select it. */
static uint16_t row_check(const struct mlsdm_map *map, struct search *s, uint64_t slot) {
    if (!slot_sound(map, slot)) return UNCHECKED;
    if (!s->query->filter || s->exact) return SOUND;
    if (filter_selects(map, slot, code_at(map, slot)->tag, s->query->filter, 1) == YES) return SOUND;
    s->differs = 1;
    return GONE;
}

/* 1 if one of the best has expired since the scan. */
static int has_expired_since(const struct mlsdm_map *map, struct search *s, uint64_t slot) {
    int expired = row_has_expired(map, s, code_at(map, slot)->tag, slot);
    s->has_expired |= expired;
    return expired;
}

/* Sort the shortlist, and check the best already: that takes longer than anything else in step 3. Without the lock. A
 * memory that is gone or has expired does not come back. */
static void shortlist_check(const struct mlsdm_map *map, struct search *s) {
    if (!s->is_sorted) qsort(s->shortlist, s->shortlisted, sizeof *s->shortlist, by_rank);
    s->is_sorted = 1;
    uint64_t commit = commit_of(map);
    for (uint32_t i = s->shortlisted, k = s->query->k; i && k; i--) {
        struct scored *one = &s->shortlist[i - 1];
        if (one->checked == GONE) continue;
        if (slot_lives(map, one->slot, commit) == 0 || version_of(map, one->slot) != one->version ||
            has_expired_since(map, s, one->slot))
            one->checked = GONE;
        else if (k-- && one->checked == UNCHECKED)
            one->checked = row_check(map, s, one->slot);
    }
}

/* Put one memory among the k best so far. */
static void best_insert(struct scored *best, uint32_t *count, uint32_t k, struct scored new) {
    uint32_t at = *count < k ? (*count)++ : k;
    for (; at && ranks_below(&best[at - 1], &new); at--)
        if (at < k) best[at] = best[at - 1];
    if (at < k) best[at] = new;
}

/* 1 if so few memories have gone that with sound ones the answer could have been settled: some must be damaged. Each
 * log entry frees one slot and writes one at most; what has expired needs no entry. */
static int search_is_misled(const struct search *s, uint64_t commit) {
    return !s->has_expired && 2 * (commit - s->begun) <= s->keep - s->query->k;
}

/* 1 if few enough log entries came after what was looked at to be read under the lock. */
static int search_is_close(const struct mlsdm_map *map, const struct search *s, uint64_t commit) {
    uint64_t size = (uint64_t)map->padded * sizeof(float) + map->shadow_stride + map->payload_stride +
                    MLSDM_MEMBERS_MAX * sizeof(struct mlsdm_member);
    uint64_t new_max = NEW_SIZE / size + 1;
    return commit - s->seen <= (new_max < NEW_MAX ? new_max : NEW_MAX);
}

enum { SETTLED, UNTOLD, SHORT, DIFFERENT };

/* Step 3, under the lock, at position `commit` and the instant of the search: put the `found` best into `best`, [k].
 * Returns SETTLED; UNTOLD if the log does not tell what was written since the scan; SHORT if too few of the shortlist
 * still live to prove the answer; DIFFERENT if the search must be repeated with `exact`. */
static int search_settle(const struct mlsdm_map *map, struct search *s, uint64_t commit, struct scored *best,
                         uint32_t *found, uint64_t *corrupt_id) {
    uint32_t k = s->query->k, count = 0;
    double bound = lower_bound(s);
    for (uint32_t i = s->shortlisted; i && count < k && s->shortlist[i - 1].score >= bound; i--) {
        struct scored *one = &s->shortlist[i - 1];
        if (one->checked == GONE || !still_holds(map, one->slot, one->version) || has_expired_since(map, s, one->slot))
            continue;
        if (one->checked == UNCHECKED) one->checked = row_check(map, s, one->slot);
        if (one->checked == SOUND)
            best_insert(best, &count, k, *one);
        else if (one->checked == UNCHECKED)
            *corrupt_id = link_at(map, one->slot)->id;
    }
    if (s->differs && !s->exact) return DIFFERENT;
    /* Every memory that matches is on the shortlist. */
    int complete = s->lowers < s->keep && s->candidates <= s->shortlist_size;
    if (count < k && !complete) return SHORT;
    for (uint64_t at = s->seen + 1; at <= commit; at++) {
        uint64_t slot = slot_written(map, at) - 1;
        if (slot == UINT64_MAX) continue;
        if (slot >= map->slots) return UNTOLD;
        const struct mlsdm_code *code = code_at(map, slot);
        if (!still_holds(map, slot, at) || !row_is_wanted(map, s, code->tag, slot) ||
            row_is_selected(map, s, code->tag, slot) == NO)
            continue;
        s->scanned += 1;
        if (count == k &&
            center_of(s, code, shadow_at(map, slot), map->shadow_stride) + radius_of(s, code) < best[k - 1].score)
            continue;
        uint16_t checked = row_check(map, s, slot);
        if (checked == SOUND)
            best_insert(
                best, &count, k,
                (struct scored){.score = score_of(map, s, slot), .id = slot_at(map, slot)->id, .slot = (uint32_t)slot});
        else if (checked == UNCHECKED)
            *corrupt_id = link_at(map, slot)->id;
    }
    *found = count;
    return SETTLED;
}

/* How many of the best may go while the memories are scanned. The first attempt usually succeeds; a search for more
 * takes longer. */
static uint32_t spare_of(int attempt) { return attempt == 1 ? 0 : attempt == 2 ? 64 : SPARE_MAX; }

/* Exclude every damaged memory from the scan, where its bounds are misleading. The scrub finds such slots and enters
 * the memories as lost. A slot that looks damaged is looked at again under the lock. */
static int quarantine(const struct mlsdm_map *map, uint64_t *corrupt_id) {
    for (uint64_t slot = 0; slot < map->slots; slot++) {
        if (code_at(map, slot)->excluded == MLSDM_EXCLUDED || slot_lives(map, slot, commit_of(map)) == 0 ||
            slot_sound(map, slot))
            continue;
        int status = section_enter(map);
        if (status) return status;
        if (slot_is_live(map, slot) && !slot_sound(map, slot)) {
            *corrupt_id = link_at(map, slot)->id;
            code_at(map, slot)->excluded = MLSDM_EXCLUDED;
        }
        section_leave(map, status);
    }
    return MLSDM_STATUS_OK;
}
