/*
 * Time and randomness of the simulation, in place of libc's.
 *
 * On the main thread of a process started with KV_SIM_SEED the clocks stand still until the thread sleeps, which moves
 * them at once by as much, and random bytes come from the seed. So Instant, SystemTime, thread_rng and the order of hash
 * maps are part of the simulation without a change of the code that uses them. Other threads (RocksDB's flushes and
 * compactions) have the real ones, and gettimeofday, which only RocksDB calls, is real everywhere.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* 2030-01-01, in seconds: a run looks the same on every day. */
#define EPOCH 1893456000LL
/* What the monotonic clock counts before the simulation begins; Instants are subtracted from. */
#define UPTIME 1000000LL
#define SECOND 1000000000LL

static __thread int simulated = -1;
static int64_t elapsed;
static uint64_t state;

static int is_simulated(void) {
    if (simulated < 0) {
        const char *seed = getenv("KV_SIM_SEED");
        simulated = seed != NULL && getpid() == (pid_t)syscall(SYS_gettid);
        if (simulated)
            state = strtoull(seed, NULL, 10);
    }
    return simulated;
}

static uint64_t draw(void) { /* splitmix64 */
    uint64_t z = (state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!is_simulated())
        return (int)syscall(SYS_clock_gettime, clock, now);
    int64_t at = elapsed;
    at += (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE ? EPOCH : UPTIME) * SECOND;
    now->tv_sec = at / SECOND;
    now->tv_nsec = at % SECOND;
    return 0;
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left) {
    if (!is_simulated() || flags != 0) {
        long failed = syscall(SYS_clock_nanosleep, clock, flags, wanted, left);
        return failed < 0 ? errno : 0;
    }
    elapsed += wanted->tv_sec * SECOND + wanted->tv_nsec;
    return 0;
}

int nanosleep(const struct timespec *wanted, struct timespec *left) {
    if (!is_simulated())
        return (int)syscall(SYS_nanosleep, wanted, left);
    elapsed += wanted->tv_sec * SECOND + wanted->tv_nsec;
    return 0;
}

ssize_t getrandom(void *bytes, size_t length, unsigned flags) {
    if (!is_simulated())
        return syscall(SYS_getrandom, bytes, length, flags);
    for (size_t at = 0; at < length; at += 8) {
        uint64_t drawn = draw();
        memcpy((char *)bytes + at, &drawn, length - at < 8 ? length - at : 8);
    }
    return (ssize_t)length;
}
