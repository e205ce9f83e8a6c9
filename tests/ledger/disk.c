/* A disk that tells what is written to it and can run full: preloaded under SQLite in a test's process.
 *
 * Every write, sync, cut and removal of a file below DISK_FOLDER is appended to the file DISK_LOG as one
 * record: kind, name, offset, length, data. disk_full_after(n) has the n-th write from now on, and every
 * later one, refused with ENOSPC until disk_full_after(0). What a test makes of it does not belong here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static long left = -1;
static int journal = -2;

void disk_full_after(long n) { left = n > 0 ? n - 1 : -1; }

/* The name below DISK_FOLDER of what a descriptor is of, or NULL. */
static const char *name_of(int fd, char *path, size_t size) {
    char link[64];
    const char *folder = getenv("DISK_FOLDER");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = folder ? readlink(link, path, size - 1) : -1;
    if (n <= 0) return NULL;
    path[n] = 0;
    size_t of = strlen(folder);
    if (strncmp(path, folder, of) || path[of] != '/') return NULL;
    const char *name = path + of + 1;
    return strstr(name, "-shm") || strstr(name, ".lock") ? NULL : name;
}

static void tell(char kind, const char *name, uint64_t offset, uint32_t size, const void *data) {
    if (journal == -2) {
        const char *path = getenv("DISK_LOG");
        journal = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    }
    if (journal < 0) return;
    uint16_t length = (uint16_t)strlen(name);
    struct iovec parts[] = {{&kind, 1}, {&length, 2}, {(void *)name, length},
                            {&offset, 8}, {&size, 4}, {(void *)data, data ? size : 0}};
    if (writev(journal, parts, 6) < 0) abort();
}

/* A line of the test's own between two records, such as which commit has been acknowledged. */
void disk_note(const char *text) { tell('N', text, 0, 0, NULL); }

static int is_full(void) {
    if (left < 0) return 0;
    if (left > 0) return left--, 0;
    return 1;
}

static ssize_t put(int fd, const void *data, size_t size, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    char path[4096];
    const char *name = name_of(fd, path, sizeof path);
    if (name && is_full()) return errno = ENOSPC, -1;
    ssize_t n = real(fd, data, size, at);
    if (name && n > 0) tell('W', name, (uint64_t)at, (uint32_t)n, data);
    return n;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return put(fd, data, size, at); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return put(fd, data, size, at); }

static int sync_as(const char *how, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, how);
    char path[4096];
    const char *name = name_of(fd, path, sizeof path);
    int done = real(fd);
    if (name && !done) tell('S', name, 0, 0, NULL);
    return done;
}

int fsync(int fd) { return sync_as("fsync", fd); }
int fdatasync(int fd) { return sync_as("fdatasync", fd); }

static int cut(const char *how, int fd, off64_t size) {
    int (*real)(int, off64_t) = (int (*)(int, off64_t))dlsym(RTLD_NEXT, how);
    char path[4096];
    const char *name = name_of(fd, path, sizeof path);
    int done = real(fd, size);
    if (name && !done) tell('T', name, (uint64_t)size, 0, NULL);
    return done;
}

int unlink(const char *path) {
    int (*real)(const char *) = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
    const char *folder = getenv("DISK_FOLDER");
    size_t of = folder ? strlen(folder) : 0;
    int done = real(path);
    if (!done && of && !strncmp(path, folder, of) && path[of] == '/' && !strstr(path, "-shm"))
        tell('U', path + of + 1, 0, 0, NULL);
    return done;
}

int ftruncate64(int fd, off64_t size) { return cut("ftruncate64", fd, size); }
int ftruncate(int fd, off_t size) { return cut("ftruncate", fd, size); }
