/* A server that answers at once: the latency that a client measures against it is the error of the client and machine.
 *
 *     instant_server REQUEST_SIZE ANSWER_SIZE
 *
 * Listens on a port of 127.0.0.1 that the kernel picks, and prints it. Every REQUEST_SIZE bytes of a connection are one
 * request; the answer is a 200 with a body of ANSWER_SIZE bytes. It busy-waits and needs a core of its own. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { DESCRIPTORS_MAX = 4096, READY_MAX = 64 };

static char octets[1 << 16], answer[1 << 16];
static size_t have[DESCRIPTORS_MAX]; /* bytes of an unfinished request, by descriptor */

int main(int argc, char **argv) {
    size_t request_size = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
    int size = argc == 3 ? atoi(argv[2]) : 0;
    if (!request_size || size < 0 || size > (1 << 15)) return 2;
    int head = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size), yes = 1;
    memset(answer + head, 'x', (size_t)size);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, ready[READY_MAX];
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1024)) return 1;
    if (getsockname(listener, (struct sockaddr *)&address, &length)) return 1;
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event)) return 1;
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int found = epoll_wait(epoll, ready, READY_MAX, 0);
        for (int i = 0; i < found; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                event.data.fd = accept(listener, NULL, NULL);
                if (event.data.fd < 0 || event.data.fd >= DESCRIPTORS_MAX) return 1;
                setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                have[event.data.fd] = 0;
                if (epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event)) return 1;
                continue;
            }
            ssize_t taken = recv(fd, octets, sizeof octets, 0);
            if (taken <= 0) {
                close(fd);
                continue;
            }
            for (have[fd] += (size_t)taken; have[fd] >= request_size; have[fd] -= request_size)
                if (send(fd, answer, (size_t)(head + size), MSG_NOSIGNAL) < 0) break;
        }
    }
}
