// load: calls tools of an MCP server over Streamable HTTP from many keep-alive connections, each waiting for its answer
// before the next call; checks every answer; prints one JSON line.
//
//   load PORT TOOL[,TOOL...]   each tool takes {"msg": text} and answers with the text; they are called in turn
//   --path P (/mcp; given several times, connections take turns)  --conns N (32)  --seconds S (1)  --warm S (0.2)
//   --rest                     mcp-hub's own endpoint, no MCP: each tool is "server__tool"
//   --modern                   2026-07-28 (no session); else each connection opens a session of 2025-11-25
//
// One thread on epoll. `core` in the output is the share of a core it used: above 0.8 it may be the bottleneck.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "bytes.h"

#define MAX_CONNS 4096
#define MAX_TOOLS 1024
#define LATE 10.0  // seconds that answers may take once no more is asked

enum { OPENING, OPENED, CALLING };

typedef struct {
    int fd, step, busy;
    unsigned long id;  // of the request that waits
    double asked;
    const char *path;
    char session[128];
    Buf in, out;
} Conn;

static const char *paths[MAX_TOOLS] = {"/mcp"};
static char *tools[MAX_TOOLS];
static int port, conn_count = 32, tool_count, path_count, modern, rest;
static double seconds = 1, warm = 0.2;
static Conn conns[MAX_CONNS];
static unsigned long ids, done, all, wrong, lost;  // `all` counts the warm-up too
static float *samples;
static size_t sample_count, sample_cap;

static void request(Conn *conn, const char *method, const char *tool, const char *body, size_t size) {
    Buf *out = &conn->out;
    addf(out, "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
         "accept: application/json, text/event-stream\r\n", conn->path, port);
    if (conn->step != OPENING || modern)
        addf(out, "mcp-protocol-version: %s\r\n", modern ? "2026-07-28" : "2025-11-25");
    if (modern) addf(out, "mcp-method: %s\r\n", method);
    if (modern && tool) addf(out, "mcp-name: %s\r\n", tool);
    if (*conn->session) addf(out, "mcp-session-id: %s\r\n", conn->session);
    addf(out, "content-length: %zu\r\n\r\n", size);
    add(out, body, size);
}

static void ask(Conn *conn) {
    char body[1024];
    int n;
    conn->busy = 1;
    conn->asked = now();
    if (conn->step == OPENING) {
        conn->id = ++ids;
        n = snprintf(body, sizeof body, "{\"jsonrpc\":\"2.0\",\"id\":%lu,\"method\":\"initialize\",\"params\":"
                     "{\"protocolVersion\":\"2025-11-25\",\"capabilities\":{},"
                     "\"clientInfo\":{\"name\":\"load\",\"version\":\"1\"}}}", conn->id);
        request(conn, "initialize", 0, body, n);
    } else if (conn->step == OPENED) {
        n = snprintf(body, sizeof body, "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}");
        request(conn, "notifications/initialized", 0, body, n);
    } else {
        conn->id = ++ids;
        const char *tool = tools[conn->id % tool_count], *mark = strstr(tool, "__");
        if (rest && mark)
            n = snprintf(body, sizeof body, "{\"server_name\":\"%.*s\",\"tool\":\"%s\",\"arguments\":"
                         "{\"msg\":\"hello-%lu-\"}}", (int)(mark - tool), tool, mark + 2, conn->id);
        else n = snprintf(body, sizeof body, "{\"jsonrpc\":\"2.0\",\"id\":%lu,\"method\":\"tools/call\",\"params\":"
                     "{\"name\":\"%s\",\"arguments\":{\"msg\":\"hello-%lu-\"}%s}}", conn->id, tool, conn->id,
                     modern ? ",\"_meta\":{\"io.modelcontextprotocol/protocolVersion\":\"2026-07-28\","
                              "\"io.modelcontextprotocol/clientCapabilities\":{},"
                              "\"io.modelcontextprotocol/clientInfo\":{\"name\":\"load\",\"version\":\"1\"}}" : "");
        request(conn, "tools/call", tool, body, n);
    }
}

// Whether `body` (JSON or an event stream) is the right answer to the call that waits.
static int is_right(Conn *conn, const char *body, size_t size) {
    char expected[64];
    int n = snprintf(expected, sizeof expected, "hello-%lu-", conn->id);
    if (!memmem(body, size, expected, n) || memmem(body, size, "\"isError\":true", 14)) return 0;
    if (rest) return 1;
    n = snprintf(expected, sizeof expected, "%lu", conn->id);
    for (const char *p = body, *end = body + size; (p = memmem(p, end - p, "\"id\":", 5));) {
        for (p += 5; p < end && *p == ' '; p++) {}
        if (end - p > n && !memcmp(p, expected, n) && (p[n] < '0' || p[n] > '9')) return 1;
    }
    return 0;
}

static void answered(Conn *conn, int status, const char *head, const char *body, size_t size, int count) {
    conn->busy = 0;
    if (conn->step == OPENING) {
        const char *session = strcasestr(head, "\nmcp-session-id:");
        if (session) sscanf(session + 16, " %127[^\r\n]", conn->session);
        if (status != 200) wrong++;
        conn->step = OPENED;
    } else if (conn->step == OPENED) {
        if (status / 100 != 2) wrong++;
        conn->step = CALLING;
    } else {
        if (status != 200 || !is_right(conn, body, size)) {
            if (!wrong++) fprintf(stderr, "load: wrong answer: %d %.*s\n", status, (int)(size < 300 ? size : 300), body);
        }
        all++;
        if (!count) return;
        done++;
        if (sample_count == sample_cap) {
            sample_cap = sample_cap ? sample_cap * 2 : 65536;
            if (!(samples = realloc(samples, sample_cap * sizeof *samples))) abort();
        }
        samples[sample_count++] = (now() - conn->asked) * 1e6;
    }
}

// Takes the one response that may wait in conn->in. Returns 0 if it is not whole yet.
static int take(Conn *conn, int count) {
    static Buf body;
    need(&conn->in, 1);
    conn->in.p[conn->in.n] = 0;
    char *head = conn->in.p + conn->in.off, *end = conn->in.p + conn->in.n;
    char *blank = memmem(head, end - head, "\r\n\r\n", 4);
    if (!blank) return 0;
    *blank = 0;
    const char *length = strcasestr(head, "\ncontent-length:"), *chunked = strcasestr(head, "\ntransfer-encoding: chunked");
    size_t size = length ? strtoul(length + 16, 0, 10) : 0;
    int status = atoi(head + 9);
    char *start = blank + 4, *text = start;
    size_t text_size = size;
    if (chunked) {
        if (!(size = read_chunked(start, end, &body))) { *blank = '\r'; return 0; }
        text = body.p;
        text_size = body.n;
    } else if ((size_t)(end - start) < size) {
        *blank = '\r';
        return 0;
    }
    answered(conn, status, head, text, text_size, count);
    conn->in.off = start + size - conn->in.p;
    consumed(&conn->in);
    return 1;
}

static void drop(Conn *conn) {
    lost++;
    close(conn->fd);
    conn->fd = -1;
    conn->busy = 0;
}

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}
static double percentile(double share) { return sample_count ? samples[(size_t)((sample_count - 1) * share)] : 0; }

static double cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

int main(int count, char **args) {
    signal(SIGPIPE, SIG_IGN);
    if (count < 3) { fprintf(stderr, "load PORT TOOL[,TOOL...] [options]\n"); return 2; }
    port = atoi(args[1]);
    for (char *tool = strtok(args[2], ","); tool && tool_count < MAX_TOOLS; tool = strtok(0, ",")) tools[tool_count++] = tool;
    for (int i = 3; i < count; i++) {
        char *arg = args[i], *value = i + 1 < count ? args[i + 1] : "";
        if (!strcmp(arg, "--modern")) { modern = 1; continue; }
        if (!strcmp(arg, "--rest")) { rest = 1; continue; }
        i++;
        if (!strcmp(arg, "--path")) { if (path_count < MAX_TOOLS) paths[path_count++] = value; }
        else if (!strcmp(arg, "--conns")) conn_count = atoi(value);
        else if (!strcmp(arg, "--seconds")) seconds = atof(value);
        else if (!strcmp(arg, "--warm")) warm = atof(value);
        else { fprintf(stderr, "load: what is %s?\n", arg); return 2; }
    }
    if (!tool_count || conn_count < 1 || conn_count > MAX_CONNS) return 2;
    if (!path_count) path_count = 1;
    int epoll = epoll_create1(0), one = 1;
    for (int i = 0; i < conn_count; i++) {
        Conn *conn = &conns[i];
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        conn->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(conn->fd, (void *)&address, sizeof address)) { perror("load: connect"); return 1; }
        fcntl(conn->fd, F_SETFL, O_NONBLOCK);
        setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        conn->path = paths[i % path_count];
        conn->step = modern || rest ? CALLING : OPENING;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
        epoll_ctl(epoll, EPOLL_CTL_ADD, conn->fd, &event);
        ask(conn);
        if (flush_to(conn->fd, &conn->out)) drop(conn);
    }
    // Time starts once every connection has its session; then `warm`, then what counts.
    double started = 0, from = 0, until = 0, cpu_from = 0, cpu_until = 0, patience = now() + 60;
    struct epoll_event events[256];
    for (;;) {
        double t = now();
        int busy = 0, opening = 0;
        for (int i = 0; i < conn_count; i++) {
            busy += conns[i].busy;
            opening += conns[i].fd >= 0 && conns[i].step != CALLING;
        }
        if (!started && !opening) {
            started = t;
            from = t + warm;
            until = from + seconds;
            patience = until + LATE;
        }
        if (started && !cpu_from && t >= from) cpu_from = cpu();
        if (started && !cpu_until && t >= until) cpu_until = cpu();
        if (!busy || t > patience) break;
        int n = epoll_wait(epoll, events, 256, 20);
        for (int i = 0; i < n; i++) {
            Conn *conn = events[i].data.ptr;
            need(&conn->in, READ_SIZE + 1);
            ssize_t k = read(conn->fd, conn->in.p + conn->in.n, READ_SIZE);
            if (k <= 0) {
                if (k < 0 && errno == EAGAIN) continue;
                drop(conn);
                continue;
            }
            conn->in.n += k;
            t = now();
            if (!take(conn, started && t >= from && t < until)) continue;
            if (started && t >= until) continue;
            ask(conn);
            if (flush_to(conn->fd, &conn->out)) drop(conn);  // a request is far smaller than the socket's buffer
        }
    }
    int late = 0;
    for (int i = 0; i < conn_count; i++) late += conns[i].busy;
    if (samples) qsort(samples, sample_count, sizeof *samples, compare);
    printf("{\"calls\":%lu,\"all\":%lu,\"seconds\":%.3f,\"calls_s\":%.1f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"wrong\":%lu,\"core\":%.2f}\n",
           done, all, seconds, done / seconds, percentile(0.5), percentile(0.99), wrong + lost + late,
           cpu_until > cpu_from ? (cpu_until - cpu_from) / seconds : 0);
    return 0;
}
