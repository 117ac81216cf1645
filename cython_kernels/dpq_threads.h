/* Threads for very short work. A search may take a few hundred microseconds; handing a part of it to a thread of a
 * Python pool would take tens of these, and here takes about one. */
#ifndef DPQ_THREADS_H
#define DPQ_THREADS_H

#include <stddef.h>

typedef void (*dpq_job)(void *context, size_t thread);

/* Calls job(context, 0) in this thread and, while that runs, job(context, i) in up to n_threads - 1 other threads,
 * each with its own 0 < i < n_threads. Returns, when all these calls have, how many there were.
 *
 * Other threads may come late or not at all: not at all while another search uses them, or while the system gives them
 * no core. So a job has to share its work out as it goes, one piece after the other to whoever asks, and the call in
 * this thread goes on until no piece is left. */
size_t dpq_run_together(size_t n_threads, dpq_job job, void *context);

#endif
