/* Scores of many hosts at once; core/host_table.pyx says what for. Written so that compilers vectorise every loop over
   LANES, with SSE2 too: nothing is read or divided under a condition. */

#include <math.h>
#include <stdint.h>

#define LANES 32
#define ONE_TO_ONE 65535
/* Above the sum of all roundings in a bound: some fifteen of 2^-24 each. */
#define ROUNDING (1.0f / (1 << 18))

/* What bounds are computed from. distance is rounded up for all that is not `after` in a score. A lane without a host,
   or with a closed one, has free_mib -1; ceiling is the highest distance in the others, which no score is above. */
typedef struct {
    float used[LANES], memory[LANES], optimal[LANES], distance[LANES], penalty[LANES];
    int32_t free_mib[LANES];
    int16_t free_cpus[LANES];
    float ceiling, to_the_end_of_the_line[LANES / 2 - 1];
} host_block;

/* The same, as scores need it. */
typedef struct {
    double memory[LANES], optimal[LANES], distance[LANES], penalty[LANES];
} exact_block;

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
    double memory;
} vm_request;

/* Of each of count blocks, a bound that no score in it is above; -INFINITY where nobody fits. What is reached elsewhere
   comes and, if a block reaches higher, goes. A ceiling not above it is bound enough: nothing else is read then. */
typedef double (*bounds_of_blocks)(
    const host_block *hosts, const level_block *levels, int count, const vm_request *vm, double reached, double *bounds);

/* The scores in one block, to the last bit those of core.admission; -INFINITY where the VM does not fit. */
typedef void (*scores_of_block)(
    const host_block *hosts, const exact_block *exact, const level_block *level, const vm_request *vm,
    double *scores);

typedef struct {
    bounds_of_blocks bounds;
    scores_of_block scores;
} kernel;

#if defined(__GNUC__)
#define FLAT static inline __attribute__((always_inline))
#else
#define FLAT static inline
#endif

FLAT int fits(const host_block *host, const level_block *level, const vm_request *vm, int lane)
{
    int32_t own = level->fit[lane], absent = own >> 31;
    int32_t fit = (own & ~absent) | (host->free_cpus[lane] & absent);
    return (fit >= vm->fit) & (host->free_mib[lane] >= vm->free_mib);
}

FLAT int32_t growth(const level_block *level, const vm_request *vm, int lane)
{
    int32_t rest = level->rest[lane];
    int32_t grow = level->base[lane] + vm->whole + (rest > -vm->rest) + (rest > vm->level - vm->rest)
        + (rest == ONE_TO_ONE ? vm->vcpus - vm->whole - 2 : 0);
    int32_t width = vm->vcpus - level->cpus[lane];
    grow = grow > width ? grow : width;
    return grow > 0 ? grow : 0;
}

/* Negative ones are multiplied: the penalty is never below 1, so that is the lower of the two. */
#define penalised(score, penalty) ((score) * (penalty) < (score) ? (score) * (penalty) : (score))

FLAT double bounds_of(
    const host_block *hosts, const level_block *levels, int count, const vm_request *vm, int progress, double reached,
    double *bounds)
{
    const float memory = (float)vm->memory;
    for (int block = 0; block < count; block++) {
        const host_block *host = hosts + block;
        const level_block *level = levels + block;
        union {
            float bound[LANES];
            int32_t bits[LANES];
        } found;
        double ceiling = progress ? host->ceiling : 0.0;
        if (ceiling > reached) {
            for (int lane = 0; lane < LANES; lane++) {
                float bound = 0.0f;
                if (progress) {
                    float after = (host->memory[lane] + memory) / (host->used[lane] + (float)growth(level, vm, lane));
                    bound = host->distance[lane] - fabsf(after - host->optimal[lane]) + after * ROUNDING;
                    bound = penalised(bound, host->penalty[lane]);
                }
                found.bound[lane] = bound;
            }
            /* As integers of the same order: no compiler vectorises the maximum of floats. */
            int32_t most = INT32_MIN;
            for (int lane = 0; lane < LANES; lane++) {
                int32_t order = found.bits[lane] ^ ((found.bits[lane] >> 31) & INT32_MAX);
                int32_t fitting = -fits(host, level, vm, lane);
                order = (order & fitting) | (INT32_MIN & ~fitting);
                most = order > most ? order : most;
            }
            found.bits[0] = most ^ ((most >> 31) & INT32_MAX);
            ceiling = most == INT32_MIN ? -INFINITY : found.bound[0];
        }
        bounds[block] = ceiling;
        reached = ceiling > reached ? ceiling : reached;
    }
    return reached;
}

/* Nothing is added to a product, so that no compiler can join the two (FMA) to another result. */
FLAT void scores_of(
    const host_block *host, const exact_block *exact, const level_block *level, const vm_request *vm, int progress,
    double *scores)
{
    double found[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        double score = 0.0;
        if (progress) {
            double after = (exact->memory[lane] + vm->memory)
                / ((double)host->used[lane] + (double)growth(level, vm, lane));
            score = exact->distance[lane] - fabs(after - exact->optimal[lane]);
            score = penalised(score, exact->penalty[lane]);
        }
        found[lane] = score;
    }
    for (int lane = 0; lane < LANES; lane++)
        scores[lane] = fits(host, level, vm, lane) ? found[lane] : -INFINITY;
}

#define KERNEL(name, progress, target) \
    target static double bounds_##name( \
        const host_block *hosts, const level_block *levels, int count, const vm_request *vm, double reached, \
        double *bounds) \
    { \
        return bounds_of(hosts, levels, count, vm, progress, reached, bounds); \
    } \
    target static void scores_##name( \
        const host_block *hosts, const exact_block *exact, const level_block *level, const vm_request *vm, \
        double *scores) \
    { \
        scores_of(hosts, exact, level, vm, progress, scores); \
    } \
    static const kernel name = {bounds_##name, scores_##name};

#define ANY_PROCESSOR
KERNEL(constant, 0, ANY_PROCESSOR)
KERNEL(progress, 1, ANY_PROCESSOR)

/* A package runs on every x86-64; wider registers are used where there are some. */
#if defined(__GNUC__) && defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
KERNEL(constant_avx2, 0, AVX2)
KERNEL(progress_avx2, 1, AVX2)
KERNEL(constant_avx512, 0, AVX512)
KERNEL(progress_avx512, 1, AVX512)
#endif

/* By number. */
static kernel kernels[2];

/* Use registers of at most so many bits (128, 256, 512) from now on; returns how many the processor has of these. */
static int use_registers_of(int most)
{
    int used = 128;
    kernels[0] = constant;
    kernels[1] = progress;
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    if (most >= 256 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        kernels[0] = constant_avx2;
        kernels[1] = progress_avx2;
        used = 256;
    }
    if (most >= 512 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl")) {
        kernels[0] = constant_avx512;
        kernels[1] = progress_avx512;
        used = 512;
    }
#endif
    return used;
}
