/* A process that dies by SIGKILL at its n-th act: preloaded under the daemon in a test.
 *
 * An act is what others can see or what outlives the process: a write or a sync of a file below MORTAL_FOLDER,
 * a removal or renaming, a message to the kernel (netlink), to the runtime or to the process that
 * talks to EC2 (unix sockets). Death comes before the act, so between it and the one before. mortal_after(n)
 * arms the calling process; MORTAL_AFTER=n in the environment arms one from its start. Children are not
 * concerned. What the acts mean does not belong here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static atomic_long left = 0;
static atomic_ulong writes = 0;
static pid_t armed = 0;

enum { WRITES = 8 }; /* one write in so many counts: a commit has many, and what else is done few */

void mortal_after(long n) {
    armed = getpid();
    atomic_store(&left, n);
}

__attribute__((constructor)) static void born(void) {
    const char *n = getenv("MORTAL_AFTER");
    if (n) mortal_after(atol(n));
    unsetenv("MORTAL_AFTER");
    unsetenv("LD_PRELOAD");
}

static void act(const char *what) {
    if (armed != getpid() || atomic_fetch_sub(&left, 1) != 1) return;
    dprintf(STDERR_FILENO, "died before %s\n", what);
    for (;;) kill(getpid(), SIGKILL);
}

static void act_of_file(int fd, const char *what) {
    if (armed != getpid()) return;
    char link[64], path[4096];
    const char *folder = getenv("MORTAL_FOLDER");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = folder ? readlink(link, path, sizeof path - 1) : -1;
    if (n <= 0) return;
    path[n] = 0;
    if (!strncmp(path, folder, strlen(folder))) act(what);
}

static void act_of_socket(int fd) {
    int family = 0;
    socklen_t size = sizeof family;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size)) return;
    if (family == AF_NETLINK) act("a message to the kernel");
    if (family == AF_UNIX) act("a message to a process");
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    if (atomic_fetch_add(&writes, 1) % WRITES == 0) act_of_file(fd, "a write");
    return REAL(pwrite64)(fd, data, size, at);
}

int fsync(int fd) {
    act_of_file(fd, "a sync");
    return REAL(fsync)(fd);
}

int fdatasync(int fd) {
    act_of_file(fd, "a sync");
    return REAL(fdatasync)(fd);
}

int unlink(const char *path) {
    act("a removal");
    return REAL(unlink)(path);
}

int rename(const char *from, const char *to) {
    act("a renaming");
    return REAL(rename)(from, to);
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
    act_of_socket(fd);
    return REAL(send)(fd, data, size, flags);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to,
               socklen_t length) {
    act_of_socket(fd);
    return REAL(sendto)(fd, data, size, flags, to, length);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    act_of_socket(fd);
    return REAL(sendmsg)(fd, message, flags);
}
