/* Makes system calls fail on the files whose path contains $FAIL_PATH, and moves the clock: see tests/failing_calls.py.
 *
 *   FAIL_CALL   names of the calls that fail, separated by spaces: open read write fsync rename close unlink mkdir
 *   FAIL_ERRNO  the error that they report; 0: reads and writes move FAIL_BYTES bytes at most instead
 *   FAIL_AFTER  matching calls that succeed before; FAIL_TIMES  calls that fail then (0: all)
 *   CLOCK_AFTER, CLOCK_BY  the wall clock jumps by CLOCK_BY seconds, CLOCK_AFTER seconds after the first look at it
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static int has_word(const char *words, const char *word) {
    const char *found = words ? strstr(words, word) : NULL;
    return found && (found == words || found[-1] == ' ') && strchr(" ", found[strlen(word)]);
}

static int fails(const char *call, const char *path) {
    static long num_calls;
    const char *part = getenv("FAIL_PATH");
    if (!part || !path || !strstr(path, part) || !has_word(getenv("FAIL_CALL"), call)) return 0;
    long past = __sync_add_and_fetch(&num_calls, 1) - number("FAIL_AFTER"), times = number("FAIL_TIMES");
    if (past <= 0 || (times && past > times)) return 0;
    errno = number("FAIL_ERRNO");
    return 1;
}

static int fails_at(const char *call, int file) {
    char link[64], path[4096];
    if (!getenv("FAIL_PATH")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

/* -1: the call fails; otherwise the bytes that it may move */
static ssize_t allowed(const char *call, int file, size_t count) {
    int before = errno;
    if (!fails_at(call, file)) {
        errno = before;
        return count;
    }
    if (errno) return -1;
    size_t most = number("FAIL_BYTES");
    return count < most ? count : most;
}

#define TRANSFER(name, call, buffer)                                             \
    ssize_t name(int file, buffer memory, size_t count) {                        \
        ssize_t some = allowed(call, file, count);                               \
        return some < 0 ? -1 : REAL(name)(file, memory, some);                   \
    }
#define TRANSFER_AT(name, call, buffer)                                          \
    ssize_t name(int file, buffer memory, size_t count, off_t offset) {          \
        ssize_t some = allowed(call, file, count);                               \
        return some < 0 ? -1 : REAL(name)(file, memory, some, offset);           \
    }
TRANSFER(read, "read", void *)
TRANSFER(write, "write", const void *)
TRANSFER_AT(pread, "read", void *)
TRANSFER_AT(pread64, "read", void *)
TRANSFER_AT(pwrite, "write", const void *)
TRANSFER_AT(pwrite64, "write", const void *)

#define OPEN(name)                                                               \
    int name(const char *path, int flags, ...) {                                 \
        va_list more;                                                            \
        va_start(more, flags);                                                   \
        int mode = va_arg(more, int);                                            \
        va_end(more);                                                            \
        return fails("open", path) ? -1 : REAL(name)(path, flags, mode);         \
    }
OPEN(open)
OPEN(open64)

int fsync(int file) { return fails_at("fsync", file) ? -1 : REAL(fsync)(file); }
int mkdir(const char *path, mode_t mode) { return fails("mkdir", path) ? -1 : REAL(mkdir)(path, mode); }
int unlink(const char *path) { return fails("unlink", path) ? -1 : REAL(unlink)(path); }
int rename(const char *from, const char *to) { return fails("rename", to) ? -1 : REAL(rename)(from, to); }

int close(int file) {
    int failed = fails_at("close", file), error = errno, result = REAL(close)(file);
    if (failed) errno = error;
    return failed ? -1 : result;
}

static void moved(struct timespec *now) {
    static time_t first;
    if (!first) first = now->tv_sec;
    if (getenv("CLOCK_BY") && now->tv_sec - first >= number("CLOCK_AFTER")) now->tv_sec += number("CLOCK_BY");
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME && !result) moved(now);
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec, now->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}
