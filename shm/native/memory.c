/* One memory: its vector, shadow, payload and slot; how they are computed, written and read back.
 *
 * The shadow is the vector divided by its norm, as int8 codes with one scale; `error` is no less than the norm of what
 * this approximation leaves out, so that the bound of the recall scan is a theorem and not an estimate. Everything that
 * needs only the event itself (validation, shadow, checksums) is computed before the lock is taken. */

#include "block.h"

struct memory {
    float vector[DIMENSION_MAX];
    int8_t shadow[DIMENSION_MAX];
    const uint8_t *payload, *metadata, *own_id;
    uint32_t payload_size, metadata_size, own_id_size;
    const struct mlsdm_members *members; /* NULL without metadata */
    struct mlsdm_members own_members;    /* those of the version before, if there is one */
    struct mlsdm_code code;
    double norm;
    uint64_t vector_checksum;
};

/* Copy `vector` (the bytes of float32[dimension], any alignment) to `padded` with zeros behind it, and compute its
 * norm. Returns OK, NOT_FINITE or TOO_LONG. */
static int vector_accept(const struct mlsdm_map *map, float *padded, const void *vector, double *norm) {
    memset(padded + map->dimension, 0, (map->padded - map->dimension) * sizeof(float));
    memcpy(padded, vector, map->dimension * sizeof(float));
    double square = dot(padded, padded, map->padded);
    if (!isfinite(square))
        return MLSDM_STATUS_NOT_FINITE; /* squares of float32 do not overflow a double, so an element is not finite */
    *norm = sqrt(square);
    return *norm > map->norm_max ? MLSDM_STATUS_TOO_LONG : MLSDM_STATUS_OK;
}

/* Compute shadow, scale and error of a vector. docs/design/recall.md proves that `error` is no less than the norm of
 * what the shadow leaves out.
 *
 * A vector so short that 127 / most or 1 / norm would overflow is multiplied by 2^100 first, which is exact and changes
 * neither its direction nor its codes. */
static void shadow_make(const struct mlsdm_map *map, struct memory *memory) {
    float left[DIMENSION_MAX], lifted[DIMENSION_MAX], *vector = memory->vector;
    double most = magnitude_max(vector, map->padded), norm = memory->norm;
    memory->code = (struct mlsdm_code){0};
    memset(memory->shadow, 0, map->shadow_stride);
    if (most == 0) return;
    if (most < 0x1p-64) {
        for (uint32_t i = 0; i < map->padded; i++) lifted[i] = vector[i] * 0x1p100f;
        vector = lifted, most *= 0x1p100, norm *= 0x1p100;
    }
    float scale = memory->code.scale = (float)(most / (127.0 * norm));
    encode(memory->shadow, left, vector, (float)(127.0 / most), (float)(1.0 / norm), scale, map->padded);
    double error = sqrt(sum_of_squares(left, map->padded)) * (1.0 + map->padded * 0x1p-24) + 0x1p-21;
    memory->code.error = nextafterf((float)error, INFINITY);
}

static int memory_prepare(const struct mlsdm_map *map, struct memory *memory, const struct mlsdm_event *event) {
    int status = vector_accept(map, memory->vector, event->vector, &memory->norm);
    if (status) return status;
    memory->payload = event->payload, memory->payload_size = event->payload_size;
    memory->metadata = event->metadata, memory->metadata_size = event->metadata_size;
    memory->own_id = event->own_id, memory->own_id_size = event->own_id_size;
    memory->members = event->members;
    memory->vector_checksum = checksum_of(memory->vector, map->padded * sizeof(float), 4);
    shadow_make(map, memory);
    return MLSDM_STATUS_OK;
}

static inline void prefetch(const void *from, size_t size) {
    for (size_t i = 0; i < size; i += 64) __builtin_prefetch((const char *)from + i, 1);
}

/* Prefetch the cache lines that the next accepted event will probably write: the spare slot, the slot of the oldest
 * memory, which is evicted if the store is full, the chains of their ids, and the log entry. They have not been used
 * for long. A wrong guess costs only time.
 *
 * PERF: the section of an accepted event that evicts is 9 % shorter than if only the slots are prefetched. */
static void memory_prefetch(const struct mlsdm_map *map) {
    uint64_t commit = commit_of(map);
    const struct mlsdm_state *state = state_at(map, commit);
    uint64_t at = state->spare % map->slots, newest = state->scalars.newest_id;
    uint32_t oldest = refers_to(map, list_at(map, MEMORIES)->oldest);
    const uint64_t slots[2] = {at, oldest && oldest != BROKEN ? oldest - 1 : at};
    prefetch(vector_at(map, at), map->padded * sizeof(float));
    prefetch(shadow_at(map, at), map->shadow_stride);
    for (int i = 0; i < 2; i++) {
        prefetch(slot_at(map, slots[i]), sizeof(struct mlsdm_slot));
        prefetch(code_at(map, slots[i]), sizeof(struct mlsdm_code));
        prefetch(link_at(map, slots[i]), sizeof(struct mlsdm_link));
    }
    prefetch(index_chain(map, newest + 1), 1);
    prefetch(index_chain(map, newest + 1 - map->capacity), 1);
    prefetch(entry_at(map, commit + 1), sizeof(struct mlsdm_entry));
}

/* Bytes of payload, metadata and own id, which lie one behind the other. */
static uint64_t bytes_of(const struct mlsdm_slot *slot) {
    return (uint64_t)slot->payload_size + slot->metadata_size + slot->own_id_size;
}

static uint32_t members_count(const uint8_t *kinds) {
    uint32_t count = 0;
    while (count < MLSDM_MEMBERS_MAX && kinds[count]) count++;
    return count;
}

/* Copy the members of a memory, if it has metadata; the rest of the copy stays. */
static const struct mlsdm_members *members_copy(const struct mlsdm_map *map, uint64_t at, struct mlsdm_members *copy) {
    if (!slot_at(map, at)->metadata_size) return NULL;
    memcpy(copy->kinds.members, kinds_at(map, at), sizeof copy->kinds);
    for (uint32_t i = 0; i < members_count(copy->kinds.members); i++) copy->members[i] = *member_at(map, at, i);
    return copy;
}

static void members_write(const struct mlsdm_map *map, uint64_t at, const struct mlsdm_members *members) {
    memcpy(kinds_at(map, at), members->kinds.members, sizeof members->kinds);
    for (uint32_t i = 0; i < members_count(members->kinds.members); i++) *member_at(map, at, i) = members->members[i];
}

static uint64_t members_checksum(const struct mlsdm_map *map, uint64_t at, uint64_t sum) {
    uint32_t count = members_count(kinds_at(map, at));
    sum = checksum_of(kinds_at(map, at), MLSDM_MEMBERS_MAX, sum);
    for (uint32_t i = 0; i < count; i += MLSDM_MEMBERS_ABREAST) {
        uint32_t abreast = count - i < MLSDM_MEMBERS_ABREAST ? count - i : MLSDM_MEMBERS_ABREAST;
        sum = checksum_of(member_at(map, at, i), abreast * sizeof(struct mlsdm_member), sum);
    }
    return sum;
}

/* The tag of a row, but for the bits TAG_*. */
static uint32_t tag_of(uint32_t phase, uint32_t namespace) { return (phase & 1) | namespace << 1; }

/* The checksum of everything in slot `at` but its marks and `excluded`. `slot` and `code` may be copies. */
static uint64_t slot_checksum(const struct mlsdm_map *map, uint64_t at, const struct mlsdm_slot *slot,
                              const struct mlsdm_code *code, const int8_t *shadow, uint64_t vector_checksum) {
    uint64_t sum = checksum_of(slot, offsetof(struct mlsdm_slot, mark), vector_checksum);
    sum = checksum_of(code, 8, sum);
    sum = checksum_of(shadow, map->shadow_stride, sum + code->tag);
    uint64_t size = bytes_of(slot) < map->payload_stride ? bytes_of(slot) : map->payload_stride;
    if (size) sum = checksum_of(payload_at(map, at), (size + 7) & ~UINT64_C(7), sum);
    return slot->metadata_size ? members_checksum(map, at, sum) : sum;
}

/* Write a prepared memory to a free slot, but for its marks. `line` has what the transition knows. No reader looks at
 * it before they are set and published. Returns the checksum of the slot. */
static uint64_t memory_write(const struct mlsdm_map *map, uint64_t at, struct memory *memory, struct mlsdm_slot line) {
    struct mlsdm_slot *slot = slot_at(map, at);
    line.norm = memory->norm;
    line.payload_size = memory->payload_size, line.metadata_size = memory->metadata_size;
    line.own_id_size = (uint16_t)memory->own_id_size;
    memcpy(vector_at(map, at), memory->vector, map->padded * sizeof(float));
    memcpy(shadow_at(map, at), memory->shadow, map->shadow_stride);
    if (bytes_of(&line)) {
        uint8_t *bytes = payload_at(map, at);
        memset(bytes + ((bytes_of(&line) + 7) & ~UINT64_C(7)) - 8, 0, 8);
        if (line.payload_size) memcpy(bytes, memory->payload, line.payload_size);
        if (line.metadata_size) memcpy(bytes + line.payload_size, memory->metadata, line.metadata_size);
        if (line.own_id_size) memcpy(bytes + line.payload_size + line.metadata_size, memory->own_id, line.own_id_size);
        if (line.metadata_size) members_write(map, at, memory->members);
    }
    memory->code.tag = tag_of(line.phase, line.namespace) | (line.expires_ns ? MLSDM_TAG_EXPIRES : 0) |
                       (line.metadata_size ? MLSDM_TAG_MEMBERS : 0);
    memcpy(code_at(map, at), &memory->code, offsetof(struct mlsdm_code, mark));
    memcpy(slot, &line, offsetof(struct mlsdm_slot, mark));
    return slot->checksum = slot_checksum(map, at, slot, code_at(map, at), memory->shadow, memory->vector_checksum);
}

/* 1 if a slot matches its checksum. The sizes in the slot are not trusted before that. */
static int slot_sound(const struct mlsdm_map *map, uint64_t at) {
    const struct mlsdm_slot *slot = slot_at(map, at);
    uint64_t vector_checksum = checksum_of(vector_at(map, at), map->padded * sizeof(float), 4);
    return bytes_of(slot) <= map->payload_stride &&
           slot->checksum == slot_checksum(map, at, slot, code_at(map, at), shadow_at(map, at), vector_checksum);
}

/* Prepare the memory in a slot to be written again, with another payload or, if that is NULL, its own. Under the lock.
 * Returns OK, or CORRUPT if the memory is not sound. */
static int memory_again(const struct mlsdm_map *map, uint64_t at, struct memory *memory, const uint8_t *payload,
                        uint32_t payload_size) {
    const struct mlsdm_slot *slot = slot_at(map, at);
    if (!slot_sound(map, at)) return MLSDM_STATUS_CORRUPT;
    memcpy(memory->vector, vector_at(map, at), map->padded * sizeof(float));
    memcpy(memory->shadow, shadow_at(map, at), map->shadow_stride);
    memory->code = *code_at(map, at);
    memory->code.excluded = 0;
    memory->norm = slot->norm;
    memory->vector_checksum = checksum_of(memory->vector, map->padded * sizeof(float), 4);
    const uint8_t *bytes = payload_at(map, at);
    memory->payload = payload ? payload : bytes;
    memory->payload_size = payload ? payload_size : slot->payload_size;
    memory->metadata = bytes + slot->payload_size, memory->metadata_size = slot->metadata_size;
    memory->own_id = memory->metadata + slot->metadata_size, memory->own_id_size = slot->own_id_size;
    memory->members = members_copy(map, at, &memory->own_members);
    return MLSDM_STATUS_OK;
}

int mlsdm_vectors_check(struct mlsdm_map *map, const float vectors[], uint32_t count, uint32_t *bad) {
    float padded[DIMENSION_MAX];
    double norm;
    for (*bad = 0; *bad < count; *bad += 1) {
        int status = vector_accept(map, padded, vectors + (size_t)*bad * map->dimension, &norm);
        if (status) return status;
    }
    return MLSDM_STATUS_OK;
}
