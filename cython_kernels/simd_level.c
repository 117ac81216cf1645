/* Which instruction sets are in this build and run on this processor. */
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Asked of the processor itself: __builtin_cpu_supports is always 0 in what `zig cc` builds. Bits as in Intel's manual:
 * of register ECX of leaf 1, of EBX and ECX of leaf 7, and of XCR0, which tells whether the operating system keeps the
 * registers of a thread while others run. */
enum { FMA = 1 << 12, POPCNT = 1 << 23, OSXSAVE = 1 << 27, AVX = 1 << 28 };
enum { BMI1 = 1 << 3, AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 };
enum { AVX512VBMI = 1 << 1, AVX512VBMI2 = 1 << 6, AVX512VNNI = 1 << 11 };
static const uint32_t AVX512VL = 1u << 31;
enum { XMM_YMM = 0x06, MASKS_ZMM = 0xe0 };

typedef struct {
    uint32_t ecx1, ebx7, ecx7, kept;
} features;

static features processor(void)
{
    features f = {0, 0, 0, 0};
    uint32_t eax, ebx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &f.ecx1, &edx) || !(f.ecx1 & OSXSAVE))
        return f;
    __asm__ __volatile__("xgetbv" : "=a"(f.kept), "=d"(edx) : "c"(0));
    __get_cpuid_count(7, 0, &eax, &f.ebx7, &f.ecx7, &edx);
    return f;
}

static int has(uint32_t found, uint32_t wanted)
{
    return (found & wanted) == wanted;
}

static int runs_avx2(features f)
{
    return has(f.kept, XMM_YMM) && has(f.ecx1, FMA | POPCNT | AVX) && has(f.ebx7, BMI1 | AVX2);
}

static int runs_avx512(features f)
{
    return runs_avx2(f) && has(f.kept, MASKS_ZMM) && has(f.ebx7, AVX512F | AVX512DQ | AVX512BW | AVX512VL)
           && has(f.ecx7, AVX512VBMI | AVX512VBMI2 | AVX512VNNI);
}
#endif

const dpq_kernels *dpq_find_kernels(const char *name)
{
#if defined(__x86_64__)
    if (strcmp(name, "avx512") == 0 && runs_avx512(processor()))
        return &dpq_kernels_avx512;
    if (strcmp(name, "avx2") == 0 && runs_avx2(processor()))
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
