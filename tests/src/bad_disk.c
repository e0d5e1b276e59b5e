/* Loaded before the C library of one process: reads, writes and syncs of chosen files fail as the mapped control file says. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* bad_disk.rs writes the same order. */
enum fault { NONE, SYNC_FAILS, SYNC_LIES, WRITE_FAILS, DISK_FULL, TORN, ROT, SHORT_READ, READ_FAILS, SLOW };

struct control {
    uint32_t fault, skip, times, hits;
    char part[32], suffix[16];
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
    int fd = open(CONTROL, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) control = at;
    close(fd);
}

static int ends_with(const char *text, const char *suffix) {
    size_t length = strlen(text), of = strlen(suffix);
    return of <= length && !strcmp(text + length - of, suffix);
}

static uint32_t armed(void) {
    return control ? __atomic_load_n(&control->fault, __ATOMIC_ACQUIRE) : NONE;
}

/* Whether it is this file's turn; counts it then. */
static int hit(int fd) {
    char link[32], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    if (!strstr(path, control->part) || !ends_with(path, control->suffix)) return 0;
    if (__atomic_load_n(&control->skip, __ATOMIC_ACQUIRE)) {
        __atomic_sub_fetch(&control->skip, 1, __ATOMIC_ACQ_REL);
        return 0;
    }
    uint32_t left = __atomic_load_n(&control->times, __ATOMIC_ACQUIRE);
    do {
        if (!left) return 0;
    } while (!__atomic_compare_exchange_n(&control->times, &left, left - 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    __atomic_add_fetch(&control->hits, 1, __ATOMIC_ACQ_REL);
    return 1;
}

static ssize_t fail(int code) {
    errno = code;
    return -1;
}

/* 0: go on as ever. */
static int sync_instead(int fd, int *result) {
    uint32_t fault = armed();
    if (fault != SYNC_FAILS && fault != SYNC_LIES && fault != SLOW) return 0;
    if (!hit(fd)) return 0;
    if (fault == SLOW) return usleep(100000), 0;
    *result = fault == SYNC_FAILS ? (int)fail(EIO) : 0;
    return 1;
}

int fsync(int fd) {
    int result;
    return sync_instead(fd, &result) ? result : (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    int result;
    return sync_instead(fd, &result) ? result : (int)syscall(SYS_fdatasync, fd);
}

int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags) {
    if (armed() == SYNC_LIES && hit(fd)) return 0;
    return (int)syscall(SYS_sync_file_range, fd, offset, bytes, flags);
}

/* How much of it is written before the fault; all of it without one. */
static ssize_t writable(int fd, size_t bytes) {
    uint32_t fault = armed();
    if (fault != WRITE_FAILS && fault != DISK_FULL && fault != TORN) return (ssize_t)bytes;
    if (!hit(fd)) return (ssize_t)bytes;
    /* A direct write takes whole blocks. */
    if (fault == TORN) return (ssize_t)(bytes > 8192 ? bytes / 2 & ~(size_t)4095 : bytes / 2);
    return fail(fault == DISK_FULL ? ENOSPC : EIO);
}

/* A crash in the middle of a write. */
static ssize_t torn(ssize_t written, size_t wanted, ssize_t allowed) {
    if ((size_t)allowed < wanted) kill(getpid(), SIGKILL);
    return written;
}

ssize_t write(int fd, const void *from, size_t bytes) {
    ssize_t allowed = writable(fd, bytes);
    return allowed < 0 ? allowed : torn(syscall(SYS_write, fd, from, allowed), bytes, allowed);
}

ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t at) {
    ssize_t allowed = writable(fd, bytes);
    return allowed < 0 ? allowed : torn(syscall(SYS_pwrite64, fd, from, allowed, at), bytes, allowed);
}

ssize_t pwrite(int fd, const void *from, size_t bytes, off_t at) {
    return pwrite64(fd, from, bytes, at);
}

ssize_t pread64(int fd, void *to, size_t bytes, off64_t at) {
    uint32_t fault = armed();
    int is_hit = fault >= ROT && fault <= READ_FAILS && bytes && hit(fd);
    if (is_hit && fault == READ_FAILS) return fail(EIO);
    if (is_hit && fault == SHORT_READ) return 0;
    ssize_t found = syscall(SYS_pread64, fd, to, bytes, at);
    if (is_hit && found > 0) ((char *)to)[found / 2] ^= 0x10;
    return found;
}

ssize_t pread(int fd, void *to, size_t bytes, off_t at) {
    return pread64(fd, to, bytes, at);
}
