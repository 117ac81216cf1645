#if defined(__aarch64__)
#define DPQ_NEON
#include "kernels_impl.h"
#endif
