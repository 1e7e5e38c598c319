/* Token buckets: limit the rate of each client, over all workers together.
 *
 * A bucket is one moment, `due_ns`, at which it will be full again. Spending n tokens moves it n × interval into the
 * future, at most burst × interval from now; time that passes refills it (the generic cell rate algorithm, ITU-T
 * I.371). One compare-and-swap spends: there is no lock and no refill, and a process that dies has spent the tokens or
 * has not.
 *
 * A keyed hash of the client's name selects BUCKET_WAYS places in a table of fixed size. A client without a bucket gets
 * the one of these places that is due first. If that moment has passed, the former owner's bucket was full, and it will
 * get a full one again: it loses nothing. If all places are in use, the owner with the smallest debt loses its debt. So
 * a flood of invented clients can make the limit more lenient and never stricter. Clients with API keys have a table of
 * their own that others cannot fill.
 *
 * Invariants: a word has no room for a check, so damage shows only if a debt is longer than any can be. Such a debt
 * counts as none; otherwise one flipped bit would lock a client out for a century. Workers that give the same new
 * client a bucket at the same moment may give it several. Only one of them counts afterwards, so the client gains at
 * most one burst for each further worker. */

#include "block.h"

/* How far another process's clock reading may be ahead of the caller's. */
#define CLOCK_SKEW_NS_MAX INT64_C(60000000000)

static struct mlsdm_bucket *bucket_of(const struct mlsdm_map *map, uint32_t table, uint64_t owner, int64_t now_ns,
                                      int create) {
    struct mlsdm_bucket *places = (struct mlsdm_bucket *)region(map, MLSDM_REGION_KEYS + table);
    places += owner % (map->buckets[table] / MLSDM_BUCKET_WAYS) * MLSDM_BUCKET_WAYS;
    for (;;) {
        struct mlsdm_bucket *first_due = places;
        for (struct mlsdm_bucket *place = places; place < places + MLSDM_BUCKET_WAYS; place++) {
            if (load_acquire(&place->owner) == owner) return place;
            if (place->due_ns < first_due->due_ns) first_due = place;
        }
        if (!create) return NULL;
        /* The bucket has no owner while its debt is cancelled, so that the new owner never finds the old debt. The
         * compare-and-swap expects the debt as it was read, so that a concurrent spend is not lost. */
        _Atomic uint64_t *name = (_Atomic uint64_t *)&first_due->owner;
        _Atomic int64_t *due = (_Atomic int64_t *)&first_due->due_ns;
        int64_t owed = atomic_load(due);
        uint64_t former = atomic_load(name);
        if (former == owner) return first_due;
        if (former && !atomic_compare_exchange_strong(name, &former, 0)) continue;
        if (!atomic_compare_exchange_strong(due, &owed, owed < now_ns ? owed : now_ns)) continue;
        former = 0;
        if (atomic_compare_exchange_strong(name, &former, owner)) return first_due;
    }
}

int64_t mlsdm_tokens_spend(struct mlsdm_map *map, const struct mlsdm_account *account, int64_t now_ns, uint32_t count) {
    struct mlsdm_bucket *bucket = bucket_of(map, account->table, account->owner, now_ns, 1);
    _Atomic int64_t *due = (_Atomic int64_t *)&bucket->due_ns;
    int64_t room = account->burst * account->interval_ns, found = atomic_load(due), full;
    do {
        int64_t debt = found > now_ns && found <= now_ns + room + CLOCK_SKEW_NS_MAX ? found - now_ns : 0;
        full = debt + count * account->interval_ns;
        if (full > room) return room - full;
    } while (!atomic_compare_exchange_weak(due, &found, now_ns + full));
    if (load_acquire(&bucket->owner) != account->owner)
        atomic_fetch_sub(due, count * account->interval_ns); /* the bucket has a new owner, which does not owe this */
    return full;
}

void mlsdm_tokens_refund(struct mlsdm_map *map, const struct mlsdm_account *account, uint32_t count) {
    struct mlsdm_bucket *bucket = bucket_of(map, account->table, account->owner, 0, 0);
    if (bucket) atomic_fetch_sub((_Atomic int64_t *)&bucket->due_ns, count * account->interval_ns);
}
