#if defined(__aarch64__)
#define DPQ_SIMD "simd_neon.h"
#define DPQ_KERNELS dpq_kernels_neon
#include "kernels_impl.h"
#endif
