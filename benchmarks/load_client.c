/* Load client: opens N event streams on 127.0.0.1, checks every event, measures latency.
 *
 * In C because a check of every one of 8 million events a second does not fit in one core of Python.
 *
 * Rules:
 *   - One thread, epoll, level-triggered; at most one recv of 256 KiB per readiness, so that no
 *     stream starves another.
 *   - A stream is open at its first blank line after a status of 200. What is judged of it: load_check.h.
 *   - The last --stalled streams read nothing more once they are open; nothing is expected of them.
 *   - With --current, a line tells how long after the first connect each stream was current; a connection that is cut
 *     before its first block is tried again.
 *
 * Commands on stdin, one JSON line on stdout for each:
 *   mark       counters so far; latency since the last mark
 *   await N    the same, once N events have come since the last mark (which this is)
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
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <signal.h>
#include <unistd.h>

#include "load_check.h"

#define RECV_BYTES (256 * 1024)
#define HEAD_BYTES 2048        /* longest response head */

enum state { CONNECTING, HEAD, BODY, CLOSED };
enum chunk { CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_DATA, CHUNK_END, IDENTITY };

static struct stream *streams;
static int n_streams, n_closed, n_connect, epfd, inflight_max = 200, port, first_index;
static const char *path = "/", *source, *last_event_id, *field;
static char recv_buffer[RECV_BYTES];
static uint64_t bytes_read, reads, refused, awaited, again;

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
            on_body(s, (int)(s - streams), p, take, now);
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

static void connect_stream(struct stream *s) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}, from = {.sin_family = AF_INET};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (began == 0) began = now_ns();
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) perror("socket"), exit(70);
    struct linger reset = {1, 0};
    setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    s->state = CONNECTING;
    s->is_stalled = s - streams >= n_streams - n_stalled;
    if (s->is_stalled) setsockopt(s->fd, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
    if (source) {                  /* the port is chosen at connect: more streams than one address has ports */
        setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
        inet_pton(AF_INET, source, &from.sin_addr);
        if (bind(s->fd, (struct sockaddr *)&from, sizeof from) < 0) perror("bind"), exit(70);
    }
    if (connect(s->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) perror("connect"), exit(70);
    n_inflight++;
    watch(s, EPOLL_CTL_ADD, EPOLLOUT);
}

/* Writes the path, each {} of it replaced by the stream's number. */
static int write_path(char *to, size_t size, int index) {
    int n = 0;
    for (const char *p = path; *p && n < (int)size - 16; ) {
        if (p[0] == '{' && p[1] == '}') n += sprintf(to + n, "%d", index), p += 2;
        else to[n++] = *p++;
    }
    return n;
}

/* In a storm the kernel may cut a connection that its full queue has no room for: a browser tries again, so do we. */
static void come_again(struct stream *s) {
    close(s->fd);
    again++;
    n_inflight--;
    s->head_bytes = 0;
    connect_stream(s);
}

static void on_connected(struct stream *s) {
    char request[4096];
    int error = 0, n;
    socklen_t size = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error && current_seq >= 0) return come_again(s);
    if (error) fprintf(stderr, "load client: connect: %s\n", strerror(error)), exit(70);
    n = sprintf(request, "GET ");
    n += write_path(request + n, 2048, first_index + (int)(s - streams));
    n += sprintf(request + n, " HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n"
                 "Cache-Control: no-cache\r\nUser-Agent: load-client\r\n", port);
    if (last_event_id) n += sprintf(request + n, "Last-Event-ID: %.200s\r\n", last_event_id);
    if (field) n += snprintf(request + n, 1400, "%s\r\n", field);
    n += sprintf(request + n, "\r\n");
    if (send(s->fd, request, (size_t)n, MSG_NOSIGNAL) != n) perror("send"), exit(70);
    s->state = HEAD;
    watch(s, EPOLL_CTL_MOD, EPOLLIN);
}

static void on_ready(struct stream *s) {
    if (s->state == CLOSED) return;
    if (s->state == CONNECTING) return on_connected(s);
    ssize_t n = recv(s->fd, recv_buffer, sizeof recv_buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) return s->opened || current_seq < 0 ? close_stream(s) : come_again(s);
    reads++;
    bytes_read += (uint64_t)n;
    uint64_t now = now_ns();
    if (s->state == HEAD) on_head(s, recv_buffer, (size_t)n, now);
    else on_chunked(s, recv_buffer, (size_t)n, now);
    if (s->is_stalled && s->opened && s->state == BODY) watch(s, EPOLL_CTL_DEL, 0);
}

/* ---- commands ---- */

static void report(const char *what, long long expected) {
    struct rusage usage;
    uint64_t behind = 0, complete = 0;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
               + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    for (int i = 0; expected >= 0 && i < n_streams - n_stalled; i++) {
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

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void report_current(void) {
    qsort(current_ns, (size_t)n_streams, sizeof *current_ns, by_size);
    printf("{\"what\":\"current\",\"current\":%d,\"p50_s\":%.4f,\"p99_s\":%.4f,\"last_s\":%.4f,\"again\":%llu}\n",
           n_current,
           (double)current_ns[n_streams / 2] / 1e9, (double)current_ns[n_streams * 99ll / 100] / 1e9,
           (double)current_ns[n_streams - 1] / 1e9, (unsigned long long)again);
    fflush(stdout);
}

static void report_mark(void) {
    report("mark", -1);
    clear_histogram();
    awaited = 0;
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
        if (!strcmp(line, "mark")) report_mark();
        else if (!strncmp(line, "await ", 6)) awaited = (uint64_t)atoll(line + 6);
        else if (!strncmp(line, "finish ", 7)) report("finish", atoll(line + 7));
        else fprintf(stderr, "load client: unknown command: %s\n", line), exit(64);
        used -= (size_t)(nl + 1 - line);
        memmove(line, nl + 1, used + 1);
    }
}

static void parse_options(int argc, char **argv) {
    static const struct option options[] = {
        {"port", 1, 0, 'p'}, {"path", 1, 0, 'u'}, {"streams", 1, 0, 'n'}, {"inflight", 1, 0, 'i'},
        {"payload-bytes", 1, 0, 'b'}, {"max-seconds", 1, 0, 't'}, {"source", 1, 0, 's'}, {"first", 1, 0, 'f'},
        {"stalled", 1, 0, 'l'}, {"last-event-id", 1, 0, 'e'}, {"header", 1, 0, 'h'}, {"current", 1, 0, 'c'},
        {"join", 0, 0, 'j'}, {0, 0, 0, 0}};
    int option, max_seconds = 300;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'u': path = optarg; break;
        case 'n': n_streams = atoi(optarg); break;
        case 'i': inflight_max = atoi(optarg); break;
        case 'b': payload_bytes = atoi(optarg); break;
        case 't': max_seconds = atoi(optarg); break;
        case 's': source = optarg; break;
        case 'f': first_index = atoi(optarg); break;
        case 'l': n_stalled = atoi(optarg); break;
        case 'e': last_event_id = optarg; break;
        case 'h': field = optarg; break;
        case 'c': current_seq = atoll(optarg); break;
        case 'j': is_joining = 1; break;
        default: exit(64);
        }
    }
    if (port <= 0 || n_streams <= 0 || payload_bytes < 20 || strlen(path) > 1000) {
        fprintf(stderr, "usage: load_client --port P --path /events/x --streams N [--inflight N] [--payload-bytes 20-]"
                        " [--max-seconds S]\n  [--source 127.0.0.N] [--first NUMBER] [--stalled N]"
                        " [--last-event-id ID] [--header FIELD] [--current EVENT] [--join]\n"
                        "  {} in the path is the stream's number\n");
        exit(64);
    }
    alarm((unsigned)max_seconds);
}

int main(int argc, char **argv) {
    struct epoll_event ready[256], ev = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    parse_options(argc, argv);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    streams = calloc((size_t)n_streams, sizeof *streams);
    current_ns = calloc((size_t)n_streams, sizeof *current_ns);
    epfd = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(epfd, EPOLL_CTL_ADD, 0, &ev);
    for (int told = 0, told_current = current_seq < 0;;) {
        while (n_connect < n_streams && n_inflight < inflight_max) connect_stream(&streams[n_connect++]);
        int n = epoll_wait(epfd, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.u32 == UINT32_MAX) on_command();
            else on_ready(&streams[ready[i].data.u32]);
        }
        if (awaited && hist_count >= awaited) report_mark();
        if (!told && n_connect == n_streams && n_inflight == 0) {
            told = 1;
            report("open", -1);
        }
        if (told && !told_current && n_current == n_streams) {
            told_current = 1;
            report_current();
        }
    }
}
