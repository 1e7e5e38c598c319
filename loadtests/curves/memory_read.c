/* Reads SIZE bytes of memory in order, PASSES times, and prints the ns of each pass: a lower limit for any program
 * that has to look at as many bytes.
 *
 *     memory_read SIZE PASSES
 *
 * The sum has 32 parts, so that no addition waits for the previous one, and the compiler emits wide loads.
 * The sum is printed so that the compiler cannot drop the loop. */

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target_clones("avx2", "default"))) /* as the scan is built */
#endif
static uint64_t sum_of(const uint64_t *words, size_t count) {
    uint64_t parts[32] = {0}, sum = 0;
    for (size_t i = 0; i + 32 <= count; i += 32)
        for (int j = 0; j < 32; j++) parts[j] += words[i + j];
    for (int j = 0; j < 32; j++) sum += parts[j];
    return sum;
}

int main(int argc, char **argv) {
    size_t size = argc == 3 ? strtoul(argv[1], NULL, 10) / 256 * 256 : 0;
    int passes = argc == 3 ? atoi(argv[2]) : 0;
    if (!size || passes < 1) return 2;
    uint64_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (words == MAP_FAILED) return 1;
    memset(words, 1, size);
    uint64_t sum = sum_of(words, size / 8); /* once to warm up */
    for (int pass = 0; pass < passes; pass++) {
        uint64_t began = clock_ns();
        sum += sum_of(words, size / 8);
        printf("%llu\n", (unsigned long long)(clock_ns() - began));
    }
    fprintf(stderr, "%llu\n", (unsigned long long)sum);
    return 0;
}
