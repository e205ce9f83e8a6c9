/* Starts plugins as a runtime does and says how long each took; knows the kernel's floors as well.
 *
 * Commands come as lines of tab-separated fields on standard input, answers go to standard output as
 * lines "nanoseconds, exit status, what it printed". Only what is between two readings of the clock
 * counts, so whoever gives the commands may be slow. What is compared with what does not belong here.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fib_rules.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <sched.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FIELDS = 8, MOST = 4096, PAGE = 4096, UP = 1, MTU = 9001 };

static _Noreturn void die(const char *what) {
    fprintf(stderr, "stopwatch: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void answer(int64_t ns, int status, const char *text) {
    printf("%lld\t%d\t%s\n", (long long)ns, status, text);
}

/* The next line of standard input, split at its tabs in place; the fields are good until freed. */
static int next(char *field[FIELDS], char **line) {
    size_t room = 0;
    *line = NULL;
    if (getline(line, &room, stdin) < 0) return 0;
    (*line)[strcspn(*line, "\n")] = 0;
    char *rest = *line;
    int n = 0;
    while (n < FIELDS && rest) field[n++] = strsep(&rest, "\t");
    for (int i = n; i < FIELDS; i++) field[i] = "";
    return n;
}

/* --------------------------------------------------------------------------- starting plugins */

struct call {
    char *line, *env[8], *exe;
    int in, out, status;
    pid_t pid;
    int64_t began, took;
};

static struct call calls[MOST];

static char *variable(const char *name, const char *value) {
    char *text;
    if (asprintf(&text, "%s=%s", name, value) < 0) die("memory");
    return text;
}

/* Fields: verb, namespace, container id, pod, executable, configuration, folder of plugins. */
static void prepare(struct call *c) {
    char *f[FIELDS], *arguments, pod[512];
    if (!next(f, &c->line)) die("a call is missing");
    snprintf(pod, sizeof pod, "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=%s", f[3]);
    arguments = variable("CNI_ARGS", pod);
    char *env[] = {variable("CNI_COMMAND", f[0]), variable("CNI_NETNS", f[1]),
                   variable("CNI_CONTAINERID", f[2]), arguments, variable("CNI_PATH", f[6]),
                   variable("CNI_IFNAME", "eth0"), variable("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                   NULL};
    memcpy(c->env, env, sizeof env);
    c->exe = f[4];
    int pipes[2];
    c->in = open(f[5], O_RDONLY | O_CLOEXEC);
    if (c->in < 0 || pipe2(pipes, O_CLOEXEC) < 0) die(f[5]);
    c->out = pipes[0];
    posix_spawn_file_actions_t moves;
    posix_spawn_file_actions_init(&moves);
    posix_spawn_file_actions_adddup2(&moves, c->in, 0);
    posix_spawn_file_actions_adddup2(&moves, pipes[1], 1);
    char *argv[] = {c->exe, NULL};
    c->began = now();
    int why = posix_spawn(&c->pid, c->exe, &moves, NULL, argv, c->env);
    if (why) errno = why, die(c->exe);
    posix_spawn_file_actions_destroy(&moves);
    close(pipes[1]), close(c->in);
}

/* What a plugin prints fits into its pipe, so it is read when the plugin has ended. */
static void report(struct call *c) {
    char text[65536];
    ssize_t size = read(c->out, text, sizeof text - 1);
    text[size < 0 ? 0 : size] = 0;
    for (char *at = text; *at; at++)
        if (*at == '\n' || *at == '\t') *at = ' ';
    answer(c->took, c->status, text);
    close(c->out);
    for (char **v = c->env; *v; v++) free(*v);
    free(c->line);
}

/* `calls N M`: M calls follow, N of them at work at any time. First answer: the time for all. */
static void run(int together, int count) {
    if (count > MOST) die("too many calls");
    int started = 0, ended = 0;
    int64_t began = now();
    while (ended < count) {
        while (started < count && started - ended < together) prepare(&calls[started++]);
        int status;
        pid_t pid = waitpid(-1, &status, 0);
        int64_t at = now();
        for (int i = 0; i < started; i++)
            if (calls[i].pid == pid) {
                calls[i].took = at - calls[i].began, calls[i].pid = 0, ended++;
                calls[i].status = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
            }
    }
    answer(now() - began, 0, "");
    for (int i = 0; i < count; i++) report(&calls[i]);
}

/* -------------------------------------------------------------------- the floor of the wiring */

struct batch {
    _Alignas(8) char at[4096];
    size_t size;
    struct nlmsghdr *last;
    int count;
};

static void *grow(struct batch *b, size_t size) {
    void *at = b->at + b->size;
    memset(at, 0, NLMSG_ALIGN(size));
    b->size += NLMSG_ALIGN(size);
    if (b->last) b->last->nlmsg_len = (uint32_t)(b->at + b->size - (char *)b->last);
    return at;
}

static void message(struct batch *b, int type, int flags, const void *header, size_t size) {
    b->last = NULL;
    struct nlmsghdr *h = grow(b, sizeof *h);
    h->nlmsg_type = (uint16_t)type, h->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
    h->nlmsg_len = sizeof *h, h->nlmsg_seq = (uint32_t)++b->count;
    b->last = h;
    memcpy(grow(b, size), header, size);
}

static struct rtattr *attribute(struct batch *b, int type, const void *value, size_t size) {
    struct rtattr *a = grow(b, RTA_LENGTH(size));
    a->rta_type = (uint16_t)type, a->rta_len = (uint16_t)RTA_LENGTH(size);
    if (size) memcpy(RTA_DATA(a), value, size);
    return a;
}

static void number(struct batch *b, int type, uint32_t value) { attribute(b, type, &value, 4); }

static void close_nest(struct batch *b, struct rtattr *a) {
    a->rta_len = (uint16_t)(b->at + b->size - (char *)a);
}

static void carry_out(int s, struct batch *b) {
    char in[8192];
    if (send(s, b->at, b->size, 0) < 0) die("netlink");
    for (int left = b->count; left;) {
        ssize_t size = recv(s, in, sizeof in, 0);
        if (size < 0) die("netlink");
        int more = (int)size;
        for (struct nlmsghdr *h = (void *)in; NLMSG_OK(h, more); h = NLMSG_NEXT(h, more)) {
            if (h->nlmsg_type != NLMSG_ERROR) continue;
            struct nlmsgerr *e = NLMSG_DATA(h);
            if (e->error) errno = -e->error, fprintf(stderr, "message %u: ", e->msg.nlmsg_seq), die("netlink");
            left--;
        }
    }
}

static int socket_here(void) {
    int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (s < 0 || setsockopt(s, SOL_NETLINK, NETLINK_CAP_ACK, &(int){1}, sizeof(int)) < 0) die("netlink");
    return s;
}

static int host = -1, home = -1;
static uint32_t address_of(int index) { return htonl(0x0a630000u + (uint32_t)(index & 0xffff)); }

static void end_of_pair(struct batch *b, const char *name, int last) {
    unsigned char mac[6] = {2, 0, 0, 0, 0, (unsigned char)last};
    attribute(b, IFLA_IFNAME, name, strlen(name) + 1);
    attribute(b, IFLA_ADDRESS, mac, 6);
    number(b, IFLA_MTU, MTU), number(b, IFLA_TXQLEN, 0);
    number(b, IFLA_NUM_TX_QUEUES, 1), number(b, IFLA_NUM_RX_QUEUES, 1);
}

static void rule(struct batch *b, int type, int side, uint32_t address, uint32_t priority, uint32_t table) {
    struct fib_rule_hdr h = {.family = AF_INET, .action = FR_ACT_TO_TBL, .table = RT_TABLE_UNSPEC};
    if (side == FRA_DST) h.dst_len = 32;
    else h.src_len = 32;
    message(b, type, type == RTM_NEWRULE ? NLM_F_CREATE | NLM_F_EXCL : 0, &h, sizeof h);
    attribute(b, side, &address, 4), number(b, FRA_PRIORITY, priority), number(b, FRA_TABLE, table);
}

static void route(struct batch *b, int type, int index, uint32_t to, int length, uint32_t via) {
    struct rtmsg h = {.rtm_family = AF_INET, .rtm_dst_len = (unsigned char)length,
                      .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_STATIC,
                      .rtm_scope = via ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK, .rtm_type = RTN_UNICAST};
    message(b, type, type == RTM_NEWROUTE ? NLM_F_CREATE : 0, &h, sizeof h);
    if (length) attribute(b, RTA_DST, &to, 4);
    if (via) attribute(b, RTA_GATEWAY, &via, 4);
    number(b, RTA_OIF, (uint32_t)index);
}

/* `wire NAMESPACE INDEX`: all a pod needs, two sends. Entering is the launcher's floor, so not timed. */
static void wire(const char *netns, int index) {
    int pod = open(netns, O_RDONLY | O_CLOEXEC);
    if (pod < 0 || setns(pod, CLONE_NEWNET) < 0) die(netns);
    int inside = socket_here();
    if (setns(home, CLONE_NEWNET) < 0) die("setns");
    uint32_t address = address_of(index), gateway = htonl(0xa9fe0101);
    char name[16];
    unsigned char mac[6] = {2, 0, 0, 0, 0, 1};
    snprintf(name, sizeof name, "flr%d", index);
    int64_t began = now();
    struct batch b = {.size = 0}, p = {.size = 0};
    struct ifinfomsg link = {.ifi_index = index, .ifi_flags = UP, .ifi_change = UP};
    struct ifinfomsg peer = {.ifi_index = index + 1};
    message(&b, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof link);
    end_of_pair(&b, name, 1);
    struct rtattr *info = attribute(&b, IFLA_LINKINFO, NULL, 0);
    attribute(&b, IFLA_INFO_KIND, "veth", 5);
    struct rtattr *data = attribute(&b, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *other = attribute(&b, VETH_INFO_PEER, &peer, sizeof peer);
    end_of_pair(&b, "eth0", 2), number(&b, IFLA_NET_NS_FD, (uint32_t)pod);
    close_nest(&b, other), close_nest(&b, data), close_nest(&b, info);
    route(&b, RTM_NEWROUTE, index, address, 32, 0);
    rule(&b, RTM_NEWRULE, FRA_DST, address, 512, RT_TABLE_MAIN);
    rule(&b, RTM_NEWRULE, FRA_SRC, address, 1536, 2);
    carry_out(host, &b);
    struct ifinfomsg up = {.ifi_index = index + 1, .ifi_flags = UP, .ifi_change = UP};
    struct ifaddrmsg has = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = (uint32_t)index + 1};
    struct ndmsg knows = {.ndm_family = AF_INET, .ndm_ifindex = index + 1, .ndm_state = NUD_PERMANENT};
    message(&p, RTM_NEWLINK, 0, &up, sizeof up);
    message(&p, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &has, sizeof has);
    attribute(&p, IFA_LOCAL, &address, 4), attribute(&p, IFA_ADDRESS, &address, 4);
    route(&p, RTM_NEWROUTE, index + 1, gateway, 32, 0);
    route(&p, RTM_NEWROUTE, index + 1, 0, 0, gateway);
    message(&p, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_EXCL, &knows, sizeof knows);
    attribute(&p, NDA_DST, &gateway, 4), attribute(&p, NDA_LLADDR, mac, 6);
    carry_out(inside, &p);
    answer(now() - began, 0, "");
    close(inside), close(pod);
}

/* `unwire INDEX`: rules and link; the route goes with the link. */
static void unwire(int index) {
    struct batch b = {.size = 0};
    struct ifinfomsg link = {.ifi_index = index};
    int64_t began = now();
    rule(&b, RTM_DELRULE, FRA_DST, address_of(index), 512, RT_TABLE_MAIN);
    rule(&b, RTM_DELRULE, FRA_SRC, address_of(index), 1536, 2);
    message(&b, RTM_DELLINK, 0, &link, sizeof link);
    carry_out(host, &b);
    answer(now() - began, 0, "");
}

/* `dump`: receive what an observation receives, and look at none of it. */
static void dump(void) {
    static char in[1 << 20];
    const int types[] = {RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETRULE};
    int s = socket_here();
    if (setsockopt(s, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &(int){1}, sizeof(int)) < 0) die("netlink");
    int64_t began = now(), bytes = 0;
    for (int i = 0; i < 4; i++) {
        struct batch b = {.size = 0};
        struct ifinfomsg links = {0};
        struct ifaddrmsg addresses = {.ifa_family = AF_INET};
        struct rtmsg others = {.rtm_family = AF_INET};
        if (i == 0) message(&b, types[i], NLM_F_DUMP, &links, sizeof links), number(&b, IFLA_EXT_MASK, 8);
        else if (i == 1) message(&b, types[i], NLM_F_DUMP, &addresses, sizeof addresses);
        else message(&b, types[i], NLM_F_DUMP, &others, sizeof others);
        if (send(s, b.at, b.size, 0) < 0) die("netlink");
        for (int done = 0; !done;) {
            ssize_t size = recv(s, in, sizeof in, 0);
            if (size < 0) die("netlink");
            bytes += size;
            int more = (int)size;
            for (struct nlmsghdr *h = (void *)in; NLMSG_OK(h, more); h = NLMSG_NEXT(h, more))
                done |= h->nlmsg_type == NLMSG_DONE || h->nlmsg_type == NLMSG_ERROR;
        }
    }
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)bytes);
    answer(now() - began, 0, text);
    close(s);
}

/* `sync FILE`: three pages overwritten and on the disk, as a commit of the ledger is. */
static void sync_pages(const char *path) {
    static char pages[3 * PAGE];
    static int fd = -1;
    if (fd < 0 && (fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600)) < 0) die(path);
    memset(pages, (int)now(), sizeof pages);
    int64_t began = now();
    if (pwrite(fd, pages, sizeof pages, 0) < 0 || fdatasync(fd) < 0) die(path);
    answer(now() - began, 0, "");
}

/* -------------------------------------------------------------------------------------- echo */

/* A daemon that does nothing: takes a request in and answers with a result of the usual size. */
static _Noreturn void echo(const char *path) {
    struct sockaddr_un here = {.sun_family = AF_UNIX};
    static char in[1 << 17], body[400], out[4 + 12 + sizeof body];
    uint32_t head[] = {12 + sizeof body, 0, 0, sizeof body};
    memset(body, ' ', sizeof body);
    memcpy(body, "{}", 2);
    memcpy(out, head, sizeof head), memcpy(out + sizeof head, body, sizeof body);
    strncpy(here.sun_path, path, sizeof here.sun_path - 1);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(s, (void *)&here, sizeof here) < 0 || listen(s, 64) < 0) die(path);
    puts("listening"), fflush(stdout);
    for (;;) {
        int peer = accept4(s, NULL, NULL, SOCK_CLOEXEC);
        size_t have = 0;
        uint32_t length = 0;
        while (have < 4 || have < 4 + (size_t)length) {
            ssize_t n = recv(peer, in + have, sizeof in - have, 0);
            if (n <= 0) break;
            have += (size_t)n;
            if (have >= 4) memcpy(&length, in, 4);
        }
        if (write(peer, out, sizeof out) < 0 && errno != EPIPE) die("echo");
        close(peer);
    }
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "echo")) echo(argv[2]);
    home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    host = socket_here();
    char *f[FIELDS], *line;
    while (next(f, &line)) {
        if (!strcmp(f[0], "calls")) run(atoi(f[1]), atoi(f[2]));
        else if (!strcmp(f[0], "wire")) wire(f[1], atoi(f[2]));
        else if (!strcmp(f[0], "unwire")) unwire(atoi(f[1]));
        else if (!strcmp(f[0], "sync")) sync_pages(f[1]);
        else if (!strcmp(f[0], "dump")) dump();
        else errno = EINVAL, die(f[0]);
        fflush(stdout);
        free(line);
    }
    return 0;
}
