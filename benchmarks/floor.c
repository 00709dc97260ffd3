/* The floor: a loop that does nothing for a delivery but send(2).
 *
 * Speaks just enough HTTP and SSE for the load client, reads no Redis, keeps no state per client.
 * Frames have the size of the gateway's (an id of the same form), are encoded once for all streams, and all
 * events that are due when a pass begins go out as one chunk with one send per socket.
 * A full socket is waited for: the floor loses nothing.
 *
 * Protocol: prints {"what":"listening","port":P}; accepts --streams connections; on the line
 * "start T FIRST COUNT RATE" on stdin, publishes COUNT events from number FIRST on, the k-th of them at T + k/RATE
 * (CLOCK_MONOTONIC, ns; k from 0); prints {"what":"published",...}; ends at the end of stdin or after --max-seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_MAX (32 * 1024)
#define PAYLOAD_MAX (64 * 1024)
#define COMPACT_BYTES 34       /* payloads below are in the compact form of payload.py */

static const char head[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
    "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nd\r\nretry: 3000\n\n\r\n";

static int n_streams, payload_bytes = 100, *fds;
static double rate = 100;

static uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void sleep_until(uint64_t t) {
    struct timespec ts = {.tv_sec = (time_t)(t / 1000000000u), .tv_nsec = (long)(t % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR) {}
}

static void send_all(int fd, const char *p, size_t n) {
    while (n) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd full = {.fd = fd, .events = POLLOUT};
            poll(&full, 1, 1000);
        } else if (sent < 0) perror("send"), exit(70);
        else p += sent, n -= (size_t)sent;
    }
}

static void answer(int fd) {
    char request[4096];
    size_t used = 0;
    int bound = 256 * 1024;                       /* the gateway's default send_buffer */
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bound, sizeof bound);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    for (;;) {
        ssize_t n = recv(fd, request + used, sizeof request - 1 - used, 0);
        if (n <= 0) fprintf(stderr, "floor: no request\n"), exit(70);
        used += (size_t)n;
        request[used] = 0;
        if (strstr(request, "\r\n\r\n")) break;
    }
    send_all(fd, head, sizeof head - 1);
}

static int listen_on_loopback(void) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t size = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 4096) < 0) perror("listen"), exit(70);
    getsockname(fd, (struct sockaddr *)&at, &size);
    printf("{\"what\":\"listening\",\"port\":%d}\n", ntohs(at.sin_port));
    fflush(stdout);
    return fd;
}

static size_t encode(char *out, uint64_t seq, uint64_t intended) {
    int n = sprintf(out, "id: floor0000000-%llu-%012llx\ndata: ", (unsigned long long)seq,
                    (unsigned long long)seq * 2654435761u & 0xffffffffffffull);
    int data = payload_bytes < COMPACT_BYTES
        ? sprintf(out + n, "%08llx %011llx", (unsigned long long)seq, (unsigned long long)intended / 1000)
        : sprintf(out + n, "%016llx %016llx ", (unsigned long long)seq, (unsigned long long)intended);
    memset(out + n + data, 'x', (size_t)(payload_bytes - data));
    n += payload_bytes;
    memcpy(out + n, "\n\n", 2);
    return (size_t)n + 2;
}

static uint64_t due(uint64_t start, uint64_t number) { return start + (uint64_t)((double)number * 1e9 / rate); }

/* Room for the length line stands before the frames, so that one buffer is sent as it is. */
static void publish(uint64_t start, uint64_t first, uint64_t count) {
    static char buffer[16 + CHUNK_MAX + PAYLOAD_MAX + 128];
    uint64_t seq = first, end = first + count, sends = 0, latest = 0;
    while (seq < end) {
        uint64_t intended = due(start, seq - first), now = now_ns();
        if (now < intended) {
            sleep_until(intended);
            now = now_ns();
        }
        if (now - intended > latest) latest = now - intended;
        size_t used = 0;
        while (seq < end && used < CHUNK_MAX && intended <= now) {
            used += encode(buffer + 16 + used, seq++, intended);
            intended = due(start, seq - first);
        }
        char length[16];
        int n = snprintf(length, sizeof length, "%zx\r\n", used);
        memcpy(buffer + 16 - n, length, (size_t)n);
        memcpy(buffer + 16 + used, "\r\n", 2);
        for (int i = 0; i < n_streams; i++) send_all(fds[i], buffer + 16 - n, used + 2 + (size_t)n);
        sends += (uint64_t)n_streams;
    }
    printf("{\"what\":\"published\",\"count\":%llu,\"sends\":%llu,\"late_max_ms\":%.3f}\n", (unsigned long long)count,
           (unsigned long long)sends, (double)latest / 1e6);
    fflush(stdout);
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"streams", 1, 0, 'n'},
        {"payload-bytes", 1, 0, 'b'}, {"max-seconds", 1, 0, 't'}, {0, 0, 0, 0}};
    int option;
    unsigned max_seconds = 300;
    unsigned long long start, first, count;
    char line[128];
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'n': n_streams = atoi(optarg); break;
        case 'b': payload_bytes = atoi(optarg); break;
        case 't': max_seconds = (unsigned)atoi(optarg); break;
        default: exit(64);
        }
    }
    if (n_streams <= 0 || payload_bytes < 20 || payload_bytes > PAYLOAD_MAX)
        fprintf(stderr, "usage: floor --streams N [--payload-bytes 20-65536]\n"), exit(64);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    alarm(max_seconds);
    int listener = listen_on_loopback();
    fds = calloc((size_t)n_streams, sizeof *fds);
    for (int i = 0; i < n_streams; i++) {
        fds[i] = accept(listener, NULL, NULL);
        if (fds[i] < 0) perror("accept"), exit(70);
        answer(fds[i]);
    }
    while (fgets(line, sizeof line, stdin))
        if (sscanf(line, "start %llu %llu %llu %lf", &start, &first, &count, &rate) == 4) publish(start, first, count);
    return 0;
}
