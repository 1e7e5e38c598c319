/* The receipts: the first answers to events that came with an idempotency key, so that a retry gets the same one.
 *
 * A ring of receipt_capacity + 1 places holds them in the order in which they were given, so the newest
 * receipt_capacity of them are there: exactly that is promised. `receipts` of the committed state counts them; ordinal
 * n lies in place n mod (capacity + 1), and the place that the next one goes to is never one that counts.
 *
 * They are found through chains: `head` is the newest ordinal of a chain, and each receipt names the next older one of
 * its chain. Ordinals descend along a chain, so everything behind the first one that has left the ring has left it
 * too: nothing ever needs to be unlinked, and a walk ends. All of it happens under the lock; the head is the only word
 * that changes in place, under the intent record. It is sealed: one that led past a receipt would have its event
 * decided twice. The controller looks at all heads in turn and finds one that is damaged again in the ring. */

#include "block.h"

/* The items of a batch, whose second words are consecutive, go to consecutive chains: in one, the last of a thousand
 * would walk past all the others, and all of them together would take three times as long. */
static uint64_t *head_of(const struct mlsdm_map *map, const uint64_t *key) {
    return head_at(map, (key[0] + key[1]) % map->receipt_capacity);
}

/* 1 when the search ends the admission: the first answer is in `out` and `status` is OK, or `status` says why not.
 * `newest` is the newest ordinal that counts. */
static int receipt_find(const struct mlsdm_map *map, uint64_t newest, const struct mlsdm_idempotency_hash *key,
                        struct mlsdm_decision *out, int *status) {
    const uint64_t *head = head_of(map, key->words);
    uint64_t limit = newest + 1; /* above every ordinal that may come next */
    for (uint64_t ordinal = unseal(*head); ordinal && (ordinal >= limit || newest - ordinal < map->receipt_capacity);) {
        const struct mlsdm_receipt *receipt = receipt_at(map, ordinal);
        *status = MLSDM_STATUS_CORRUPT;
        if (ordinal >= limit || receipt->ordinal != ordinal || receipt->checksum != receipt_checksum(receipt) ||
            head_of(map, receipt->key) != head)
            return 1;
        if (receipt->key[0] == key->words[0] && receipt->key[1] == key->words[1]) {
            *status = receipt->body == key->body ? MLSDM_STATUS_OK : MLSDM_STATUS_REUSED;
            *out = receipt->decision;
            out->repeated = 1;
            return 1;
        }
        limit = ordinal;
        ordinal = receipt->previous;
    }
    return 0;
}

/* Write receipt `ordinal` to its place and put it before the others of its chain. Returns `ordinal`. */
static uint64_t receipt_write(const struct mlsdm_map *map, uint64_t *head, uint64_t ordinal,
                              const struct mlsdm_idempotency_hash *key, const struct mlsdm_decision *decision) {
    struct mlsdm_receipt *receipt = receipt_at(map, ordinal);
    *receipt = (struct mlsdm_receipt){.ordinal = ordinal,
                                      .key = {key->words[0], key->words[1]},
                                      .body = key->body,
                                      .previous = unseal(*head), /* which receipt_find has found sound */
                                      .decision = *decision};
    receipt->checksum = receipt_checksum(receipt);
    store_release(head, seal(ordinal));
    return ordinal;
}

/* The first of `count` chains, from `chain` on, whose head is damaged; chain + count when there is none. */
uint32_t mlsdm_chains_check(struct mlsdm_map *map, uint32_t chain, uint32_t count) {
    uint32_t end = chain + count;
    while (chain < end && unseal(load_acquire(head_at(map, chain))) != DAMAGED) chain++;
    return chain;
}

/* Put a damaged head right: the newest receipt of its chain that counts. CORRUPT when a newer one than that, or one of
 * all where there is none, is damaged itself: it may be what the head has named. It leaves the ring in time.
 *
 * PERF: a ring of 32,768 that holds none of the chain is read as a whole under the lock, 2 ms. */
int mlsdm_chain_repair(struct mlsdm_map *map, uint32_t chain) {
    int status = section_enter(map);
    if (status) return status;
    const struct mlsdm_state *state = state_found(map, commit_of(map));
    if (!state) return section_leave(map, MLSDM_STATUS_CORRUPT);
    uint64_t *head = head_at(map, chain), newest = state->receipts, ordinal = newest;
    if (unseal(*head) != DAMAGED) return section_leave(map, MLSDM_STATUS_OK);
    for (; ordinal && newest - ordinal < map->receipt_capacity; ordinal--) {
        const struct mlsdm_receipt *receipt = receipt_at(map, ordinal);
        if (receipt->ordinal != ordinal || receipt->checksum != receipt_checksum(receipt))
            return section_leave(map, MLSDM_STATUS_CORRUPT);
        if (head_of(map, receipt->key) == head) break;
    }
    store_release(head, seal(newest - ordinal < map->receipt_capacity ? ordinal : 0));
    return section_leave(map, MLSDM_STATUS_OK);
}
