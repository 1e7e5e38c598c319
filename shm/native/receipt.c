/* Receipts: the first decisions of events that came with an idempotency key, so that a retry gets the same one.
 *
 * A ring of receipt_capacity + 1 places holds them in the order in which they were given. `receipts` of the committed
 * state counts them; ordinal n is in place n mod (capacity + 1), so the newest receipt_capacity of them are kept, and
 * the place of the next one is never among them.
 *
 * They are found through chains: the head of a chain is the ordinal of its newest receipt, and each receipt names the
 * next older one of its chain. Ordinals descend along a chain, so everything behind the first one that has left the
 * ring has left it too: nothing needs to be unlinked, and a walk ends.
 *
 * Invariants: all of this happens under the lock. The head is the only word that changes in place, under the intent
 * record. It is sealed: a head that skipped a receipt would let its event be decided twice. The controller checks all
 * heads in turn and finds the right value of a damaged one in the ring. */

#include "block.h"

/* The items of a batch, whose second words are consecutive, are on consecutive chains: on one chain, the last of a
 * thousand would walk past all others, and the batch would take three times as long. */
static uint64_t *head_of(const struct mlsdm_map *map, const uint64_t *key) {
    return head_at(map, (key[0] + key[1]) % map->receipt_capacity);
}

/* Search for the receipt of a hash. Returns 1 if the admission ends here: either `decision` is the first decision and
 * `status` is OK, or `status` is REUSED or CORRUPT. `newest` is the newest ordinal that counts. */
static int receipt_find(const struct mlsdm_map *map, uint64_t newest, const struct mlsdm_idempotency_hash *hash,
                        struct mlsdm_decision *decision, int *status) {
    const uint64_t *head = head_of(map, hash->words);
    uint64_t limit = newest + 1; /* ordinals on the rest of the chain are below it */
    for (uint64_t ordinal = unseal(*head); ordinal && (ordinal >= limit || newest - ordinal < map->receipt_capacity);) {
        const struct mlsdm_receipt *receipt = receipt_at(map, ordinal);
        *status = MLSDM_STATUS_CORRUPT;
        if (ordinal >= limit || receipt->ordinal != ordinal || receipt->checksum != receipt_checksum(receipt) ||
            head_of(map, receipt->key) != head)
            return 1;
        if (receipt->key[0] == hash->words[0] && receipt->key[1] == hash->words[1]) {
            *status = receipt->body == hash->body ? MLSDM_STATUS_OK : MLSDM_STATUS_REUSED;
            *decision = receipt->decision;
            decision->repeated = 1;
            return 1;
        }
        limit = ordinal;
        ordinal = receipt->previous;
    }
    return 0;
}

/* Write receipt `ordinal` to its place and make it the head of its chain. */
static void receipt_write(const struct mlsdm_map *map, uint64_t *head, uint64_t ordinal,
                          const struct mlsdm_idempotency_hash *hash, const struct mlsdm_decision *decision) {
    struct mlsdm_receipt *receipt = receipt_at(map, ordinal);
    *receipt = (struct mlsdm_receipt){.ordinal = ordinal,
                                      .key = {hash->words[0], hash->words[1]},
                                      .body = hash->body,
                                      .previous = unseal(*head), /* receipt_find has checked it */
                                      .decision = *decision};
    receipt->checksum = receipt_checksum(receipt);
    store_release(head, seal(ordinal));
}

uint32_t mlsdm_chains_check(struct mlsdm_map *map, uint32_t chain, uint32_t count) {
    uint32_t end = chain + count;
    while (chain < end && unseal(load_acquire(head_at(map, chain))) != DAMAGED) chain++;
    return chain;
}

/* The newest receipt of a chain whose head is damaged: its ordinal, 0 for none. Without the lock: nothing is added to
 * the chain meanwhile, because an event with a key of it is refused. Returns CORRUPT if a damaged receipt is on the
 * way: the head may have named it. It leaves the ring in time. */
static int chain_newest(struct mlsdm_map *map, const uint64_t *head, uint64_t *ordinal) {
    struct mlsdm_state state;
    if (mlsdm_state_read(map, &state, NULL)) return MLSDM_STATUS_CORRUPT;
    uint64_t newest = state.receipts;
    for (*ordinal = newest; *ordinal && newest - *ordinal < map->receipt_capacity; *ordinal -= 1) {
        const struct mlsdm_receipt *receipt = receipt_at(map, *ordinal);
        int sound = receipt->ordinal == *ordinal && receipt->checksum == receipt_checksum(receipt);
        if (sound && head_of(map, receipt->key) == head) return MLSDM_STATUS_OK;
        if (sound) continue;
        if (mlsdm_state_read(map, &state, NULL)) return MLSDM_STATUS_CORRUPT;
        if (state.receipts - *ordinal < map->receipt_capacity) return MLSDM_STATUS_CORRUPT;
        break; /* it was overwritten, and all older ones have left the ring, too */
    }
    *ordinal = 0;
    return MLSDM_STATUS_OK;
}

/* PERF: a ring of 32,768 that holds no receipt of the chain is read in 2 ms; under the lock only the head is changed.
 */
int mlsdm_chain_repair(struct mlsdm_map *map, uint32_t chain) {
    uint64_t *head = head_at(map, chain), ordinal = 0;
    int found = chain_newest(map, head, &ordinal), status = section_enter(map);
    if (status) return status;
    const struct mlsdm_state *state = committed_state(map, commit_of(map));
    if (!state) return section_leave(map, MLSDM_STATUS_CORRUPT);
    if (unseal(*head) != DAMAGED) return section_leave(map, MLSDM_STATUS_OK);
    if (found) return section_leave(map, found);
    store_release(head, seal(state->receipts - ordinal < map->receipt_capacity ? ordinal : 0));
    return section_leave(map, MLSDM_STATUS_OK);
}
