/* The part of the load client that judges what came: latency histogram, lines of a stream, order of its events.
 *
 * Rules:
 *   - An event counts at its blank line; its data must be exactly the payload of payload.py. Of a stream's events the first
 *     is 1 (or, with --join, any), each next is one more: equal is a duplicate, smaller is disorder, larger is loss.
 *   - Latency is from the intended time of publishing to the return of the recv that carried the end of the event:
 *     a late publisher, a late server and a late client all count (no coordinated omission).
 *   - Blocks of a type "gateway.*" are counted by type and never taken for payloads.
 *   - Of a line that is cut by a read the first CARRY_BYTES are kept, which hold all that is looked at, and its length.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define CARRY_BYTES 128
#define HIST_SUB 64            /* buckets per power of two: 1.6 % resolution */
#define HIST_SIZE (64 * HIST_SUB)
#define COMPACT_BYTES 34       /* payloads below are in the compact form */

struct stream {
    int fd;
    uint8_t state, chunk, opened, has_event, reserved, is_stalled, is_current;
    char last;                 /* of the line that is cut */
    uint16_t carry;
    uint32_t head_bytes;
    uint64_t line_bytes, chunk_left, last_seq, seq, intended;
    char *head;                /* only until the head is complete */
    char line[CARRY_BYTES];
};

static int payload_bytes = 100, is_joining, n_open, n_inflight, n_current, n_stalled;
static int64_t current_seq = -1;   /* a stream is current at its opening, and at this event; -1: nobody asks */
static uint64_t began, *current_ns;
static uint64_t events, lost, duplicate, disorder, malformed;
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

static void clear_histogram(void) {
    memset(hist, 0, sizeof hist);
    hist_count = hist_max = 0;
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

/* n is the length of the data, of which at least its numbers are at p. */
static inline void on_data(struct stream *s, const char *p, uint64_t n) {
    if (s->reserved) return;
    if (n != (uint64_t)payload_bytes || s->has_event) malformed++;
    else if (payload_bytes < COMPACT_BYTES) {         /* eight digits, a space, eleven digits of microseconds */
        if (p[8] != ' ') malformed++;
        s->has_event = 1, s->seq = hex8(p);
        s->intended = ((uint64_t)hex8(p + 9) << 12 | (hex8(p + 12) & 0xfff)) * 1000;
    } else {
        if (p[16] != ' ' || p[33] != ' ') malformed++;
        s->has_event = 1, s->seq = hex16(p), s->intended = hex16(p + 17);
    }
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

static void check_current(struct stream *s, int index, uint64_t now) {
    if (s->is_current || s->last_seq < (uint64_t)current_seq) return;
    s->is_current = 1;
    n_current++;
    current_ns[index] = now - began;
}

static inline void on_event(struct stream *s, uint64_t now) {
    uint64_t seq = s->seq, last = s->last_seq;
    if (seq == last + 1 || (is_joining && last == 0)) s->last_seq = seq;
    else if (seq == last) duplicate++;
    else if (seq < last) disorder++;
    else lost += seq - last - 1, s->last_seq = seq;
    events++;
    uint64_t latency = now > s->intended ? now - s->intended : 0;
    hist[bucket_of(latency)]++;
    hist_count++;
    if (latency > hist_max) hist_max = latency;
}

static inline void on_blank(struct stream *s, int index, uint64_t now) {
    if (s->has_event) on_event(s, now);
    if (!s->opened) {
        s->opened = 1;
        n_open++;
        n_inflight--;
    }
    if (current_seq >= 0) check_current(s, index, now);
    s->has_event = s->reserved = 0;
}

/* The lengths are compared first so that every memcmp has a constant size and becomes one load. */
static inline void on_line(struct stream *s, int index, const char *p, uint64_t n, uint64_t now) {
    if (n == 0) on_blank(s, index, now);
    else if (n > 4 && !memcmp(p, "id: ", 4)) return;
    else if (n > 6 && !memcmp(p, "data: ", 6)) on_data(s, p + 6, n - 6);
    else if (n > 7 && !memcmp(p, "event: ", 7)) on_type(s, p + 7, (size_t)n - 7);
    else if (p[0] != ':' && !(n > 7 && !memcmp(p, "retry: ", 7))) malformed++;
}

/* Returns the line feed that ends the line at p, or NULL. A payload holds none and begins with a digit, so such a
 * line is not searched; the gateway's own data begins with a brace. */
static inline const char *line_end(const char *p, const char *end) {
    const char *expected = p + 6 + payload_bytes;
    if (expected < end && *expected == '\n' && p[0] == 'd' && p[6] != '{') return expected;
    return memchr(p, '\n', (size_t)(end - p));
}

static void carry(struct stream *s, const char *p, size_t n) {
    size_t kept = n < (size_t)(CARRY_BYTES - s->carry) ? n : (size_t)(CARRY_BYTES - s->carry);
    memcpy(s->line + s->carry, p, kept);
    s->carry = (uint16_t)(s->carry + kept);
    s->line_bytes += n;
    if (n) s->last = p[n - 1];
}

static void on_body(struct stream *s, int index, const char *p, size_t n, uint64_t now) {
    const char *end = p + n, *nl;
    if (s->line_bytes) {
        nl = memchr(p, '\n', n);
        carry(s, p, (size_t)((nl ? nl : end) - p));
        if (!nl) return;
        on_line(s, index, s->line, s->line_bytes - (s->last == '\r'), now);
        s->carry = 0;
        s->line_bytes = 0;
        p = nl + 1;
    }
    for (; p < end && (nl = line_end(p, end)); p = nl + 1)
        on_line(s, index, p, (uint64_t)(nl - p) - (nl > p && nl[-1] == '\r'), now);
    if (p < end) carry(s, p, (size_t)(end - p));
}
