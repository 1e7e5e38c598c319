/* Vector arithmetic: the loops that the compiler vectorises. Every processor computes the same numbers.
 *
 * Sums run in float64 over eight lanes that are added in one fixed order; products of float32 are exact in float64.
 * core/reference/vector.py does the same in NumPy, and tests hold both equal to the last bit. `padded` is a multiple of
 * 16, and the padding is zero. */

#include "block.h"

#define DIMENSION_MAX 4096

/* Not inlined: otherwise GCC does not vectorise the loops below and adds the lanes one by one. */
static __attribute__((noinline)) double sum_lanes(const double *lane) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

MLSDM_WIDE static double dot(const float *x, const float *y, uint32_t padded) {
    double lane[8] = {0};
    for (uint32_t i = 0; i < padded; i += 8)
        for (int j = 0; j < 8; j++) lane[j] += (double)x[i + j] * (double)y[i + j];
    return sum_lanes(lane);
}

/* The largest magnitude. Floats without their sign are ordered like their bits, and an integer maximum does not depend
 * on the order of evaluation. */
MLSDM_WIDE static float magnitude_max(const float *x, uint32_t padded) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < padded; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7FFFFFFF;
        most = bits > most ? bits : most;
    }
    float found;
    memcpy(&found, &most, sizeof found);
    return found;
}

/* Compute codes = round(x × factor), of magnitude at most 127, and left = x × inverse_norm − scale × codes, in float32.
 * Adding and subtracting 1.5 × 2^23 rounds to an integer in the default rounding mode, on every processor. */
MLSDM_WIDE static void encode(int8_t *codes, float *left, const float *x, float factor, float inverse_norm, float scale,
                              uint32_t padded) {
    const float round = 12582912.0f;
    for (uint32_t i = 0; i < padded; i++) {
        float code = (x[i] * factor + round) - round;
        codes[i] = (int8_t)(int32_t)code;
        left[i] = x[i] * inverse_norm - scale * code;
    }
}

/* The sum of squares in float32. Its sixteen lanes have padded / 16 terms each and no term is negative, so its relative
 * error is less than padded × 2^-24. */
MLSDM_WIDE static float sum_of_squares(const float *x, uint32_t padded) {
    typedef float eight __attribute__((vector_size(32), aligned(4)));
    eight a = {0}, b = {0};
    for (uint32_t i = 0; i < padded; i += 16) {
        eight low = *(const eight *)(x + i), high = *(const eight *)(x + i + 8);
        a += low * low, b += high * high;
    }
    a += b;
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}
