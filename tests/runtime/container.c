/* The one executable of the suite's image; static, for the image holds nothing else.
 *
 *   container pause        what a sandbox runs: nothing, until SIGTERM
 *   container serve PORT   TCP; the first byte of a connection says what is wanted:
 *                            w  the caller's address and port as the server sees them, in one line
 *                            f  a flood of zeros until the caller hangs up
 *
 * What a test asks of it does not belong here.
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void end(int number) {
    (void)number;
    _exit(0);
}

static void answer(int connection, const struct sockaddr_in *peer) {
    static char zeros[1 << 16];
    char wanted, line[64];
    if (read(connection, &wanted, 1) != 1) return;
    if (wanted == 'f') {
        while (write(connection, zeros, sizeof zeros) > 0) {
        }
        return;
    }
    int length = snprintf(line, sizeof line, "%s %d\n", inet_ntoa(peer->sin_addr), ntohs(peer->sin_port));
    if (write(connection, line, (size_t)length) < 0) perror("write");
}

static int serve(int port) {
    int one = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&own, sizeof own) || listen(server, 16)) {
        perror("listen");
        return 1;
    }
    signal(SIGCHLD, SIG_IGN); /* children are not waited for */
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        struct sockaddr_in peer;
        socklen_t size = sizeof peer;
        int connection = accept(server, (struct sockaddr *)&peer, &size);
        if (connection < 0) continue;
        if (fork() == 0) {
            close(server);
            answer(connection, &peer);
            _exit(0);
        }
        close(connection);
    }
}

int main(int argc, char **argv) {
    signal(SIGTERM, end); /* the first process of a pid namespace gets only what it handles */
    signal(SIGINT, end);
    if (argc == 2 && strcmp(argv[1], "pause") == 0)
        for (;;) pause();
    if (argc == 3 && strcmp(argv[1], "serve") == 0) return serve(atoi(argv[2]));
    fprintf(stderr, "usage: container pause | serve PORT\n");
    return 2;
}
