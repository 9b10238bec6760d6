/*
 * A PostgreSQL server and clients that cost next to nothing, so that a proxy between them is what is busy.
 *
 *   peers server PORT
 *   peers client SECONDS SCRIPT FD...
 *
 * The server lets everybody in, and answers a SELECT by one short row, or if the text has "wide" or "single"
 * in it by a megabyte in 10,000 rows or in one. It answers everything else that clients and poolers
 * say to prepare a connection, as PostgreSQL would if it had nothing to do.
 *
 * A client sends the messages in the file SCRIPT on each of the sockets FD, which are logged in already: all up to
 * a Query or a Sync, then it waits for ReadyForQuery, and so on, over and over. Every 50 ms it prints the
 * time of day in seconds and how many times the script was done on any socket.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER 65536
#define MAX_FD 4096
#define MAX_STEPS 16

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Bytes to be sent, or a constant answer of any length. */
struct bytes {
    char *data;
    size_t len, room;
};

static void put(struct bytes *out, const void *data, size_t len)
{
    if (out->len + len > out->room) {
        out->room = (out->len + len) * 2;
        if (!(out->data = realloc(out->data, out->room)))
            die("realloc");
    }
    memcpy(out->data + out->len, data, len);
    out->len += len;
}

static void put_message(struct bytes *out, char kind, const void *body, size_t len)
{
    uint32_t n = htonl(len + 4);
    put(out, &kind, 1);
    put(out, &n, 4);
    put(out, body, len);
}

static void put_row(struct bytes *out, size_t len)
{
    char *body = malloc(len + 6);
    uint32_t n = htonl(len);
    memcpy(body, "\0\1", 2);
    memcpy(body + 2, &n, 4);
    memset(body + 6, 'x', len);
    put_message(out, 'D', body, len + 6);
    free(body);
}

#define DESCRIPTION "\0\1abalance\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"
#define put_literal(out, kind, text) put_message(out, kind, text, sizeof(text) - 1)

struct connection {
    char in[BUFFER];
    size_t have;
    struct bytes out;
    size_t sent;
    const struct bytes *large; /* after `out` */
    int started, selects;
    char status;
    char tag[16];
};

static struct connection *connections[MAX_FD];
static struct bytes wide, single;

static void make_large(struct bytes *out, int rows, size_t len)
{
    put_literal(out, 'T', DESCRIPTION);
    for (int i = 0; i < rows; i++)
        put_row(out, len);
    put_literal(out, 'C', "SELECT 10000\0");
    put_literal(out, 'Z', "I");
}

static void parameter(struct bytes *out, const char *name, const char *value)
{
    char body[128];
    int len = snprintf(body, sizeof body, "%s%c%s", name, 0, value) + 1;
    put_message(out, 'S', body, len);
}

static void greet(struct connection *c)
{
    static const char *parameters[][2] = {
        {"application_name", ""}, {"client_encoding", "UTF8"}, {"DateStyle", "ISO, MDY"},
        {"default_transaction_read_only", "off"}, {"in_hot_standby", "off"}, {"integer_datetimes", "on"},
        {"IntervalStyle", "postgres"}, {"is_superuser", "off"}, {"server_encoding", "UTF8"},
        {"server_version", "15.0"}, {"session_authorization", "app"}, {"standard_conforming_strings", "on"},
        {"TimeZone", "UTC"},
    };
    put_literal(&c->out, 'R', "\0\0\0\0");
    for (size_t i = 0; i < sizeof parameters / sizeof *parameters; i++)
        parameter(&c->out, parameters[i][0], parameters[i][1]);
    put_literal(&c->out, 'K', "\0\0\0\1\0\0\0\2");
    put_message(&c->out, 'Z', &c->status, 1);
}

/* Remembers what a statement would do. */
static void understand(struct connection *c, const char *sql)
{
    /* The router's own question, of what the server has counted, has no answer here. */
    c->selects = !strncasecmp(sql, "select", 6) && !strstr(sql, "pg_stat_get_tuples");
    if (!strncasecmp(sql, "select", 6))
        strcpy(c->tag, "SELECT 1");
    else
        snprintf(c->tag, sizeof c->tag, "%.*s", (int)strcspn(sql, " ;"), sql);
    if (!strncasecmp(sql, "begin", 5))
        c->status = 'T';
    else if (!strncasecmp(sql, "commit", 6) || !strncasecmp(sql, "rollback", 8))
        c->status = 'I';
}

static void execute(struct connection *c)
{
    if (c->selects)
        put_row(&c->out, 8);
    put_message(&c->out, 'C', c->tag, strlen(c->tag) + 1);
}

static void answer(struct connection *c, char kind, const char *body)
{
    switch (kind) {
    case 'Q':
        understand(c, body);
        if (c->selects && (strstr(body, "wide") || strstr(body, "single"))) {
            c->large = strstr(body, "wide") ? &wide : &single;
            return;
        }
        if (c->selects)
            put_literal(&c->out, 'T', DESCRIPTION);
        execute(c);
        put_message(&c->out, 'Z', &c->status, 1);
        break;
    case 'P':
        understand(c, body + strlen(body) + 1);
        put_literal(&c->out, '1', "");
        break;
    case 'B':
        /* A named statement is the SELECT: nobody names the others. */
        if (body[strlen(body) + 1])
            understand(c, "select");
        put_literal(&c->out, '2', "");
        break;
    case 'D':
        if (*body == 'S')
            put_literal(&c->out, 't', "\0\0");
        put_literal(&c->out, 'T', DESCRIPTION);
        break;
    case 'E':
        execute(c);
        break;
    case 'C':
        put_literal(&c->out, '3', "");
        break;
    case 'F':
        put_literal(&c->out, 'V', "\0\0\0\0");
        put_message(&c->out, 'Z', &c->status, 1);
        break;
    case 'S':
        put_message(&c->out, 'Z', &c->status, 1);
        break;
    }
}

/* Takes whole messages from the buffer; false if the peer is to be left. */
static int take(struct connection *c)
{
    size_t at = 0;
    while (!c->large) {
        size_t header = c->started ? 5 : 4;
        uint32_t len, code;
        if (c->have - at < header)
            break;
        memcpy(&len, c->in + at + header - 4, 4);
        len = ntohl(len) + header - 4;
        if (len < header || len > BUFFER)
            return 0;
        if (c->have - at < len)
            break;
        if (!c->started) {
            if (len < 8)
                return 0;
            memcpy(&code, c->in + at + 4, 4);
            if (code == htonl(80877103) || code == htonl(80877104)) {
                put(&c->out, "N", 1);
            } else if (code == htonl(196608) || code == htonl(196610)) {
                c->started = 1;
                c->status = 'I';
                greet(c);
            } else {
                return 0;
            }
        } else {
            if (c->in[at] == 'X')
                return 0;
            answer(c, c->in[at], c->in + at + 5);
        }
        at += len;
    }
    memmove(c->in, c->in + at, c->have - at);
    c->have -= at;
    return 1;
}

/* Sends what there is; 1 if all of it went, 0 if the socket is full, -1 if it is gone. */
static int flush(int fd, struct connection *c)
{
    for (;;) {
        size_t small = c->out.len, all = small + (c->large ? c->large->len : 0);
        const char *from = c->sent < small ? c->out.data + c->sent : c->large ? c->large->data + (c->sent - small) : NULL;
        if (c->sent == all) {
            c->out.len = c->sent = 0;
            c->large = NULL;
            return 1;
        }
        ssize_t n = send(fd, from, (c->sent < small ? small : all) - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        c->sent += n;
    }
}

static void leave(int fd)
{
    free(connections[fd]->out.data);
    free(connections[fd]);
    connections[fd] = NULL;
    close(fd);
}

static void serve(int ep, int fd, uint32_t events)
{
    struct connection *c = connections[fd];
    if (events & EPOLLOUT) {
        int done = flush(fd, c);
        if (done < 0) {
            leave(fd);
            return;
        }
        if (!done)
            return;
        struct epoll_event ev = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(ep, EPOLL_CTL_MOD, fd, &ev);
        return;
    }
    ssize_t n = recv(fd, c->in + c->have, BUFFER - c->have, MSG_DONTWAIT);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN)
            leave(fd);
        return;
    }
    c->have += n;
    if (!take(c)) {
        leave(fd);
        return;
    }
    int done = flush(fd, c);
    if (done < 0) {
        leave(fd);
    } else if (!done) {
        struct epoll_event ev = {.events = EPOLLOUT, .data.fd = fd};
        epoll_ctl(ep, EPOLL_CTL_MOD, fd, &ev);
    }
}

static void server(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, ep = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 512))
        die("listen");
    make_large(&wide, 10000, 94);
    make_large(&single, 1, 1 << 20);
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev);
    for (;;) {
        int n = epoll_wait(ep, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                serve(ep, fd, events[i].events);
                continue;
            }
            fd = accept(listener, NULL, NULL);
            if (fd < 0)
                continue;
            if (fd >= MAX_FD) {
                close(fd);
                continue;
            }
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            connections[fd] = calloc(1, sizeof **connections);
            ev = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
            epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
        }
    }
}

/* Which step of the script a client is at, and how far it has read into the answer. */
struct progress {
    unsigned char header[5];
    unsigned have, step;
    size_t left;
};

/* Whether the answer ends with these bytes. */
static int complete(struct progress *p, const char *data, size_t len)
{
    size_t at = 0;
    while (at < len) {
        if (p->left) {
            size_t n = p->left < len - at ? p->left : len - at;
            p->left -= n;
            at += n;
        } else {
            p->header[p->have++] = data[at++];
            if (p->have < 5)
                continue;
            uint32_t n;
            memcpy(&n, p->header + 1, 4);
            p->left = ntohl(n) - 4;
            p->have = 0;
            if (p->header[0] == 'E') {
                fprintf(stderr, "the server answered by an error\n");
                exit(1);
            }
        }
        if (p->header[0] == 'Z' && !p->left && !p->have) {
            p->header[0] = 0;
            return 1;
        }
    }
    return 0;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static struct {
    const char *data;
    size_t len;
} steps[MAX_STEPS];
static unsigned step_count;

static void read_script(const char *path)
{
    static char script[BUFFER];
    FILE *f = fopen(path, "r");
    if (!f)
        die(path);
    size_t len = fread(script, 1, sizeof script, f), from = 0, at = 0;
    fclose(f);
    while (at + 5 <= len && step_count < MAX_STEPS) {
        char kind = script[at];
        uint32_t n;
        memcpy(&n, script + at + 1, 4);
        at += 1 + ntohl(n);
        if (kind == 'Q' || kind == 'S') {
            steps[step_count].data = script + from;
            steps[step_count++].len = at - from;
            from = at;
        }
    }
}

static void step(int fd, struct progress *p)
{
    size_t len = steps[p->step].len;
    if (send(fd, steps[p->step].data, len, MSG_NOSIGNAL) != (ssize_t)len)
        die("send");
}

static int client(double seconds, const char *path, int count, char **fds)
{
    static char buffer[BUFFER * 4];
    static struct progress progress[MAX_FD];
    struct epoll_event events[256];
    read_script(path);
    int ep = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        struct epoll_event ev = {.events = EPOLLIN, .data.fd = atoi(fds[i])};
        if (ev.data.fd >= MAX_FD || epoll_ctl(ep, EPOLL_CTL_ADD, ev.data.fd, &ev))
            die("epoll_ctl");
        step(ev.data.fd, &progress[ev.data.fd]);
    }
    double begin = now(), next = begin;
    for (unsigned long done = 0;;) {
        int n = epoll_wait(ep, events, 256, 1000);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            ssize_t got = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN)
                continue;
            if (got <= 0)
                die("recv");
            struct progress *p = &progress[fd];
            if (!complete(p, buffer, got))
                continue;
            if (++p->step == step_count) {
                p->step = 0;
                done++;
            }
            step(fd, p);
        }
        double t = now();
        if (t >= next) {
            printf("%.6f %lu\n", t, done);
            next = t + 0.05;
        }
        if (t - begin >= seconds)
            return 0;
    }
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "server"))
        server(atoi(argv[2]));
    if (argc > 4 && !strcmp(argv[1], "client"))
        return client(atof(argv[2]), argv[3], argc - 4, argv + 4);
    fprintf(stderr, "usage: peers server PORT | peers client SECONDS SCRIPT FD...\n");
    return 2;
}
