/* Which instruction sets are in this build and run on this processor. */
#include <string.h>

#include "kernels.h"

const dpq_kernels *dpq_find_kernels(const char *name)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vbmi"))
        return &dpq_kernels_avx512;
    if (strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &dpq_kernels_avx2;
#elif defined(__aarch64__)
    if (strcmp(name, "neon") == 0)
        return &dpq_kernels_neon;
#endif
    return strcmp(name, "generic") == 0 ? &dpq_kernels_generic : NULL;
}

const char *dpq_best_simd_level(void)
{
    static const char *const best_first[] = {"avx512", "avx2", "neon"};
    for (size_t i = 0; i < sizeof best_first / sizeof *best_first; i++)
        if (dpq_find_kernels(best_first[i]))
            return best_first[i];
    return "generic";
}
