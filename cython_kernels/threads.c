/* The pool: threads that wait, spinning a little and then asleep, for seats in the one job at a time.
 *
 * `seats` holds the seats that are free in its low half and the threads that took one in its high half. The caller opens
 * the job by writing it, a thread enters by an exchange that moves one from the low half to the high, and the caller
 * closes it by taking the free seats away: from then on the high half only falls, and at 0 the job is the caller's again.
 */
#define _GNU_SOURCE /* sched_getcpu */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#include "dpq_threads.h"

#define ONE_INSIDE ((uint64_t)1 << 32)
#define FREE_SEATS (ONE_INSIDE - 1)
#define SPIN_NS 100000 /* a search right after a search finds them awake; waking one takes about half as long */
#define SPINS_A_LOOK 32

static struct {
    pthread_mutex_t busy; /* held by who has a job */
    pthread_mutex_t lock; /* of what sleepers wait for */
    pthread_cond_t wake;
    size_t threads;
    _Atomic size_t sleepers;
    _Atomic uint64_t seats;
    _Atomic size_t next_thread;
    dpq_job job;
    void *context;
    _Atomic int core; /* of the caller */
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
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
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleepers, 1);
    while (!(atomic_load(&pool.seats) & FREE_SEATS))
        pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.lock);
}

/* Where all cores are busy, Linux wakes a thread on its waker's core, and leaves it there for long: both would take turns.
 * Being allowed elsewhere only, if for a moment, moves it at once. */
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

static void *help_forever(void *unused)
{
    (void)unused;
    int64_t idle_since = now_ns();
    for (;;) {
        for (int i = 0; i < SPINS_A_LOOK; i++) {
            if (take_seat()) {
                pool.job(pool.context, atomic_fetch_add(&pool.next_thread, 1));
                atomic_fetch_sub(&pool.seats, ONE_INSIDE);
                idle_since = now_ns();
            }
            relax();
        }
        leave_callers_core();
        if (now_ns() - idle_since > SPIN_NS) {
            sleep_until_open();
            idle_since = now_ns();
        }
    }
    return NULL;
}

/* Of the parent's threads a forked child has the calling one alone, and locks as they were. */
static void forget_threads(void)
{
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.seats, 0);
    pool.threads = 0;
}

/* Signals are for the program's own threads. Fewer threads than wanted are enough. */
static void start_threads(size_t n)
{
    static _Atomic int watching_forks;
    sigset_t all, before;
    if (!atomic_exchange(&watching_forks, 1))
        pthread_atfork(NULL, NULL, forget_threads);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.threads < n) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help_forever, NULL))
            break;
        pthread_detach(thread);
        pool.threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* A sleeper counts itself before it looks at the seats for the last time, so either sees the other. */
static void wake_sleepers(size_t n)
{
    if (!atomic_load(&pool.sleepers))
        return;
    pthread_mutex_lock(&pool.lock);
    for (size_t i = 0; i < n; i++)
        pthread_cond_signal(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

/* Those inside are about to end; one that the system has stopped may need this core. */
static void close_and_wait(void)
{
    atomic_fetch_and(&pool.seats, ~(uint64_t)FREE_SEATS);
    for (uint32_t i = 1; atomic_load(&pool.seats); i++) {
        relax();
        if (i % 1024 == 0)
            sched_yield();
    }
}

size_t dpq_run_together(size_t n_threads, dpq_job job, void *context)
{
    if (n_threads <= 1 || pthread_mutex_trylock(&pool.busy)) {
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
    pthread_mutex_unlock(&pool.busy);
    return calls;
}
