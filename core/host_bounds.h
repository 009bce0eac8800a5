/* Bounds on the scores of many hosts at once; core/host_table.pyx says what for. Written so that compilers vectorise
   every loop over LANES. */

#include <math.h>
#include <stdint.h>

#define LANES 64
#define ONE_TO_ONE 65535
/* Above the sum of all roundings in a bound: some fifteen of 2^-24 each. */
#define ROUNDING (1.0f / (1 << 18))

/* What bounds are computed from. distance is rounded up for all that is not `after` in a score. A lane without a host,
   or with a closed one, has free_mib -1. */
typedef struct {
    float used[LANES], memory[LANES], optimal[LANES], distance[LANES], penalty[LANES];
    int32_t free_mib[LANES];
    int16_t free_cpus[LANES];
} host_block;

/* One level on these hosts. For a VM of c vCPUs it grows by
       max(0, c - cpus, base + ceil((rest + 1000 c) / level))
   or, where rest is ONE_TO_ONE, by max(0, c - cpus, base + c). CPUs suffice up to c = fit; -1: no such level. */
typedef struct {
    int16_t fit[LANES], base[LANES], cpus[LANES];
    uint16_t rest[LANES];
} level_block;

/* 1000 vcpus = whole * level + rest */
typedef struct {
    int32_t level, vcpus, fit, free_mib, whole, rest;
    float memory;
} vm_request;

/* Of count blocks the highest bound of each; and, if lanes is not NULL, each bound in the last block. */
typedef void (*bounds_of_blocks)(
    const host_block *hosts, level_block *const *levels, const level_block *absent, int count,
    const vm_request *vm, float *lanes, double *highest);

#if defined(__GNUC__)
#define FLAT static inline __attribute__((always_inline))
#else
#define FLAT static inline
#endif

/* Growth and feasibility are exact; the score is never below that of progress_on. */
FLAT void bounds_of_lanes(
    const host_block *host, const level_block *level, const vm_request *vm, int progress, float *bounds)
{
    const int32_t above_whole = -vm->rest, above_next = vm->level - vm->rest;
    const int32_t more_at_one = vm->vcpus - vm->whole - 2;
    for (int lane = 0; lane < LANES; lane++) {
        int32_t fit = level->fit[lane] < 0 ? host->free_cpus[lane] : level->fit[lane];
        int fits = (fit >= vm->fit) & (host->free_mib[lane] >= vm->free_mib);
        float bound = 0.0f;
        if (progress) {
            int32_t rest = level->rest[lane];
            int32_t grow = level->base[lane] + vm->whole + (rest > above_whole) + (rest > above_next)
                + (rest == ONE_TO_ONE ? more_at_one : 0);
            int32_t width = vm->vcpus - level->cpus[lane];
            grow = grow > width ? grow : width;
            grow = grow > 0 ? grow : 0;
            float after = (host->memory[lane] + vm->memory) / (host->used[lane] + (float)grow);
            bound = host->distance[lane] - fabsf(after - host->optimal[lane]) + after * ROUNDING;
            bound = bound < 0 ? bound * host->penalty[lane] : bound;
        }
        bounds[lane] = fits ? bound : -INFINITY;
    }
}

/* Floats are compared as integers of the same order: no compiler vectorises the maximum of floats. */
FLAT void bounds_of(
    const host_block *hosts, level_block *const *levels, const level_block *absent, int count,
    const vm_request *vm, int progress, float *lanes, double *highest)
{
    for (int block = 0; block < count; block++) {
        union {
            float bound[LANES];
            int32_t bits[LANES];
        } found;
        int32_t most = INT32_MIN;
        bounds_of_lanes(hosts + block, levels ? levels[block] : absent, vm, progress, found.bound);
        if (lanes)
            for (int lane = 0; lane < LANES; lane++)
                lanes[lane] = found.bound[lane];
        for (int lane = 0; lane < LANES; lane++) {
            int32_t order = found.bits[lane] ^ ((found.bits[lane] >> 31) & INT32_MAX);
            most = order > most ? order : most;
        }
        found.bits[0] = most ^ ((most >> 31) & INT32_MAX);
        highest[block] = found.bound[0];
    }
}

#define BOUNDS(name, progress, target) \
    target static void name( \
        const host_block *hosts, level_block *const *levels, const level_block *absent, int count, \
        const vm_request *vm, float *lanes, double *highest) \
    { \
        bounds_of(hosts, levels, absent, count, vm, progress, lanes, highest); \
    }

#define ANY_PROCESSOR
BOUNDS(bounds_constant, 0, ANY_PROCESSOR)
BOUNDS(bounds_progress, 1, ANY_PROCESSOR)

/* A package runs on every x86-64; wider registers are used where there are some. */
#if defined(__GNUC__) && defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
BOUNDS(bounds_constant_avx2, 0, AVX2)
BOUNDS(bounds_progress_avx2, 1, AVX2)
BOUNDS(bounds_constant_avx512, 0, AVX512)
BOUNDS(bounds_progress_avx512, 1, AVX512)
#endif

/* By number of the kernel. */
static bounds_of_blocks kernels[2] = {bounds_constant, bounds_progress};

/* Use registers of at most so many bits (128, 256, 512) from now on; returns how many the processor has of these. */
static int use_registers_of(int most)
{
    int used = 128;
    kernels[0] = bounds_constant;
    kernels[1] = bounds_progress;
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    if (most >= 256 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        kernels[0] = bounds_constant_avx2;
        kernels[1] = bounds_progress_avx2;
        used = 256;
    }
    if (most >= 512 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl")) {
        kernels[0] = bounds_constant_avx512;
        kernels[1] = bounds_progress_avx512;
        used = 512;
    }
#endif
    return used;
}
