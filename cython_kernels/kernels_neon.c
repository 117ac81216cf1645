#if defined(__aarch64__)
#include "kernels.h"

#include "dpq_topk.h"
#include "simd_neon.h"
#define DPQ_NAME(name) name##_neon
#include "kernels_impl.h"
#endif
