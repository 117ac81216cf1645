#if defined(__x86_64__)
#include "kernels.h"

#include "dpq_topk.h"
#include "simd_avx2.h"
#define DPQ_NAME(name) name##_avx2
#include "kernels_impl.h"
#endif
