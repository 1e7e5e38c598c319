/* What Python sees of the native core: private structures and functions. cffi reads this file too, so it keeps to
 * plain declarations. */

struct mlsdm_map {
    uint8_t *base;
    uint64_t offset[MLSDM_REGIONS];
    uint32_t dimension;     /* floats of a vector */
    uint32_t padded;        /* floats of a stored vector: a multiple of 16, the rest zero */
    uint32_t shadow_stride; /* bytes of a shadow row: a multiple of 16, the rest zero */
    uint32_t capacity;      /* memories in the window; capacity + 1 slots */
    uint32_t payload_stride;
    uint32_t log_capacity;
    uint32_t rows;
    uint32_t receipt_capacity;
    uint32_t buckets[2]; /* of keys and of peers: multiples of BUCKET_WAYS */
    uint32_t row;        /* of this process, or NO_ROW */
    uint32_t wait_ms;    /* longest wait for the lock; 0: only look, never lock (read-only maps) */
    uint64_t pid;        /* of this process */
    double norm_max;     /* longest vector that is admitted */
};

/* What an event with an idempotency key is known by: keyed hashes of the key and of all that was sent with it. Item i
 * of a batch is known by words[1] + i. */
struct mlsdm_idempotency_hash {
    uint64_t words[2];
    uint64_t body;
};

/* Whose tokens they are, and how they come: one every `interval_ns`, up to `burst` of them; burst × interval_ns is
 * below 2^62. `owner` is not 0. */
struct mlsdm_account {
    uint64_t owner;
    int64_t interval_ns;
    uint32_t burst;
    uint32_t table; /* 0 for keys, 1 for peers */
};

struct mlsdm_query {
    const float *vector; /* float32[dimension] */
    uint32_t k;          /* matches wanted, at most TOP_K_MAX */
    uint32_t masks[2];   /* by the phase the rhythm is in: bit p set when memories tagged p match */
    float *bounds;       /* float32[capacity + 1], private to the caller */
    float *vectors;      /* float32[k][dimension] to fill, or NULL */
    uint8_t *payloads;   /* uint8[k][payload_stride] to fill, or NULL */
};

struct mlsdm_match {
    uint64_t id;
    double score;
    double moral;
    int64_t time_ns;
    uint32_t phase;
    uint32_t payload_size;
};

struct mlsdm_recall_result {
    uint64_t as_of;      /* position: the answer equals brute force immediately after it */
    int64_t time_ns;     /* CLOCK_BOOTTIME of that position, of the newest transition */
    uint64_t scanned;    /* live memories that were compared */
    uint64_t candidates; /* of them scored in full */
    uint64_t corrupt_id; /* a memory that was left out because its checksum did not hold, else 0 */
    uint32_t attempts;
    uint32_t count; /* matches */
};

int mlsdm_lock_create(struct mlsdm_map *map);
int mlsdm_row_claim(struct mlsdm_map *map, uint32_t row, uint64_t pid, uint64_t started, uint64_t new_pid,
                    uint64_t new_started);

int mlsdm_admit(struct mlsdm_map *map, int64_t now_ns, double moral, const uint8_t *vector, const uint8_t *payload,
                uint32_t payload_size, const struct mlsdm_idempotency_hash *key, struct mlsdm_decision *out);
int mlsdm_admit_batch(struct mlsdm_map *map, int64_t now_ns, uint32_t count, const double *morals, const float *vectors,
                      const uint8_t *payloads, const uint64_t *payload_ends, const struct mlsdm_idempotency_hash *key,
                      struct mlsdm_decision *out, uint32_t *done);
int mlsdm_forget(struct mlsdm_map *map, int64_t now_ns, uint64_t id, struct mlsdm_entry *out);
int mlsdm_vectors_check(struct mlsdm_map *map, const float *vectors, uint32_t count, uint32_t *bad);

int mlsdm_epoch_begin(struct mlsdm_map *map, int64_t now_ns, const struct mlsdm_settings *settings,
                      struct mlsdm_entry *out);
int mlsdm_tick(struct mlsdm_map *map, int64_t now_ns, uint64_t epoch, struct mlsdm_entry *out);
int mlsdm_command_apply(struct mlsdm_map *map, int64_t now_ns, uint64_t epoch, struct mlsdm_entry *out);
int mlsdm_command_post(struct mlsdm_map *map, uint32_t kind, const struct mlsdm_settings *settings, uint64_t configured,
                       uint64_t after, uint64_t *ticket);
uint64_t mlsdm_settings_checksum(const struct mlsdm_settings *settings);
int mlsdm_command_pending(struct mlsdm_map *map);
int mlsdm_command_withdraw(struct mlsdm_map *map, uint64_t ticket);
int mlsdm_vitals_write(struct mlsdm_map *map, uint64_t epoch, const struct mlsdm_vitals *vitals);
int mlsdm_vitals_write_unlocked(struct mlsdm_map *map, uint64_t predecessor, const struct mlsdm_vitals *vitals);

int mlsdm_state_read(struct mlsdm_map *map, struct mlsdm_state *state, float *levels);
void mlsdm_levels_norms(struct mlsdm_map *map, const float *levels, double *norms);
int mlsdm_tallies_read(struct mlsdm_map *map, uint64_t *accepted, uint64_t *rejected, uint64_t *position);
int mlsdm_entries_read(struct mlsdm_map *map, uint64_t first, uint32_t count, struct mlsdm_entry *out, uint32_t *copied,
                       uint64_t *oldest);
int mlsdm_memory_read(struct mlsdm_map *map, uint64_t id, struct mlsdm_slot *slot, float *vector, uint8_t *payload);
int mlsdm_slot_check(struct mlsdm_map *map, uint64_t at, uint64_t *id);
int mlsdm_slot_repair(struct mlsdm_map *map, uint64_t at);
uint32_t mlsdm_chains_check(struct mlsdm_map *map, uint32_t chain, uint32_t count);
int mlsdm_chain_repair(struct mlsdm_map *map, uint32_t chain);
uint64_t mlsdm_position(const struct mlsdm_map *map);
uint64_t mlsdm_header_checksum(const struct mlsdm_header *header);

int64_t mlsdm_tokens_spend(struct mlsdm_map *map, const struct mlsdm_account *account, int64_t now_ns, uint32_t count);
void mlsdm_tokens_refund(struct mlsdm_map *map, const struct mlsdm_account *account, uint32_t count);

int mlsdm_recall(struct mlsdm_map *map, const struct mlsdm_query *query, struct mlsdm_match *matches,
                 struct mlsdm_recall_result *answer);
