#define DPQ_GENERIC
#include "kernels_impl.h"
