/* One memory: vector, shadow, payload and the line that describes them. How it is made, written to its slot, and
 * read back.
 *
 * The shadow is the vector divided by its norm, in int8 codes with one scale; `error` is the norm of what that
 * approximation leaves out, computed from the very numbers that are stored and rounded up, so that the bound of the
 * recall scan is a theorem and not an estimate. Everything that needs only the event itself (validation, shadow,
 * checksums) is done before the lock is taken. */

#include "block.h"

struct memory {
    float vector[DIMENSION_MAX];
    int8_t shadow[DIMENSION_MAX];
    const uint8_t *payload;
    uint32_t payload_size;
    struct mlsdm_code code;
    double norm;
    uint64_t vector_checksum;
};

/* Norm of `vector`, or a negative status: float32[dimension], any alignment, copied to `padded` with zeros behind it.
 */
static int vector_accept(const struct mlsdm_map *map, float *padded, const float *vector, double *norm) {
    memset(padded + map->dimension, 0, (map->padded - map->dimension) * sizeof(float));
    memcpy(padded, vector, map->dimension * sizeof(float));
    double square = dot(padded, padded, map->padded);
    if (!isfinite(square))
        return MLSDM_STATUS_NOT_FINITE; /* float32 squares cannot overflow a double: an element is NaN or infinite */
    *norm = sqrt(square);
    return *norm > map->norm_max ? MLSDM_STATUS_TOO_LONG : MLSDM_STATUS_OK;
}

static int memory_prepare(const struct mlsdm_map *map, struct memory *memory, const float *vector,
                          const uint8_t *payload, uint32_t payload_size) {
    int status = vector_accept(map, memory->vector, vector, &memory->norm);
    if (status) return status;
    memory->payload = payload;
    memory->payload_size = payload_size;
    memory->vector_checksum = checksum_of(memory->vector, map->padded * sizeof(float), 4);
    memory->code = (struct mlsdm_code){.live = 1};
    memset(memory->shadow, 0, map->shadow_stride);
    double most = largest(memory->vector, map->padded);
    if (most > 0) {
        memory->code.scale = (float)(most / (127.0 * memory->norm));
        encode(memory->shadow, memory->vector, 127.0 / most, map->dimension);
        double error =
            sqrt(square_residual(memory->vector, 1.0 / memory->norm, memory->shadow, memory->code.scale, map->padded));
        memory->code.error = nextafterf((float)(error * (1.0 + 1e-9)), INFINITY);
    }
    return MLSDM_STATUS_OK;
}

/* Of everything in a slot but the deletion mark and the live hint. */
static uint64_t slot_checksum(const struct mlsdm_map *map, const struct mlsdm_slot *slot, const struct mlsdm_code *code,
                              const int8_t *shadow, const uint8_t *payload, uint64_t vector_checksum) {
    uint64_t sum = checksum_of(slot, offsetof(struct mlsdm_slot, deleted_at), vector_checksum);
    sum = checksum_of(code, 8, sum);
    sum = checksum_of(shadow, map->shadow_stride, sum + code->phase);
    uint32_t size = slot->payload_size < map->payload_stride ? slot->payload_size : map->payload_stride;
    return checksum_of(payload, (size + 7) & ~7u, sum);
}

/* Write a prepared memory to the spare slot. Nobody sees it before its position is published. */
static void memory_write(const struct mlsdm_map *map, const struct memory *memory, uint64_t id, uint64_t position,
                         int64_t time_ns, double moral, uint32_t phase) {
    uint64_t at = slot_of(map, id);
    struct mlsdm_slot *slot = slot_at(map, at);
    uint8_t *payload = payload_at(map, at);
    memcpy(vector_at(map, at), memory->vector, map->padded * sizeof(float));
    memcpy(shadow_at(map, at), memory->shadow, map->shadow_stride);
    if (memory->payload_size) {
        uint32_t whole = (memory->payload_size + 7) & ~7u;
        memset(payload + whole - 8, 0, 8);
        memcpy(payload, memory->payload, memory->payload_size);
    }
    *code_at(map, at) = memory->code;
    code_at(map, at)->phase = phase;
    *slot = (struct mlsdm_slot){.id = id,
                                .position = position,
                                .time_ns = time_ns,
                                .moral = moral,
                                .norm = memory->norm,
                                .payload_size = memory->payload_size,
                                .phase = phase};
    slot->checksum = slot_checksum(map, slot, code_at(map, at), memory->shadow, payload, memory->vector_checksum);
}

/* 1 when a slot fits its checksum. Its own sizes are not believed before that. */
static int slot_sound(const struct mlsdm_map *map, uint64_t at) {
    const struct mlsdm_slot *slot = slot_at(map, at);
    uint64_t vector_checksum = checksum_of(vector_at(map, at), map->padded * sizeof(float), 4);
    return slot->payload_size <= map->payload_stride &&
           slot->checksum ==
               slot_checksum(map, slot, code_at(map, at), shadow_at(map, at), payload_at(map, at), vector_checksum);
}

/* Validate `count` vectors without touching the block: `bad` is the first that is not admissible, and the status
 * says why. */
int mlsdm_vectors_check(struct mlsdm_map *map, const float *vectors, uint32_t count, uint32_t *bad) {
    float padded[DIMENSION_MAX];
    double norm;
    for (*bad = 0; *bad < count; *bad += 1) {
        int status = vector_accept(map, padded, vectors + (size_t)*bad * map->dimension, &norm);
        if (status) return status;
    }
    return MLSDM_STATUS_OK;
}
