// cmcp: a small MCP server whose own cost is negligible.
//
//   cmcp                 stdio; cmcp --http PORT is Streamable HTTP (0 picks a port; prints "port N")
//   --tools N            N tools: echo{msg}, big{size | items}, stats{} and N-3 that do nothing
//   --flood R            R log notifications a second once initialized (stdio); -1 as fast as the pipe takes
//   --logsize B          bytes of text in each of them
//   --delay-us U         microseconds of sleep in each call
//   --sse                answer over HTTP with an event stream instead of JSON
//   --legacy             do not know server/discover
//   --name S             the server's name
//
// Speaks both eras: initialize (up to 2025-11-25) and server/discover (2026-07-28). One thread.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include "bytes.h"

#define BACKLOG_MAX 65536  // a log line that would queue behind more than this is counted as blocked, not sent
#define MAX_FD 65536

static int tool_count = 4, log_size = 120, delay_us, use_sse, legacy_only;
static double flood;
static const char *server_name = "cmcp";
static unsigned long long logs_sent, logs_blocked, calls;

static void adds(Buf *b, const char *s) { add(b, s, strlen(s)); }

// ---- JSON: just enough to find a member of an object
typedef struct { const char *p; size_t n; } Slice;

static const char *skip_value(const char *p, const char *end) {
    if (p >= end) return end;
    if (*p == '"') {
        for (p++; p < end && *p != '"'; p++) if (*p == '\\') p++;
        return p < end ? p + 1 : end;
    }
    if (*p == '{' || *p == '[') {
        for (int depth = 0; p < end; p++) {
            if (*p == '"') { p = skip_value(p, end) - 1; continue; }
            if (*p == '{' || *p == '[') depth++;
            else if ((*p == '}' || *p == ']') && !--depth) return p + 1;
        }
        return end;
    }
    while (p < end && !strchr(",}] \t\r\n", *p)) p++;
    return p;
}
static Slice member(Slice object, const char *key) {
    const char *p = object.p, *end = object.p + object.n;
    size_t key_size = strlen(key);
    if (!p) return (Slice){0};
    while (p < end && *p != '{') p++;
    for (p++; p < end;) {
        while (p < end && strchr(" ,\t\r\n", *p)) p++;
        if (p >= end || *p != '"') break;
        const char *name = p + 1;
        p = skip_value(p, end);
        size_t name_size = p - 1 - name;
        while (p < end && strchr(" :\t\r\n", *p)) p++;
        const char *value = p;
        p = skip_value(p, end);
        if (name_size == key_size && !memcmp(name, key, key_size)) return (Slice){value, p - value};
    }
    return (Slice){0};
}
static int is(Slice s, const char *text) {
    size_t n = strlen(text);
    return s.n == n + 2 && s.p[0] == '"' && !memcmp(s.p + 1, text, n);
}

// ---- MCP
static Buf tools;

static void build_tools(void) {
    adds(&tools, "\"tools\":["
        "{\"name\":\"echo\",\"description\":\"Echo a message\",\"inputSchema\":{\"type\":\"object\","
        "\"properties\":{\"msg\":{\"type\":\"string\"}},\"required\":[\"msg\"]}},"
        "{\"name\":\"big\",\"description\":\"size bytes of text\",\"inputSchema\":{\"type\":\"object\","
        "\"properties\":{\"size\":{\"type\":\"integer\"}},\"required\":[\"size\"]}},"
        "{\"name\":\"stats\",\"description\":\"counters\",\"inputSchema\":{\"type\":\"object\",\"properties\":{}}}");
    for (int i = 3; i < tool_count; i++)
        addf(&tools, ",{\"name\":\"tool_%d\",\"description\":\"Tool number %d: a query and a limit\",\"inputSchema\":"
            "{\"type\":\"object\",\"properties\":{\"query\":{\"type\":\"string\",\"description\":\"what to look for\"},"
            "\"limit\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":100}},\"required\":[\"query\"]}}", i, i);
    adds(&tools, "]");
}

static void call_tool(Slice params, Buf *out) {
    Slice name = member(params, "name"), arguments = member(params, "arguments"), items = {0};
    calls++;
    if (delay_us) usleep(delay_us);
    adds(out, "\"content\":[{\"type\":\"text\",\"text\":");
    if (is(name, "big") && (items = member(arguments, "items")).p) {
        adds(out, "\"\"");
    } else if (is(name, "big")) {
        Slice size = member(arguments, "size");
        long n = size.p ? atol(size.p) : 1024;
        if (n < 0) n = 0;
        adds(out, "\"");
        need(out, n);
        memset(out->p + out->n, 'x', n);
        out->n += n;
        adds(out, "\"");
    } else if (is(name, "stats")) {
        addf(out, "\"{\\\"sent\\\":%llu,\\\"blocked\\\":%llu,\\\"calls\\\":%llu}\"", logs_sent, logs_blocked, calls);
    } else {
        Slice msg = member(arguments, "msg");
        if (msg.p && *msg.p == '"') add(out, msg.p, msg.n); else adds(out, "\"\"");
    }
    adds(out, "}],\"isError\":false");
    if (!items.p) return;
    adds(out, ",\"structuredContent\":{\"items\":[");
    for (long i = 0, n = atol(items.p); i < n; i++)
        addf(out, "%s{\"id\":%ld,\"name\":\"item %ld\",\"tags\":[\"a\",\"b\"],\"ok\":true}", i ? "," : "", i, i);
    adds(out, "]}");
}

enum { NONE, REPLY, REPLY_OPENED };  // OPENED: an initialize, which opens a session

// Appends the reply to `out`, if one is due. Sets *ready once the client may be sent log lines.
static int handle(Slice message, Buf *out, int *ready) {
    Slice id = member(message, "id"), method = member(message, "method"), params = member(message, "params");
    if (!method.p) return NONE;
    if (!id.p) {
        if (is(method, "notifications/initialized")) *ready = 1;
        return NONE;
    }
    int modern = member(member(params, "_meta"), "io.modelcontextprotocol/protocolVersion").p != 0;
    int opened = is(method, "initialize");
    int known = opened || is(method, "tools/call") || is(method, "tools/list") || is(method, "ping") ||
                is(method, "logging/setLevel") || (is(method, "server/discover") && !legacy_only);
    adds(out, "{\"jsonrpc\":\"2.0\",\"id\":");
    add(out, id.p, id.n);
    if (!known) {
        adds(out, ",\"error\":{\"code\":-32601,\"message\":\"method not found\"}}");
        return REPLY;
    }
    adds(out, ",\"result\":{");
    if (modern) adds(out, "\"resultType\":\"complete\"");
    if (modern && !is(method, "ping") && !is(method, "logging/setLevel")) adds(out, ",");
    if (is(method, "tools/call")) {
        call_tool(params, out);
    } else if (is(method, "tools/list")) {
        add(out, tools.p, tools.n);
        if (modern) {
            adds(out, ",\"ttlMs\":60000,\"cacheScope\":\"public\"");
            *ready = 1;
        }
    } else if (opened) {
        Slice version = member(params, "protocolVersion");
        adds(out, "\"protocolVersion\":");
        if (version.p) add(out, version.p, version.n); else adds(out, "\"2025-11-25\"");
        addf(out, ",\"capabilities\":{\"tools\":{},\"logging\":{}},\"serverInfo\":{\"name\":\"%s\",\"version\":\"1.0\"}",
             server_name);
    } else if (is(method, "server/discover")) {
        addf(out, "\"supportedVersions\":[\"2026-07-28\",\"2025-11-25\",\"2025-06-18\"],"
             "\"capabilities\":{\"tools\":{},\"logging\":{}},\"ttlMs\":60000,\"cacheScope\":\"public\","
             "\"_meta\":{\"io.modelcontextprotocol/serverInfo\":{\"name\":\"%s\",\"version\":\"1.0\"}}", server_name);
    }
    adds(out, "}}");
    return opened ? REPLY_OPENED : REPLY;
}

static void start_timer(int timer) {
    // Above 2,000 a second several lines are sent per tick; the phase is random, so that servers do not beat together.
    long interval = flood > 2000 ? 500000 : (long)(1e9 / flood);
    srand(getpid());
    long first = 1 + (long)((double)rand() / RAND_MAX * interval);
    struct itimerspec spec = {{interval / 1000000000, interval % 1000000000}, {first / 1000000000, first % 1000000000}};
    timerfd_settime(timer, 0, &spec, 0);
}

static int run_stdio(void) {
    Buf in = {0}, out = {0};
    char *text = malloc(log_size + 1), *line = malloc(log_size + 256);
    memset(text, 'l', log_size);
    text[log_size] = 0;
    int flooding = 0, timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    double started = 0;
    unsigned long long due = 0;
    fcntl(1, F_SETFL, fcntl(1, F_GETFL) | O_NONBLOCK);
    for (;;) {
        struct pollfd fds[3] = {{0, POLLIN, 0}, {timer, POLLIN, 0}, {1, 0, 0}};
        if (out.n > out.off || (flooding && flood < 0)) fds[2].events = POLLOUT;
        if (poll(fds, 3, -1) < 0) { if (errno == EINTR) continue; return 1; }
        if (fds[2].revents & (POLLERR | POLLHUP)) return 0;
        if (fds[0].revents) {
            need(&in, READ_SIZE);
            ssize_t k = read(0, in.p + in.n, READ_SIZE);
            if (k <= 0) return 0;
            in.n += k;
            for (char *end; (end = memchr(in.p + in.off, '\n', in.n - in.off));) {
                Slice message = {in.p + in.off, end - (in.p + in.off)};
                int ready = 0;
                if (handle(message, &out, &ready)) add(&out, "\n", 1);
                in.off = end + 1 - in.p;
                if (ready && flood && !flooding) {
                    flooding = 1;
                    started = now();
                    if (flood > 0) start_timer(timer);
                }
            }
            consumed(&in);
        }
        unsigned long long want = 0;
        if (flooding && flood > 0 && fds[1].revents) {
            unsigned long long ticks;
            if (read(timer, &ticks, sizeof ticks) < 0) ticks = 0;
            unsigned long long target = (unsigned long long)((now() - started) * flood) + 1;
            want = target > due ? target - due : 0;
            due = target;
        } else if (flooding && flood < 0 && (fds[2].revents & POLLOUT) && out.n == out.off) {
            want = 64;
        }
        for (; want; want--) {
            if (out.n - out.off > BACKLOG_MAX && flood > 0) { logs_blocked++; continue; }
            int k = sprintf(line, "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\","
                            "\"logger\":\"%.64s\",\"data\":\"%llu %s\"}}\n", server_name, logs_sent, text);
            add(&out, line, k);
            logs_sent++;
        }
        if (out.n > out.off && flush_to(1, &out) < 0) return 0;
    }
}

// ---- HTTP/1.1
typedef struct { Buf in, out; } Conn;
static Conn *conns[MAX_FD];

static void answer(const char *head, Slice message, Buf *out) {
    static Buf reply;
    static unsigned sessions;
    char session[64] = "";
    int ready;
    if (!strncmp(head, "DELETE", 6)) { adds(out, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"); return; }
    if (strncmp(head, "POST", 4)) {
        adds(out, "HTTP/1.1 405 Method Not Allowed\r\nallow: POST, DELETE\r\ncontent-length: 0\r\n\r\n");
        return;
    }
    reply.n = reply.off = 0;
    int kind = handle(message, &reply, &ready);
    if (kind == NONE) { adds(out, "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"); return; }
    if (kind == REPLY_OPENED) snprintf(session, sizeof session, "mcp-session-id: s%08u\r\n", ++sessions);
    if (use_sse) {
        static const char before[] = "event: message\ndata: ", after[] = "\n\n";
        addf(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%stransfer-encoding: chunked\r\n\r\n%zx\r\n",
             session, reply.n + sizeof before + sizeof after - 2);
        adds(out, before);
        add(out, reply.p, reply.n);
        adds(out, after);
        adds(out, "\r\n0\r\n\r\n");
    } else {
        addf(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%scontent-length: %zu\r\n\r\n", session, reply.n);
        add(out, reply.p, reply.n);
    }
}

// Answers every whole request in conn->in.
static void serve(Conn *conn) {
    static Buf body;
    for (;;) {
        need(&conn->in, 1);
        conn->in.p[conn->in.n] = 0;
        char *head = conn->in.p + conn->in.off, *end = conn->in.p + conn->in.n;
        char *blank = memmem(head, end - head, "\r\n\r\n", 4);
        if (!blank) return;
        *blank = 0;
        char *length = strcasestr(head, "\ncontent-length:"), *chunked = strcasestr(head, "\ntransfer-encoding: chunked");
        size_t size = length ? strtoul(length + 16, 0, 10) : 0;
        *blank = '\r';
        char *start = blank + 4;
        Slice message = {start, size};
        if (chunked) {
            if (!(size = read_chunked(start, end, &body))) return;
            message = (Slice){body.p, body.n};
        } else if ((size_t)(end - start) < size) {
            return;
        }
        answer(head, message, &conn->out);
        conn->in.off = start + size - conn->in.p;
        consumed(&conn->in);
    }
}

static int run_http(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1, epoll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) { perror("bind"); return 1; }
    getsockname(listener, (void *)&address, &size);
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    struct epoll_event events[256], event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd, dead = 0;
            if (fd == listener) {
                while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= MAX_FD) { close(fd); continue; }
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conns[fd] = calloc(1, sizeof(Conn));
                    struct epoll_event added = {.events = EPOLLIN, .data.fd = fd};
                    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &added);
                }
                continue;
            }
            Conn *conn = conns[fd];
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                need(&conn->in, READ_SIZE + 1);
                ssize_t k = read(fd, conn->in.p + conn->in.n, READ_SIZE);
                if (k > 0) { conn->in.n += k; serve(conn); }
                else dead = k == 0 || errno != EAGAIN;
            }
            if (!dead && conn->out.n > conn->out.off) {
                int full = flush_to(fd, &conn->out);
                dead = full < 0;
                if (full == 1 || (events[i].events & EPOLLOUT)) {
                    struct epoll_event changed = {.events = EPOLLIN | (full == 1 ? EPOLLOUT : 0), .data.fd = fd};
                    epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &changed);
                }
            }
            if (dead) {
                close(fd);
                free(conn->in.p);
                free(conn->out.p);
                free(conn);
                conns[fd] = 0;
            }
        }
    }
}

int main(int count, char **args) {
    int port = -1;
    signal(SIGPIPE, SIG_IGN);
    for (int i = 1; i < count; i++) {
        char *arg = args[i], *value = i + 1 < count ? args[i + 1] : "";
        if (!strcmp(arg, "--sse")) { use_sse = 1; continue; }
        if (!strcmp(arg, "--legacy")) { legacy_only = 1; continue; }
        i++;
        if (!strcmp(arg, "--http")) port = atoi(value);
        else if (!strcmp(arg, "--tools")) tool_count = atoi(value);
        else if (!strcmp(arg, "--flood")) flood = atof(value);
        else if (!strcmp(arg, "--logsize")) log_size = atoi(value);
        else if (!strcmp(arg, "--delay-us")) delay_us = atoi(value);
        else if (!strcmp(arg, "--name")) server_name = value;
        else { fprintf(stderr, "cmcp: what is %s?\n", arg); return 2; }
    }
    if (log_size < 0 || log_size > 60000) log_size = 60000;
    build_tools();
    return port >= 0 ? run_http(port) : run_stdio();
}
