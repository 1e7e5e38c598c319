/* What Python sees of the reader. cffi reads this file too, so it keeps to plain declarations. */

/* An event beside its vector. The payload is `payload_size` bytes of the text from `payload` on, 0 when there is none:
 * where it begins and ends is certain, that it is JSON is not. */
struct mlsdm_event {
    double moral;
    uint64_t payload;
    uint64_t payload_size;
};

int mlsdm_read_event(const uint8_t *text, size_t size, uint32_t dimension, float *vector, struct mlsdm_event *event);
int mlsdm_read_vector(const uint8_t *text, size_t size, uint32_t dimension, float *vector);
