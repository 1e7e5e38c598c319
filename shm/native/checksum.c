/* Checksums: guard the records of the block against bit flips and torn writes. They do not protect against an
 * adversary.
 *
 * Twenty-four lanes each take every 24th word by `STEP`, in vectors of any width, and are joined to eight; these are
 * multiplied by different odd numbers and added. Each operation is a bijection of the lane and of the word, so a change
 * that is confined to one word always changes the sum. docs/design/checksum.md has the argument, what is known about
 * changes of several words, and the figures.
 *
 * Perf: `STEP` has no multiplication: that of eight 64-bit words takes three micro-operations and 15 cycles on Intel,
 * and AVX2 and NEON have none. */

#include "block.h"

#define STEP(lane, word) lane = (lane ^ lane >> 29) + (word), lane += lane << 35
#define JOIN(lane, other) STEP(lane, other ^ other >> 17) /* not STEP: two flips would cancel */

/* The lanes begin with different values: otherwise equal words in two of them could be exchanged. */
static const uint64_t LANE_START[24] = {
    SEAL_FACTOR * 1,  SEAL_FACTOR * 2,  SEAL_FACTOR * 3,  SEAL_FACTOR * 4,  SEAL_FACTOR * 5,  SEAL_FACTOR * 6,
    SEAL_FACTOR * 7,  SEAL_FACTOR * 8,  SEAL_FACTOR * 9,  SEAL_FACTOR * 10, SEAL_FACTOR * 11, SEAL_FACTOR * 12,
    SEAL_FACTOR * 13, SEAL_FACTOR * 14, SEAL_FACTOR * 15, SEAL_FACTOR * 16, SEAL_FACTOR * 17, SEAL_FACTOR * 18,
    SEAL_FACTOR * 19, SEAL_FACTOR * 20, SEAL_FACTOR * 21, SEAL_FACTOR * 22, SEAL_FACTOR * 23, SEAL_FACTOR * 24,
};
/* The powers of SEAL_FACTOR. Modulo 2^32 no two of them are equal or opposite. */
#define POWER2 (SEAL_FACTOR * SEAL_FACTOR)
#define POWER4 (POWER2 * POWER2)
static const uint64_t LANE_FACTOR[8] = {
    SEAL_FACTOR,          POWER2,          POWER2 * SEAL_FACTOR,          POWER4,
    POWER4 * SEAL_FACTOR, POWER4 * POWER2, POWER4 * POWER2 * SEAL_FACTOR, POWER4 * POWER4,
};

/* Define `name`: take the largest multiple of 8 words, at least 8, and join the lanes to eight. `bytes` is the width of
 * a vector. */
#define DEFINE_LANES(name, target, bytes)                                                                     \
    target __attribute__((noinline)) static void name(uint64_t lane[8], const uint64_t *word, size_t count) { \
        typedef uint64_t vector __attribute__((vector_size(bytes), aligned(8)));                              \
        enum { EIGHT = 64 / bytes };                                                                          \
        vector at[3 * EIGHT];                                                                                 \
        memcpy(at, LANE_START, sizeof at);                                                                    \
        const vector *next = (const vector *)word;                                                            \
        for (; count >= 24; count -= 24, next += 3 * EIGHT)                                                   \
            for (int i = 0; i < 3 * EIGHT; i++) STEP(at[i], next[i]);                                         \
        if (count >= 8)                                                                                       \
            for (int i = 0; i < EIGHT; i++) STEP(at[i], next[i]);                                             \
        if (count >= 16)                                                                                      \
            for (int i = EIGHT; i < 2 * EIGHT; i++) STEP(at[i], next[i]);                                     \
        for (int i = 0; i < EIGHT; i++) {                                                                     \
            JOIN(at[EIGHT + i], at[2 * EIGHT + i]);                                                           \
            JOIN(at[i], at[EIGHT + i]);                                                                       \
        }                                                                                                     \
        memcpy(lane, at, 64);                                                                                 \
    }

DEFINE_LANES(lanes_in_16, , 16) /* the baseline of x86-64 (SSE2) and of AArch64 (NEON) */
#ifdef __x86_64__
DEFINE_LANES(lanes_in_32, __attribute__((target("avx2"))), 32)
DEFINE_LANES(lanes_in_64, __attribute__((target("avx512f"))), 64)
#endif

/* The width in bytes of the widest vectors, at most `width_max`, that this processor and this build have. */
static inline uint32_t vector_width(uint32_t width_max) {
#ifdef __x86_64__
    if (width_max >= 64 && __builtin_cpu_supports("avx512f")) return 64;
    if (width_max >= 32 && __builtin_cpu_supports("avx2")) return 32;
#endif
    return 16;
}

/* `size` is a multiple of 8, `bytes` 8-byte aligned. The sum does not depend on `width`, a result of vector_width. */
static uint64_t checksum_in(uint32_t width, const void *bytes, size_t size, uint64_t seed) {
    uint64_t lane[8];
    const uint64_t *word = bytes;
    size_t count = size / 8;
    if (count < 8) memcpy(lane, LANE_START, sizeof lane);
#ifdef __x86_64__
    else if (width == 64)
        lanes_in_64(lane, word, count);
    else if (width == 32)
        lanes_in_32(lane, word, count);
#endif
    else
        lanes_in_16(lane, word, count);
    word += count & ~(size_t)7;
    switch (count & 7) {
    case 7:
        STEP(lane[6], word[6]); /* fall through */
    case 6:
        STEP(lane[5], word[5]); /* fall through */
    case 5:
        STEP(lane[4], word[4]); /* fall through */
    case 4:
        STEP(lane[3], word[3]); /* fall through */
    case 3:
        STEP(lane[2], word[2]); /* fall through */
    case 2:
        STEP(lane[1], word[1]); /* fall through */
    case 1:
        STEP(lane[0], word[0]);
    }
    uint64_t sum = seed ^ size; /* last, so that sums can be chained without waiting for each other */
    for (int i = 0; i < 8; i++) {
        uint64_t spread = lane[i] ^ lane[i] >> 29;
        __asm__("" : "+r"(spread)); /* a scalar: a multiplication of vectors would be emulated */
        sum += spread * LANE_FACTOR[i];
    }
    sum = (sum ^ sum >> 32) * SEAL_FACTOR;
    return sum ^ sum >> 29;
}
#undef STEP
#undef JOIN

static uint64_t checksum_of(const void *bytes, size_t size, uint64_t seed) {
    return checksum_in(vector_width(64), bytes, size, seed);
}

static size_t levels_size(const struct mlsdm_map *map) { return (size_t)3 * map->padded * sizeof(float); }

/* The sum covers position and size: a stale buffer or a shorter record does not match. */
static uint64_t state_checksum(const struct mlsdm_state *state) {
    return checksum_of(state, offsetof(struct mlsdm_state, checksum), 1);
}
/* The committed state, or NULL if its buffer does not hold it. Under the lock. */
static const struct mlsdm_state *committed_state(const struct mlsdm_map *map, uint64_t commit) {
    const struct mlsdm_state *state = state_at(map, commit);
    return commit != DAMAGED && state->position == commit && state->checksum == state_checksum(state) ? state : NULL;
}
static uint64_t entry_checksum(const struct mlsdm_entry *entry) {
    return checksum_of(entry, offsetof(struct mlsdm_entry, checksum), 2);
}
static uint64_t receipt_checksum(const struct mlsdm_receipt *receipt) {
    return checksum_of(receipt, offsetof(struct mlsdm_receipt, checksum), 6);
}
static uint64_t settings_checksum(const struct mlsdm_settings *settings) {
    return checksum_of(settings, sizeof *settings, 7);
}
static uint64_t command_checksum(const struct mlsdm_command *command) {
    return checksum_of(command, offsetof(struct mlsdm_command, checksum), 8);
}
static uint64_t levels_checksum(const struct mlsdm_map *map, const float *levels) {
    return checksum_of(levels, levels_size(map), 3);
}

int mlsdm_checksum(uint32_t width, const uint64_t words[], uint64_t size, uint64_t seed, uint64_t *sum) {
    if (vector_width(width) != width) return 0;
    *sum = checksum_in(width, words, size, seed);
    return 1;
}
