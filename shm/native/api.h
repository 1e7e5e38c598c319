/* The contract of the native core: the functions that Python calls, and the private structures that they take.
 *
 * cffi reads this file, and shm/native_stubs.py makes shm/_native.pyi of it, so it keeps to plain declarations. An
 * array parameter is spelled with brackets, and a parameter that may be NULL is followed by a comment that says so.
 *
 * These rules hold for every function unless its own contract names an exception:
 *
 * Arguments. The caller owns all memory that it passes. A function uses it during the call only and keeps no pointer.
 *   Pointers are aligned for their type and are not NULL. Sizes, indices and moral values are not checked: the caller
 *   keeps them within the ranges that are given here, otherwise the behaviour is undefined.
 * Time. `time_ns` is the time of the transition in ns UTC: log time (Block.log_time in shm/block.py). A transition
 *   happens at this time or at that of the one before, whichever is later: log time never goes back. No function reads
 *   a clock for it. `now_ns` is CLOCK_BOOTTIME in ns, for token buckets only.
 * Result. A function that returns int returns a status, MLSDM_STATUS_*. OK means that the outputs are set. After any
 *   other status the outputs are undefined and the block holds what it held before.
 * Lock. "Takes the lock" means: the function enters the section, waits up to map->wait_ms ms for it (with 0 it spins
 *   for some µs and gives up), and leaves it before it returns. No function returns with the lock held, so the caller
 *   never holds it. Two statuses come from the lock. BUSY: it was not acquired in time. LOST: no
 *   process can acquire it any more, until the server is restarted.
 * Process. The caller maps the block writable, has made `map` after its last fork, and set row and pid in it. Any
 *   thread may call. A function that "does not write the block" may also be called with a read-only mapping.
 * Death. A caller that dies inside a function has done all of it, if it died after the store of the commit word, or
 *   nothing, if before. What it left half-written is undone or completed by the next process that takes the lock. */

/* -- private structures -- */

/* The block as one process has mapped it. Filled in by shm/block.py; the native core only reads it. */
struct mlsdm_map {
    uint8_t *base;                  /* first byte of the mapping */
    uint64_t offset[MLSDM_REGIONS]; /* bytes from `base` to each region, in the order of enum mlsdm_region */
    uint32_t dimension;             /* floats of a vector, D */
    uint32_t padded;                /* floats of a stored vector: D rounded up to 16; the rest is zero */
    uint32_t shadow_stride;         /* bytes of a shadow: D rounded up to 16; the rest is zero */
    uint32_t capacity;              /* memories at most, C */
    uint32_t slots;                 /* slots: C + 1 + slack */
    uint32_t index_mask;            /* chains of the index, less one */
    uint64_t index_key;             /* keys the hash of the index */
    uint32_t payload_stride;        /* bytes of a slot's payload */
    uint32_t log_capacity;          /* entries of the log ring */
    uint32_t rows;                  /* worker rows */
    uint32_t namespaces;            /* rows of the table of namespaces */
    uint32_t pins_max;              /* pinned memories at most */
    uint32_t receipt_capacity;      /* receipts that are kept; also the number of chains */
    uint32_t buckets[2];            /* buckets in the tables of keys and of peers: multiples of BUCKET_WAYS */
    uint32_t row;                   /* index of this process's row, or NO_ROW */
    uint32_t wait_ms;               /* longest wait for the lock; 0: never wait; always 0 with a read-only mapping */
    uint64_t pid;                   /* of this process */
    int64_t log_offset_ns;          /* log time less CLOCK_BOOTTIME */
    double norm_max;                /* largest norm of a vector that is admitted */
};

/* What identifies an event that came with an idempotency key. Item i of a batch has words[1] + i. */
struct mlsdm_idempotency_hash {
    uint64_t words[2]; /* keyed hash of the client and its idempotency key */
    uint64_t body;     /* keyed hash of the route and of the decoded events */
};

enum mlsdm_event_flag {
    MLSDM_EVENT_PINNED = 1,
    MLSDM_EVENT_CREATE_ONLY = 2, /* refuse the event if a memory has its own id */
    MLSDM_EVENT_DEFAULTED = 4,   /* the moral value is a default */
    MLSDM_EVENT_EXPIRES = 8,     /* expires_ns counts */
    MLSDM_EVENT_TTL = 16,        /* ttl_ns counts */
    MLSDM_EVENT_CREATED = 32     /* created_ns counts */
};

/* An event. Zero means that it has none of what it may have, but for `generation`: that of the default namespace is 1.
 */
struct mlsdm_event {
    uint32_t namespace;    /* row of its namespace, below map->namespaces */
    uint32_t generation;   /* of that namespace */
    double moral;          /* 0 to 1 */
    const uint8_t *vector; /* the bytes of float32[D], any alignment */
    const uint8_t *payload /* or NULL */;
    const uint8_t *metadata /* or NULL */; /* the encoded members */
    const uint8_t *own_id /* or NULL */;   /* UTF-8 */
    uint32_t payload_size;                 /* bytes; the three sizes together ≤ payload_size_max of the header */
    uint32_t metadata_size;
    uint32_t own_id_size;                              /* < 2^16 */
    uint32_t flags;                                    /* MLSDM_EVENT_* */
    const struct mlsdm_members *members /* or NULL */; /* of the metadata; NULL exactly if metadata_size is 0 */
    uint64_t own_id_hash[2];                           /* keyed hash of namespace and own id; not 0 0 if it has one */
    int64_t ttl_ns;                                    /* lifetime from the time of the entry on, at least 1 */
    int64_t expires_ns;                                /* instant from which it is absent, 0 for never */
    int64_t created_ns;                                /* time that the client names */
    double dedupe_threshold;                           /* least score of a duplicate, -1 to 1 */
    uint32_t dedupe;                                   /* MLSDM_DECIDED_KEEP, _SKIP or _SUPERSEDE; 0: do not look */
    float *bounds /* or NULL */; /* float32[slots], scratch memory of the caller; needed if it looks */
    uint32_t scorer;             /* version of the scorer that made the moral value */
    uint32_t key_id;             /* number of the API key */
    const struct mlsdm_idempotency_hash *hash /* or NULL */;
};

/* A token bucket and its owner. One token comes every `interval_ns`, up to `burst`; burst × interval_ns < 2^62. */
struct mlsdm_account {
    uint64_t owner; /* keyed hash of the client's name; not 0 */
    int64_t interval_ns;
    uint32_t burst;
    uint32_t table; /* 0 for keys, 1 for peers */
};

/* The fields of a memory that a filter can ask for. Numbers of the kinds in brackets are compared as integers. */
enum mlsdm_field {
    MLSDM_FIELD_MEMBER = 0, /* of the metadata; a number [key: its bits, those below the sign inverted if it is set] */
    MLSDM_FIELD_CREATED_AT = 1, /* [ns UTC, log time] */
    MLSDM_FIELD_UPDATED_AT = 2, /* [ns UTC, log time] */
    MLSDM_FIELD_MEMORY_ID = 3,
    MLSDM_FIELD_MORAL_VALUE = 4, /* [key] */
    MLSDM_FIELD_PHASE = 5,       /* a boolean: 0 wake, 1 sleep */
    MLSDM_FIELD_ID = 6           /* the own id; its hash depends on the namespace */
};
enum mlsdm_operator {
    MLSDM_OPERATOR_EXISTS = 0,
    MLSDM_OPERATOR_ABSENT = 1,
    MLSDM_OPERATOR_AMONG = 2, /* equal to one of the operands */
    MLSDM_OPERATOR_RANGE = 3  /* a number from `low` to `high` */
};

/* One value that a field is compared with. */
struct mlsdm_operand {
    uint64_t word;   /* a number as an integer, 0 or 1 for a boolean, the keyed hash of a string */
    uint32_t kind;   /* MLSDM_VALUE_* */
    uint32_t octets; /* of a string: its first byte in `octets` of the filter */
    uint32_t size;   /* and its bytes */
    uint32_t reserved;
};
struct mlsdm_test {
    uint32_t operator; /* MLSDM_OPERATOR_* */
    uint32_t first;    /* AMONG: its first operand; they are sorted by their words, as unsigned numbers */
    uint32_t count;    /* and how many */
    uint32_t reserved;
    int64_t low;  /* RANGE: the smallest number that passes */
    int64_t high; /* and the largest */
};
/* A condition holds if all of its tests do. */
struct mlsdm_condition {
    uint32_t field; /* MLSDM_FIELD_* */
    uint32_t first; /* its first test */
    uint32_t count; /* and how many */
    uint32_t reserved;
    uint64_t name; /* MEMBER: keyed hash of its name */
};
/* Selects memories that meet all conditions of the first group, none of the second and one of the third, if that is not
 * empty. The groups lie one behind the other. */
struct mlsdm_filter {
    uint32_t all;
    uint32_t none;
    uint32_t any;
    uint32_t reserved;
    const struct mlsdm_condition *conditions;
    const struct mlsdm_test *tests;
    const struct mlsdm_operand *operands;
    const uint8_t *octets;
};

/* What identifies a namespace: its row, and the generation of the row. */
struct mlsdm_namespace_id {
    uint32_t number;
    uint32_t generation;
};

struct mlsdm_query {
    const float *vector;      /* float32[D], any norm up to norm_max */
    uint32_t k;               /* matches wanted, 1 ≤ k ≤ 100 */
    uint32_t phase_masks[2];  /* by the phase of the rhythm: bit t is set if memories tagged t match */
    uint32_t namespace_count; /* 64 at most */
    const struct mlsdm_namespace_id *namespaces; /* whose memories match; one that is unknown or closing has none */
    const struct mlsdm_filter *filter /* or NULL */;
    int64_t clock_ns;             /* log time at which expiry is judged, unless that of the position is later; 0: read
                                   * CLOCK_BOOTTIME once the position is fixed */
    float *bounds;                /* float32[slots], scratch memory of the caller; undefined afterwards */
    float *vectors /* or NULL */; /* float32[k][D] that receives the vectors of the matches, see `place` */
    uint8_t *payloads /* or NULL */; /* uint8[k][payload_stride] that receives payload, metadata and own id of each
                                      * match, one behind the other */
};

struct mlsdm_match {
    uint64_t id;
    double score; /* cosine, from -1 to 1 */
    double moral;
    int64_t time_ns;                     /* first admission, ns UTC, log time */
    int64_t updated_ns;                  /* this version, ns UTC, log time */
    int64_t expires_ns;                  /* 0 for never */
    uint64_t version;                    /* position that wrote it */
    struct mlsdm_namespace_id namespace; /* of the memory */
    uint32_t payload_size;               /* bytes, and so are the next two */
    uint32_t metadata_size;
    uint32_t own_id_size;
    uint32_t scorer; /* version of the scorer, 0 for none */
    uint32_t phase;  /* 0 wake, 1 sleep */
    uint32_t flags;  /* of the slot */
    uint32_t pinned; /* 0 or 1 */
    uint32_t place;  /* index of its vector and payload in those of the query */
};

struct mlsdm_recall_result {
    uint64_t as_of;      /* position: the matches equal brute force immediately after it */
    int64_t time_ns;     /* log time of the transition at that position, ns UTC */
    uint64_t scanned;    /* live memories that were compared */
    uint64_t candidates; /* of these, scored in full */
    uint64_t corrupt_id; /* a memory that was left out because its checksum is wrong, 0 for none */
    uint32_t attempts;   /* how often the recall began, at least 1 */
    uint32_t count;      /* matches */
};

/* -- the block and its rows -- */

/* Initialise the mutex of a new block: robust, process-shared, error-checking.
 *
 * Returns    0, or an errno value of pthread_mutex_init(3).
 * Lock       none.
 * Process    the creator, once, before any other process can see the block. */
int mlsdm_lock_create(struct mlsdm_map *map);

/* Mark every slot and every row of namespaces of a new block as free, and make index and lists. `map` is complete, with
 * the index key.
 *
 * Lock       none.
 * Process    the creator, once, before any other process can see the block. */
void mlsdm_slots_create(struct mlsdm_map *map);

/* Compute the checksum of a record with vectors of one width. All widths give the same sum.
 *
 * width      16, 32 or 64 bytes.
 * words      uint64[size / 8].
 * size       in bytes, a multiple of 8.
 * sum        set to the checksum if 1 is returned.
 * Returns    1, or 0 if this processor or this build has no vectors of that width.
 * Lock       none. Does not read or write the block. */
int mlsdm_checksum(uint32_t width, const uint64_t words[], uint64_t size, uint64_t seed, uint64_t *sum);

/* Compute the checksum of a header.
 *
 * header     need not lie in the block.
 * Returns    the checksum of the 168 bytes before the field `checksum`.
 * Lock       none. Does not write the block. */
uint64_t mlsdm_header_checksum(const struct mlsdm_header *header);

/* Read the commit word.
 *
 * Returns    the committed position, 0 before the first state; UINT64_MAX if the word is damaged.
 * Lock       none. Does not write the block. */
uint64_t mlsdm_position(const struct mlsdm_map *map);

/* Change the owner of a worker row: claim it, or release it with (0, 0) as the new owner. Its counters stay.
 *
 * row            index, below map->rows.
 * pid, started   the owner as the caller has read it: free, found dead, or the caller itself.
 * new_pid, new_started   the next owner; `started` is the start time in clock ticks since boot.
 * Returns    OK; TAKEN if the row no longer belongs to (pid, started); BUSY; LOST. Needs no formed state.
 * Lock       takes it.
 * Process    worker, for itself.
 * Death      pid is stored last. Before that store, the row has the old pid with the new start time, which is no live
 *            process. */
int mlsdm_row_claim(struct mlsdm_map *map, uint32_t row, uint64_t pid, uint64_t started, uint64_t new_pid,
                    uint64_t new_started);

/* -- admission -- */

/* Decide one event, and remember it if it is accepted. The hot path.
 *
 * moral          0 to 1.
 * vector         the bytes of float32[D], any alignment.
 * payload        uint8[payload_size], payload_size ≤ payload_size_max of the header. May be NULL if the size is 0.
 * hash           identifies an event with an idempotency key; NULL if it has none.
 * decision       receives the decision. If the receipt of `hash` is kept, it receives the first decision, with
 *                repeated = 1, and nothing changes. Such a receipt takes precedence over STOPPED and an emergency.
 * Returns    OK; NOT_FINITE, TOO_LONG (before the lock); BUSY; LOST; UNFORMED; CORRUPT: the committed state, the
 *            levels, or a receipt on the chain does not match its checksum; REUSED: the hash came with another body;
 *            STOPPED: an operator has stopped admissions; CORRUPT, LOST, EXHAUSTED: the vitals declare an emergency.
 * Lock       takes it.
 * Process    worker. */
int mlsdm_admit(struct mlsdm_map *map, int64_t time_ns, double moral, const uint8_t *vector,
                const uint8_t *payload /* or NULL */, uint32_t payload_size,
                const struct mlsdm_idempotency_hash *hash /* or NULL */, struct mlsdm_decision *decision);

/* Decide one event with everything that an event may have. mlsdm_admit is the same for an event of the default
 * namespace that has only what its arguments name.
 *
 * event          see struct mlsdm_event.
 * decision       as in mlsdm_admit.
 * Returns    as mlsdm_admit; after STOPPED and the emergencies, in this order: UNKNOWN: the namespace is not in use;
 *            CLOSING: it is being deleted; INVALID: the expiry has passed, or the event has both kinds of it. With
 *            `dedupe`, BUSY also if sixteen searches were overtaken.
 * Lock       takes it; with `dedupe` again if more was written since the search than can be read under it.
 * Process    worker. */
int mlsdm_admit_event(struct mlsdm_map *map, int64_t time_ns, const struct mlsdm_event *event,
                      struct mlsdm_decision *decision);

/* Decide one event that takes the place of a memory if it is accepted: it gets a new id, and keeps the time of the
 * first admission. The bytes of the memory whose place it takes are erased. If the event is rejected, that memory
 * stays.
 *
 * memory_id      any number.
 *                The rest is as in mlsdm_admit.
 * Returns    as mlsdm_admit; UNKNOWN: the id was never given; GONE: the memory does not live. A kept receipt takes
 *            precedence over both.
 * Lock       takes it.
 * Process    worker.
 * Death      the event is decided and the memory gone, or neither; the next process that takes the lock erases the
 *            rest. */
int mlsdm_supersede(struct mlsdm_map *map, int64_t time_ns, uint64_t memory_id, double moral, const uint8_t *vector,
                    const uint8_t *payload /* or NULL */, uint32_t payload_size,
                    const struct mlsdm_idempotency_hash *hash /* or NULL */, struct mlsdm_decision *decision);

/* Write a new version of a memory, with another payload. It keeps its id, its vector, the position that admitted it and
 * its place among those that wait to be evicted; its version is the position of this transition. Governor, counters and
 * levels stay as they are. The bytes of the version before are erased.
 *
 * memory_id      any number.
 * payload        uint8[payload_size], payload_size ≤ payload_size_max of the header; NULL: the memory keeps its own.
 * entry          receives the log entry.
 * Returns    OK; BUSY; LOST; UNFORMED; CORRUPT: the committed state, or the memory; UNKNOWN: the id was never given;
 *            GONE: the memory does not live.
 * Lock       takes it.
 * Process    worker.
 * Death      the memory has the new version or the old one; the next process that takes the lock erases the rest. */
int mlsdm_update(struct mlsdm_map *map, int64_t time_ns, uint64_t memory_id, const uint8_t *payload /* or NULL */,
                 uint32_t payload_size, struct mlsdm_entry *entry);

/* Decide events in order, each in a section of its own, so that events of other processes may come between them.
 *
 * count          events.
 * morals         float64[count].
 * vectors        float32[count][D].
 * payloads       the payloads, concatenated. NULL, together with payload_ends, if no event has one.
 * payload_ends   uint64[count]: payload i ends before byte payload_ends[i].
 * hash           of the batch; item i is identified by words[1] + i.
 * decisions      [count]; receives those that were made.
 * done           receives their number, whatever the status is.
 * Returns    OK if done = count; else the status of mlsdm_admit for event `done`. The events before it stay decided.
 * Lock       takes it `count` times.
 * Process    worker.
 * Death      each event by itself is decided or is not. */
int mlsdm_admit_batch(struct mlsdm_map *map, int64_t time_ns, uint32_t count, const double morals[],
                      const float vectors[], const uint8_t payloads[] /* or NULL */,
                      const uint64_t payload_ends[] /* or NULL */,
                      const struct mlsdm_idempotency_hash *hash /* or NULL */, struct mlsdm_decision decisions[],
                      uint32_t *done);

/* Check whether vectors can be admitted.
 *
 * vectors        float32[count][D].
 * bad            receives the index of the first that cannot, or count.
 * Returns    OK; NOT_FINITE; TOO_LONG. `bad` is set in every case.
 * Lock       none. Does not write the block, and does not read it. */
int mlsdm_vectors_check(struct mlsdm_map *map, const float vectors[], uint32_t count, uint32_t *bad);

/* Delete one memory because a client asked for it, and erase its vector, shadow and payload.
 *
 * memory_id      any number.
 * entry          receives the log entry.
 * Returns    OK; BUSY; LOST; UNFORMED; CORRUPT: the committed state; UNKNOWN: the id was never given; GONE: the memory
 *            was overwritten, deleted or lost.
 * Lock       takes it.
 * Process    worker.
 * Death      before the commit, the marks are rolled back; after it, the next process that takes the lock erases the
 *            rest. */
int mlsdm_forget(struct mlsdm_map *map, int64_t time_ns, uint64_t memory_id, struct mlsdm_entry *entry);

/* -- namespaces -- */

/* Create a namespace, in the lowest row that can be given: one that was never used, or that no entry of the log names.
 *
 * terms          `name` (not empty, zeros behind it), `limit`, `reserved`, `ttl_ns`; with NAMESPACE_OWN in `flags` also
 *                `governor` and `mode`. The other fields are not read.
 * entry          receives the log entry.
 * Returns    OK; EXISTS: a namespace has the name, maybe one that is closing; NAMESPACES_FULL; INVALID: the share is
 *            above the limit or the capacity, or the lifetime is negative; PROMISED: all shares and pins would exceed
 *            the capacity; UNFORMED; CORRUPT: the committed state or a row; BUSY; LOST.
 * Lock       takes it; the table is searched without it.
 * Process    any that may write.
 * Death      the namespace is there or is not. */
int mlsdm_namespace_create(struct mlsdm_map *map, int64_t time_ns, const struct mlsdm_terms *terms,
                           struct mlsdm_entry *entry);

/* Set other terms of a namespace. Its name stays. Its own governor begins at the initial threshold if it had none; else
 * its threshold is clamped.
 *
 * row, generation   any numbers.
 * terms          as in mlsdm_namespace_create; `name` is not read.
 * entry          receives the log entry.
 * Returns    OK; UNKNOWN: no such namespace is in use; CLOSING; INVALID, PROMISED as in mlsdm_namespace_create;
 *            UNFORMED; CORRUPT: the committed state or the row; BUSY; LOST.
 * Lock       takes it.
 * Process    any that may write.
 * Death      the namespace has the new terms or the old ones. */
int mlsdm_namespace_change(struct mlsdm_map *map, int64_t time_ns, uint32_t row, uint32_t generation,
                           const struct mlsdm_terms *terms, struct mlsdm_entry *entry);

/* Close a namespace: from here on its events are refused, and it has no reserved share.
 *
 * row, generation   any numbers.
 * entry          receives the log entry.
 * Returns    OK; UNKNOWN; CLOSING: it is closed; INVALID: it is the default one; UNFORMED; CORRUPT; BUSY; LOST.
 * Lock       takes it.
 * Process    any that may write.
 * Death      the namespace is closed or is not. */
int mlsdm_namespace_close(struct mlsdm_map *map, int64_t time_ns, uint32_t row, uint32_t generation,
                          struct mlsdm_entry *entry);

/* Free the row of a closed namespace that has no memories.
 *
 * row, generation   any numbers.
 * entry          receives the log entry.
 * Returns    OK; UNKNOWN; INVALID: it is not closed; NOT_EMPTY; UNFORMED; CORRUPT; BUSY; LOST.
 * Lock       takes it.
 * Process    any that may write.
 * Death      the row is free or is not. */
int mlsdm_namespace_free(struct mlsdm_map *map, int64_t time_ns, uint32_t row, uint32_t generation,
                         struct mlsdm_entry *entry);

/* Reset the own governor of a namespace to its initial threshold; nothing else changes.
 *
 * row, generation   any numbers.
 * entry          receives the log entry.
 * Returns    OK; UNKNOWN; INVALID: it shares the server's governor; UNFORMED; CORRUPT; BUSY; LOST.
 * Lock       takes it.
 * Process    any that may write.
 * Death      the governor is reset or is not. */
int mlsdm_namespace_reset(struct mlsdm_map *map, int64_t time_ns, uint32_t row, uint32_t generation,
                          struct mlsdm_entry *entry);

/* Copy rows of the table of namespaces, used or free, at one position.
 *
 * first, count   the rows: first + count ≤ map->namespaces. 32 take some µs.
 * terms, cells   [count].
 * Returns    OK; UNFORMED; CORRUPT: the commit word or a row; BUSY; LOST.
 * Lock       as the reads below. */
int mlsdm_namespaces_read(struct mlsdm_map *map, uint32_t first, uint32_t count, struct mlsdm_terms terms[],
                          struct mlsdm_cell cells[]);

/* Check rows of the table of namespaces, under the lock, and write a damaged copy again from the other one.
 *
 * first, count   the rows: first + count ≤ map->namespaces. 32 take some µs.
 * mended         receives the number of rows that were repaired.
 * Returns    OK; CORRUPT: both copies of a row are damaged, or the committed state is, or there is none; BUSY; LOST.
 * Lock       takes it.
 * Process    controller.
 * Death      a copy is repaired or is still damaged. */
int mlsdm_namespaces_check(struct mlsdm_map *map, uint32_t first, uint32_t count, uint32_t *mended);

/* -- entries of another block -- */

/* Apply an entry that was decided elsewhere: make its transition again, and commit it if this block comes to the same
 * entry. Entries are applied in the order of their positions, beginning with the start, which forms the first state.
 *
 * entry          need not lie in a block.
 * content        vector, payload, metadata, members and own id of the memory that the entry wrote, with their sizes;
 *                its other fields are not read. NULL if the entry wrote none (its `slot` is 0), or if the content is
 *                not known.
 * made           receives, for DIVERGED, the entry that this block comes to; its other fields may be zero if the store
 *                would refuse the transition. For GAP its `position` is the next one. For OK its `position` is 0 if
 *                the position had happened before: then nothing has changed.
 * differs        receives, for DIVERGED, the offset in the entry of the first byte that differs from `made`.
 * Returns    OK; NOT_FINITE, TOO_LONG: the content (before the lock); BUSY; LOST; CORRUPT: the committed state, the
 *            levels, or the memory that an update names; GAP: entries before this one are missing; GONE: the entry
 *            wrote a memory, and `content` is NULL; DIVERGED: the entry does not match its checksum, does not follow
 *            from the state of this block, or differs from the one that the log has at its position. After any status
 *            but OK, nothing has changed.
 * Lock       takes it.
 * Process    the one that applies; no other process of this block makes transitions.
 * Death      the entry is applied or is not. */
int mlsdm_apply(struct mlsdm_map *map, const struct mlsdm_entry *entry, const struct mlsdm_event *content /* or NULL */,
                struct mlsdm_entry *made, uint32_t *differs);

/* -- the controller -- */

/* Become the controller: from here on, every call with an older epoch is refused. The first call forms the first state.
 *
 * settings       used by the first call only.
 * epoch          receives the caller's epoch: the newest one + 1.
 * Returns    OK; BUSY; LOST; CORRUPT: the committed state, or both words that hold the newest epoch.
 * Lock       takes it.
 * Process    controller.
 * Death      the first state is published, or is not; the epoch is taken by one store, or is not. */
int mlsdm_epoch_begin(struct mlsdm_map *map, int64_t time_ns, const struct mlsdm_settings *settings, uint64_t *epoch);

/* Read the newest epoch.
 *
 * Returns    the newest epoch, of the vitals if the word in `lock` is damaged; 0 before the first; UINT64_MAX if both
 *            words are damaged.
 * Lock       none. Does not write the block. */
uint64_t mlsdm_epoch(const struct mlsdm_map *map);

/* Take one step of the rhythm. In the sleep phase it includes one consolidation.
 *
 * epoch          the caller's.
 * entry          receives the log entry.
 * Returns    OK; BUSY; LOST; UNFORMED; CORRUPT: the committed state, or the levels that a consolidation needs; STALE: a
 *            newer controller has taken over, or the word of the epoch is damaged.
 * Lock       takes it.
 * Process    controller. */
int mlsdm_tick(struct mlsdm_map *map, int64_t time_ns, uint64_t epoch, struct mlsdm_entry *entry);

/* Carry out the pending command.
 *
 * epoch          the caller's.
 * entry          receives the log entry; its `position` is 0 if no command was pending.
 * Returns    OK; BUSY; LOST; CORRUPT: the committed state; STALE. OK at once, without the lock, if nothing is pending.
 * Lock       takes it, if a command is pending.
 * Process    controller.
 * Death      a resume clears the emergency of the vitals before its commit; the command stays pending until then. */
int mlsdm_command_apply(struct mlsdm_map *map, int64_t time_ns, uint64_t epoch, struct mlsdm_entry *entry);

/* Publish the vitals and the heartbeat of the controller.
 *
 * epoch          the caller's; `vitals->epoch` is not read.
 * Returns    OK; BUSY; LOST; CORRUPT: the committed state, or there is none yet; STALE.
 * Lock       takes it. Readers do not: they read word by word and may see words of two beats.
 * Process    controller.
 * Death      some words are of this beat and some of the last one, until a controller writes the next. */
int mlsdm_vitals_write(struct mlsdm_map *map, uint64_t epoch, const struct mlsdm_vitals *vitals);

/* Publish the vitals without the lock: for a controller that finds that the lock is lost, or that the committed
 * state is corrupt.
 *
 * predecessor    pid of the controller that signed the vitals before this one began.
 * vitals         its `controller_pid` is the caller's; its `epoch` is not read, and that of the block stays.
 * Returns    OK; STALE if a process other than the caller and `predecessor` has signed them. Needs no formed state.
 * Lock       none. The signature is one compare-and-swap of `controller_pid`; the words follow one by one.
 * Process    controller.
 * Death      as mlsdm_vitals_write. */
int mlsdm_vitals_write_unlocked(struct mlsdm_map *map, uint64_t predecessor, const struct mlsdm_vitals *vitals);

/* -- the command slot -- */

/* Post a command for the controller.
 *
 * kind           MLSDM_KIND_CONFIGURE, _RESET, _STOP or _RESUME.
 * settings       the new ones; NULL unless the kind is CONFIGURE.
 * configured     checksum of the settings if the configuration asks for them, else 0.
 * after          ticket of the newest command that the caller knows to be carried out; UINT64_MAX: any.
 * ticket         receives the ticket of the command, above every ticket before it.
 * Returns    OK; BUSY; LOST; CORRUPT: the committed state, or there is none yet; TAKEN: another command is
 *            pending, or one was carried out after ticket `after`.
 * Lock       takes it.
 * Process    worker, arbiter.
 * Death      the ticket is stored last: before it, nothing was posted. */
int mlsdm_command_post(struct mlsdm_map *map, uint32_t kind, const struct mlsdm_settings *settings /* or NULL */,
                       uint64_t configured, uint64_t after, uint64_t *ticket);

/* Tell whether a command is pending.
 *
 * Returns    1, or 0; also 0 if the slot does not fit its checksum.
 * Lock       none. Does not write the block. The answer may be out of date when the function returns. */
int mlsdm_command_pending(struct mlsdm_map *map);

/* Withdraw a command.
 *
 * ticket         of the command, from mlsdm_command_post.
 * Returns    OK: it will never be carried out; this holds for a damaged slot too, which is then made valid again;
 *            TAKEN: it was carried out, or the slot holds another command; BUSY; LOST; CORRUPT: the committed state,
 *            or there is none yet.
 * Lock       takes it.
 * Process    worker, arbiter.
 * Death      the command is pending, or it is withdrawn. */
int mlsdm_command_withdraw(struct mlsdm_map *map, uint64_t ticket);

/* Compute a checksum that tells one settings record from another. Lock: none. Does not read or write the block. */
uint64_t mlsdm_settings_checksum(const struct mlsdm_settings *settings);

/* -- reading --
 *
 * Reads copy without the lock and then validate the copy. A read that is overtaken three times takes the lock, unless
 * map->wait_ms is 0: then it returns BUSY. So BUSY and LOST come only from that fourth try. None of them writes the
 * block when map->wait_ms is 0. Any process may call them, an observer with a read-only mapping too; a caller that dies
 * in one has changed nothing. */

/* Read the committed state.
 *
 * levels         float32[3][padded] that receives its levels.
 * Returns    OK; UNFORMED; CORRUPT: the commit word, the state, or (if asked for) the levels; BUSY; LOST. */
int mlsdm_state_read(struct mlsdm_map *map, struct mlsdm_state *state, float levels[] /* or NULL */);

/* Compute the norms of levels 1 to 3, as the cascade does.
 *
 * levels         float32[3][padded].
 * norms          float64[3].
 * Lock       none. Does not read or write the block. */
void mlsdm_levels_norms(struct mlsdm_map *map, const float levels[], double norms[]);

/* Add up the tallies of all rows at one position.
 *
 * accepted, rejected   events by all rows. Equal to the counts of the state at `position`.
 * Returns    OK, also before the first state (all zero); CORRUPT: the commit word; BUSY; LOST. */
int mlsdm_tallies_read(struct mlsdm_map *map, uint64_t *accepted, uint64_t *rejected, uint64_t *position);

/* Copy log entries.
 *
 * first          position of the first one wanted.
 * count          entries wanted at most.
 * entries        [count].
 * copied         receives how many were copied: fewer than `count` where the log ends.
 * oldest         receives the oldest position that can still be read; 0 for UNKNOWN and for CORRUPT of the commit word.
 * Returns    OK; UNKNOWN: `first` is more than one past the newest; GONE: `first` was overwritten, or is 0;
 *            CORRUPT: the commit word or an entry; then `copied` is the number of sound entries before it.
 * Lock       never. */
int mlsdm_entries_read(struct mlsdm_map *map, uint64_t first, uint32_t count, struct mlsdm_entry entries[],
                       uint32_t *copied, uint64_t *oldest);

/* Read one memory.
 *
 * memory_id      any number.
 * slot           receives its line.
 * vector         float32[D].
 * payload        uint8[payload_stride]; slot->payload_size bytes are set.
 * Returns    OK; UNFORMED; UNKNOWN: the id was never given; GONE: overwritten, deleted or lost; CORRUPT: the state or
 * the memory; BUSY; LOST. */
int mlsdm_memory_read(struct mlsdm_map *map, uint64_t memory_id, struct mlsdm_slot *slot, float vector[],
                      uint8_t payload[]);

/* Copy the memory that an entry wrote, while its bytes are still in the slot that the entry names: also after the
 * memory was evicted, until the slot is written again. A memory that was deleted, updated or superseded is erased.
 *
 * entry          need not lie in the block; its kind is decision or update, and its `slot` is not 0.
 * slot           receives its line.
 * vector         float32[D].
 * payload        uint8[payload_stride]; receives payload, metadata and own id, one behind the other.
 * members        receives those of the metadata; undefined without metadata.
 * Returns    OK; GONE: overwritten or erased; CORRUPT: the memory is damaged.
 * Lock       never. */
int mlsdm_written_read(struct mlsdm_map *map, const struct mlsdm_entry *entry, struct mlsdm_slot *slot, float vector[],
                       uint8_t payload[], struct mlsdm_members *members);

/* Recall: find the k live memories with the largest cosine to a vector, exactly.
 *
 * query          see struct mlsdm_query.
 * matches        [k]; receives the matches, best first; of equal scores the newer first.
 * result         receives the rest.
 * Returns    OK; NOT_FINITE, TOO_LONG: the query's vector; UNFORMED; CORRUPT: the commit word or the state; a damaged
 *            memory is left out and named by `corrupt_id` instead; BUSY, also if sixteen attempts were overtaken;
 *            LOST.
 * Lock       takes it to settle the answer (some µs), a few times if writers overtake it. Where the lock is lost, the
 *            answer is settled without it and validated.
 * Process    worker, any thread. If damage has misled a search, the memories that are found damaged under the lock are
 *            excluded from scans.
 * Death      nothing changes but such exclusions. */
int mlsdm_recall(struct mlsdm_map *map, const struct mlsdm_query *query, struct mlsdm_match matches[],
                 struct mlsdm_recall_result *result);

/* -- scrub and repair -- */

/* Check a slot: its marks, and the checksum of a visible memory.
 *
 * slot           index, below map->slots.
 * memory_id      receives the id of the memory if the result is 0.
 * Returns    1 if it is sound, if it changes during the check, or if the commit word is damaged; else 0.
 * Lock       none. Does not write the block. */
int mlsdm_slot_check(struct mlsdm_map *map, uint64_t slot, uint64_t *memory_id);

/* Check a slot again, under the lock, and repair its marks: each from the other, both from the bytes of the memory.
 *
 * slot           index, below map->slots.
 * Returns    OK: the slot is sound now; CORRUPT: the memory's own bytes are damaged (then mlsdm_lose), or the
 *            committed state is; UNFORMED; BUSY; LOST.
 * Lock       takes it.
 * Process    controller.
 * Death      the marks are repaired or are still damaged; the next scrub finds them. */
int mlsdm_slot_repair(struct mlsdm_map *map, uint64_t slot);

/* Hold index and lists against the slots, under the lock, and make them again if they differ.
 *
 * slot, count    the slots to look at: slot + count ≤ slots. 32 take 10 µs.
 * rebuilt        receives 1 if index and lists were made again, else 0.
 * Returns    OK; BUSY; LOST; UNFORMED; CORRUPT: the committed state.
 * Lock       takes it; a rebuild takes some ms.
 * Process    controller.
 * Death      during a rebuild: the next process that takes the lock rebuilds. */
int mlsdm_links_check(struct mlsdm_map *map, uint32_t slot, uint32_t count, uint32_t *rebuilt);

/* Enter a corrupt memory as lost, and erase what is left of it. A flipped bit must not look like a client's deletion.
 *
 * memory_id      any number.
 * entry          receives the log entry; its `position` is 0 if the memory is sound, and then nothing has changed. Its
 *                detail has the id, and the checksum of the vector as it was admitted, 0 if the log does not hold it.
 * Returns    as mlsdm_forget.
 * Lock       takes it.
 * Process    controller.
 * Death      as mlsdm_forget. */
int mlsdm_lose(struct mlsdm_map *map, int64_t time_ns, uint64_t memory_id, struct mlsdm_entry *entry);

/* Find a chain of receipts whose head is damaged.
 *
 * chain, count   the chains to look at: chain + count ≤ receipt_capacity.
 * Returns    the first one that is damaged, or chain + count.
 * Lock       none. Does not write the block. */
uint32_t mlsdm_chains_check(struct mlsdm_map *map, uint32_t chain, uint32_t count);

/* Repair the head of a chain: set it to the newest receipt of the chain that the ring still holds.
 *
 * chain          index, below receipt_capacity.
 * Returns    OK: the head is sound now; CORRUPT: a receipt that the head may have named is damaged too, so the head
 *            stays until that receipt has left the ring; or the committed state is corrupt or missing; BUSY; LOST.
 * Lock       takes it, to change the head; the ring is read without it.
 * Process    controller.
 * Death      the head is repaired by one store, or is still damaged. */
int mlsdm_chain_repair(struct mlsdm_map *map, uint32_t chain);

/* -- token buckets -- */

/* Spend tokens of an account: all of them or none.
 *
 * account        see struct mlsdm_account.
 * count          tokens, 1 ≤ count ≤ burst.
 * Returns    the time in ns until the bucket is full again; if none were spent, minus the time in ns until there
 *            are enough.
 * Lock       none: one compare-and-swap, some more for a client that has no bucket yet. Needs no formed state.
 * Process    worker, any thread.
 * Death      the tokens are spent or are not. */
int64_t mlsdm_tokens_spend(struct mlsdm_map *map, const struct mlsdm_account *account, int64_t now_ns, uint32_t count);

/* Give back tokens that a request has spent, because the request was refused.
 *
 * count          tokens, at most as many as were spent. If the bucket has another owner by then, nothing happens.
 * Lock       none: one atomic subtraction. Needs no formed state.
 * Process    worker, any thread.
 * Death      the tokens are given back or are not. */
void mlsdm_tokens_refund(struct mlsdm_map *map, const struct mlsdm_account *account, uint32_t count);
