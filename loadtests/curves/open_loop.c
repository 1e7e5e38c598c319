/* An open-loop client: requests leave on a schedule, whether or not earlier ones were answered.
 *
 *     open_loop PORT CONNECTIONS REQUESTS SCHEDULE RESULTS GRACE_SECONDS
 *
 * REQUESTS holds whole requests, each after its length (32 bits); they are sent in turn. SCHEDULE holds the moment of
 * each request in ns after the start (64 bits, ascending). RESULTS receives for each request the ns after the start at
 * which it was sent and at which its answer was complete. All are little-endian.
 *
 * A request that is due takes the connection that has been idle longest. When none is idle, it waits, and so do those
 * behind it; the schedule goes on, so that latency counted from the schedule includes the wait. The client busy-waits
 * and needs a core of its own. It keeps no histogram: 16 bytes for each of some hundred thousand requests are cheap and
 * exact.
 *
 * The run ends with a sentence and status 1 at the first answer that is not 200, at a closed connection, or when
 * answers are missing GRACE_SECONDS after the last scheduled moment: a run with errors has no percentiles. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_SIZE = 1 << 16, READY_MAX = 64 };

struct connection {
    int fd;
    uint64_t number;   /* of the request under way */
    size_t have, want; /* bytes of its answer: here, and in all (0 until the head is complete) */
    char buffer[BUFFER_SIZE + 1];
};

struct times {
    uint64_t sent, answered;
};

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static _Noreturn void fail(const char *what, const char *more) {
    fprintf(stderr, "%s: %.200s\n", what, more);
    exit(1);
}

static void *mapped(const char *path, size_t *size) {
    struct stat about;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &about)) fail(path, strerror(errno));
    *size = (size_t)about.st_size;
    void *content = mmap(NULL, *size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (content == MAP_FAILED) fail(path, strerror(errno));
    close(fd);
    return content;
}

static int connected(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return fd;
}

static void send_whole(int fd, const char *request, size_t size) {
    while (size) {
        ssize_t sent = send(fd, request, size, MSG_NOSIGNAL);
        if (sent < 0) fail("send", strerror(errno));
        request += sent;
        size -= (size_t)sent;
    }
}

/* Take what has come of an answer; returns whether it is complete. */
static int received(struct connection *one) {
    ssize_t size = recv(one->fd, one->buffer + one->have, BUFFER_SIZE - one->have, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (size <= 0) fail("the server ended a connection", size ? strerror(errno) : "without a word");
    one->have += (size_t)size;
    one->buffer[one->have] = 0;
    if (!one->want) {
        char *end = strstr(one->buffer, "\r\n\r\n"), *length = strcasestr(one->buffer, "\r\ncontent-length:");
        if (!end) return 0;
        if (strncmp(one->buffer, "HTTP/1.1 200 ", 13)) fail("an answer was not 200", one->buffer);
        if (!length || length > end) fail("an answer has no Content-Length", one->buffer);
        one->want = (size_t)(end + 4 - one->buffer) + strtoul(length + 17, NULL, 10);
        if (one->want > BUFFER_SIZE) fail("an answer is longer than the client's buffer", one->buffer);
    }
    if (one->have > one->want) fail("more came than was asked for", one->buffer);
    return one->have == one->want;
}

int main(int argc, char **argv) {
    if (argc != 7) fail("usage", "open_loop PORT CONNECTIONS REQUESTS SCHEDULE RESULTS GRACE_SECONDS");
    size_t count = (size_t)atoi(argv[2]), octets, schedule_size, kinds = 0;
    const char *requests = mapped(argv[3], &octets);
    const uint64_t *due = mapped(argv[4], &schedule_size);
    uint64_t total = schedule_size / sizeof *due, next = 0, answered = 0;
    size_t *begins = calloc(octets / 4 + 1, sizeof *begins); /* none is shorter than its length */
    struct times *times = calloc(total + 1, sizeof *times);
    struct connection *all = calloc(count, sizeof *all);
    struct connection **resting = calloc(count, sizeof *resting); /* a ring, the longest resting first */
    if (!begins || !times || !all || !resting || !total) fail("memory", "none, or an empty schedule");
    memset(times, 1, (total + 1) * sizeof *times); /* touched now, so that no page is missing later */
    for (size_t at = 0; at < octets;) {
        uint32_t size;
        memcpy(&size, requests + at, sizeof size);
        begins[kinds++] = at;
        at += sizeof size + size;
    }
    int epoll = epoll_create1(0);
    for (size_t i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = all + i};
        all[i].fd = connected(atoi(argv[1]));
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event)) fail("epoll", strerror(errno));
        resting[i] = all + i;
    }
    size_t head = 0, rest = count;
    uint64_t start = clock_ns() + 10000000, end = start + due[total - 1] + strtoull(argv[6], NULL, 10) * 1000000000u;
    while (answered < total) {
        uint64_t now = clock_ns();
        if (now > end) fail("answers are missing", "the server is too slow for the schedule, or stands still");
        for (; rest && next < total && start + due[next] <= now; next++, rest--) {
            struct connection *one = resting[head];
            const char *request = requests + begins[next % kinds];
            uint32_t size;
            head = (head + 1) % count;
            memcpy(&size, request, sizeof size);
            one->number = next;
            one->have = one->want = 0;
            times[next].sent = clock_ns() - start;
            send_whole(one->fd, request + sizeof size, size);
        }
        struct epoll_event ready[READY_MAX];
        int found = epoll_wait(epoll, ready, READY_MAX, 0);
        for (int i = 0; i < found; i++) {
            struct connection *one = ready[i].data.ptr;
            if (!received(one)) continue;
            times[one->number].answered = clock_ns() - start;
            resting[(head + rest++) % count] = one;
            answered++;
        }
    }
    FILE *results = fopen(argv[5], "wb");
    if (!results || fwrite(times, sizeof *times, total, results) != total || fclose(results))
        fail(argv[5], strerror(errno));
    return 0;
}
