/* A disk that fails, and kills at chosen moments.

Preloaded into a process, it counts the calls of the C library that concern files below one folder,
and does something at the n-th: it kills, sends a signal, fails, writes less, or waits. Python,
HDF5 and torch call the system through it, so that what they meet is what a bad disk gives them.
It does nothing before it is armed: by a call (`soak_arm`), or by variables of the environment
(SOAK_ARM; SOAK_RANK, the LOCAL_RANK that it is for). What it knows goes to children that are forked. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CREATE = 1, WRITE = 2, SYNC = 4, RENAME = 8, REMOVE = 16, FOLDER = 32, CUT = 64, READ = 128 };
#define CHANGES (CREATE | WRITE | RENAME | REMOVE | FOLDER | CUT)
enum {
    NOTHING,   /* but the log of events */
    BEFORE,    /* send signal `value` before the call is made */
    AFTER,     /* the same behind it */
    TORN,      /* make half of a write first */
    FAIL,      /* fail with errno `value` */
    SHORT,     /* write half, which is no error */
    FULL,      /* take `value` bytes in all, and then no more: ENOSPC */
    LATE,      /* wait `value` milliseconds before the call is made */
    UNSEEN,    /* what another process has made is not seen for `value` milliseconds */
};

static char below[PATH_MAX], names[4][64];
static int armed, count_of_names, operations, action, value, whole_group, log_file = -1;
static long first, last;
static atomic_long seen, written;
static long long clock_offset; /* nanoseconds */

void soak_arm(const char *folder, const char *patterns, int what, long from, long to, int act,
              int number, int group, int events) {
    char copy[256], *rest = copy, *word;
    snprintf(below, sizeof below, "%s/", folder);
    snprintf(copy, sizeof copy, "%s", patterns);
    for (count_of_names = 0; count_of_names < 4 && (word = strsep(&rest, "|"));)
        snprintf(names[count_of_names++], sizeof names[0], "%s", word);
    operations = what, first = from, last = to, action = act, value = number;
    whole_group = group, log_file = events;
    seen = written = 0;
    armed = 1;
}

void soak_clock(double seconds) { clock_offset = (long long)(seconds * 1e9); }

__attribute__((constructor)) static void from_environment(void) {
    const char *plan = getenv("SOAK_ARM"), *for_rank = getenv("SOAK_RANK");
    const char *rank = getenv("LOCAL_RANK");
    char folder[PATH_MAX], patterns[256];
    int what, act, number, group;
    long from, to;
    if (!plan || (for_rank && strcmp(for_rank, rank ? rank : "0")))
        return;
    if (sscanf(plan, "%4095[^;];%255[^;];%d;%ld;%ld;%d;%d;%d", folder, patterns, &what, &from, &to,
               &act, &number, &group) == 8)
        soak_arm(folder, patterns, what, from, to, act, number, group, -1);
}

#define REAL(name)                                                                                 \
    static __typeof__(&name) real;                                                                 \
    if (!real)                                                                                     \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[size > 0 ? size : 0] = 0;
    return size > 0;
}

static void absolute(int folder, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (name[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base))
                base[0] = 0;
        } else
            path_of(folder, base);
        strncat(base, "/", sizeof base - strlen(base) - 1);
    }
    snprintf(path, PATH_MAX, "%s%s", base, name);
}

static int concerns(int what, const char *path, const char *other) {
    if (!(operations & what))
        return 0;
    int inside = !strncmp(path, below, strlen(below));
    if (!inside && !(other && !strncmp(other, below, strlen(below))))
        return 0;
    if (strstr(path, ".log"))
        return 0;
    for (int i = 0; i < count_of_names; i++)
        if (strstr(path, names[i]) || (other && strstr(other, names[i])))
            return 1;
    return 0;
}

static void note(int what, const char *path, const char *other) {
    char line[2 * PATH_MAX + 32];
    if (log_file < 0)
        return;
    int size = snprintf(line, sizeof line, "%d\t%s\t%s\n", what, path, other ? other : "");
    syscall(SYS_write, log_file, line, size);
}

static void send_signal(void) {
    kill(whole_group ? 0 : getpid(), value);
}

static void pause_for(int milliseconds) {
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    while (nanosleep(&left, &left) && errno == EINTR)
        ;
}

/* Whether something is to happen at this call. */
static int falls(int what, const char *path, const char *other) {
    if (!armed || !concerns(what, path, other))
        return 0;
    note(what, path, other);
    long number = atomic_fetch_add(&seen, 1);
    return number >= first && number <= last;
}

/* What is to happen before a call: 0, or -1 where it fails at once. */
static int before(int hit, int what) {
    if (!hit)
        return 0;
    if (action == BEFORE || (action == TORN && what != WRITE))
        send_signal();
    if (action == LATE)
        pause_for(value);
    if (action == FAIL) {
        errno = value;
        return -1;
    }
    return 0;
}

static void after(int hit) {
    if (hit && action == AFTER) {
        int kept = errno;
        send_signal();
        errno = kept;
    }
}

#define AROUND(hits, what, call)                                                                   \
    int falls_here = hits;                                                                         \
    if (before(falls_here, what))                                                                  \
        return -1;                                                                                 \
    long result = call;                                                                            \
    after(falls_here);                                                                             \
    return result

/* How many bytes of a write are made; -1 where none is. */
static ssize_t allowed(int hit, size_t size) {
    if (!hit)
        return size;
    if (action == SHORT)
        return size > 1 ? size / 2 : size;
    if (action == TORN)
        return size / 2;
    if (action == FULL) {
        long before_it = atomic_fetch_add(&written, (long)size);
        long room = (long)value - before_it;
        if (room <= 0) {
            errno = ENOSPC;
            return -1;
        }
        return room < (long)size ? room : (ssize_t)size;
    }
    return size;
}

static int hits_descriptor(int what, int descriptor) {
    char path[PATH_MAX];
    return armed && (operations & what) && path_of(descriptor, path) && falls(what, path, 0);
}

#define WRITES(call)                                                                               \
    int hit = hits_descriptor(WRITE, descriptor);                                                  \
    if (before(hit, WRITE))                                                                        \
        return -1;                                                                                 \
    ssize_t part = allowed(hit, size);                                                             \
    if (part < 0)                                                                                  \
        return -1;                                                                                 \
    ssize_t result = call;                                                                         \
    if (hit && action == TORN)                                                                     \
        send_signal();                                                                             \
    after(hit);                                                                                    \
    return result

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    WRITES(real(descriptor, data, part));
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    WRITES(real(descriptor, data, part, at));
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    WRITES(real(descriptor, data, part, at));
}

ssize_t writev(int descriptor, const struct iovec *pieces, int count) {
    REAL(writev);
    int hit = hits_descriptor(WRITE, descriptor);
    AROUND(hit, SYNC, real(descriptor, pieces, count));
}

#define READS(call)                                                                                \
    int hit = hits_descriptor(READ, descriptor);                                                   \
    AROUND(hit, READ, call)

ssize_t read(int descriptor, void *data, size_t size) {
    REAL(read);
    READS(real(descriptor, data, size));
}

ssize_t pread(int descriptor, void *data, size_t size, off_t at) {
    REAL(pread);
    READS(real(descriptor, data, size, at));
}

ssize_t pread64(int descriptor, void *data, size_t size, off64_t at) {
    REAL(pread64);
    READS(real(descriptor, data, size, at));
}

int fsync(int descriptor) {
    REAL(fsync);
    AROUND(hits_descriptor(SYNC, descriptor), SYNC, real(descriptor));
}

int fdatasync(int descriptor) {
    REAL(fdatasync);
    AROUND(hits_descriptor(SYNC, descriptor), SYNC, real(descriptor));
}

int ftruncate(int descriptor, off_t size) {
    REAL(ftruncate);
    AROUND(hits_descriptor(CUT, descriptor), CUT, real(descriptor, size));
}

int ftruncate64(int descriptor, off64_t size) {
    REAL(ftruncate64);
    AROUND(hits_descriptor(CUT, descriptor), CUT, real(descriptor, size));
}

static int hits_name(int what, int folder, const char *name) {
    char path[PATH_MAX];
    if (!armed || !(operations & what))
        return 0;
    absolute(folder, name, path);
    return falls(what, path, 0);
}

/* When this process was last told that a name is not there, in milliseconds, by the names' hashes: a
network folder's client remembers that for a while, and says so again. */
static _Atomic long missed[1 << 16];

static _Atomic long *memory_of(int folder, const char *name) {
    char path[PATH_MAX];
    unsigned hash = 5381;
    if (!armed || action != UNSEEN || !name || !name[0])
        return 0;
    absolute(folder, name, path);
    if (!concerns(READ, path, 0))
        return 0;
    for (const char *letter = path; *letter; letter++)
        hash = hash * 33 + (unsigned char)*letter;
    return &missed[hash & 0xffff];
}

static long milliseconds(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int unseen(int folder, const char *name) {
    _Atomic long *memory = memory_of(folder, name);
    if (!memory || !*memory || milliseconds() - *memory >= value)
        return 0;
    errno = ENOENT;
    return 1;
}

/* Remember that a name is not there, or that it is; gives the result back. */
static int looked(int folder, const char *name, int result) {
    int kept = errno;
    _Atomic long *memory = memory_of(folder, name);
    if (memory && result >= 0)
        *memory = 0;
    else if (memory && kept == ENOENT)
        *memory = milliseconds();
    errno = kept;
    return result;
}

static int hits_names(int folder, const char *name, int other_folder, const char *other) {
    char path[PATH_MAX], second[PATH_MAX];
    if (!armed)
        return 0;
    looked(other_folder, other, 0); /* what it makes itself it sees at once */
    absolute(folder, name, path), absolute(other_folder, other, second);
    return falls(RENAME, path, second);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    AROUND(hits_names(AT_FDCWD, from, AT_FDCWD, to), RENAME, real(from, to));
}

int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat);
    AROUND(hits_names(a, from, b, to), RENAME, real(a, from, b, to));
}

int link(const char *from, const char *to) {
    REAL(link);
    AROUND(hits_names(AT_FDCWD, from, AT_FDCWD, to), RENAME, real(from, to));
}

int unlink(const char *name) {
    REAL(unlink);
    AROUND(hits_name(REMOVE, AT_FDCWD, name), REMOVE, real(name));
}

int unlinkat(int folder, const char *name, int flags) {
    REAL(unlinkat);
    AROUND(hits_name(REMOVE, folder, name), REMOVE, real(folder, name, flags));
}

int rmdir(const char *name) {
    REAL(rmdir);
    AROUND(hits_name(REMOVE, AT_FDCWD, name), REMOVE, real(name));
}

int mkdir(const char *name, mode_t mode) {
    REAL(mkdir);
    AROUND(hits_name(FOLDER, AT_FDCWD, name), FOLDER, real(name, mode));
}

int mkdirat(int folder, const char *name, mode_t mode) {
    REAL(mkdirat);
    AROUND(hits_name(FOLDER, folder, name), FOLDER, real(folder, name, mode));
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(renameat2);
    AROUND(hits_names(a, from, b, to), RENAME, real(a, from, b, to, flags));
}

static int opens(int folder, const char *name, int flags) {
    int makes = flags & (O_CREAT | O_TRUNC) || (flags & O_ACCMODE) != O_RDONLY;
    if (flags & O_CREAT)
        looked(folder, name, 0);
    return hits_name(makes ? CREATE : READ, folder, name);
}

#define OPENS(folder, call)                                                                        \
    va_list more;                                                                                  \
    va_start(more, flags);                                                                         \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                        \
    va_end(more);                                                                                  \
    if (!(flags & O_CREAT) && unseen(folder, name))                                                \
        return -1;                                                                                 \
    AROUND(opens(folder, name, flags), CREATE, looked(folder, name, call))

int open(const char *name, int flags, ...) {
    REAL(open);
    OPENS(AT_FDCWD, real(name, flags, mode));
}

int open64(const char *name, int flags, ...) {
    REAL(open64);
    OPENS(AT_FDCWD, real(name, flags, mode));
}

int openat(int folder, const char *name, int flags, ...) {
    REAL(openat);
    OPENS(folder, real(folder, name, flags, mode));
}

int openat64(int folder, const char *name, int flags, ...) {
    REAL(openat64);
    OPENS(folder, real(folder, name, flags, mode));
}

#define LOOKS(folder, name, call)                                                                  \
    if (unseen(folder, name))                                                                      \
        return -1;                                                                                 \
    return looked(folder, name, call)

int stat(const char *name, struct stat *status) {
    REAL(stat);
    LOOKS(AT_FDCWD, name, real(name, status));
}

int lstat(const char *name, struct stat *status) {
    REAL(lstat);
    LOOKS(AT_FDCWD, name, real(name, status));
}

int fstatat(int folder, const char *name, struct stat *status, int flags) {
    REAL(fstatat);
    LOOKS(folder, name, real(folder, name, status, flags));
}

int stat64(const char *name, struct stat64 *status) {
    REAL(stat64);
    LOOKS(AT_FDCWD, name, real(name, status));
}

int lstat64(const char *name, struct stat64 *status) {
    REAL(lstat64);
    LOOKS(AT_FDCWD, name, real(name, status));
}

int fstatat64(int folder, const char *name, struct stat64 *status, int flags) {
    REAL(fstatat64);
    LOOKS(folder, name, real(folder, name, status, flags));
}

/* The clock -------------------------------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *time) {
    REAL(clock_gettime);
    int result = real(clock, time);
    if (clock == CLOCK_REALTIME && clock_offset && !result) {
        long long now = time->tv_sec * 1000000000LL + time->tv_nsec + clock_offset;
        time->tv_sec = now / 1000000000LL, time->tv_nsec = now % 1000000000LL;
    }
    return result;
}
