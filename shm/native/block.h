/* The block in the native core: where its regions are, and how shared words are read, written and sealed.
 *
 * The structures come from shm/layout.py; build.py puts them in front of this file. `struct mlsdm_map` (api.h) is
 * private to a process: each process maps the block at its own address.
 *
 * Invariants: the mutex serialises writers. A reader without it loads the commit word (acquire), copies, and checks
 * with `still_at` that the word has not moved. Stores on which the next lock holder bases a decision are atomic release
 * stores, so that the compiler keeps their order: SIGKILL may stop a process between any two instructions.
 * docs/design/linearizability.md and docs/design/crash-safety.md have the arguments. */

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
/* One binary serves every x86-64: the loader picks the clone for the processor. FMA stays off (-ffp-contract=off), so
 * all clones compute the same numbers. */
#define MLSDM_WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#elif defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define MLSDM_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define MLSDM_WIDE /* the baseline of AArch64 has NEON */
#endif

/* -- addresses of elements -- */

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

/* The kinds of the members of a memory's metadata: MEMBERS_MAX. */
static inline uint8_t *kinds_at(const struct mlsdm_map *map, uint64_t slot) {
    return ((struct mlsdm_kinds *)region(map, MLSDM_REGION_KINDS) + slot)->members;
}
/* The words of a member. The four first members of all slots lie side by side, then the next four, and so on: so a
 * filter reads one line of each slot, in order. */
static inline struct mlsdm_member *member_at(const struct mlsdm_map *map, uint64_t slot, uint32_t member) {
    struct mlsdm_member *members = region(map, MLSDM_REGION_MEMBERS);
    return members + (member / MLSDM_MEMBERS_ABREAST * (uint64_t)map->slots + slot) * MLSDM_MEMBERS_ABREAST +
           member % MLSDM_MEMBERS_ABREAST;
}
static inline struct mlsdm_namespace *namespace_at(const struct mlsdm_map *map, uint64_t row) {
    return (struct mlsdm_namespace *)region(map, MLSDM_REGION_NAMESPACES) + row;
}

static inline struct mlsdm_link *link_at(const struct mlsdm_map *map, uint64_t slot) {
    return (struct mlsdm_link *)region(map, MLSDM_REGION_LINKS) + slot;
}
static inline struct mlsdm_receipt *receipt_at(const struct mlsdm_map *map, uint64_t ordinal) {
    return (struct mlsdm_receipt *)region(map, MLSDM_REGION_RECEIPTS) + ordinal % ((uint64_t)map->receipt_capacity + 1);
}
/* The head of a chain: the sealed ordinal of its newest receipt, 0 for none. */
static inline uint64_t *head_at(const struct mlsdm_map *map, uint64_t chain) {
    return (uint64_t *)region(map, MLSDM_REGION_CHAINS) + chain;
}

/* -- words that other processes read without the lock -- */

static inline uint64_t load_acquire(const uint64_t *word) {
    return atomic_load_explicit((const _Atomic uint64_t *)word, memory_order_acquire);
}
static inline void store_release(uint64_t *word, uint64_t value) {
    atomic_store_explicit((_Atomic uint64_t *)word, value, memory_order_release);
}

/* -- sealed words --
 *
 * A word that changes by one store cannot have a checksum beside it. The words of that kind (the commit word, the mark
 * of a slot, the head of a chain of receipts, the epoch) therefore carry a check inside: the low 48 bits are a number,
 * the high 16 bits are the top 16 bits of number · SEAL_FACTOR. SEAL_FACTOR has no sixteen equal bits in a row, so a
 * flip of one bit of the number always changes the check; wider damage passes with probability 2^-16. Zero is sealed as
 * zero. */
#define SEAL_FACTOR UINT64_C(0x9E3779B97F4A7C15)
#define DAMAGED UINT64_MAX /* the value of a word whose check is wrong: above every position */

#define SEALED_MAX UINT64_C(0xFFFFFFFFFFFF)
static inline uint64_t seal(uint64_t position) { return position | (position * SEAL_FACTOR) >> 48 << 48; }
static inline uint64_t unseal(uint64_t word) {
    uint64_t position = word & SEALED_MAX;
    return seal(position) == word ? position : DAMAGED;
}

static inline uint64_t *commit_word(const struct mlsdm_map *map) {
    return &((struct mlsdm_commit *)region(map, MLSDM_REGION_COMMIT))->sealed;
}
/* The committed position, or DAMAGED; no state buffer matches the latter. */
static inline uint64_t commit_of(const struct mlsdm_map *map) { return unseal(load_acquire(commit_word(map))); }

/* -- marks: what a slot says of itself --
 *
 * A mark is a sealed number, 2 · position + kind. Kind 0: the memory in the slot lives since that position. Kind 1: the
 * slot is free since that position, since 0 if it was never used. So no mark is zero, and 2^47 positions last four
 * years at a million a second. The mark stands twice, in the slot's line and in the code line that the scan reads: one
 * of them may be damaged. A mark above the commit word belongs to a transition that has not happened; before it, the
 * opposite held. */
static inline uint64_t live_since(uint64_t position) { return seal(2 * position); }
static inline uint64_t free_since(uint64_t position) { return seal(2 * position + 1); }

/* 1 if by this mark a memory lives at position `commit`, 0 if the slot is free, -1 if the mark is damaged. */
static inline int mark_lives(uint64_t mark, uint64_t commit) {
    uint64_t said = unseal(mark);
    if (said == 0 || said == DAMAGED) return -1;
    return (said >> 1 <= commit) != (said & 1);
}
/* The same by both marks of a slot; -1 also if they contradict each other. */
static inline int slot_lives(const struct mlsdm_map *map, uint64_t at, uint64_t commit) {
    int line = mark_lives(load_acquire(&slot_at(map, at)->mark), commit);
    int code = mark_lives(load_acquire(&code_at(map, at)->mark), commit);
    return line == code || code < 0 ? line : line < 0 ? code : -1;
}
/* The mark of a slot, from the copy that is sound. */
static inline uint64_t mark_of(const struct mlsdm_map *map, uint64_t at) {
    uint64_t mark = slot_at(map, at)->mark;
    return mark_lives(mark, 0) < 0 ? code_at(map, at)->mark : mark;
}
static inline void slot_mark(const struct mlsdm_map *map, uint64_t at, uint64_t mark) {
    store_release(&slot_at(map, at)->mark, mark);
    store_release(&code_at(map, at)->mark, mark);
}

/* 1 while nothing that was visible at `position` can have been overwritten. */
static inline int still_at(const struct mlsdm_map *map, uint64_t position) {
    atomic_thread_fence(memory_order_acquire);
    return unseal(atomic_load_explicit((_Atomic uint64_t *)commit_word(map), memory_order_relaxed)) == position;
}

#endif
