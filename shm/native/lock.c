/* The lock and the section: which process may write, and how a new lock holder repairs what a dead one left.
 *
 * The mutex is robust (the kernel hands it on when its holder dies), process-shared and error-checking. `holder` and
 * `acquisitions` let shm/lock_watch.py tell a stuck holder from a busy lock.
 *
 * Invariants: there is no recovery mode. Every entry into the section compares the intent record with the commit word,
 * whether or not the kernel has reported a death. An intent for commit + 1 belongs to a transition that never happened,
 * so its changes in place are undone. A slot that the record still names for erasure after the deletion was published
 * has bytes left to erase. The rows of namespaces that it names are settled. Index and lists that were being changed
 * are made again. Everything else that a dead writer changed lies where no reader looks, and is overwritten.
 * docs/design/crash-safety.md has the argument. */

#include "block.h"

static pthread_mutex_t *mutex_of(const struct mlsdm_map *map) { return (pthread_mutex_t *)lock_of(map)->mutex; }
_Static_assert(sizeof(pthread_mutex_t) <= sizeof(((struct mlsdm_lock *)0)->mutex), "pthread_mutex_t fits its field");

int mlsdm_lock_create(struct mlsdm_map *map) {
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (!error) error = pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    if (!error) error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (!error) error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    if (!error) error = pthread_mutex_init(mutex_of(map), &attributes);
    return error;
}

/* Log time, by the boot clock. */
static int64_t log_time_now(const struct mlsdm_map *map) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec + map->log_offset_ns;
}

static int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Wait for the lock: spin briefly, because a section takes a microsecond or two, then wait in the kernel. */
static int mutex_wait(const struct mlsdm_map *map) {
    int64_t started = monotonic_ns();
    int rc = EBUSY;
    for (int spin = 0; spin < 256 && rc == EBUSY; spin++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ __volatile__("yield");
#endif
        rc = pthread_mutex_trylock(mutex_of(map));
    }
    if (rc == EBUSY && map->wait_ms) {
        int64_t deadline = started + map->wait_ms * INT64_C(1000000);
        struct timespec until = {.tv_sec = deadline / 1000000000, .tv_nsec = deadline % 1000000000};
        rc = pthread_mutex_clocklock(mutex_of(map), CLOCK_MONOTONIC, &until);
    }
    if (map->row < map->rows) {
        struct mlsdm_row *row = row_at(map, map->row);
        row->lock_waits += 1;
        row->lock_wait_ns += (uint64_t)(monotonic_ns() - started);
    }
    return rc;
}

/* Erase the bytes of a memory whose deletion is published, then clear the intent. Idempotent: the next lock holder may
 * run it again. */
static void memory_erase(const struct mlsdm_map *map, uint64_t slot) {
    atomic_thread_fence(memory_order_release); /* a reader that sees an erased byte also sees the deletion */
    memset(vector_at(map, slot), 0, (size_t)map->padded * sizeof(float));
    memset(shadow_at(map, slot), 0, map->shadow_stride);
    memset(payload_at(map, slot), 0, map->payload_stride);
    if (code_at(map, slot)->tag & MLSDM_TAG_MEMBERS || slot_at(map, slot)->metadata_size) {
        memset(kinds_at(map, slot), 0, MLSDM_MEMBERS_MAX);
        for (uint32_t i = 0; i < MLSDM_MEMBERS_MAX; i++) *member_at(map, slot, i) = (struct mlsdm_member){0};
    }
    slot_at(map, slot)->checksum = 0; /* erased bytes must not match it */
    code_at(map, slot)->excluded = 0;
    store_release(&lock_of(map)->intent_erase, 0);
}

/* The names of the rows that are being changed: row + 1, 16 bits each. */
static uint64_t *intent_names(const struct mlsdm_map *map) { return (uint64_t *)lock_of(map)->intent_namespace; }

static void intent_names_clear(const struct mlsdm_map *map) {
    for (int i = 1; i >= 0; i--) /* the first word last: it is the one that `section_enter` looks at */
        if (intent_names(map)[i]) store_release(&intent_names(map)[i], 0);
}

/* Undo the transition that a dead holder prepared but did not publish, or complete the erasure of a published one. */
static void intent_resolve(const struct mlsdm_map *map, uint64_t commit) {
    struct mlsdm_lock *lock = lock_of(map);
    for (int i = 0; i < TENANTS; i++)
        if (lock->intent_namespace[i] && lock->intent_namespace[i] <= map->namespaces)
            namespace_settle(map, lock->intent_namespace[i] - 1u, commit);
    if (*intent_names(map)) terms_counted(map);
    intent_names_clear(map);
    if (lock->intent_position == commit + 1) {
        if (lock->intent_row < map->rows)
            for (int cell = 0; cell < 2; cell++) {
                struct mlsdm_tally *tally = &row_at(map, (uint32_t)lock->intent_row)->tally[cell];
                if (tally->position > commit) store_release(&tally->position, 0);
            }
        for (int i = 0; i < 2; i++)
            if (lock->intent_slot[i] && lock->intent_slot[i] <= map->slots)
                slot_mark(map, lock->intent_slot[i] - 1, lock->intent_mark[i]);
        if (lock->intent_chain && lock->intent_chain <= map->receipt_capacity)
            store_release(head_at(map, lock->intent_chain - 1), lock->intent_head);
        store_release(&lock->intent_erase, 0);
        store_release(&lock->intent_position, 0);
        lock->rollbacks += 1;
    } else if (lock->intent_erase && lock->intent_erase <= map->slots) {
        memory_erase(map, lock->intent_erase - 1);
    }
}

/* glibc's trylock reports an irrecoverable mutex once and leaves the caller's thread id in its word, so that the mutex
 * looks held from then on. `lost` shows the other processes that no process is inside, and the lock watch that none
 * is stuck there. */
static int section_enter(const struct mlsdm_map *map) {
    struct mlsdm_lock *lock = lock_of(map);
    int rc = pthread_mutex_trylock(mutex_of(map));
    if (rc == EBUSY) rc = lock->lost == MLSDM_LOST ? ENOTRECOVERABLE : mutex_wait(map);
    if (rc == EOWNERDEAD) {
        rc = pthread_mutex_consistent(mutex_of(map));
        lock->deaths += 1;
    }
    if (rc == EBUSY || rc == ETIMEDOUT) return MLSDM_STATUS_BUSY;
    if (rc == ENOTRECOVERABLE) store_release(&lock->lost, MLSDM_LOST);
    if (rc) return MLSDM_STATUS_LOST;
    store_release(&lock->holder, map->pid);
    store_release(&lock->acquisitions, lock->acquisitions + 1);
    lock->sampled_ns = lock->acquisitions % 64 ? 0 : monotonic_ns(); /* PERF: reading the clock twice takes 50 ns */
    uint64_t commit = commit_of(map);
    int left = lock->intent_position > commit || lock->intent_erase || *intent_names(map);
    if (left && commit != DAMAGED) intent_resolve(map, commit);
    if ((lock->caches & 1) && commit != DAMAGED) caches_rebuild(map, commit);
    return MLSDM_STATUS_OK;
}

static int section_leave(const struct mlsdm_map *map, int status) {
    int64_t sampled_ns = lock_of(map)->sampled_ns;
    if (sampled_ns && map->row < map->rows) {
        struct mlsdm_row *row = row_at(map, map->row);
        row->lock_holds += 1;
        row->lock_hold_ns += (uint64_t)(monotonic_ns() - sampled_ns);
    }
    store_release(&lock_of(map)->holder, 0);
    pthread_mutex_unlock(mutex_of(map));
    return status;
}

int mlsdm_row_claim(struct mlsdm_map *map, uint32_t row, uint64_t pid, uint64_t started, uint64_t new_pid,
                    uint64_t new_started) {
    int status = section_enter(map);
    if (status) return status;
    struct mlsdm_row *claimed = row_at(map, row);
    if (claimed->pid != pid || claimed->started != started) return section_leave(map, MLSDM_STATUS_TAKEN);
    claimed->connections = 0;
    claimed->heartbeat_ns = 0;
    claimed->started = new_started;
    store_release(&claimed->pid, new_pid);
    return section_leave(map, MLSDM_STATUS_OK);
}
