#if defined(__x86_64__)
#define DPQ_AVX2
#include "kernels_impl.h"
#endif
