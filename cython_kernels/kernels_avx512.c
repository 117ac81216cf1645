#if defined(__x86_64__)
#define DPQ_AVX512
#include "kernels_impl.h"
#endif
