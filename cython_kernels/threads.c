/* The pool of threads of dpq_threads.h. It runs one job at a time; between jobs its threads first spin, then sleep.
 *
 * A job has seats, one for each thread that may help. `seats` holds two numbers: in its low half the seats that are
 * free, in its high half the threads that have taken one and are at work. The caller opens the job by writing the
 * number of free seats. A thread enters by an atomic exchange that moves 1 from the low half to the high half. The
 * caller closes the job by setting the low half to 0. From then on the high half only falls, and when it is 0 nobody
 * but the caller uses the job.
 */
#define _GNU_SOURCE /* sched_getcpu */
#include <stdatomic.h>
#include <stdint.h>

#include "dpq_system.h"
#include "dpq_threads.h"

#define ONE_INSIDE ((uint64_t)1 << 32)
#define FREE_SEATS (ONE_INSIDE - 1)
#define SPIN_NS 100000 /* so a search right after a search finds threads awake; to wake one takes about half as long */
#define SPINS_A_LOOK 32

static struct {
    dpq_lock busy; /* held by the caller whose job runs */
    dpq_lock lock; /* goes with `wake` */
    dpq_signal wake;
    size_t threads;
    _Atomic size_t sleepers;
    _Atomic uint64_t seats;
    _Atomic size_t next_thread;
    dpq_job job;
    void *context;
    _Atomic int core; /* of the caller */
} pool = {.busy = DPQ_LOCK_INIT, .lock = DPQ_LOCK_INIT, .wake = DPQ_SIGNAL_INIT};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int take_seat(void)
{
    uint64_t seats = atomic_load(&pool.seats);
    while (seats & FREE_SEATS)
        if (atomic_compare_exchange_weak(&pool.seats, &seats, seats - 1 + ONE_INSIDE))
            return 1;
    return 0;
}

static void sleep_until_open(void)
{
    dpq_lock_take(&pool.lock);
    atomic_fetch_add(&pool.sleepers, 1);
    while (!(atomic_load(&pool.seats) & FREE_SEATS))
        dpq_signal_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    dpq_lock_give(&pool.lock);
}

/* If all cores are busy, Linux wakes a thread on the core of the thread that woke it and leaves it there for long, so
 * that the two would take turns. Forbidding that core for a moment moves it at once. */
static void leave_callers_core(void)
{
#if defined(__linux__)
    cpu_set_t allowed, others;
    int core = atomic_load(&pool.core);
    if (sched_getcpu() != core || sched_getaffinity(0, sizeof allowed, &allowed))
        return;
    others = allowed;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
        sched_setaffinity(0, sizeof allowed, &allowed);
#endif
}

static DPQ_THREAD help_forever(void *unused)
{
    (void)unused;
    int64_t idle_since = dpq_now_ns();
    for (;;) {
        for (int i = 0; i < SPINS_A_LOOK; i++) {
            if (take_seat()) {
                pool.job(pool.context, atomic_fetch_add(&pool.next_thread, 1));
                atomic_fetch_sub(&pool.seats, ONE_INSIDE);
                idle_since = dpq_now_ns();
            }
            relax();
        }
        leave_callers_core();
        if (dpq_now_ns() - idle_since > SPIN_NS) {
            sleep_until_open();
            idle_since = dpq_now_ns();
        }
    }
    return 0;
}

/* In a forked child only the calling thread exists, and locks are as they happened to be: the pool begins anew. */
static void forget_threads(void)
{
    dpq_lock_init(&pool.busy);
    dpq_lock_init(&pool.lock);
    dpq_signal_init(&pool.wake);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.seats, 0);
    pool.threads = 0;
}

/* Starts threads until there are n, or the system refuses more. */
static void start_threads(size_t n)
{
    static _Atomic int watching_forks;
    if (!atomic_exchange(&watching_forks, 1))
        dpq_after_fork(forget_threads);
    while (pool.threads < n && dpq_start_thread(help_forever))
        pool.threads++;
}

/* A thread counts itself as a sleeper before it looks at the seats for the last time. So either it sees the free
 * seats, or the caller sees it here. */
static void wake_sleepers(size_t n)
{
    if (!atomic_load(&pool.sleepers))
        return;
    dpq_lock_take(&pool.lock);
    for (size_t i = 0; i < n; i++)
        dpq_signal_one(&pool.wake);
    dpq_lock_give(&pool.lock);
}

/* Those at work are about to end. But the system may have stopped one, and it may need this core: hence the yield. */
static void close_and_wait(void)
{
    atomic_fetch_and(&pool.seats, ~(uint64_t)FREE_SEATS);
    for (uint32_t i = 1; atomic_load(&pool.seats); i++) {
        relax();
        if (i % 1024 == 0)
            dpq_yield();
    }
}

size_t dpq_run_together(size_t n_threads, dpq_job job, void *context)
{
    if (n_threads <= 1 || !dpq_lock_try(&pool.busy)) {
        job(context, 0);
        return 1;
    }
    if (pool.threads < n_threads - 1)
        start_threads(n_threads - 1);
#if defined(__linux__)
    atomic_store(&pool.core, sched_getcpu());
#endif
    pool.job = job;
    pool.context = context;
    atomic_store(&pool.next_thread, 1);
    atomic_store(&pool.seats, n_threads - 1);
    wake_sleepers(n_threads - 1);
    job(context, 0);
    close_and_wait();
    size_t calls = atomic_load(&pool.next_thread);
    dpq_lock_give(&pool.busy);
    return calls;
}
