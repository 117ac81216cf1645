/* Threads that help with work too short for Python's: a few hundred microseconds, of which starting a task there takes
 * tens. */
#ifndef DPQ_THREADS_H
#define DPQ_THREADS_H

#include <stddef.h>

typedef void (*dpq_job)(void *context, size_t thread);

/* Calls job(context, 0) here and, while that runs, job(context, i) in up to n_threads - 1 other threads, with an i of its
 * own below n_threads each; returns when all these have. Nobody waits for a thread to come: none does where others
 * search at the same time, or the system lends no core. So the work is complete once any one of the calls returns, but
 * for what others have taken meanwhile. Returns how many calls there were. */
size_t dpq_run_together(size_t n_threads, dpq_job job, void *context);

#endif
