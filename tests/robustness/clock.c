/*
 * Loaded before everything else into a member, so that its wall clock can be
 * set while it runs: what it is told is the machine's time and as many seconds
 * more as stand in the file STELE_TEST_CLOCK names (eight bytes, mapped). Only
 * the wall clock, as on a real machine: the monotonic one goes on.
 *
 * Nothing here may allocate or look symbols up, hence the system calls: the
 * allocator itself reads clocks while it initialises, under its lock. It is
 * what libfaketime does at its first call, and why a member hangs with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* A wait looks at the clock again after so long. */
#define SLICE_SECONDS 1

static const int64_t no_offset = 0;
static const int64_t *offset = &no_offset;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("STELE_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED
                            : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
        static const char text[] = "STELE_TEST_CLOCK names no file that can be mapped\n";
        if (write(STDERR_FILENO, text, sizeof text - 1) < 0) {}
        abort();
    }
    close(file);
    offset = mapped;
}

static int64_t offset_seconds(void) { return __atomic_load_n(offset, __ATOMIC_RELAXED); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        now->tv_sec += offset_seconds();
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = (int)syscall(SYS_gettimeofday, now, zone);
    if (result == 0) {
        now->tv_sec += offset_seconds();
    }
    return result;
}

time_t time(time_t *copy) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (copy) {
        *copy = now.tv_sec;
    }
    return now.tv_sec;
}

/*
 * Deadlines are of the wall clock, for nobody in a member gives a condition
 * another one. A jump meanwhile counts, as the kernel would have it: waits are
 * cut into slices, after which the caller is woken for nothing, as it may be.
 */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict deadline) {
    struct timespec real;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &real);
    struct timespec until = {deadline->tv_sec - offset_seconds(), deadline->tv_nsec};
    real.tv_sec += SLICE_SECONDS;
    if (until.tv_sec < real.tv_sec) {
        return pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, &until);
    }
    int result = pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, &real);
    return result == ETIMEDOUT ? 0 : result;
}
