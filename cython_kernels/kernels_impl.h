/* All kernels of the instruction set that DPQ_SIMD names (simd.h), as the table DPQ_KERNELS. A kernels_<set>.c defines
 * both names and includes this file. */
#include "encode_blocks_impl.h"
#include "encode_impl.h"
#include "lengths_impl.h"
#include "linear_impl.h"
#include "linear_rounded_impl.h"
#include "mask_impl.h"
#include "rescore_impl.h"
#include "scan_batch_impl.h"
#include "scan_lists_together_impl.h"
#include "scan_single_impl.h"

#ifndef DPQ_KERNELS
#define DPQ_KERNELS dpq_kernels_generic
#endif

const dpq_kernels DPQ_KERNELS = {
    .linear = linear,
    .linear_rounded = linear_rounded,
    .round_vector = round_vector,
    .encode_level = encode_level,
    .lengths_of_codes = lengths_of_codes,
    .leave_block = leave_block,
    .batch_scratch = batch_scratch,
    .scan_batch = scan_batch,
    .single_scratch = single_scratch,
    .scan_single = scan_single,
    .lists_scratch = lists_scratch,
    .scan_lists = scan_lists,
    .rescore_codes = rescore_codes,
    .rescore_lists = rescore_lists,
    .mask_count = mask_count,
    .mask_list = mask_list,
    .mask_of_ids = mask_of_ids,
    .mask_of_range = mask_of_range,
    .batch_width = DPQ_QW,
    .most_ordered = DPQ_MOST_ORDERED,
    .least_batch = DPQ_LEAST_BATCH,
    .least_batch_many = DPQ_LEAST_BATCH_MANY,
};

DPQ_SIMD_END
#undef DPQ_SIMD_END
