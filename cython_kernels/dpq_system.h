/* What threads.c and the scans need of the operating system: locks, threads and a clock; POSIX's or those of Windows. */
#ifndef DPQ_SYSTEM_H
#define DPQ_SYSTEM_H

#include <stdint.h>

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

typedef SRWLOCK dpq_lock;
typedef CONDITION_VARIABLE dpq_signal;
#define DPQ_LOCK_INIT SRWLOCK_INIT
#define DPQ_SIGNAL_INIT CONDITION_VARIABLE_INIT

static inline void dpq_lock_init(dpq_lock *lock) { InitializeSRWLock(lock); }
static inline void dpq_lock_take(dpq_lock *lock) { AcquireSRWLockExclusive(lock); }
static inline int dpq_lock_try(dpq_lock *lock) { return TryAcquireSRWLockExclusive(lock) != 0; }
static inline void dpq_lock_give(dpq_lock *lock) { ReleaseSRWLockExclusive(lock); }
static inline void dpq_signal_init(dpq_signal *signal) { InitializeConditionVariable(signal); }
static inline void dpq_signal_one(dpq_signal *signal) { WakeConditionVariable(signal); }
static inline void dpq_signal_wait(dpq_signal *signal, dpq_lock *lock)
{
    SleepConditionVariableSRW(signal, lock, INFINITE, 0);
}

static inline void dpq_yield(void) { SwitchToThread(); }
static inline int64_t dpq_now_ns(void)
{
    LARGE_INTEGER ticks, a_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&a_second);
    return (int64_t)((double)ticks.QuadPart * 1e9 / (double)a_second.QuadPart);
}

/* A function that a thread runs: `static DPQ_THREAD name(void *unused)`, which never returns. */
#define DPQ_THREAD DWORD WINAPI

static inline int dpq_start_thread(LPTHREAD_START_ROUTINE run)
{
    HANDLE thread = CreateThread(NULL, 0, run, NULL, 0, NULL);
    return thread && CloseHandle(thread);
}

/* There are no forks. */
static inline void dpq_after_fork(void (*in_child)(void)) { (void)in_child; }

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

typedef pthread_mutex_t dpq_lock;
typedef pthread_cond_t dpq_signal;
#define DPQ_LOCK_INIT PTHREAD_MUTEX_INITIALIZER
#define DPQ_SIGNAL_INIT PTHREAD_COND_INITIALIZER

static inline void dpq_lock_init(dpq_lock *lock) { pthread_mutex_init(lock, NULL); }
static inline void dpq_lock_take(dpq_lock *lock) { pthread_mutex_lock(lock); }
static inline int dpq_lock_try(dpq_lock *lock) { return pthread_mutex_trylock(lock) == 0; }
static inline void dpq_lock_give(dpq_lock *lock) { pthread_mutex_unlock(lock); }
static inline void dpq_signal_init(dpq_signal *signal) { pthread_cond_init(signal, NULL); }
static inline void dpq_signal_one(dpq_signal *signal) { pthread_cond_signal(signal); }
static inline void dpq_signal_wait(dpq_signal *signal, dpq_lock *lock) { pthread_cond_wait(signal, lock); }

static inline void dpq_yield(void) { sched_yield(); }
static inline int64_t dpq_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A function that a thread runs: `static DPQ_THREAD name(void *unused)`, which never returns. */
#define DPQ_THREAD void *

/* Returns 0 where the system refuses. Signals are left to the program's own threads. */
static inline int dpq_start_thread(void *(*run)(void *))
{
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int started = pthread_create(&thread, NULL, run, NULL) == 0 && pthread_detach(thread) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

/* Has a forked child call a function before anything else. */
static inline void dpq_after_fork(void (*in_child)(void)) { pthread_atfork(NULL, NULL, in_child); }

#endif
#endif
