/*
 * A load generator: N connections over one epoll loop, over TCP or mutual TLS, that speak MQTT 3.1.1, MQTT over
 * WebSocket, or HTTP. What it sends is made beforehand; `does` says what for:
 *
 *     publish   each connection keeps w QoS 1 publishes (or one HTTP request with a list of them) in flight
 *     connect   each connection is opened, let in and closed again, for ever; of a new device each time
 *     resume    the same, with the session ticket of the device's last connection
 *     hold      the connections stay open, and are idle
 *
 *     generator port=1883 connections=100 window=64 seconds=4 ...      (see `read_options`)
 *
 * It prints {"began": true} when all are open and the warm-up is over, and what it measured when it ends: after
 * `seconds`, after `messages`, or with its standard input.
 */
#define _GNU_SOURCE
#include "generator.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_MAX 1024
#define OPENING_MAX 64
#define SLOTS 200000 /* latencies in steps of 10 us, up to 2 s */
#define SLOT_S 1e-5
#define STDIN_KEY UINT32_MAX

struct options options = {.connections = 1, .window = 1, .list = 1, .frames = 1, .warm_up_s = 1};

static struct connection *connections, **resting;
static int poll_fd, begun, opening, rests, next_device, known, measuring, over;
static uint64_t turns, resumed, sent, all; /* turns and resumed: in the time that counts */
static uint32_t slots[SLOTS];
static double publishing_s, began_s, over_s;
static struct rusage before;
static char buffer[65536];

double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

void fail(const char *what) {
    fprintf(stderr, "generator: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int reconnects(void) { return options.does == CONNECT || options.does == RESUME; }

static int messages_a_turn(void) {
    if (reconnects()) return 1;
    return options.speaks == HTTP ? options.list : options.window;
}

/* A turn is over: what it waited for is there. */
static void count_turn(const struct connection *it) {
    all += messages_a_turn();
    if (!measuring) return;
    size_t slot = (now_s() - it->began_s) / SLOT_S;
    slots[slot < SLOTS ? slot : SLOTS - 1]++;
    turns++;
    if (it->ssl && was_resumed(it)) resumed++;
}

/* The wire. */

static void put(struct connection *it, const char *data, size_t bytes) {
    ssize_t done = it->ssl ? SSL_write(it->ssl, data, bytes) : send(it->fd, data, bytes, MSG_NOSIGNAL);
    if (done != (ssize_t)bytes) fail("sending"); /* all before it was answered, so that there is room */
}

/* Return how many bytes have come, 0 for none now. */
static size_t take(struct connection *it) {
    ssize_t got = it->ssl ? SSL_read(it->ssl, buffer, sizeof buffer) : recv(it->fd, buffer, sizeof buffer, 0);
    if (got > 0) return got;
    if (it->ssl ? SSL_get_error(it->ssl, got) != SSL_ERROR_WANT_READ : !got || errno != EAGAIN) fail("a connection ended");
    return 0;
}

/* What becomes of a connection. */

static void greet(struct connection *it) {
    char packet[512], frame[520];
    size_t bytes;
    if (options.speaks == WEBSOCKET && it->state != UPGRADE) {
        it->state = UPGRADE;
        put(it, packet, put_upgrade(packet));
        return;
    }
    it->state = GREETING;
    bytes = put_connect(packet, it->device);
    if (options.speaks == WEBSOCKET)
        put(it, frame, put_frame(frame, packet, bytes));
    else
        put(it, packet, bytes);
}

static void publish(struct connection *it) {
    it->owed = messages_a_turn();
    it->began_s = now_s();
    sent += it->owed;
    put(it, it->load, it->load_bytes);
}

/* Publish again, or once the rate allows it. */
static void go_on(struct connection *it) {
    if (options.per_s)
        resting[rests++] = it;
    else
        publish(it);
}

static void wake_up(void) {
    double may = (now_s() - publishing_s) * options.per_s;
    while (rests && sent < may) publish(resting[--rests]);
}

static void up(struct connection *it);

static void begin(struct connection *it) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(options.port)};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = it - connections};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    it->device = next_device++ % options.devices;
    it->began_s = now_s();
    memset(&it->answer, 0, sizeof it->answer);
    opening++;
    it->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (it->fd < 0 || connect(it->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(it->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(it->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, it->fd, &event);
    if (options.ca) {
        it->state = HANDSHAKE;
        begin_tls(it);
        if (!handshake(it)) return;
    }
    if (options.speaks == HTTP)
        up(it);
    else
        greet(it);
}

/* Say goodbye and come back as the next device. */
static void come_back(struct connection *it) {
    put(it, "\xe0\0", 2);
    if (it->ssl) end_tls(it);
    close(it->fd);
    begin(it);
}

static void up(struct connection *it) {
    opening--;
    it->state = UP;
    if (reconnects()) {
        known++;
        count_turn(it);
        come_back(it);
    } else {
        it->load = malloc(load_bytes_max());
        it->load_bytes = put_load(it->load, it->device);
    }
}

static void heard(struct connection *it, size_t bytes) {
    switch (it->state) {
    case HANDSHAKE: abort();
    case UPGRADE:
        if (upgraded(it, buffer, bytes)) greet(it);
        return;
    case GREETING:
        if (let_in(it, buffer, bytes)) up(it);
        return;
    case UP:
        it->owed -= acknowledged(it, buffer, bytes);
        if (it->owed) return;
        count_turn(it);
        go_on(it);
    }
}

static void ready(struct connection *it) {
    if (it->state == HANDSHAKE) {
        if (!handshake(it)) return;
        if (options.speaks == HTTP)
            up(it);
        else
            greet(it);
        return;
    }
    do {
        size_t bytes = take(it);
        if (!bytes) return;
        heard(it, bytes);
    } while (it->ssl && SSL_pending(it->ssl));
}

/* The run. */

/* Whether all is as it has to be before anything counts. */
static int is_set_up(void) {
    if (reconnects()) return options.does == CONNECT || known >= options.devices;
    return begun == options.connections && !opening;
}

static void keep_time(void) {
    double at_s = now_s();
    if (!publishing_s && is_set_up()) {
        publishing_s = at_s;
        began_s = at_s + options.warm_up_s;
        over_s = began_s + options.seconds;
        for (int i = 0; options.does == PUBLISH && i < options.connections; i++) go_on(&connections[i]);
    }
    if (publishing_s && !measuring && at_s >= began_s) {
        measuring = 1;
        getrusage(RUSAGE_SELF, &before);
        printf("{\"began\": true}\n");
        fflush(stdout);
    }
    if (measuring && options.seconds && at_s >= over_s) over = 1;
    if (options.messages && all >= options.messages) over = 1;
}

static double seconds_of(struct timeval time) { return time.tv_sec + time.tv_usec * 1e-6; }

static double cpu_s(const struct rusage *used) { return seconds_of(used->ru_utime) + seconds_of(used->ru_stime); }

static double quantile_ms(double share) {
    uint64_t seen = 0;
    for (size_t slot = 0; slot < SLOTS; slot++)
        if (turns && (seen += slots[slot]) >= turns * share) return (slot + 0.5) * SLOT_S * 1e3;
    return 0;
}

static void report(void) {
    struct rusage used;
    double took_s = now_s() - began_s;
    getrusage(RUSAGE_SELF, &used);
    printf("{\"per_s\": %.1f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, ", turns * messages_a_turn() / took_s, quantile_ms(0.5),
           quantile_ms(0.99));
    printf("\"resumed\": %.3f, \"busy\": %.3f, \"all\": %llu}\n", turns ? (double)resumed / turns : 0,
           (cpu_s(&used) - cpu_s(&before)) / took_s, (unsigned long long)all);
}

static int one_of(const char *value, const char *const *names) {
    for (int i = 0; names[i]; i++)
        if (!strcmp(value, names[i])) return i;
    errno = EINVAL;
    fail(value);
    return 0;
}

static void read_options(int count, char **values) {
    static const char *const speaks[] = {"mqtt", "websocket", "http", NULL};
    static const char *const does[] = {"publish", "connect", "resume", "hold", NULL};
    for (int i = 1; i < count; i++) {
        char *value = strchr(values[i], '=');
        if (!value) errno = EINVAL, fail(values[i]);
        *value++ = 0;
        if (!strcmp(values[i], "port")) options.port = atoi(value);
        else if (!strcmp(values[i], "connections")) options.connections = atoi(value);
        else if (!strcmp(values[i], "first")) options.first = atoi(value);
        else if (!strcmp(values[i], "devices")) options.devices = atoi(value);
        else if (!strcmp(values[i], "window")) options.window = atoi(value);
        else if (!strcmp(values[i], "list")) options.list = atoi(value);
        else if (!strcmp(values[i], "frames")) options.frames = atoi(value);
        else if (!strcmp(values[i], "per_s")) options.per_s = atoi(value);
        else if (!strcmp(values[i], "messages")) options.messages = strtoull(value, NULL, 10);
        else if (!strcmp(values[i], "seconds")) options.seconds = atof(value);
        else if (!strcmp(values[i], "warm_up_s")) options.warm_up_s = atof(value);
        else if (!strcmp(values[i], "ca")) options.ca = value;
        else if (!strcmp(values[i], "ca_key")) options.ca_key = value;
        else if (!strcmp(values[i], "speaks")) options.speaks = one_of(value, speaks);
        else if (!strcmp(values[i], "does")) options.does = one_of(value, does);
        else errno = EINVAL, fail(values[i]);
    }
    if (options.devices < options.connections) options.devices = options.connections;
}

int main(int count, char **values) {
    struct epoll_event events[EVENTS_MAX], commands = {.events = EPOLLIN, .data.u32 = STDIN_KEY};
    read_options(count, values);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN); /* a write over TLS to who has gone is an error */
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc(options.connections, sizeof *connections);
    resting = calloc(options.connections, sizeof *resting);
    if (poll_fd < 0 || !connections || !resting) fail("memory");
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, 0, &commands); /* what is no pipe or terminal cannot be waited for, and never ends */
    if (options.ca) start_tls();
    while (!over) {
        while (begun < options.connections && opening < OPENING_MAX) begin(&connections[begun++]);
        int happened = epoll_wait(poll_fd, events, EVENTS_MAX, options.per_s ? 1 : 10);
        for (int i = 0; i < happened; i++) {
            if (events[i].data.u32 == STDIN_KEY)
                over = 1;
            else
                ready(&connections[events[i].data.u32]);
        }
        keep_time();
        if (options.per_s && publishing_s) wake_up();
    }
    report();
    return 0;
}
