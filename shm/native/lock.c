/* The lock and the section: who may write, and what a writer leaves behind when it dies.
 *
 * The mutex is robust (the kernel hands it on when its holder dies), process-shared and error-checking. `holder` and
 * `acquisitions` let an observer tell a stuck holder from a busy lock; see shm/lock_watch.py.
 *
 * Recovery is not a mode. Every entry into the section compares the intent record with the commit word, whether or
 * not the kernel reported a death: an intent for commit + 1 belongs to a transition that never happened, so its
 * in-place marks are taken back; an id still named there after its deletion was published has bytes left to erase.
 * Everything else that a dead writer touched lies where no reader looks and is simply written again. */

#include "block.h"

static pthread_mutex_t *mutex_of(const struct mlsdm_map *map) { return (pthread_mutex_t *)lock_of(map)->mutex; }
_Static_assert(sizeof(pthread_mutex_t) <= sizeof(((struct mlsdm_lock *)0)->mutex), "pthread_mutex_t fits its field");

/* Make the mutex of a block that nobody else sees yet. Returns 0 or an errno value. */
int mlsdm_lock_create(struct mlsdm_map *map) {
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (!error) error = pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    if (!error) error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (!error) error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    if (!error) error = pthread_mutex_init(mutex_of(map), &attributes);
    return error;
}

static int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Wait for a taken lock: a short spin, because a section lasts a microsecond or two, then the kernel. */
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

/* Delete what a published deletion promised to forget, then say so. Idempotent: a successor may run it again. */
static void erase(const struct mlsdm_map *map, uint64_t id) {
    atomic_thread_fence(memory_order_release); /* a reader that sees an erased byte also sees that it was deleted */
    uint64_t slot = slot_of(map, id);
    code_at(map, slot)->live = 0;
    memset(vector_at(map, slot), 0, (size_t)map->padded * sizeof(float));
    memset(shadow_at(map, slot), 0, map->shadow_stride);
    memset(payload_at(map, slot), 0, map->payload_stride);
    slot_at(map, slot)->checksum = 0; /* nothing that was erased ever looks whole again: see lives_at */
    store_release(&lock_of(map)->intent_id, 0);
}

static void repair(const struct mlsdm_map *map, uint64_t commit) {
    struct mlsdm_lock *lock = lock_of(map);
    if (lock->intent_position == commit + 1) {
        if (lock->intent_row < map->rows)
            for (int cell = 0; cell < 2; cell++) {
                struct mlsdm_tally *tally = &row_at(map, (uint32_t)lock->intent_row)->tally[cell];
                if (tally->position > commit) store_release(&tally->position, 0);
            }
        if (lock->intent_id) store_release(&slot_at(map, slot_of(map, lock->intent_id))->deleted_at, 0);
        if (lock->intent_chain && lock->intent_chain <= map->receipt_capacity)
            store_release(head_at(map, lock->intent_chain - 1), lock->intent_head);
        store_release(&lock->intent_id, 0);
        store_release(&lock->intent_position, 0);
        lock->rollbacks += 1;
    } else if (lock->intent_id) {
        erase(map, lock->intent_id);
    }
}

/* Of an irrecoverable mutex glibc's trylock says so once, and leaves the caller's thread in its word: from then on it
 * looks taken. `lost` tells the others that nobody is inside, and the watch that nobody is stuck there. */
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
    lock->sampled_ns = lock->acquisitions % 64 ? 0 : monotonic_ns(); /* PERF: two looks at the clock are 50 ns */
    uint64_t commit = commit_of(map);
    if ((lock->intent_position > commit || lock->intent_id) && commit != DAMAGED) repair(map, commit);
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

/* Claim or release a worker row: it must still belong to (`pid`, `started`), who was free or found dead. */
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
