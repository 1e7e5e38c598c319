/* Arithmetic on vectors: the loops that the compiler turns into vector instructions, each the same on every processor.
 *
 * Sums run in float64 over eight lanes and are folded in one fixed order; products of float32 are exact in float64.
 * core/vector.py does the same in NumPy, and tests hold both equal to the last bit. `padded` is a multiple of 16 and
 * the padding is zero. */

#include "block.h"

#define DIMENSION_MAX 4096

static inline double fold(const double *lane) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

MLSDM_WIDE static double dot(const float *x, const float *y, uint32_t padded) {
    double lane[8] = {0};
    for (uint32_t i = 0; i < padded; i += 8)
        for (int j = 0; j < 8; j++) lane[j] += (double)x[i + j] * (double)y[i + j];
    return fold(lane);
}

MLSDM_WIDE static float largest(const float *x, uint32_t padded) {
    float most = 0;
    for (uint32_t i = 0; i < padded; i++) {
        float size = fabsf(x[i]);
        most = size > most ? size : most;
    }
    return most;
}

/* codes = round(x × factor); adding and taking away 1.5 × 2^52 rounds to an integer in the default mode, on every
 * processor alike. */
MLSDM_WIDE static void encode(int8_t *codes, const float *x, double factor, uint32_t padded) {
    const double round = 6755399441055744.0;
    for (uint32_t i = 0; i < padded; i++) codes[i] = (int8_t)(((double)x[i] * factor + round) - round);
}

MLSDM_WIDE static double square_residual(const float *x, double inverse_norm, const int8_t *codes, double scale,
                                         uint32_t padded) {
    double lane[8] = {0};
    for (uint32_t i = 0; i < padded; i += 8)
        for (int j = 0; j < 8; j++) {
            double left = (double)x[i + j] * inverse_norm - scale * codes[i + j];
            lane[j] += left * left;
        }
    return fold(lane);
}
