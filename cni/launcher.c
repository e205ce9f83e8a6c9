/* The executable the container runtime starts: environment and standard input go to the daemon,
 * with the pod's namespace and a netlink socket inside it; its answer comes back as our own.
 *
 * A deletion is never lost: with nobody at home it is written to the spool, flushed to the disk,
 * and reported as done; where the disk takes nothing, to a spool beside the socket, which lasts as
 * long as the sandboxes do. Nothing here waits for ever, and every error tells what to do, as JSON.
 * What the words mean, and everything else that can be decided elsewhere, does not belong here;
 * the frames are described in wire.py, the specification's rules are in spec.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { HAS_NETNS = 1, HAS_NETLINK = 2, NETNS_FAILED = 4 }; /* flags of a request, as in wire.py */
enum { INVALID_ENV = 4, IO_FAILURE = 5, DECODING = 6, TRY_LATER = 11, NOT_AVAILABLE = 50 };
enum { MAX_STDIN = 1 << 20, MAX_ENV = 1 << 18, MAX_REPLY = 1 << 20 };
enum { ROUTE = 0 }; /* NETLINK_ROUTE; musl comes without the kernel's headers */

/* Known without the daemon; the list is that of spec.py. */
static const char VERSION_RESULT[] =
    "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":"
    "[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}";

static const struct verb {
    const char *name;
    int patience; /* milliseconds for everything up to the daemon's answer */
    int away;     /* error code when the daemon is away; 0: it goes to the spool */
    int enters;   /* whether CNI_NETNS is opened */
} VERBS[] = {
    {"ADD", 120000, TRY_LATER, 1}, {"CHECK", 120000, TRY_LATER, 1}, {"DEL", 1500, 0, 1},
    {"GC", 5000, TRY_LATER, 0},    {"STATUS", 5000, NOT_AVAILABLE, 0},
};

/* The frame: length, "VLC1", flags, and so on. */
static struct { char *at; size_t size, room; } request;
enum { BODY = 4, FLAGS = 8 }; /* where in it these begin */
static struct { const char *at; uint32_t left; } reply;
static char socket_path[PATH_MAX] = "/var/run/aws-node/vpcledger.sock";
static char spool_path[PATH_MAX] = "/var/lib/vpcledger/spool";
static int64_t deadline;
static int own_netns = -1, pod_netns = -1, pod_netlink = -1;

/* ------------------------------------------------------------------------------ output, time */

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Milliseconds left, 0 when the time is over. */
static int left(void) {
    int64_t ms = deadline - now_ms();
    return ms > 0 ? (int)ms : 0;
}

static void print(const char *text, size_t size) {
    deadline = now_ms() + 2000; /* the runtime's turn to read; its pipe may be full */
    while (size) {
        struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
        if (poll(&out, 1, left()) <= 0) exit(1);
        /* No more than PIPE_BUF: a pipe that is ready takes that much without blocking. */
        ssize_t n = write(STDOUT_FILENO, text, size < PIPE_BUF ? size : PIPE_BUF);
        if (n < 0 && errno != EINTR && errno != EAGAIN) exit(1);
        if (n > 0) text += n, size -= (size_t)n;
    }
}

/* Print an error object of the specification and end. `details` says what to do. */
static _Noreturn void fail(int code, const char *details, const char *format, ...) {
    char msg[PATH_MAX + 256], json[4 * PATH_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(msg, sizeof msg, format, args);
    va_end(args);
    int n = snprintf(json, sizeof json, "{\"cniVersion\":\"1.0.0\",\"code\":%d,\"msg\":\"", code);
    for (const char *c = msg; *c && n < 3 * PATH_MAX; c++) { /* a path may hold anything */
        int plain = *c >= ' ' && *c < 127 && *c != '"' && *c != '\\';
        json[n++] = plain ? *c : '?';
    }
    n += snprintf(json + n, sizeof json - (size_t)n, "\",\"details\":\"%s\"}", details);
    print(json, (size_t)n);
    exit(1);
}

/* ---------------------------------------------------------------------------- configuration */

static void take_setting(char *into, const char *folder, const char *value) {
    int n = *value == '/' ? snprintf(into, PATH_MAX, "%s", value)
                          : snprintf(into, PATH_MAX, "%s/%s", folder, value);
    if (n >= PATH_MAX || !*value)
        fail(IO_FAILURE, "Correct the file beside the plugin.", "aws-cni.conf names a bad path");
}

/* aws-cni.conf beside the executable: lines socket=PATH and spool=PATH, relative to its folder. */
static void read_settings(void) {
    char folder[PATH_MAX], file[PATH_MAX + 16], line[PATH_MAX + 16];
    ssize_t n = readlink("/proc/self/exe", folder, sizeof folder - 1);
    if (n <= 0) return;
    folder[n] = 0;
    *strrchr(folder, '/') = 0;
    snprintf(file, sizeof file, "%s/aws-cni.conf", folder);
    FILE *conf = fopen(file, "re");
    if (!conf && errno != ENOENT)
        fail(IO_FAILURE, "Make aws-cni.conf beside the plugin readable, or remove it.",
             "%s cannot be read: %s", file, strerror(errno));
    while (conf && fgets(line, sizeof line, conf)) {
        line[strcspn(line, "\r\n")] = 0;
        if (!strncmp(line, "socket=", 7)) take_setting(socket_path, folder, line + 7);
        else if (!strncmp(line, "spool=", 6)) take_setting(spool_path, folder, line + 6);
    }
    if (conf) fclose(conf);
}

/* ---------------------------------------------------------------------------------- request */

static void room_for(size_t more) {
    if (request.size + more <= request.room) return;
    request.room = 2 * request.room + more;
    request.at = realloc(request.at, request.room);
    if (!request.at) fail(IO_FAILURE, "Free memory on the node.", "no memory for the request");
}

static void put(const void *bytes, size_t size) {
    room_for(size);
    memcpy(request.at + request.size, bytes, size);
    request.size += size;
}

/* Every number on the wire is little-endian, and so are both machines this is built for. */
static void put_number(size_t value) {
    put(&(uint32_t){(uint32_t)value}, 4);
}

static void set_number(size_t where, size_t value) {
    memcpy(request.at + where, &(uint32_t){(uint32_t)value}, 4);
}

static void put_text(const char *text) {
    put_number(strlen(text));
    put(text, strlen(text));
}

static void put_environment(int netns_errno) {
    char note[40];
    size_t count = 0, size = 0;
    for (char **v = environ; *v; v++)
        if (!strncmp(*v, "CNI_", 4)) count++, size += strlen(*v);
    if (size > MAX_ENV)
        fail(INVALID_ENV, "Pass less than 256 KiB in CNI_ variables.", "too large an environment");
    put_number(count + (netns_errno != 0));
    for (char **v = environ; *v; v++)
        if (!strncmp(*v, "CNI_", 4)) put_text(*v);
    if (netns_errno) {
        snprintf(note, sizeof note, "VPCLEDGER_NETNS_ERRNO=%d", netns_errno);
        put_text(note);
    }
}

static void put_stdin(void) {
    size_t start = request.size;
    put_number(0);
    for (;;) {
        struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
        if (poll(&in, 1, left()) <= 0)
            fail(IO_FAILURE, "The runtime must write the configuration and close standard input.",
                 "standard input did not end in time");
        room_for(1 << 14);
        ssize_t n = read(STDIN_FILENO, request.at + request.size, 1 << 14);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            fail(IO_FAILURE, "The runtime must pass the configuration on standard input.",
                 "standard input cannot be read: %s", strerror(errno));
        if (n == 0) break;
        if (n > 0) request.size += (size_t)n;
        if (request.size - start - 4 > MAX_STDIN)
            fail(DECODING, "Pass at most 1 MiB.", "the network configuration is too large");
    }
    set_number(start, request.size - start - 4);
}

/* Open CNI_NETNS, and a netlink socket inside it; 0 or the errno that stood in the way. */
static int enter(const char *path) {
    int why = 0;
    own_netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    pod_netns = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hold us */
    if (own_netns < 0 || pod_netns < 0 || setns(pod_netns, CLONE_NEWNET) < 0) {
        why = errno;
    } else {
        pod_netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, ROUTE);
        if (pod_netlink < 0) why = errno;
        if (setns(own_netns, CLONE_NEWNET) < 0)
            fail(IO_FAILURE, "Run the plugin as root with CAP_SYS_ADMIN.",
                 "the way back from the pod's network namespace is closed: %s", strerror(errno));
    }
    if (why && pod_netns >= 0) close(pod_netns), pod_netns = -1;
    return why;
}

/* ----------------------------------------------------------------------------------- daemon */

/* Both waits of the socket end at the deadline. Unlike poll this also covers a full backlog. */
static int in_time(int s) {
    int ms = left();
    struct timeval t = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    errno = EAGAIN;
    return ms && !setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t) &&
           !setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}

static int send_request(int s) {
    union { char room[CMSG_SPACE(2 * sizeof(int))]; struct cmsghdr align; } control = {0};
    struct iovec bytes = {.iov_base = request.at, .iov_len = request.size};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};
    if (pod_netlink >= 0) {
        int fds[] = {pod_netns, pod_netlink};
        message.msg_control = control.room, message.msg_controllen = sizeof control.room;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fds);
        memcpy(CMSG_DATA(c), fds, sizeof fds);
    }
    while (bytes.iov_len) {
        ssize_t n = in_time(s) ? sendmsg(s, &message, MSG_NOSIGNAL) : -1;
        if (n < 0 && errno != EINTR) return 0;
        if (n <= 0) continue;
        bytes.iov_base = (char *)bytes.iov_base + n, bytes.iov_len -= (size_t)n;
        message.msg_control = NULL, message.msg_controllen = 0;
    }
    return 1;
}

static int receive(int s, void *into, size_t size) {
    while (size) {
        ssize_t n = in_time(s) ? recv(s, into, size, 0) : -1;
        if (n == 0) errno = ECONNRESET; /* the daemon died with our request in its hands */
        if (n == 0 || (n < 0 && errno != EINTR)) return 0;
        if (n > 0) into = (char *)into + n, size -= (size_t)n;
    }
    return 1;
}

/* The reply's body and its size, or NULL with errno: the daemon is away, silent or not ours. */
static char *ask(uint32_t *size) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(socket_path) >= sizeof address.sun_path) return errno = ENAMETOOLONG, NULL;
    strcpy(address.sun_path, socket_path);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0 || !in_time(s)) return NULL;
    if (connect(s, (struct sockaddr *)&address, sizeof address) < 0) return NULL;
    if (!send_request(s) || !receive(s, size, 4)) return NULL;
    char *body = *size > MAX_REPLY ? (errno = EPROTO, NULL) : malloc(*size + 1);
    return body && receive(s, body, *size) ? body : NULL;
}

/* The next bytes of the reply; its frame was measured, so a short one is a foreign daemon's. */
static const char *take(uint32_t size) {
    if (size > reply.left)
        fail(IO_FAILURE, "Install plugin and daemon of one release.",
             "the daemon's reply makes no sense");
    reply.at += size, reply.left -= size;
    return reply.at - size;
}

static uint32_t take_number(void) {
    uint32_t value;
    memcpy(&value, take(4), 4);
    return value;
}

/* Is that what the file says already? */
static int says(int fd, const char *value, size_t size) {
    char now[64];
    ssize_t n = read(fd, now, sizeof now);
    return n == (ssize_t)size + 1 && now[size] == '\n' && !memcmp(now, value, size);
}

/* Below /proc/sys/net stands what belongs to the namespace the writer is in. What is so already is not
 * written: for some of it (forwarding) the kernel wants the lock that the daemon needs for other pods,
 * and a writer that does not get it at once spins. */
static void write_sysctl(int in_pod, const char *file, const char *value, size_t size) {
    int why = in_pod && setns(pod_netns, CLONE_NEWNET) < 0 ? errno : 0;
    if (!why) {
        int fd = open(file, O_RDWR | O_CLOEXEC);
        /* ENOENT, also of the write: no IPv6 here, or the link has just gone to a namesake. */
        if ((fd < 0 || (!says(fd, value, size) && pwrite(fd, value, size, 0) != (ssize_t)size)) &&
            errno != ENOENT)
            why = errno;
        if (fd >= 0) close(fd);
        if (in_pod && setns(own_netns, CLONE_NEWNET) < 0) why = errno;
    }
    if (why)
        fail(IO_FAILURE, "Run the plugin as root, with /proc/sys writable.",
             "%s cannot be written: %s", file, strerror(why));
}

static _Noreturn void carry_out(const char *body, uint32_t size) {
    reply.at = body, reply.left = size;
    uint32_t status = take_number();
    for (uint32_t n = take_number(); n; n--) {
        char file[PATH_MAX] = "/proc/sys/net/";
        int in_pod = *take(1) == 'p';
        size = take_number();
        strncat(file, take(size), size < PATH_MAX / 2 ? size : PATH_MAX / 2);
        if (size >= PATH_MAX / 2 || strstr(file, ".."))
            fail(IO_FAILURE, "Report this.", "the daemon asked for %s to be written", file);
        size = take_number();
        write_sysctl(in_pod, file, take(size), size);
    }
    size = take_number();
    print(take(size), size);
    exit((int)(status & 0xff));
}

/* ------------------------------------------------------------------------------------ spool */

static int flush_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int done = fd >= 0 && !fsync(fd);
    if (fd >= 0) close(fd);
    return done;
}

/* Make the folder and those above it, durably, if they are not there. What root makes here must be
 * the daemon's to read and to remove: everything goes to whoever owns the folder it lies in. */
static int have_folder(const char *path) {
    struct stat s;
    char above[PATH_MAX];
    if (!stat(path, &s)) return 1;
    strcpy(above, path);
    char *slash = strrchr(above, '/');
    slash[slash == above] = 0;
    return have_folder(above) && !stat(above, &s) && (!mkdir(path, 0700) || errno == EEXIST) &&
           !chown(path, s.st_uid, s.st_gid) && flush_folder(above);
}

/* Put the request's body into the open file and its name into the spool, all of it on the disk. */
static int keep(int fd, const char *spool, const char *temporary, const char *final) {
    struct stat s;
    const char *at = request.at + BODY, *end = request.at + request.size;
    while (at < end) {
        ssize_t n = write(fd, at, (size_t)(end - at));
        if (n <= 0) return 0;
        at += n;
    }
    return !stat(spool, &s) && !fchown(fd, s.st_uid, s.st_gid) && !fsync(fd) &&
           !rename(temporary, final) && flush_folder(spool);
}

/* Keep the deletion in that spool for the daemon's return; 0 if that cannot be done. */
static int keep_in(const char *spool) {
    char folder[PATH_MAX], temporary[PATH_MAX + 80], final[PATH_MAX + 80], name[64];
    struct timespec t;
    int fd = -1;
    if (snprintf(folder, sizeof folder, "%s/tmp", spool) >= (int)sizeof folder) return 0;
    if (!have_folder(folder)) return 0;
    clock_gettime(CLOCK_REALTIME, &t);
    for (int n = 0; fd < 0; n++) { /* another pid namespace may have our number */
        snprintf(name, sizeof name, "%lld-%d-%d.del", t.tv_sec * 1000000000LL + t.tv_nsec,
                 (int)getpid(), n);
        snprintf(temporary, sizeof temporary, "%s/%s", folder, name);
        snprintf(final, sizeof final, "%s/%s", spool, name);
        fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 && errno != EEXIST) return 0;
    }
    int done = keep(fd, spool, temporary, final);
    if (!done) unlink(temporary);
    close(fd);
    return done;
}

/* Keep the deletion where it lasts; else in memory, beside the socket, where it outlives a daemon and not
 * a boot, nor does its sandbox. If nothing can be written anywhere the daemon finds the sandbox gone by
 * looking: an error would keep the pod from ending, and nothing from being lost. */
static void spool(void) {
    char beside[PATH_MAX];
    strcpy(beside, socket_path);
    char *name = strrchr(beside, '/') + 1;
    size_t room = (size_t)(beside + sizeof beside - name);
    if (!keep_in(spool_path) && snprintf(name, room, "spool") < (int)room) keep_in(beside);
}

/* ------------------------------------------------------------------------------------- main */

static _Noreturn void without_daemon(const struct verb *verb, int why) {
    if (verb->away)
        fail(verb->away, "Wait or try again; see whether the aws-node pod of this node runs.",
             "the daemon at %s does not answer: %s", socket_path,
             why == EAGAIN ? "no time left" : strerror(why));
    const char *container = getenv("CNI_CONTAINERID"), *ifname = getenv("CNI_IFNAME");
    if (!container || !*container || !ifname || !*ifname)
        fail(INVALID_ENV, "Set CNI_CONTAINERID and CNI_IFNAME.", "DEL does not say of what");
    if (pod_netlink >= 0) set_number(FLAGS, 0); /* a file carries no descriptors */
    spool();
    exit(0);
}

int main(void) {
    const char *command = getenv("CNI_COMMAND"), *netns = getenv("CNI_NETNS");
    const struct verb *verb = NULL;
    signal(SIGPIPE, SIG_IGN);
    if (command && !strcmp(command, "VERSION")) {
        print(VERSION_RESULT, sizeof VERSION_RESULT - 1);
        return 0;
    }
    for (size_t i = 0; command && i < sizeof VERBS / sizeof *VERBS; i++)
        if (!strcmp(command, VERBS[i].name)) verb = &VERBS[i];
    if (!verb)
        fail(INVALID_ENV, "Set it to ADD, DEL, CHECK, GC, STATUS or VERSION.", "CNI_COMMAND is %s",
             command && *command ? "not a known verb" : "not set");
    deadline = now_ms() + verb->patience;
    read_settings();
    int netns_errno = verb->enters && netns && *netns ? enter(netns) : 0;
    put_number(0);
    put("VLC1", 4);
    put_number((pod_netlink < 0 ? 0 : HAS_NETNS | HAS_NETLINK) | (netns_errno ? NETNS_FAILED : 0));
    put_environment(netns_errno);
    put_stdin();
    set_number(0, request.size - BODY);
    uint32_t size;
    char *body = ask(&size);
    if (!body) without_daemon(verb, errno);
    carry_out(body, size);
}
