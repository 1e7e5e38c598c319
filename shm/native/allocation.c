/* Allocation: which slot a memory is written into, which memory makes room for it, and in which slot a memory is.
 *
 * Each slot is in one list: the free slots, freed longest ago first, or the memories, in the order in which they are
 * evicted. An index of chains leads from a memory id to its slot. Lists and chains run through the links, one for each
 * slot.
 *
 * Invariants: lists and index are caches of what the slots say. They change only under the lock, and only while the
 * word `caches` of the lock record is odd. Whoever enters the section and finds it odd makes them again from the slots,
 * so nothing of them is ever undone. Lists are walked only under the lock. The index is read without it: a hit counts
 * when the slot itself says so, a miss only between two equal even readings of `caches` and of the commit word
 * (read.c). A reference has a check inside, and before a transition changes a list it compares it with the slots: what
 * a flipped bit has changed is found when it is used, or by the scrub, and made again. */

#include "block.h"

enum { FREE_SLOTS, MEMORIES }; /* the lists */

static int slot_sound(const struct mlsdm_map *map, uint64_t at);

static struct mlsdm_list *list_at(const struct mlsdm_map *map, uint32_t which) {
    return (struct mlsdm_list *)region(map, MLSDM_REGION_LISTS) + which;
}

/* -- the guard -- */

static void caches_open(const struct mlsdm_map *map) {
    store_release(&lock_of(map)->caches, lock_of(map)->caches + 1);
    atomic_signal_fence(memory_order_seq_cst);
    atomic_thread_fence(memory_order_release); /* a reader that sees a change also sees that the word is odd */
}
static void caches_close(const struct mlsdm_map *map) {
    store_release(&lock_of(map)->caches, lock_of(map)->caches + 1);
}

/* -- references --
 *
 * A reference is slot + 1, 0 for none, in the low 20 bits; the high 12 bits are the top 12 bits of (slot + 1) ·
 * REFERENCE_FACTOR, which has no twelve equal bits in a row: a flip of one bit is always noticed (see `seal`). */
#define REFERENCE_FACTOR UINT32_C(0x9E3779B1)
#define BROKEN UINT32_MAX /* the value of a reference whose check is wrong: above every slot */

static uint32_t reference_to(uint64_t at) {
    uint32_t value = (uint32_t)at + 1;
    return value | (value * REFERENCE_FACTOR) >> 20 << 20;
}
/* Slot + 1, 0 for none, or BROKEN. */
static uint32_t refers_to(const struct mlsdm_map *map, uint32_t reference) {
    uint32_t value = reference & 0xFFFFF;
    return value <= map->slots && reference == (value ? reference_to(value - 1) : 0) ? value : BROKEN;
}

/* -- lists -- */

/* The word that refers to a slot from its older or newer side: in its neighbour, or at the end of the list. */
static uint32_t *from_older(const struct mlsdm_map *map, struct mlsdm_list *list, uint32_t older) {
    return older ? &link_at(map, older - 1)->newer : &list->oldest;
}
static uint32_t *from_newer(const struct mlsdm_map *map, struct mlsdm_list *list, uint32_t newer) {
    return newer ? &link_at(map, newer - 1)->older : &list->newest;
}

static void list_append(const struct mlsdm_map *map, uint32_t which, uint64_t at) {
    struct mlsdm_list *list = list_at(map, which);
    struct mlsdm_link *link = link_at(map, at);
    link->list = which, link->older = list->newest, link->newer = 0;
    *from_older(map, list, refers_to(map, list->newest)) = reference_to(at);
    list->newest = reference_to(at);
    list->count += 1;
}

static void list_remove(const struct mlsdm_map *map, uint64_t at) {
    const struct mlsdm_link *link = link_at(map, at);
    struct mlsdm_list *list = list_at(map, link->list);
    uint32_t older = refers_to(map, link->older), newer = refers_to(map, link->newer);
    *from_older(map, list, older) = link->newer;
    *from_newer(map, list, newer) = link->older;
    list->count -= 1;
}

/* Put a slot into the place of another one, which is in no list then. */
static void list_replace(const struct mlsdm_map *map, uint64_t replaced, uint64_t at) {
    const struct mlsdm_link *old = link_at(map, replaced);
    struct mlsdm_link *link = link_at(map, at);
    struct mlsdm_list *list = list_at(map, old->list);
    link->list = old->list, link->older = old->older, link->newer = old->newer;
    *from_older(map, list, refers_to(map, link->older)) = reference_to(at);
    *from_newer(map, list, refers_to(map, link->newer)) = reference_to(at);
}

/* 1 if a slot is in list `which` and its neighbours agree: then it can be removed. */
static int link_sound(const struct mlsdm_map *map, uint64_t at, uint32_t which) {
    const struct mlsdm_link *link = link_at(map, at);
    uint32_t older = refers_to(map, link->older), newer = refers_to(map, link->newer);
    return link->list == which && older != BROKEN && newer != BROKEN &&
           *from_older(map, list_at(map, which), older) == reference_to(at) &&
           *from_newer(map, list_at(map, which), newer) == reference_to(at);
}

/* 1 if both ends of a list are ends: then a slot can be appended, and the oldest one is the oldest. */
static int list_sound(const struct mlsdm_map *map, uint32_t which) {
    struct mlsdm_list *list = list_at(map, which);
    uint32_t oldest = refers_to(map, list->oldest), newest = refers_to(map, list->newest);
    if (!oldest || !newest) return oldest == newest && list->count == 0;
    return oldest != BROKEN && newest != BROKEN && !link_at(map, oldest - 1)->older &&
           !link_at(map, newest - 1)->newer && link_at(map, oldest - 1)->list == which &&
           link_at(map, newest - 1)->list == which;
}

/* -- the index -- */

/* The head of the chain of an id. The hash is keyed, so that nobody can choose the ids of one chain. */
static uint32_t *index_chain(const struct mlsdm_map *map, uint64_t id) {
    uint64_t hash = (id ^ map->index_key) * SEAL_FACTOR;
    hash = (hash ^ hash >> 32) * SEAL_FACTOR;
    return (uint32_t *)region(map, MLSDM_REGION_INDEX) + (hash >> 32 & map->index_mask);
}

static void index_insert(const struct mlsdm_map *map, uint64_t at, uint64_t id) {
    uint32_t *chain = index_chain(map, id);
    link_at(map, at)->id = id;
    link_at(map, at)->next = *chain;
    *chain = reference_to(at);
}

/* The word that refers to a slot in the chain of its id, NULL if none does. */
static uint32_t *index_reference(const struct mlsdm_map *map, uint64_t at) {
    uint32_t *reference = index_chain(map, link_at(map, at)->id);
    for (uint32_t left = map->slots; left; left--) {
        uint32_t found = refers_to(map, *reference);
        if (found == at + 1) return reference;
        if (!found || found == BROKEN) break;
        reference = &link_at(map, found - 1)->next;
    }
    return NULL;
}

/* The slot + 1 of the memory with an id that lives at position `commit`; 0 if the index has none; BROKEN if the chain
 * contradicts itself or the slots. A link whose slot is damaged counts. Also without the lock: a chain that changes may
 * lead anywhere, but not out of the links, and the walk ends. */
static uint32_t index_find(const struct mlsdm_map *map, uint64_t id, uint64_t commit) {
    uint32_t *chain = index_chain(map, id), found = refers_to(map, __atomic_load_n(chain, __ATOMIC_ACQUIRE));
    for (uint32_t left = map->slots; found; left--) {
        if (!left || found == BROKEN) return BROKEN;
        const struct mlsdm_link *link = link_at(map, found - 1);
        uint64_t other = load_acquire(&link->id);
        if (index_chain(map, other) != chain) return BROKEN;
        if (other != slot_at(map, found - 1)->id && slot_sound(map, found - 1)) return BROKEN;
        if (other == id && slot_lives(map, found - 1, commit)) break;
        found = refers_to(map, __atomic_load_n(&link->next, __ATOMIC_ACQUIRE));
    }
    return found;
}

/* The same from the slots themselves, for readers that can neither trust the index nor take the lock. */
static uint32_t slots_search(const struct mlsdm_map *map, uint64_t id, uint64_t commit) {
    for (uint64_t at = 0; at < map->slots; at++)
        if (slot_lives(map, at, commit) &&
            (slot_at(map, at)->id == id || (link_at(map, at)->id == id && !slot_sound(map, at))))
            return (uint32_t)at + 1;
    return 0;
}

/* -- making them again -- */

/* 1 if a memory lives in a slot, by its marks; by its list if both are damaged. Under the lock. */
static int slot_is_live(const struct mlsdm_map *map, uint64_t at) {
    int lives = slot_lives(map, at, commit_of(map));
    return lives < 0 ? link_at(map, at)->list != FREE_SLOTS : lives;
}

/* The position since which a slot is in its list. */
static uint64_t rank_of(const struct mlsdm_map *map, uint64_t at) {
    return link_at(map, at)->list == FREE_SLOTS ? (mark_of(map, at) & SEALED_MAX) >> 1 : slot_at(map, at)->queued;
}

/* Sort slots, chained by `newer` from slot + 1 `first` on (plain numbers, 0 behind the last), by their ranks: a merge
 * sort of runs that are in order already. After a round without deletions there are two. Returns the first. */
static uint32_t list_sort(const struct mlsdm_map *map, uint32_t first) {
    for (uint32_t runs = 2; runs > 1;) {
        uint32_t rest = first, *end = &first;
        for (runs = 0; rest; runs++) {
            uint32_t run[2];
            for (int i = 0; i < 2; i++) { /* cut off two runs */
                run[i] = rest;
                for (uint32_t last = rest; last; last = rest) {
                    rest = link_at(map, last - 1)->newer;
                    if (rest && rank_of(map, rest - 1) >= rank_of(map, last - 1)) continue;
                    link_at(map, last - 1)->newer = 0;
                    break;
                }
            }
            while (run[0] || run[1]) { /* merge them; of equal ranks the earlier one stays in front */
                int second = !run[0] || (run[1] && rank_of(map, run[1] - 1) < rank_of(map, run[0] - 1));
                *end = run[second];
                end = &link_at(map, run[second] - 1)->newer;
                run[second] = *end;
            }
        }
        *end = 0;
    }
    return first;
}

/* Make index and lists again from what the slots say. Under the lock.
 *
 * Slots that were freed together, as those never used, are in the order 1, 2, … 0. A slot whose marks are both damaged
 * holds a memory if otherwise fewer memories were found than the state counts. The id stands in slot and link; where
 * they differ, that of a sound slot counts.
 *
 * PERF: for 20,000 memories 0.4 ms if they were admitted in the order of their slots, 5 ms in random order. */
static void caches_rebuild(const struct mlsdm_map *map, uint64_t commit) {
    struct mlsdm_lock *lock = lock_of(map);
    if (!(lock->caches & 1)) caches_open(map);
    memset(region(map, MLSDM_REGION_INDEX), 0, ((size_t)map->index_mask + 1) * sizeof(uint32_t));
    uint64_t missing = state_at(map, commit)->scalars.live;
    for (uint64_t at = 0; at < map->slots; at++) missing -= slot_lives(map, at, commit) == 1;
    uint32_t first[2] = {0, 0}, *end[2] = {&first[0], &first[1]};
    for (uint64_t i = 1; i <= map->slots; i++) {
        uint64_t at = i % map->slots;
        struct mlsdm_link *link = link_at(map, at);
        int lives = slot_lives(map, at, commit);
        if (lives < 0) lives = (int64_t)missing > 0 && missing--;
        link->list = lives ? MEMORIES : FREE_SLOTS;
        if (lives)
            index_insert(map, at,
                         link->id == slot_at(map, at)->id || slot_sound(map, at) ? slot_at(map, at)->id : link->id);
        else
            link->id = link->next = 0;
        *end[link->list] = (uint32_t)at + 1;
        end[link->list] = &link->newer;
    }
    for (uint32_t which = 0; which < MLSDM_LISTS; which++) {
        *end[which] = 0;
        *list_at(map, which) = (struct mlsdm_list){0};
        for (uint32_t next = list_sort(map, first[which]), at; (at = next);) {
            next = link_at(map, at - 1)->newer;
            list_append(map, which, at - 1);
        }
    }
    lock->rebuilds += 1;
    caches_close(map);
}

/* -- what a transition does -- */

/* The slots that a transition changes: slot + 1, 0 for none. */
struct allocation {
    uint64_t written;   /* the spare, into which a memory is written */
    uint64_t freed;     /* that of the victim */
    uint64_t victim_id; /* 0 for none */
    uint32_t cause;     /* MLSDM_CAUSE_*: why the victim goes */
};

/* Let the memory in slot + 1 `freed` be the victim. */
static void allocation_free(const struct mlsdm_map *map, struct allocation *a, uint64_t freed, uint32_t cause) {
    a->freed = freed <= map->slots ? freed : 0;
    a->victim_id = a->freed ? link_at(map, a->freed - 1)->id : 0;
    a->cause = cause;
}

/* Let a memory be written into the spare; the oldest one makes room for it if the store is full. */
static void allocation_choose(const struct mlsdm_map *map, const struct mlsdm_state *state, struct allocation *a) {
    a->written = refers_to(map, list_at(map, FREE_SLOTS)->oldest);
    if (!a->cause && state->scalars.live >= map->capacity)
        allocation_free(map, a, refers_to(map, list_at(map, MEMORIES)->oldest), MLSDM_CAUSE_CAPACITY);
}

/* 1 if a slot holds a memory (`lives`) or none, and can leave its list and the index. */
static int can_leave(const struct mlsdm_map *map, uint64_t at, int lives) {
    return slot_is_live(map, at) == lives && link_sound(map, at, lives ? MEMORIES : FREE_SLOTS) &&
           (!lives || index_reference(map, at));
}

/* 1 if lists, index, slots and state agree on what is about to change. */
static int allocation_sound(const struct mlsdm_map *map, const struct mlsdm_state *state, const struct allocation *a) {
    return list_at(map, FREE_SLOTS)->count == map->slots - state->scalars.live && list_sound(map, FREE_SLOTS) &&
           list_sound(map, MEMORIES) &&
           (!a->written || (a->written <= map->slots && can_leave(map, a->written - 1, 0))) &&
           (!a->cause || (a->freed && can_leave(map, a->freed - 1, 1)));
}

/* Change lists and index, while `caches` is odd; `id` is that of the memory that is written. A new version of a memory
 * keeps its place in the list. Returns the next spare slot. */
static uint64_t allocation_apply(const struct mlsdm_map *map, const struct allocation *a, uint64_t id) {
    uint64_t written = a->written - 1, freed = a->freed - 1;
    int in_place = a->cause == MLSDM_CAUSE_UPDATED;
    if (a->written) {
        list_remove(map, written);
        index_insert(map, written, id);
        if (in_place)
            list_replace(map, freed, written);
        else
            list_append(map, MEMORIES, written);
    }
    if (a->freed) {
        struct mlsdm_link *link = link_at(map, freed);
        if (!in_place) list_remove(map, freed);
        *index_reference(map, freed) = link->next;
        link->id = link->next = 0;
        list_append(map, FREE_SLOTS, freed);
    }
    return refers_to(map, list_at(map, FREE_SLOTS)->oldest) - 1;
}

/* -- the scrub -- */

/* 1 if every member of a chain belongs to it. */
static int chain_agrees(const struct mlsdm_map *map, uint32_t *chain) {
    uint32_t found = refers_to(map, *chain);
    for (uint32_t left = map->slots; found; left--) {
        if (!left || found == BROKEN || index_chain(map, link_at(map, found - 1)->id) != chain ||
            !slot_is_live(map, found - 1))
            return 0;
        found = refers_to(map, link_at(map, found - 1)->next);
    }
    return 1;
}

/* 1 if what the caches say of a slot, and of its share of the chains, is what the slots say. */
static int caches_agree(const struct mlsdm_map *map, uint64_t at) {
    const struct mlsdm_link *link = link_at(map, at);
    int lives = slot_is_live(map, at);
    if (!can_leave(map, at, lives)) return 0;
    if (lives ? link->id != slot_at(map, at)->id && slot_sound(map, at) : link->id || link->next) return 0;
    uint32_t *chains = region(map, MLSDM_REGION_INDEX);
    for (uint64_t chain = at; chain <= map->index_mask; chain += map->slots)
        if (!chain_agrees(map, chains + chain)) return 0;
    return 1;
}

/* 1 if the ends of a list, and the number of its slots, are right. */
static int list_agrees(const struct mlsdm_map *map, uint32_t which, uint64_t count) {
    const struct mlsdm_list *list = list_at(map, which);
    return list_sound(map, which) && list->count == count && !list->reserved;
}

void mlsdm_slots_create(struct mlsdm_map *map) {
    for (uint64_t at = 0; at < map->slots; at++) slot_mark(map, at, free_since(0));
    caches_rebuild(map, 0);
    namespaces_create(map);
    lock_of(map)->rebuilds = 0;
}
