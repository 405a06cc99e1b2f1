// What the server and the load generator share: growing bytes, a clock, chunked bodies.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define READ_SIZE 65536

// `off` is where the unread or unsent part starts.
typedef struct { char *p; size_t n, cap, off; } Buf;

static void need(Buf *b, size_t more) {
    if (b->n + more <= b->cap) return;
    if (b->off) {
        memmove(b->p, b->p + b->off, b->n - b->off);
        b->n -= b->off;
        b->off = 0;
    }
    if (b->n + more <= b->cap) return;
    while (b->n + more > b->cap) b->cap = b->cap ? b->cap * 2 : READ_SIZE;
    b->p = realloc(b->p, b->cap);
    if (!b->p) abort();
}

static void add(Buf *b, const char *s, size_t n) {
    need(b, n);
    memcpy(b->p + b->n, s, n);
    b->n += n;
}

// At most 1,023 bytes.
__attribute__((format(printf, 2, 3))) static void addf(Buf *b, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof text) abort();
    add(b, text, n);
}

static void consumed(Buf *b) {
    if (b->off == b->n) b->off = b->n = 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

// Writes what the descriptor takes. Returns 0 when all is written, 1 when it is full, -1 when it is broken.
static int flush_to(int fd, Buf *out) {
    while (out->off < out->n) {
        ssize_t k = write(fd, out->p + out->off, out->n - out->off);
        if (k > 0) out->off += k;
        else if (k < 0 && errno == EAGAIN) return 1;
        else if (k < 0 && errno != EINTR) return -1;
    }
    out->off = out->n = 0;
    return 0;
}

// Copies a chunked body to `body`. Returns its size on the wire, 0 while it is not whole.
static size_t read_chunked(const char *p, const char *end, Buf *body) {
    const char *start = p;
    body->n = body->off = 0;
    for (;;) {
        const char *line = memmem(p, end - p, "\r\n", 2);
        if (!line) return 0;
        size_t size = strtoul(p, 0, 16);
        p = line + 2;
        if ((size_t)(end - p) < size + 2) return 0;
        if (!size) return p + 2 - start;
        add(body, p, size);
        p += size + 2;
    }
}
