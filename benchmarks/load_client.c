/* Load client: opens N event streams on 127.0.0.1, checks every event, measures latency.
 *
 * In C because a check of every one of 8 million events a second does not fit in one core of Python.
 *
 * Rules:
 *   - One thread, epoll, level-triggered; at most one recv of 256 KiB per readiness, so that no
 *     stream starves another.
 *   - A stream is open at its first blank line after a status of 200.
 *   - An event counts at its blank line; its data must be exactly the payload of payload.py:
 *     16 hex digits of sequence number, a space, 16 hex digits of the INTENDED publish time
 *     (CLOCK_MONOTONIC, ns), a space, padding. The first is 1, each next is one more:
 *     equal is a duplicate, smaller is disorder, larger is loss.
 *   - Latency is from the intended time to the return of the recv that carried the end of the event:
 *     a late publisher, a late server and a late client all count (no coordinated omission).
 *   - Blocks of a type "gateway.*" are counted by type and never taken for payloads.
 *
 * Commands on stdin, one JSON line on stdout for each:
 *   mark       counters so far; latency since the last mark
 *   finish N   the same at the end, when every stream must have ended with event N
 * End of stdin, or --max-seconds, ends the process. Streams are closed with RST: no TIME_WAIT.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define RECV_BYTES (256 * 1024)
#define CARRY_BYTES 512        /* longest line that may be cut by a read */
#define HEAD_BYTES 2048        /* longest response head */
#define HIST_SUB 64            /* buckets per power of two: 1.6 % resolution */
#define HIST_SIZE (64 * HIST_SUB)

enum state { CONNECTING, HEAD, BODY, CLOSED };
enum chunk { CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_DATA, CHUNK_END, IDENTITY };

struct stream {
    int fd;
    uint8_t state, chunk, opened, has_event, reserved;
    uint16_t carry;
    uint32_t head_bytes;
    uint64_t chunk_left, last_seq, seq, intended;
    char *head;                /* only until the head is complete */
    char line[CARRY_BYTES];
};

static struct stream *streams;
static int n_streams, n_inflight, n_open, n_closed, n_connect, epfd;
static int inflight_max = 200, payload_bytes = 100, port;
static const char *path = "/";
static char recv_buffer[RECV_BYTES];
static uint64_t events, bytes_read, reads, lost, duplicate, disorder, malformed, refused;
static uint64_t gaps, heartbeats, opens, closes, unavailable, other_reserved;
static uint64_t hist[HIST_SIZE], hist_count, hist_max;

static uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- latency histogram: log-linear, values in ns ---- */

static int bucket_of(uint64_t v) {
    if (v < HIST_SUB) return (int)v;
    int shift = 63 - __builtin_clzll(v) - 6;
    return (shift + 1) * HIST_SUB + (int)((v >> shift) - HIST_SUB);
}

static uint64_t bucket_top(int b) {
    if (b < HIST_SUB) return (uint64_t)b;
    int shift = b / HIST_SUB - 1;
    return (((uint64_t)(b % HIST_SUB) + HIST_SUB + 1) << shift) - 1;
}

static double percentile_ms(double p) {
    uint64_t want = (uint64_t)(p * (double)hist_count), sum = 0;
    if (hist_count == 0) return 0;
    for (int b = 0; b < HIST_SIZE; b++) {
        sum += hist[b];
        if (sum > want) {
            uint64_t top = bucket_top(b);
            return (double)(top < hist_max ? top : hist_max) / 1e6;
        }
    }
    return (double)hist_max / 1e6;
}

/* ---- events ---- */

/* Eight lower-case hex digits at once; other bytes give garbage, which the sequence check then shows. */
static inline uint32_t hex8(const char *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    v = (v & 0x0f0f0f0f0f0f0f0full) + 9 * ((v >> 6) & 0x0101010101010101ull);
    v = (v | (v << 12)) & 0xff00ff00ff00ff00ull;      /* pairs: high nibble first */
    return (uint32_t)(((v >> 8) & 0xff) << 24 | ((v >> 24) & 0xff) << 16 | ((v >> 40) & 0xff) << 8 | ((v >> 56) & 0xff));
}

static inline uint64_t hex16(const char *p) { return (uint64_t)hex8(p) << 32 | hex8(p + 8); }

static void on_data(struct stream *s, const char *p, size_t n) {
    if (s->reserved) return;
    if (n != (size_t)payload_bytes || p[16] != ' ' || p[33] != ' ' || s->has_event) malformed++;
    else s->has_event = 1, s->seq = hex16(p), s->intended = hex16(p + 17);
}

static void on_type(struct stream *s, const char *p, size_t n) {
    s->reserved = n > 8 && memcmp(p, "gateway.", 8) == 0;
    if (!s->reserved) return;
    p += 8, n -= 8;
    if (n == 9 && !memcmp(p, "heartbeat", 9)) heartbeats++;
    else if (n == 4 && !memcmp(p, "open", 4)) opens++;
    else if (n == 3 && !memcmp(p, "gap", 3)) gaps++;
    else if (n == 5 && !memcmp(p, "close", 5)) closes++;
    else if (n == 11 && !memcmp(p, "unavailable", 11)) unavailable++;
    else other_reserved++;
}

static inline void on_blank(struct stream *s, uint64_t now) {
    if (s->has_event) {
        uint64_t seq = s->seq, last = s->last_seq;
        if (seq == last + 1) s->last_seq = seq;
        else if (seq == last) duplicate++;
        else if (seq < last) disorder++;
        else lost += seq - last - 1, s->last_seq = seq;
        events++;
        uint64_t latency = now > s->intended ? now - s->intended : 0;
        hist[bucket_of(latency)]++;
        hist_count++;
        if (latency > hist_max) hist_max = latency;
    }
    if (!s->opened) {
        s->opened = 1;
        n_open++;
        n_inflight--;
    }
    s->has_event = s->reserved = 0;
}

/* The lengths are compared first so that every memcmp has a constant size and becomes one load. */
static inline void on_line(struct stream *s, const char *p, size_t n, uint64_t now) {
    if (n == 0) on_blank(s, now);
    else if (n > 4 && !memcmp(p, "id: ", 4)) return;
    else if (n > 6 && !memcmp(p, "data: ", 6)) on_data(s, p + 6, n - 6);
    else if (n > 7 && !memcmp(p, "event: ", 7)) on_type(s, p + 7, n - 7);
    else if (p[0] != ':' && !(n > 7 && !memcmp(p, "retry: ", 7))) malformed++;
}

/* Returns the line feed that ends the line at p, or NULL. A payload holds none and begins with a digit, so such a
 * line is not searched; the gateway's own data begins with a brace. */
static inline const char *line_end(const char *p, const char *end) {
    const char *expected = p + 6 + payload_bytes;
    if (expected < end && *expected == '\n' && p[0] == 'd' && p[6] != '{') return expected;
    return memchr(p, '\n', (size_t)(end - p));
}

static void on_body(struct stream *s, const char *p, size_t n, uint64_t now) {
    const char *end = p + n;
    if (s->carry) {
        const char *nl = memchr(p, '\n', n);
        size_t take = (size_t)((nl ? nl : end) - p);
        if (s->carry + take > CARRY_BYTES) {
            malformed++;
            take = CARRY_BYTES - s->carry;
        }
        memcpy(s->line + s->carry, p, take);
        s->carry = (uint16_t)(s->carry + take);
        if (!nl) return;
        on_line(s, s->line, s->carry, now);
        s->carry = 0;
        p = nl + 1;
    }
    const char *nl;
    for (; p < end && (nl = line_end(p, end)); p = nl + 1) on_line(s, p, (size_t)(nl - p), now);
    if (p < end) {
        size_t rest = (size_t)(end - p);
        if (rest > CARRY_BYTES) malformed++, rest = CARRY_BYTES;
        memcpy(s->line, p, rest);
        s->carry = (uint16_t)rest;
    }
}

/* ---- HTTP/1.1 ---- */

static void close_stream(struct stream *s) {
    if (s->state == CLOSED) return;
    s->state = CLOSED;
    n_closed++;
    if (!s->opened) n_inflight--;
    close(s->fd);
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static void on_chunked(struct stream *s, const char *p, size_t n, uint64_t now) {
    const char *end = p + n;
    while (p < end && s->state != CLOSED) {
        if (s->chunk == CHUNK_DATA || s->chunk == IDENTITY) {
            size_t take = (size_t)(end - p);
            if (s->chunk == CHUNK_DATA && take > s->chunk_left) take = s->chunk_left;
            on_body(s, p, take, now);
            p += take;
            if (s->chunk == CHUNK_DATA && (s->chunk_left -= take) == 0) s->chunk = CHUNK_END;
            continue;
        }
        char c = *p++;
        if (s->chunk == CHUNK_END) {
            if (c == '\n') s->chunk = CHUNK_SIZE, s->chunk_left = 0;
        } else if (c == '\n') {
            if (s->chunk_left == 0) close_stream(s);      /* the last chunk: a clean end */
            s->chunk = CHUNK_DATA;
        } else if (s->chunk == CHUNK_SIZE && c != '\r') {
            int digit = hex_digit(c);
            if (digit < 0) s->chunk = CHUNK_EXTENSION;
            else s->chunk_left = s->chunk_left * 16 + (uint64_t)digit;
        }
    }
}

static void on_head(struct stream *s, const char *p, size_t n, uint64_t now) {
    if (!s->head) s->head = calloc(1, HEAD_BYTES + 1);
    size_t before = s->head_bytes, take = HEAD_BYTES - before < n ? HEAD_BYTES - before : n;
    memcpy(s->head + before, p, take);
    s->head_bytes += (uint32_t)take;
    s->head[s->head_bytes] = 0;
    char *end = strstr(s->head, "\r\n\r\n");
    if (!end && s->head_bytes < HEAD_BYTES) return;
    if (!end || strncmp(s->head, "HTTP/1.1 200", 12)) {
        if (refused++ == 0) fprintf(stderr, "load client: refused: %.200s\n", s->head);
        close_stream(s);
    } else {
        s->state = BODY;
        size_t used = (size_t)(end + 4 - s->head) - before;
        end[2] = 0;
        s->chunk = strcasestr(s->head, "\r\ntransfer-encoding: chunked") ? CHUNK_SIZE : IDENTITY;
        free(s->head);
        s->head = NULL;
        on_chunked(s, p + used, n - used, now);
    }
}

static void watch(struct stream *s, int op, uint32_t mask) {
    struct epoll_event ev = {.events = mask, .data.u32 = (uint32_t)(s - streams)};
    if (epoll_ctl(epfd, op, s->fd, &ev) < 0) perror("epoll_ctl"), exit(70);
}

static void connect_next(void) {
    struct stream *s = &streams[n_connect++];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) perror("socket"), exit(70);
    struct linger reset = {1, 0};
    setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(s->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) perror("connect"), exit(70);
    n_inflight++;
    watch(s, EPOLL_CTL_ADD, EPOLLOUT);
}

static void on_connected(struct stream *s) {
    char request[1024], *where = strstr(path, "{}");
    int index = (int)(s - streams), error = 0, n;
    socklen_t size = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) fprintf(stderr, "load client: connect: %s\n", strerror(error)), exit(70);
    n = where ? snprintf(request, sizeof request, "GET %.*s%d%s", (int)(where - path), path, index, where + 2)
              : snprintf(request, sizeof request, "GET %s", path);
    n += snprintf(request + n, sizeof request - (size_t)n,
                  " HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\nCache-Control: no-cache\r\n"
                  "User-Agent: load-client\r\n\r\n", port);
    if (send(s->fd, request, (size_t)n, MSG_NOSIGNAL) != n) perror("send"), exit(70);
    s->state = HEAD;
    watch(s, EPOLL_CTL_MOD, EPOLLIN);
}

static void on_ready(struct stream *s) {
    if (s->state == CLOSED) return;
    if (s->state == CONNECTING) return on_connected(s);
    ssize_t n = recv(s->fd, recv_buffer, sizeof recv_buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) return close_stream(s);
    reads++;
    bytes_read += (uint64_t)n;
    uint64_t now = now_ns();
    if (s->state == HEAD) on_head(s, recv_buffer, (size_t)n, now);
    else on_chunked(s, recv_buffer, (size_t)n, now);
}

/* ---- commands ---- */

static void report(const char *what, long long expected) {
    struct rusage usage;
    uint64_t behind = 0, complete = 0;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
               + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    for (int i = 0; expected >= 0 && i < n_streams; i++) {
        uint64_t last = streams[i].last_seq;
        if (last == (uint64_t)expected) complete++;
        else if (last < (uint64_t)expected) behind += (uint64_t)expected - last;
        else malformed++;
    }
    printf("{\"what\":\"%s\",\"now_ns\":%llu,\"cpu_s\":%.4f,\"open\":%d,\"closed\":%d,\"events\":%llu,\"reads\":%llu,"
           "\"bytes\":%llu,\"lost\":%llu,\"duplicate\":%llu,\"disorder\":%llu,\"malformed\":%llu,\"refused\":%llu,"
           "\"gaps\":%llu,\"heartbeats\":%llu,\"opens\":%llu,\"closes\":%llu,\"unavailable\":%llu,"
           "\"other_reserved\":%llu,\"complete\":%llu,\"never_came\":%llu,\"latency_count\":%llu,"
           "\"p50_ms\":%.3f,\"p90_ms\":%.3f,\"p99_ms\":%.3f,\"p999_ms\":%.3f,\"max_ms\":%.3f}\n",
           what, (unsigned long long)now_ns(), cpu, n_open, n_closed, (unsigned long long)events,
           (unsigned long long)reads, (unsigned long long)bytes_read, (unsigned long long)lost,
           (unsigned long long)duplicate, (unsigned long long)disorder, (unsigned long long)malformed,
           (unsigned long long)refused, (unsigned long long)gaps, (unsigned long long)heartbeats,
           (unsigned long long)opens, (unsigned long long)closes, (unsigned long long)unavailable,
           (unsigned long long)other_reserved, (unsigned long long)complete, (unsigned long long)behind,
           (unsigned long long)hist_count, percentile_ms(.5), percentile_ms(.9), percentile_ms(.99),
           percentile_ms(.999), (double)hist_max / 1e6);
    fflush(stdout);
}

static void on_command(void) {
    static char line[256];
    static size_t used;
    ssize_t n = read(0, line + used, sizeof line - 1 - used);
    if (n <= 0) exit(0);
    used += (size_t)n;
    line[used] = 0;
    for (char *nl; (nl = strchr(line, '\n')); ) {
        *nl = 0;
        if (!strcmp(line, "mark")) {
            report("mark", -1);
            memset(hist, 0, sizeof hist);
            hist_count = hist_max = 0;
        } else if (!strncmp(line, "finish ", 7)) report("finish", atoll(line + 7));
        else fprintf(stderr, "load client: unknown command: %s\n", line), exit(64);
        used -= (size_t)(nl + 1 - line);
        memmove(line, nl + 1, used + 1);
    }
}

static void parse_options(int argc, char **argv) {
    static const struct option options[] = {
        {"port", 1, 0, 'p'}, {"path", 1, 0, 'u'}, {"streams", 1, 0, 'n'}, {"inflight", 1, 0, 'i'},
        {"payload-bytes", 1, 0, 'b'}, {"max-seconds", 1, 0, 't'}, {0, 0, 0, 0}};
    int option, max_seconds = 300;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'u': path = optarg; break;
        case 'n': n_streams = atoi(optarg); break;
        case 'i': inflight_max = atoi(optarg); break;
        case 'b': payload_bytes = atoi(optarg); break;
        case 't': max_seconds = atoi(optarg); break;
        default: exit(64);
        }
    }
    if (port <= 0 || n_streams <= 0 || payload_bytes < 34 || payload_bytes > CARRY_BYTES - 8 || strlen(path) > 500) {
        fprintf(stderr, "usage: load_client --port P --path /events/x --streams N [--inflight N]"
                        " [--payload-bytes 34-504] [--max-seconds S]; {} in the path is the stream's number\n");
        exit(64);
    }
    alarm((unsigned)max_seconds);
}

int main(int argc, char **argv) {
    struct epoll_event ready[256], ev = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    parse_options(argc, argv);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    streams = calloc((size_t)n_streams, sizeof *streams);
    epfd = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(epfd, EPOLL_CTL_ADD, 0, &ev);
    for (int told = 0;;) {
        while (n_connect < n_streams && n_inflight < inflight_max) connect_next();
        int n = epoll_wait(epfd, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.u32 == UINT32_MAX) on_command();
            else on_ready(&streams[ready[i].data.u32]);
        }
        if (!told && n_connect == n_streams && n_inflight == 0) {
            told = 1;
            report("open", -1);
        }
    }
}
