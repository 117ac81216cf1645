/* All kernels of one instruction set, whose simd_<set>.h and names the including file has chosen. */
#include "encode_impl.h"
#include "linear_impl.h"
#include "scan_batch_impl.h"
#include "scan_single_impl.h"
#include "scan_lists_impl.h"
#include "scan_lists_together_impl.h"

const dpq_kernels DPQ_NAME(dpq_kernels) = {
    .linear = linear,
    .encode_level = encode_level,
    .batch_scratch = batch_scratch,
    .scan_batch = scan_batch,
    .single_scratch = single_scratch,
    .scan_single = scan_single,
    .lists_scratch = lists_scratch,
    .scan_lists = scan_lists,
    .batch_width = DPQ_QW,
    .least_batch = DPQ_LEAST_BATCH,
};

#if defined(__clang__) && defined(__x86_64__) && !defined(DPQ_BASELINE)
#pragma clang attribute pop
#endif
