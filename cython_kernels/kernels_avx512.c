#if defined(__x86_64__)
#define DPQ_SIMD "simd_avx512.h"
#define DPQ_KERNELS dpq_kernels_avx512
#include "kernels_impl.h"
#endif
