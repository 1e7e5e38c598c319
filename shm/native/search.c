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
 * docs/design/recall.md proves the interval and the exactness of step 3. */

#include "block.h"

#define SPARE_MAX 1024 /* memories beyond the best k that a search can look for, in case that some of the best go */
#define KEEP_MAX (MLSDM_TOP_K_MAX + SPARE_MAX)
#define SHORTLIST_MAX (KEEP_MAX + 32)
#define SLACK 1e-6f         /* covers three float32 roundings of numbers below 1.01 and a float64 score: under 3e-7 */
#define BATCH 64            /* candidates that are scored together */
#define PREFETCH_AHEAD 5120 /* bytes of shadow that are prefetched ahead of the row that is scanned */
#define NEW_MAX 16          /* log entries since the scan that are read under the lock */
#define NEW_SIZE 65536      /* bytes of memories that are read for them: under 10 µs */

enum { UNCHECKED, SOUND, GONE };

struct scored {
    double score;
    uint64_t id, version;
    uint32_t slot;
    uint16_t checked; /* UNCHECKED, SOUND: its checksum was compared, or GONE: the slot does not hold it any more */
    uint16_t copied;  /* the place of the answer that its bytes were copied to, + 1; 0 for none */
};

struct search {
    const struct mlsdm_query *query;
    float vector[DIMENSION_MAX];
    int16_t codes[DIMENSION_MAX];
    double norm;
    float scale, stretch, offset; /* of the query's codes; error = stretch · e + offset */
    uint32_t mask;
    uint32_t keep;         /* k and the spare ones */
    float lower[KEEP_MAX]; /* min-heap of the `keep` largest lower ends */
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

/* Put the interval of one row into `upper` and the heap of lower ends. */
static inline __attribute__((always_inline)) void row_scan(const struct mlsdm_map *map, struct search *s,
                                                           uint64_t commit, const struct mlsdm_code *code,
                                                           const int8_t *shadow, float *upper) {
    *upper = -INFINITY;
    if (row_is_out(code, commit) || !(s->mask >> (code->phase & 1) & 1)) return;
    float center = center_of(s, code, shadow, map->shadow_stride), radius = radius_of(s, code);
    *upper = center + radius;
    lower_offer(s, center - radius);
    s->scanned += 1;
}

/* Step 1.
 *
 * PERF: the processor's own prefetching stops at the end of each 4 KiB page; this one does not (what it fetches behind
 * the last row is wasted). 20,000 × 384 take 345 µs instead of 410 from a cache that all cores share; only reading
 * these bytes takes 250. */
MLSDM_WIDE static void scan(const struct mlsdm_map *map, struct search *s, uint64_t commit) {
    const struct mlsdm_code *code = code_at(map, 0);
    const int8_t *shadow = shadow_at(map, 0);
    for (uint64_t i = 0; i < map->slots; i++, code++, shadow += map->shadow_stride) {
        for (uint32_t at = 0; at < map->shadow_stride; at += 64) __builtin_prefetch(shadow + PREFETCH_AHEAD + at);
        row_scan(map, s, commit, code, shadow, s->query->bounds + i);
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

/* Steps 1 and 2 for every memory that lives in a state. The answer can be settled as long as no more than `spare` of
 * the best go meanwhile. */
static void search_begin(const struct mlsdm_map *map, struct search *s, const struct mlsdm_state *state,
                         uint32_t spare) {
    s->mask = s->query->phase_masks[state->scalars.phase];
    s->keep = s->query->k + spare, s->shortlist_size = s->keep + 32;
    s->lowers = s->shortlisted = 0;
    s->scanned = s->candidates = 0;
    s->begun = s->seen = state->position;
    scan(map, s, s->seen);
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
    int writes = entry->kind == MLSDM_KIND_DECISION || entry->kind == MLSDM_KIND_UPDATE;
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
        if (slot > map->slots) return 0;
        row_scan(map, s, commit, code_at(map, slot - 1), shadow_at(map, slot - 1), s->query->bounds + slot - 1);
        struct scored found;
        if (candidate(map, s, lower_bound(s), slot - 1, &found) && found.version == at)
            shortlist_fill(map, s, &found, 1);
    }
    return 1;
}

/* 1 if a slot holds the memory that was written at position `version`. Under the lock. */
static int still_holds(const struct mlsdm_map *map, uint64_t slot, uint64_t version) {
    return slot_is_live(map, slot) && version_of(map, slot) == version;
}

/* Sort the shortlist, and check the best already: that takes longer than anything else in step 3. Without the lock. A
 * memory that is gone does not come back. */
static void shortlist_check(const struct mlsdm_map *map, struct search *s) {
    if (!s->is_sorted) qsort(s->shortlist, s->shortlisted, sizeof *s->shortlist, by_rank);
    s->is_sorted = 1;
    uint64_t commit = commit_of(map);
    for (uint32_t i = s->shortlisted, k = s->query->k; i && k; i--) {
        struct scored *one = &s->shortlist[i - 1];
        if (one->checked == GONE) continue;
        if (slot_lives(map, one->slot, commit) == 0 || version_of(map, one->slot) != one->version)
            one->checked = GONE;
        else if (k-- && one->checked == UNCHECKED)
            one->checked = slot_sound(map, one->slot) ? SOUND : UNCHECKED;
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
 * log entry frees one slot and writes one at most. */
static int search_is_misled(const struct search *s, uint64_t commit) {
    return 2 * (commit - s->begun) <= s->keep - s->query->k;
}

/* 1 if few enough log entries came after what was looked at to be read under the lock. */
static int search_is_close(const struct mlsdm_map *map, const struct search *s, uint64_t commit) {
    uint64_t size = (uint64_t)map->padded * sizeof(float) + map->shadow_stride + map->payload_stride;
    uint64_t new_max = NEW_SIZE / size + 1;
    return commit - s->seen <= (new_max < NEW_MAX ? new_max : NEW_MAX);
}

enum { SETTLED, UNTOLD, SHORT };

/* Step 3, under the lock, at position `commit`: put the `found` best into `best`, [k]. Returns SETTLED; UNTOLD if the
 * log does not tell what was written since the scan; SHORT if too few of the shortlist still live to prove the answer.
 */
static int search_settle(const struct mlsdm_map *map, struct search *s, uint64_t commit, struct scored *best,
                         uint32_t *found, uint64_t *corrupt_id) {
    uint32_t k = s->query->k, count = 0;
    double bound = lower_bound(s);
    for (uint32_t i = s->shortlisted; i && count < k && s->shortlist[i - 1].score >= bound; i--) {
        const struct scored *one = &s->shortlist[i - 1];
        if (one->checked == GONE || !still_holds(map, one->slot, one->version)) continue;
        if (one->checked != SOUND && !slot_sound(map, one->slot))
            *corrupt_id = link_at(map, one->slot)->id;
        else
            best_insert(best, &count, k, *one);
    }
    /* Every memory that matches is on the shortlist. */
    int complete = s->lowers < s->keep && s->candidates <= s->shortlist_size;
    if (count < k && !complete) return SHORT;
    for (uint64_t at = s->seen + 1; at <= commit; at++) {
        uint64_t slot = slot_written(map, at) - 1;
        if (slot == UINT64_MAX) continue;
        if (slot >= map->slots) return UNTOLD;
        const struct mlsdm_code *code = code_at(map, slot);
        if (!still_holds(map, slot, at) || !(s->mask >> (code->phase & 1) & 1)) continue;
        s->scanned += 1;
        if (count == k &&
            center_of(s, code, shadow_at(map, slot), map->shadow_stride) + radius_of(s, code) < best[k - 1].score)
            continue;
        if (!slot_sound(map, slot))
            *corrupt_id = link_at(map, slot)->id;
        else
            best_insert(
                best, &count, k,
                (struct scored){.score = score_of(map, s, slot), .id = slot_at(map, slot)->id, .slot = (uint32_t)slot});
    }
    *found = count;
    return SETTLED;
}
