/* Token buckets: how fast each client may go, in all workers together.
 *
 * A bucket is one moment, `due_ns`: when it will be full again. Taking n tokens moves it n × interval into the future,
 * never further than burst × interval from now; waiting lets it pass (the generic cell rate algorithm, ITU-T I.371).
 * So a bucket is one word, taken by one compare-and-swap: no lock, no refill, and whoever dies in between has taken
 * or has not.
 *
 * Clients are found by a keyed hash of their name in a table of fixed size, BUCKET_WAYS places each. A newcomer that
 * finds none of its places free gets the one that is due first. If that moment is past, its former owner's bucket was
 * full, which is what it finds when it comes back: nobody lost anything. If all places are in use, the owner that owed
 * least is forgiven its debt: a flood of invented clients can make the table more lenient, never stricter. Clients
 * with keys have a table of their own, which no stranger can reach.
 *
 * A word has no room for a check, so damage shows only where it makes a debt longer than any can be. Such a debt is
 * none: else one flipped bit would shut a client out for a century.
 *
 * Workers that meet the same newcomer at the same moment may give it a place each. One of these places counts from then
 * on, and what was taken in the others is overlooked: it errs by one burst for each further worker at most. */

#include "block.h"

/* How much longer than its bucket a debt may look: somebody has read the clock later. */
#define LATER_NS INT64_C(60000000000)

static struct mlsdm_bucket *bucket_of(const struct mlsdm_map *map, uint32_t table, uint64_t owner, int64_t now_ns,
                                      int forced) {
    struct mlsdm_bucket *places = (struct mlsdm_bucket *)region(map, MLSDM_REGION_KEYS + table);
    places += owner % (map->buckets[table] / MLSDM_BUCKET_WAYS) * MLSDM_BUCKET_WAYS;
    for (;;) {
        struct mlsdm_bucket *first_due = places;
        for (struct mlsdm_bucket *place = places; place < places + MLSDM_BUCKET_WAYS; place++) {
            if (load_acquire(&place->owner) == owner) return place;
            if (place->due_ns < first_due->due_ns) first_due = place;
        }
        if (!forced) return NULL;
        /* It is nobody's while the debt is struck off, so that nobody ever finds that debt under the new name; and it
         * is struck off as it was before, so that nothing is lost that somebody has taken from it since. */
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

/* Take `count` tokens of an account if they are all there, else none; 1 ≤ count ≤ burst. Returns the time until the
 * bucket is full again, or when none was taken, negative, the time until they would all have been there. */
int64_t mlsdm_tokens_spend(struct mlsdm_map *map, const struct mlsdm_account *account, int64_t now_ns, uint32_t count) {
    struct mlsdm_bucket *bucket = bucket_of(map, account->table, account->owner, now_ns, 1);
    _Atomic int64_t *due = (_Atomic int64_t *)&bucket->due_ns;
    int64_t room = account->burst * account->interval_ns, found = atomic_load(due), full;
    do {
        int64_t debt = found > now_ns && found <= now_ns + room + LATER_NS ? found - now_ns : 0;
        full = debt + count * account->interval_ns;
        if (full > room) return room - full;
    } while (!atomic_compare_exchange_weak(due, &found, now_ns + full));
    if (load_acquire(&bucket->owner) != account->owner)
        atomic_fetch_sub(due, count * account->interval_ns); /* it has changed hands: the newcomer owes none of this */
    return full;
}

/* Give back what a request took that was refused after all; a bucket that has changed hands meanwhile is left alone. */
void mlsdm_tokens_refund(struct mlsdm_map *map, const struct mlsdm_account *account, uint32_t count) {
    struct mlsdm_bucket *bucket = bucket_of(map, account->table, account->owner, 0, 0);
    if (bucket) atomic_fetch_sub((_Atomic int64_t *)&bucket->due_ns, count * account->interval_ns);
}
