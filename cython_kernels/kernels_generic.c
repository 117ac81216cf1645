#define DPQ_SIMD "simd_generic.h"
#define DPQ_KERNELS dpq_kernels_generic
#include "kernels_impl.h"
