/* The block as the native core sees it: where its regions are, how its words are read and written.
 *
 * The structures come from shm/layout.py; they stand in front of this file when the extension is compiled. `struct
 * mlsdm_map` is private to a process: each maps the block at its own address.
 *
 * Memory model. Writers are serialised by the robust mutex. Readers that do not take it validate: load the commit
 * word (acquire), copy, fence (acquire), load the word again. The writer's side of that contract is one release
 * fence between reading the commit word and the first store of a transition (transition_begin): a reader that saw any
 * byte of the transition p → p + 1 ... also sees every earlier commit, notices that its copy may be mixed, and tries
 * again. The plain loads and stores in between race by the letter of C11, as in every sequence lock; they are never
 * used unless the validation that follows them holds.
 *
 * Crash model. SIGKILL stops a process between two instructions, and what it stored is then visible in program
 * order. So the compiler must keep the order of the stores that a successor will judge by: those are atomic and
 * release. */

#ifndef MLSDM_BLOCK_H
#define MLSDM_BLOCK_H

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
/* One binary for every x86-64: the loader picks the clone that the processor can run. FMA stays off
 * (-ffp-contract=off), so that each computes the same. */
#define MLSDM_WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#define MLSDM_WIDEST __attribute__((target_clones("arch=x86-64-v4", "default")))
#elif defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define MLSDM_WIDE __attribute__((target_clones("avx2", "default")))
#define MLSDM_WIDEST
#else
#define MLSDM_WIDE /* AArch64 has NEON in its baseline */
#define MLSDM_WIDEST
#endif

/* -- where things are -- */

static inline void *region(const struct mlsdm_map *map, enum mlsdm_region which) {
    return map->base + map->offset[which];
}
static inline struct mlsdm_lock *lock_of(const struct mlsdm_map *map) { return region(map, MLSDM_REGION_LOCK); }
static inline struct mlsdm_command *command_of(const struct mlsdm_map *map) {
    return region(map, MLSDM_REGION_COMMAND);
}

static inline struct mlsdm_state *state_at(const struct mlsdm_map *map, uint64_t position) {
    return (struct mlsdm_state *)region(map, MLSDM_REGION_STATES) + (position & 1);
}
static inline float *levels_at(const struct mlsdm_map *map, uint64_t which) {
    return (float *)region(map, MLSDM_REGION_LEVELS) + (which & 1) * 3 * map->padded;
}
static inline struct mlsdm_row *row_at(const struct mlsdm_map *map, uint32_t row) {
    return (struct mlsdm_row *)region(map, MLSDM_REGION_ROWS) + row;
}
static inline struct mlsdm_entry *entry_at(const struct mlsdm_map *map, uint64_t position) {
    return (struct mlsdm_entry *)region(map, MLSDM_REGION_LOG) + position % map->log_capacity;
}
static inline uint64_t slot_of(const struct mlsdm_map *map, uint64_t id) { return id % ((uint64_t)map->capacity + 1); }
static inline struct mlsdm_slot *slot_at(const struct mlsdm_map *map, uint64_t slot) {
    return (struct mlsdm_slot *)region(map, MLSDM_REGION_SLOTS) + slot;
}
static inline struct mlsdm_code *code_at(const struct mlsdm_map *map, uint64_t slot) {
    return (struct mlsdm_code *)region(map, MLSDM_REGION_CODES) + slot;
}
static inline int8_t *shadow_at(const struct mlsdm_map *map, uint64_t slot) {
    return (int8_t *)region(map, MLSDM_REGION_SHADOW) + slot * map->shadow_stride;
}
static inline float *vector_at(const struct mlsdm_map *map, uint64_t slot) {
    return (float *)region(map, MLSDM_REGION_VECTORS) + slot * map->padded;
}
static inline uint8_t *payload_at(const struct mlsdm_map *map, uint64_t slot) {
    return (uint8_t *)region(map, MLSDM_REGION_PAYLOADS) + slot * map->payload_stride;
}

static inline struct mlsdm_receipt *receipt_at(const struct mlsdm_map *map, uint64_t ordinal) {
    return (struct mlsdm_receipt *)region(map, MLSDM_REGION_RECEIPTS) + ordinal % ((uint64_t)map->receipt_capacity + 1);
}
/* The newest receipt of a chain: its sealed ordinal, 0 for none. */
static inline uint64_t *head_at(const struct mlsdm_map *map, uint64_t chain) {
    return (uint64_t *)region(map, MLSDM_REGION_CHAINS) + chain;
}

/* -- words that other processes watch -- */

static inline uint64_t load_acquire(const uint64_t *word) {
    return atomic_load_explicit((const _Atomic uint64_t *)word, memory_order_acquire);
}
static inline void store_release(uint64_t *word, uint64_t value) {
    atomic_store_explicit((_Atomic uint64_t *)word, value, memory_order_release);
}

/* -- sealed words --
 *
 * What changes by one store has no checksum beside it. So the three such words that everything hangs on, the commit
 * word, the mark of a deletion and the head of a chain of receipts, carry their check in themselves: a position (or an
 * ordinal) in the low 48 bits, above them the top 16 bits of position · ODD. ODD has no sixteen equal bits in a row, so
 * a change of one bit of the position always changes the check; wider damage passes with probability 2^-16. Zero is
 * sealed as zero. 2^48 positions are nine years of a million a second. */
#define ODD UINT64_C(0x9E3779B97F4A7C15)
#define DAMAGED UINT64_MAX /* what a word whose check does not hold is read as: no position, and above all of them */

static inline uint64_t seal(uint64_t position) { return position | (position * ODD) >> 48 << 48; }
static inline uint64_t unseal(uint64_t word) {
    uint64_t position = word & UINT64_C(0xFFFFFFFFFFFF);
    return seal(position) == word ? position : DAMAGED;
}

static inline uint64_t *commit_word(const struct mlsdm_map *map) {
    return &((struct mlsdm_commit *)region(map, MLSDM_REGION_COMMIT))->sealed;
}
/* The committed position, or DAMAGED: then no state buffer holds its state. */
static inline uint64_t commit_of(const struct mlsdm_map *map) { return unseal(load_acquire(commit_word(map))); }

/* True while nothing that was visible at `position` can have been overwritten since. */
static inline int still_at(const struct mlsdm_map *map, uint64_t position) {
    atomic_thread_fence(memory_order_acquire);
    return unseal(atomic_load_explicit((_Atomic uint64_t *)commit_word(map), memory_order_relaxed)) == position;
}

#endif
