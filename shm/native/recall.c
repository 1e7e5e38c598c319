/* Exact recall: the k live memories nearest to a query by cosine, equal to brute force at one position of the log.
 *
 * Three steps. (1) Without the lock, scan the int8 shadow, a quarter of the vectors' bytes: each row gives an
 * interval that surely holds its cosine. With L the k-th largest lower end, only rows whose upper end reaches L can
 * be among the best k: about a hundred of 20,000 on real data. (2) Still without the lock, score those in full and
 * keep the best few on a bench, in order. (3) Under the lock, drop from the bench what was evicted or deleted
 * meanwhile, score what was admitted meanwhile, copy the winners.
 *
 * Why step 3 is exact. Bench entries that score at least L are, in order, the best of all memories that lived when
 * the scan began: rows off the bench score below the bench or below L. So the first k survivors among them are the
 * best k survivors; if fewer survive, the whole recall is tried again, the last time entirely under the lock. A row
 * torn by an overwrite while it was scanned belongs to an evicted memory and is dropped.
 *
 * The interval. v/|v| = s·c + r with |r| ≤ e (stored, see memory.c); q/|q| = t·d + u in 16-bit codes. Then
 * cos = s·t·(c·d) + t·d·r + u·v/|v|, so the error is at most (1 + |u|)·e + |u|, plus SLACK for float32 rounding.
 * c·d is exact in int32: codes of the query are kept below 2^31 / (127 · dimension). */

#include "block.h"

#define TOP_K_MAX 100
#define BENCH (TOP_K_MAX + 32)
#define SLACK 1e-6f /* three float32 roundings of numbers below 1.01 and a float64 score: under 3e-7 */
#define RUN 64      /* candidates that are scored in one go */
#define ATTEMPTS_UNLOCKED 3
#define ATTEMPTS_MAX 6 /* two under the lock do: one finds the damage, the next works without it */
#define AHEAD 5120     /* bytes of shadow that are on their way to the cache while a row is scanned */
#define NEW_MAX 256    /* admitted since the scan, scored under the lock: about 4 µs of bounds */

struct scored {
    double score;
    uint64_t id;
    int sound;
};

struct search {
    const struct mlsdm_query *query;
    float vector[DIMENSION_MAX];
    int16_t codes[DIMENSION_MAX];
    double norm;
    float scale, stretch, offset; /* of the query's codes; error = stretch · e + offset */
    uint32_t mask;
    float lower[TOP_K_MAX]; /* min-heap of the k largest lower ends */
    uint32_t lowers;
    struct scored bench[BENCH]; /* min-heap of the best, then sorted */
    uint32_t benched;
    double last; /* score */
    double twin_score;
    float twin[DIMENSION_MAX]; /* a private copy of a vector that two memories seem to share */
    int twinned;
    uint64_t scanned, candidates;
};

static int search_prepare(const struct mlsdm_map *map, struct search *s, const struct mlsdm_query *query) {
    int status = vector_accept(map, s->vector, query->vector, &s->norm);
    if (status) return status;
    s->query = query;
    s->last = NAN;
    s->twinned = 0;
    memset(s->codes, 0, sizeof s->codes);
    s->scale = 0, s->stretch = 1, s->offset = SLACK;
    double most = largest(s->vector, map->padded);
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

static void heap_raise(float *heap, uint32_t count, float value) { /* replace the least */
    uint32_t at = 0;
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] < heap[child]) child++;
        if (value <= heap[child]) break;
        heap[at] = heap[child];
    }
    heap[at] = value;
}
static void lower_offer(struct search *s, float lower) {
    if (s->lowers == s->query->k) {
        if (lower > s->lower[0]) heap_raise(s->lower, s->lowers, lower);
        return;
    }
    uint32_t at = s->lowers++;
    for (uint32_t parent; at && s->lower[parent = (at - 1) / 2] > lower; at = parent) s->lower[at] = s->lower[parent];
    s->lower[at] = lower;
}
/* L: nothing below it can be among the best k. */
static float lower_bound(const struct search *s) { return s->lowers == s->query->k ? s->lower[0] : -INFINITY; }

/* Step 1 over consecutive slots.
 *
 * PERF: the processor's own look ahead ends with each page of 4 KiB; what is asked for here goes over it, and what lies
 * behind the last row is asked for in vain. 20,000 × 384 in 345 µs instead of 410, from a cache that all cores share;
 * to read these bytes and do nothing with them takes 250. */
MLSDM_WIDE static void scan(const struct mlsdm_map *map, struct search *s, uint64_t slot, uint64_t count) {
    const struct mlsdm_code *code = code_at(map, slot);
    const int8_t *shadow = shadow_at(map, slot);
    float *upper = s->query->bounds + slot;
    for (uint64_t i = 0; i < count; i++, code++, shadow += map->shadow_stride) {
        for (uint32_t at = 0; at < map->shadow_stride; at += 64) __builtin_prefetch(shadow + AHEAD + at);
        upper[i] = -INFINITY;
        if (!code->live || !(s->mask >> (code->phase & 1) & 1)) continue;
        float center = center_of(s, code, shadow, map->shadow_stride), radius = radius_of(s, code);
        upper[i] = center + radius;
        lower_offer(s, center - radius);
        s->scanned += 1;
    }
}

static double cosine(const struct mlsdm_map *map, const struct search *s, const float *vector, double norm) {
    return s->norm > 0 && norm > 0 ? dot(s->vector, vector, map->padded) / (s->norm * norm) : 0.0;
}

/* The score of one memory. Where many memories share a vector, the bound rules none of them out: from the second on
 * they are recognised, at the price of reading them. */
static double score_of(const struct mlsdm_map *map, struct search *s, uint64_t slot) {
    const float *vector = vector_at(map, slot);
    size_t size = map->padded * sizeof(float);
    if (s->twinned && !memcmp(s->twin, vector, size)) return s->twin_score;
    double score = cosine(map, s, vector, slot_at(map, slot)->norm);
    if (score == s->last) { /* of the copy, because what it was copied from may be overwritten any time */
        memcpy(s->twin, vector, size);
        s->twin_score = cosine(map, s, s->twin, sqrt(dot(s->twin, s->twin, map->padded)));
        s->twinned = 1;
    }
    s->last = score;
    return score;
}
static int worse(const struct scored *a, const struct scored *b) {
    return a->score < b->score || (a->score == b->score && a->id < b->id);
}

/* Put one memory on the bench if it is among the best so far. */
static void bench_offer(struct search *s, struct scored new) {
    struct scored *heap = s->bench;
    if (isnan(new.score)) new.score = INFINITY; /* only of a damaged memory: it comes first, and is found out */
    uint32_t at = 0;
    if (s->benched < BENCH) {
        at = s->benched++;
        for (uint32_t parent; at && worse(&new, &heap[parent = (at - 1) / 2]); at = parent) heap[at] = heap[parent];
    } else {
        if (worse(&new, &heap[0])) return;
        for (uint32_t child; (child = 2 * at + 1) < BENCH; at = child) {
            if (child + 1 < BENCH && worse(&heap[child + 1], &heap[child])) child++;
            if (worse(&new, &heap[child])) break;
            heap[at] = heap[child];
        }
    }
    heap[at] = new;
}
static int by_rank(const void *a, const void *b) { return worse(a, b) ? 1 : worse(b, a) ? -1 : 0; }

/* Score some memories, newest first in `found`, and offer them to the bench. The newest is offered first: of equal
 * scores it ranks first, so that older ones find the bench taken. The oldest is scored first: where nearly all are
 * candidates, that is the direction in which the processor fetches ahead.
 *
 * PERF: 20,000 identical vectors of 384 dimensions in 1.7 ms; with the newest scored first 3.3 ms. */
static void bench_fill(const struct mlsdm_map *map, struct search *s, struct scored *found, uint32_t count) {
    for (uint32_t i = count; i--;) found[i].score = score_of(map, s, slot_of(map, found[i].id));
    for (uint32_t i = 0; i < count; i++) bench_offer(s, found[i]);
    s->candidates += count;
}

/* Steps 1 and 2 for the ids first … last, all admitted. */
static void scan_ids(const struct mlsdm_map *map, struct search *s, uint64_t first, uint64_t last) {
    uint64_t slots = (uint64_t)map->capacity + 1, from = slot_of(map, first), count = last + 1 - first;
    uint64_t straight = count < slots - from ? count : slots - from;
    scan(map, s, from, straight);
    if (count > straight) scan(map, s, 0, count - straight);
    float bound = lower_bound(s);
    struct scored found[RUN];
    uint32_t run = 0;
    for (uint64_t id = last, slot = slot_of(map, last); id >= first; id--, slot = slot ? slot - 1 : slots - 1) {
        if (!(s->query->bounds[slot] >= bound && s->query->bounds[slot] > -INFINITY)) continue; /* nor a damaged NaN */
        found[run++] = (struct scored){.id = id};
        if (run == RUN) bench_fill(map, s, found, run), run = 0;
    }
    bench_fill(map, s, found, run);
}

static int alive(const struct mlsdm_map *map, uint64_t id, uint64_t newest) { /* under the lock */
    return id + map->capacity > newest && lives_at(map, slot_of(map, id));
}

static void insert(struct mlsdm_match *matches, uint32_t *count, uint32_t k, uint64_t id, double score) {
    uint32_t at = *count < k ? (*count)++ : k;
    while (at && (matches[at - 1].score < score || (matches[at - 1].score == score && matches[at - 1].id < id))) {
        if (at < k) matches[at] = matches[at - 1];
        at--;
    }
    if (at < k) matches[at] = (struct mlsdm_match){.id = id, .score = score};
}

/* Under the lock: take every damaged memory out of the scan, so that its bounds cannot mislead it any more. The
 * scrubber finds such slots by their hint and forgets them. */
static void quarantine(const struct mlsdm_map *map, uint64_t newest, struct mlsdm_recall_result *answer) {
    for (uint64_t id = newest > map->capacity ? newest - map->capacity + 1 : 1; id <= newest; id++) {
        uint64_t slot = slot_of(map, id);
        if (alive(map, id, newest) && slot_sound(map, slot)) continue;
        if (alive(map, id, newest)) answer->corrupt_id = id;
        code_at(map, slot)->live = 0;
    }
}

/* Step 3, under the lock. Returns 0 when too few of the bench survived for the answer to be proven. */
static int settle(const struct mlsdm_map *map, struct search *s, uint64_t seen, const struct mlsdm_scalars *now,
                  struct mlsdm_match *matches, struct mlsdm_recall_result *answer) {
    uint32_t k = s->query->k;
    double bound = lower_bound(s);
    answer->count = 0;
    for (uint32_t i = 0; i < s->benched && answer->count < k && s->bench[i].score >= bound; i++) {
        uint64_t id = s->bench[i].id;
        if (!alive(map, id, now->accepted)) continue;
        if (!s->bench[i].sound && !slot_sound(map, slot_of(map, id)))
            answer->corrupt_id = id;
        else
            insert(matches, &answer->count, k, id, s->bench[i].score);
    }
    int complete = s->lowers < k && s->candidates <= BENCH; /* every memory that matched is on the bench */
    if (answer->count < k && !complete) return 0;
    for (uint64_t id = seen + 1; id <= now->accepted; id++) {
        uint64_t slot = slot_of(map, id);
        const struct mlsdm_code *code = code_at(map, slot);
        if (!alive(map, id, now->accepted) || !(s->mask >> (code->phase & 1) & 1)) continue;
        s->scanned += 1;
        if (answer->count == k &&
            center_of(s, code, shadow_at(map, slot), map->shadow_stride) + radius_of(s, code) < matches[k - 1].score)
            continue;
        if (!slot_sound(map, slot))
            answer->corrupt_id = id;
        else
            insert(matches, &answer->count, k, id, score_of(map, s, slot));
    }
    for (uint32_t i = 0; i < answer->count; i++) {
        uint64_t at = slot_of(map, matches[i].id);
        const struct mlsdm_slot *slot = slot_at(map, at);
        matches[i].moral = slot->moral, matches[i].time_ns = slot->time_ns;
        matches[i].phase = slot->phase, matches[i].payload_size = slot->payload_size;
        if (s->query->vectors)
            memcpy(s->query->vectors + (size_t)i * map->dimension, vector_at(map, at), map->dimension * sizeof(float));
        if (s->query->payloads)
            memcpy(s->query->payloads + (size_t)i * map->payload_stride, payload_at(map, at), slot->payload_size);
    }
    return 1;
}

/* Recall. OK, BUSY, UNFORMED, CORRUPT, LOST, NOT_FINITE or TOO_LONG; matches best first, ties newer first.
 *
 * A lock that is lost shuts out every writer for good, so step 3 goes without it: memories can be read until the
 * service is restarted. Whoever was inside when it was lost may publish once more; the commit word tells. */
int mlsdm_recall(struct mlsdm_map *map, const struct mlsdm_query *query, struct mlsdm_match *matches,
                 struct mlsdm_recall_result *answer) {
    struct search search, *s = &search;
    int status = search_prepare(map, s, query), done = 0;
    *answer = (struct mlsdm_recall_result){0};
    for (int attempt = 1; !status && !done; attempt++) {
        if (attempt > ATTEMPTS_MAX) return MLSDM_STATUS_CORRUPT;
        int held = attempt > ATTEMPTS_UNLOCKED;
        struct mlsdm_state state;
        status = held ? section_enter(map) : mlsdm_state_read(map, &state, NULL);
        if (status) break;
        if (held && (status = state_copy(map, commit_of(map), &state, NULL))) return section_leave(map, status);
        uint64_t seen = state.scalars.accepted, first = seen > map->capacity ? seen - map->capacity + 1 : 1;
        uint32_t phase = state.scalars.phase;
        s->mask = query->masks[phase];
        s->lowers = s->benched = 0;
        s->scanned = s->candidates = 0;
        if (seen) scan_ids(map, s, first, seen);
        for (int round = 0; !held && round < 3; round++) { /* fold long tails in before the lock is taken */
            if ((status = mlsdm_state_read(map, &state, NULL))) return status;
            if (state.scalars.accepted - seen <= NEW_MAX || state.scalars.accepted - seen >= map->capacity) break;
            scan_ids(map, s, seen + 1, state.scalars.accepted);
            seen = state.scalars.accepted;
        }
        qsort(s->bench, s->benched, sizeof *s->bench, by_rank);
        for (uint32_t i = 0; i < s->benched && i < query->k; i++)
            s->bench[i].sound = slot_sound(map, slot_of(map, s->bench[i].id));
        int lost = !held && (status = section_enter(map)) == MLSDM_STATUS_LOST;
        if (lost) status = MLSDM_STATUS_OK;
        if (status) return status;
        uint64_t commit = commit_of(map);
        if (!(status = state_copy(map, commit, &state, NULL))) {
            const struct mlsdm_scalars *now = &state.scalars;
            done = s->mask == query->masks[now->phase] && settle(map, s, seen, now, matches, answer);
            if (held && !done) quarantine(map, now->accepted, answer);
            answer->as_of = commit, answer->time_ns = state.time_ns, answer->attempts = (uint32_t)attempt;
            answer->scanned = s->scanned, answer->candidates = s->candidates;
        }
        if (!lost)
            section_leave(map, status);
        else if (!still_at(map, commit))
            done = 0, status = MLSDM_STATUS_OK;
    }
    return status;
}
