/* A vector of VF_W float32 lanes, for the instruction set that the including kernels_<set>.c chose.
 *
 * Each kernels_<set>.c defines DPQ_<SET>, includes this header and then kernels_impl.h: the same source, compiled
 * once per set. The set is chosen with a pragma, not with compiler flags, so that one ordinary build makes all. */
#ifndef DPQ_SIMD_H
#define DPQ_SIMD_H

#include <stddef.h>
#include <stdint.h>

#if defined(DPQ_AVX512) || defined(DPQ_AVX2)
#include <immintrin.h>
#elif defined(DPQ_NEON)
#include <arm_neon.h>
#endif

/* After the system headers, whose functions carry their own targets. */
#if defined(DPQ_AVX512)
#define DPQ_SUFFIX avx512
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#endif
#define VF_W 16
typedef __m512 vf;
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf vf_set1(float s) { return _mm512_set1_ps(s); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline unsigned vf_less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline unsigned vf_less_equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }

#elif defined(DPQ_AVX2)
#define DPQ_SUFFIX avx2
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define VF_W 8
typedef __m256 vf;
static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline vf vf_set1(float s) { return _mm256_set1_ps(s); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline unsigned vf_less(vf a, vf b) { return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
static inline unsigned vf_less_equal(vf a, vf b)
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ));
}

#elif defined(DPQ_NEON)
#define DPQ_SUFFIX neon
#define VF_W 4
typedef float32x4_t vf;
static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf a) { vst1q_f32(p, a); }
static inline vf vf_set1(float s) { return vdupq_n_f32(s); }
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_min(vf a, vf b) { return vminq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline unsigned vf_bits(uint32x4_t lanes)
{
    static const uint32_t bit[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(lanes, vld1q_u32(bit)));
}
static inline unsigned vf_less(vf a, vf b) { return vf_bits(vcltq_f32(a, b)); }
static inline unsigned vf_less_equal(vf a, vf b) { return vf_bits(vcleq_f32(a, b)); }

#else /* the scalar twin of the sets above */
#define DPQ_SUFFIX generic
#define VF_W 4
typedef struct {
    float lane[VF_W];
} vf;
#define VF_EACH(expression)                                                                                            \
    vf r;                                                                                                              \
    for (int i = 0; i < VF_W; i++)                                                                                     \
        r.lane[i] = (expression);                                                                                      \
    return r
static inline vf vf_load(const float *p) { VF_EACH(p[i]); }
static inline void vf_store(float *p, vf a)
{
    for (int i = 0; i < VF_W; i++)
        p[i] = a.lane[i];
}
static inline vf vf_set1(float s) { VF_EACH(s); }
static inline vf vf_add(vf a, vf b) { VF_EACH(a.lane[i] + b.lane[i]); }
static inline vf vf_min(vf a, vf b) { VF_EACH(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
static inline vf vf_fma(vf a, vf b, vf c) { VF_EACH(a.lane[i] * b.lane[i] + c.lane[i]); }
#define VF_BITS(comparison)                                                                                            \
    unsigned mask = 0;                                                                                                 \
    for (int i = 0; i < VF_W; i++)                                                                                     \
        mask |= (unsigned)(comparison) << i;                                                                           \
    return mask
static inline unsigned vf_less(vf a, vf b) { VF_BITS(a.lane[i] < b.lane[i]); }
static inline unsigned vf_less_equal(vf a, vf b) { VF_BITS(a.lane[i] <= b.lane[i]); }
#endif

#define DPQ_PASTE_(a, b) a##b
#define DPQ_PASTE(a, b) DPQ_PASTE_(a, b)

#endif
