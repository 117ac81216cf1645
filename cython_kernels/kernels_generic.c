#define DPQ_BASELINE
#include "kernels.h"

#include "dpq_topk.h"
#include "simd_generic.h"
#define DPQ_NAME(name) name##_generic
#include "kernels_impl.h"
