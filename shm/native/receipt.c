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
 * decided twice. */

#include "block.h"

/* The items of a batch, whose second words are consecutive, go to consecutive chains: in one, the last of a thousand
 * would walk past all the others, and all of them together would take three times as long. */
static uint64_t *head_of(const struct mlsdm_map *map, const uint64_t *key) {
    return head_at(map, (key[0] + key[1]) % map->receipt_capacity);
}

/* 1 when the search ends the admission: the first answer is in `out` and `status` is OK, or `status` says why not.
 * `newest` is the newest ordinal that counts. */
static int receipt_find(const struct mlsdm_map *map, uint64_t newest, const struct mlsdm_key *key,
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
                              const struct mlsdm_key *key, const struct mlsdm_decision *decision) {
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
