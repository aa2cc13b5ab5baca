/*
 * A fleet of MQTT 3.1.1 devices in one process: one connection a device, one QoS 1 message in flight each.
 *
 * A device takes 60 bytes here and one timer on a wheel of ticks, so that a process is as large as its
 * descriptor limit lets it be. Once a tick the process fires timers and then reads all answers that are there:
 * a latency is thus reported up to one tick too high, never too low.
 *
 *     generator port=1883 first=0 count=19000 period_s=30 keep_alive_s=60 ...     (see `read_options`)
 *
 * With ca= and ca_key= it speaks mutual TLS: each device has a key and a certificate of its own, signed here, and
 * comes back with its session ticket. It takes commands on standard input, one a line, and ends with it:
 *
 *     introduce      each device publishes its first message, no more at once than may connect at once
 *     publish        each device publishes every period, jittered, from a random point of the first period on
 *     quiet          no more new messages; answers still come in
 *     drop SECONDS   all connections are reset now; each comes back within SECONDS of jittered back-off
 *     report         print the histograms, and begin them anew
 *     leave          every device says goodbye, and the process ends
 *
 * It prints its counts as JSON once a second and after each report.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#endif

#define WHEEL_TICKS (1 << 16) /* 328 s at 5 ms; what is due later is put on again */
#define NONE (-1)
#define EVENTS_MAX 1024
#define ADDRESS_DEVICES 10000 /* devices of one source address; it has 28,000 ports */
#define ATTEMPT_US 30000000   /* a connection that is not let in by then is given up, and tried again */
#define BACK_OFF_MAX_US 60000000u
#define LATE_US 1000000
#define SLOTS 1024
#define STDIN_KEY UINT32_MAX
#define PAYLOAD                                                                                             \
    "{\"ts\":0000000000000,\"seq\":      ,\"metrics\":{\"temperature\":21.53,\"humidity\":40.2,"           \
    "\"door\":true,\"state\":\"ok\"}}"
#define TS_AT 6
#define SEQ_AT 26

enum state { AWAY, OPENING, GREETING, UP, OVER };

struct device {
    int32_t fd;
    int32_t before, after; /* neighbours on the wheel */
    uint32_t due;          /* tick */
    uint32_t publish_due;  /* tick */
    uint32_t spoke;        /* tick of its last packet */
    uint32_t sent_us;      /* of the message in flight */
    uint32_t seq;
    uint32_t came_us; /* of its first attempt to come back */
    uint8_t state, tries, owed, returning;
    uint8_t have, part[3]; /* the beginning of an answer */
};

static struct options {
    int port, first, count, tenants, keep_alive_s, opening_max, tick_us;
    double period_s, back_off_s;
    const char *ca, *ca_key;
} options = {.count = 1, .tenants = 10, .keep_alive_s = 60, .opening_max = 100, .tick_us = 5000, .period_s = 30, .back_off_s = 2};

static struct {
    uint64_t up, opening, sent, acknowledged, resent, late, pings, lost, refused, retried, strange, back;
    double first_s, last_s, dropped_s, last_back_s;
} counts;

static struct device *devices;
static int32_t *wheel;
static uint32_t turned_to;
static int poll_fd, publishing, cursor, introducing, introduced, over;
static double began_s;
static uint64_t began_unix_ms;
static uint64_t random_state;
static uint32_t latencies[SLOTS], waits[SLOTS];
static uint32_t latency_max_us, wait_max_us;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

/* Microseconds since the start; they wrap after 71 minutes, differences do not mind. */
static uint32_t now_us(void) { return (uint64_t)((now_s() - began_s) * 1e6); }

static uint32_t tick_of_us(uint64_t us) { return us / options.tick_us; }

static uint32_t tick_now(void) { return tick_of_us((uint64_t)((now_s() - began_s) * 1e6)); }

static void fail(const char *what) {
    fprintf(stderr, "generator: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint32_t random_below(uint32_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return limit ? (random_state >> 16) % limit : 0;
}

/* A histogram has 32 slots for each doubling: 3 % of precision. */
static unsigned slot_of(uint32_t us) {
    unsigned shift = us < 64 ? 0 : 31 - __builtin_clz(us) - 5;
    return shift * 32 + (us >> shift);
}

static uint64_t slot_end_us(unsigned slot) {
    unsigned shift = slot < 64 ? 0 : slot / 32 - 1;
    return (uint64_t)(slot - shift * 32 + 1) << shift;
}

/* The wheel. */

static void unwatch(struct device *it) {
    if (it->before == NONE) return;
    if (it->after >= 0) devices[it->after].before = it->before;
    if (it->before >= 0)
        devices[it->before].after = it->after;
    else
        wheel[-it->before - 2] = it->after;
    it->before = NONE;
}

/* `before` of the first on a slot is -2 - slot. */
static void watch(struct device *it, uint32_t due) {
    unwatch(it);
    if (due <= turned_to) due = turned_to + 1;
    it->due = due;
    if (due - turned_to >= WHEEL_TICKS) due = turned_to + WHEEL_TICKS - 1;
    int32_t slot = due % WHEEL_TICKS, self = it - devices;
    it->after = wheel[slot];
    it->before = -2 - slot;
    if (it->after >= 0) devices[it->after].before = self;
    wheel[slot] = self;
}

/* TLS. */

#ifdef WITH_TLS
static SSL_CTX *tls;
static SSL **sessions;       /* a device's connection */
static SSL_SESSION **tickets; /* what it comes back with */
static X509 *ca;
static EVP_PKEY *ca_key;

static void fail_tls(const char *what) {
    fprintf(stderr, "generator: %s: ", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static void device_names(int number, char *tenant, char *device) {
    sprintf(tenant, "load-%d", number % options.tenants);
    sprintf(device, "d%07d", number);
}

/* Sign a certificate for a new key, as the fleet's own authority. */
static int show_certificate(SSL *ssl, void *unused) {
    char tenant[32], device[32], uri[128];
    int number = options.first + (int)(intptr_t)SSL_get_app_data(ssl);
    X509V3_CTX context;
    X509_EXTENSION *extension;
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *made = X509_new();
    (void)unused;
    device_names(number, tenant, device);
    snprintf(uri, sizeof uri, "URI:spiffe://headworks.local/tenant/%s/device/%s", tenant, device);
    X509_set_version(made, X509_VERSION_3);
    ASN1_INTEGER_set_uint64(X509_get_serialNumber(made), began_unix_ms << 20 | number);
    X509_gmtime_adj(X509_getm_notBefore(made), -300);
    X509_gmtime_adj(X509_getm_notAfter(made), 86400);
    X509_set_issuer_name(made, X509_get_subject_name(ca));
    X509_NAME *name = X509_get_subject_name(made);
    X509_NAME_add_entry_by_txt(name, "O", MBSTRING_ASC, (unsigned char *)tenant, -1, -1, 0);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (unsigned char *)device, -1, -1, 0);
    X509_set_pubkey(made, key);
    X509V3_set_ctx(&context, ca, made, NULL, NULL, 0);
    const struct {
        int nid;
        const char *value;
    } extensions[] = {{NID_subject_alt_name, uri}, {NID_ext_key_usage, "clientAuth"}};
    for (size_t i = 0; i < sizeof extensions / sizeof *extensions; i++) {
        extension = X509V3_EXT_conf_nid(NULL, &context, extensions[i].nid, extensions[i].value);
        if (!extension || !X509_add_ext(made, extension, -1)) fail_tls("an extension");
        X509_EXTENSION_free(extension);
    }
    if (!X509_sign(made, ca_key, EVP_sha256())) fail_tls("signing a certificate");
    int done = SSL_use_certificate(ssl, made) && SSL_use_PrivateKey(ssl, key);
    X509_free(made);
    EVP_PKEY_free(key);
    return done;
}

static int keep_ticket(SSL *ssl, SSL_SESSION *ticket) {
    intptr_t index = (intptr_t)SSL_get_app_data(ssl);
    if (tickets[index]) SSL_SESSION_free(tickets[index]);
    tickets[index] = ticket;
    return 1; /* we keep the reference */
}

static void start_tls(void) {
    FILE *file = fopen(options.ca_key, "r");
    if (!file) fail(options.ca_key);
    ca_key = PEM_read_PrivateKey(file, NULL, NULL, NULL);
    fclose(file);
    if (!(file = fopen(options.ca, "r"))) fail(options.ca);
    ca = PEM_read_X509(file, NULL, NULL, NULL);
    fclose(file);
    tls = SSL_CTX_new(TLS_client_method());
    if (!ca || !ca_key || !tls || !SSL_CTX_load_verify_locations(tls, options.ca, NULL)) fail_tls("the CA");
    SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
    X509_VERIFY_PARAM_set1_ip_asc(SSL_CTX_get0_param(tls), "127.0.0.1");
    SSL_CTX_set_min_proto_version(tls, TLS1_3_VERSION);
    SSL_CTX_set_mode(tls, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_cert_cb(tls, show_certificate, NULL);
    SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(tls, keep_ticket);
    sessions = calloc(options.count, sizeof *sessions);
    tickets = calloc(options.count, sizeof *tickets);
}
#endif

/* The wire: the number of bytes, 0 for none now, -1 for the end. */

static int put(struct device *it, const char *packet, int size) {
#ifdef WITH_TLS
    if (sessions) return SSL_write(sessions[it - devices], packet, size) == size ? size : -1;
#endif
    return send(it->fd, packet, size, MSG_NOSIGNAL) == size ? size : -1;
}

static int take(struct device *it, char *buffer, int size) {
    int got;
#ifdef WITH_TLS
    if (sessions) {
        SSL *ssl = sessions[it - devices];
        ERR_clear_error();
        got = SSL_read(ssl, buffer, size);
        if (got > 0) return got;
        return SSL_get_error(ssl, got) == SSL_ERROR_WANT_READ ? 0 : -1;
    }
#endif
    got = recv(it->fd, buffer, size, 0);
    if (got > 0) return got;
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

static void hang_up(struct device *it) {
#ifdef WITH_TLS
    if (sessions && sessions[it - devices]) {
        SSL_set_shutdown(sessions[it - devices], SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN); /* keeps the ticket */
        SSL_free(sessions[it - devices]);
        sessions[it - devices] = NULL;
    }
#endif
    if (it->fd >= 0) close(it->fd);
    it->fd = NONE;
    it->have = 0;
}

/* Packets. */

static int put_text(char *to, const char *text) {
    int length = strlen(text);
    to[0] = length >> 8;
    to[1] = length & 0xff;
    memcpy(to + 2, text, length);
    return length + 2;
}

/* Write a number to the right of `size` characters; what is before it stays. */
static void put_number(char *to, uint64_t value, int size) {
    do {
        to[--size] = '0' + value % 10;
        value /= 10;
    } while (value && size);
}

static int connect_packet(char *to, int number) {
    char device[32];
    snprintf(device, sizeof device, "d%07d", number);
    memcpy(to, "\x10\0\0\4MQTT\4\2", 10);
    to[10] = options.keep_alive_s >> 8;
    to[11] = options.keep_alive_s & 0xff;
    int size = 12 + put_text(to + 12, device);
    to[1] = size - 2;
    return size;
}

static uint16_t packet_id(const struct device *it) { return it->seq % 65535 + 1; }

static int publish_packet(char *to, const struct device *it) {
    char topic[64];
    int number = options.first + (int)(it - devices);
    snprintf(topic, sizeof topic, "dt/load-%d/d%07d/metrics", number % options.tenants, number);
    int body = 2 + strlen(topic) + 2 + strlen(PAYLOAD), at = 3;
    to[0] = 0x32;
    to[1] = (body & 0x7f) | 0x80;
    to[2] = body >> 7;
    at += put_text(to + at, topic);
    to[at++] = packet_id(it) >> 8;
    to[at++] = packet_id(it) & 0xff;
    memcpy(to + at, PAYLOAD, strlen(PAYLOAD));
    put_number(to + at + TS_AT, began_unix_ms + now_us() / 1000, 13);
    put_number(to + at + SEQ_AT, it->seq, 6);
    return at + strlen(PAYLOAD);
}

/* What becomes of a device. */

static void begin(struct device *it);

/* When it has to ping, if it does not publish before. */
static uint32_t ping_due(const struct device *it) { return it->spoke + tick_of_us(options.keep_alive_s * 900000ull); }

static void watch_up(struct device *it) {
    uint32_t ping = ping_due(it);
    watch(it, publishing && (int32_t)(it->publish_due - ping) < 0 ? it->publish_due : ping);
}

/* Try again after a back-off with full jitter that doubles with each try. */
static void come_back(struct device *it) {
    uint32_t limit_us = options.back_off_s * 1e6;
    for (int i = 0; i < it->tries && limit_us < BACK_OFF_MAX_US; i++) limit_us *= 2;
    if (limit_us > BACK_OFF_MAX_US) limit_us = BACK_OFF_MAX_US;
    if (it->tries < 20) it->tries++;
    it->state = AWAY;
    watch(it, tick_now() + tick_of_us(random_below(limit_us)));
}

static void ended(struct device *it) {
    if (it->state == UP) {
        counts.up--;
        counts.lost++;
    } else {
        counts.opening--;
        counts.retried++;
    }
    hang_up(it);
    come_back(it);
}

static void greet(struct device *it) {
    char packet[64];
    it->state = GREETING;
    if (put(it, packet, connect_packet(packet, options.first + (int)(it - devices))) < 0) ended(it);
}

static void wait_for(struct device *it, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u32 = it - devices};
    if (epoll_ctl(poll_fd, operation, it->fd, &event)) fail("epoll_ctl");
}

static void begin(struct device *it) {
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    int one = 1, index = it - devices;
    if (!counts.first_s) counts.first_s = now_s();
    it->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (it->fd < 0) fail("socket");
    counts.opening++;
    it->state = OPENING;
    watch(it, tick_now() + tick_of_us(ATTEMPT_US));
    from.sin_addr.s_addr = htonl(0x7f010001u + (options.first + index) / ADDRESS_DEVICES);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(options.port);
    setsockopt(it->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    setsockopt(it->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(it->fd, (struct sockaddr *)&from, sizeof from)) fail("bind");
    if (connect(it->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
        ended(it);
        return;
    }
    wait_for(it, EPOLLOUT, EPOLL_CTL_ADD);
}

static void opened(struct device *it) {
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(it->fd, SOL_SOCKET, SO_ERROR, &error, &size) || error) {
        ended(it);
        return;
    }
    wait_for(it, EPOLLIN, EPOLL_CTL_MOD);
#ifdef WITH_TLS
    if (tls) {
        intptr_t index = it - devices;
        if (!sessions[index]) {
            SSL *ssl = sessions[index] = SSL_new(tls);
            if (!ssl || !SSL_set_fd(ssl, it->fd)) fail_tls("SSL_new");
            SSL_set_app_data(ssl, (void *)index);
            if (tickets[index]) SSL_set_session(ssl, tickets[index]);
        }
        ERR_clear_error();
        int done = SSL_connect(sessions[index]);
        if (done != 1) {
            int why = SSL_get_error(sessions[index], done);
            if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) ended(it);
            return;
        }
    }
#endif
    greet(it);
}

static void publish(struct device *it, int again) {
    char packet[256];
    int size = publish_packet(packet, it);
    if (again) packet[0] |= 0x08; /* DUP */
    it->owed = 1;
    it->sent_us = now_us();
    it->spoke = turned_to;
    *(again ? &counts.resent : &counts.sent) += 1;
    if (put(it, packet, size) < 0) ended(it);
}

static void next_publish(struct device *it) {
    uint32_t period_us = options.period_s * 1e6;
    it->publish_due = turned_to + tick_of_us(period_us / 2 + random_below(period_us));
}

static void let_in(struct device *it) {
    counts.opening--;
    counts.up++;
    counts.last_s = now_s();
    it->state = UP;
    it->tries = 0;
    it->spoke = tick_now();
    if (it->returning || it->owed) {
        if (it->owed)
            publish(it, 1);
        else {
            it->seq++;
            publish(it, 0);
        }
        next_publish(it);
    }
    if (it->state == UP) watch_up(it);
}

static void acknowledged(struct device *it, uint16_t id) {
    if (!it->owed || id != packet_id(it)) {
        counts.strange++;
        return;
    }
    uint32_t at_us = now_us(), took_us = at_us - it->sent_us;
    it->owed = 0;
    counts.acknowledged++;
    latencies[slot_of(took_us)]++;
    if (took_us > latency_max_us) latency_max_us = took_us;
    if (it->returning) {
        uint32_t wait_us = at_us - it->came_us;
        it->returning = 0;
        counts.back++;
        counts.last_back_s = now_s();
        waits[slot_of(wait_us)]++;
        if (wait_us > wait_max_us) wait_max_us = wait_us;
    }
}

/* Read what there is: CONNACK, PUBACK and PINGRESP have four, four and two bytes. */
static void answered(struct device *it) {
    static unsigned char buffer[4096];
    memcpy(buffer, it->part, it->have);
    int got = take(it, (char *)buffer + it->have, sizeof buffer - it->have);
    if (got < 0) {
        ended(it);
        return;
    }
    unsigned char *at = buffer, *end = buffer + it->have + got;
    it->have = 0;
    while (at < end) {
        int size = at[0] == 0xd0 ? 2 : 4;
        if (end - at < size) {
            it->have = end - at;
            memcpy(it->part, at, it->have);
            return;
        }
        if (at[0] == 0x40 && at[1] == 2 && it->state == UP)
            acknowledged(it, at[2] << 8 | at[3]);
        else if (at[0] == 0x20 && it->state == GREETING && !at[3])
            let_in(it);
        else if (at[0] == 0x20 && it->state == GREETING) {
            counts.refused++;
            ended(it);
        } else if (at[0] != 0xd0)
            counts.strange++;
        if (it->state != UP) return;
        at += size;
    }
}

static void fire(struct device *it) {
    if (it->due > turned_to) {
        watch(it, it->due);
        return;
    }
    switch (it->state) {
    case AWAY:
        if (it->returning && !it->came_us) it->came_us = now_us();
        begin(it);
        return;
    case OPENING:
    case GREETING:
        ended(it);
        return;
    case UP:
        if (publishing && it->publish_due <= turned_to) {
            if (it->owed) {
                counts.late++;
                it->publish_due = turned_to + tick_of_us(LATE_US);
            } else {
                it->seq++;
                publish(it, 0);
                next_publish(it);
            }
        } else if (ping_due(it) <= turned_to) {
            counts.pings++;
            it->spoke = turned_to;
            if (put(it, "\xc0\0", 2) < 0) ended(it);
        }
        if (it->state == UP) watch_up(it);
    }
}

static void turn(void) {
    uint32_t to = tick_now();
    while (turned_to < to) {
        int32_t *slot = &wheel[++turned_to % WHEEL_TICKS], index;
        while ((index = *slot) >= 0) {
            unwatch(&devices[index]);
            fire(&devices[index]);
        }
    }
}

/* Commands. */

/* Let the next devices publish for the first time; one that is away does it when it is back. */
static void introduce(void) {
    while (introduced < options.count && counts.sent - counts.acknowledged < (uint64_t)options.opening_max) {
        struct device *it = &devices[introduced++];
        if (it->state != UP || it->owed) continue;
        it->seq++;
        publish(it, 0);
        if (it->state == UP) watch_up(it);
    }
}

static void begin_publishing(void) {
    publishing = 1;
    for (int i = 0; i < options.count; i++) {
        devices[i].publish_due = turned_to + 1 + tick_of_us(random_below(options.period_s * 1e6));
        if (devices[i].state == UP) watch_up(&devices[i]);
    }
}

static void drop_all(double back_off_s) {
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    options.back_off_s = back_off_s;
    counts.dropped_s = now_s();
    for (int i = 0; i < options.count; i++) {
        struct device *it = &devices[i];
        if (it->fd >= 0) setsockopt(it->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        hang_up(it);
        it->returning = 1;
        it->came_us = 0;
        it->tries = 0;
        come_back(it);
    }
    counts.up = counts.opening = 0;
}

static void leave(void) {
    for (int i = 0; i < options.count; i++) {
        if (devices[i].state == UP) put(&devices[i], "\xe0\0", 2);
        devices[i].state = OVER;
        hang_up(&devices[i]);
        unwatch(&devices[i]);
    }
    over = 1;
}

static void print_histogram(const char *name, uint32_t *slots, uint32_t max_us) {
    const char *comma = "";
    printf(", \"%s_max_us\": %u, \"%s\": [", name, max_us, name);
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        if (!slots[slot]) continue;
        printf("%s[%llu, %u]", comma, (unsigned long long)slot_end_us(slot), slots[slot]);
        comma = ", ";
        slots[slot] = 0;
    }
    printf("]");
}

#define COUNT(name) printf("\"" #name "\": %llu, ", (unsigned long long)counts.name)

static void print_counts(int report) {
    printf("{");
    COUNT(up), COUNT(opening), COUNT(sent), COUNT(acknowledged), COUNT(resent), COUNT(late), COUNT(pings);
    COUNT(lost), COUNT(refused), COUNT(retried), COUNT(strange), COUNT(back);
    printf("\"first_s\": %.6f, \"last_s\": %.6f, ", counts.first_s, counts.last_s);
    printf("\"dropped_s\": %.6f, \"last_back_s\": %.6f", counts.dropped_s, counts.last_back_s);
    if (report) {
        print_histogram("latencies", latencies, latency_max_us);
        print_histogram("waits", waits, wait_max_us);
        latency_max_us = wait_max_us = 0;
    }
    printf("}\n");
    if (fflush(stdout)) exit(1);
}

static void obey(void) {
    static char line[256];
    static size_t have;
    ssize_t got = read(0, line + have, sizeof line - 1 - have);
    if (got <= 0) {
        leave();
        return;
    }
    have += got;
    char *newline;
    while ((newline = memchr(line, '\n', have))) {
        *newline = 0;
        if (!strcmp(line, "introduce")) introducing = 1;
        if (!strcmp(line, "publish")) begin_publishing();
        if (!strcmp(line, "quiet")) publishing = 0;
        if (!strncmp(line, "drop ", 5)) drop_all(atof(line + 5));
        if (!strcmp(line, "report")) print_counts(1);
        if (!strcmp(line, "leave")) leave();
        have -= newline + 1 - line;
        memmove(line, newline + 1, have);
    }
}

static void read_options(int count, char **values) {
    for (int i = 1; i < count; i++) {
        char *value = strchr(values[i], '=');
        if (!value) fail(values[i]);
        *value++ = 0;
        if (!strcmp(values[i], "port")) options.port = atoi(value);
        else if (!strcmp(values[i], "first")) options.first = atoi(value);
        else if (!strcmp(values[i], "count")) options.count = atoi(value);
        else if (!strcmp(values[i], "tenants")) options.tenants = atoi(value);
        else if (!strcmp(values[i], "keep_alive_s")) options.keep_alive_s = atoi(value);
        else if (!strcmp(values[i], "opening_max")) options.opening_max = atoi(value);
        else if (!strcmp(values[i], "tick_us")) options.tick_us = atoi(value);
        else if (!strcmp(values[i], "period_s")) options.period_s = atof(value);
        else if (!strcmp(values[i], "back_off_s")) options.back_off_s = atof(value);
        else if (!strcmp(values[i], "ca")) options.ca = value;
        else if (!strcmp(values[i], "ca_key")) options.ca_key = value;
        else {
            fprintf(stderr, "generator: unknown option %s\n", values[i]);
            exit(2);
        }
    }
}

static void start(void) {
    struct timespec unix_time;
    struct epoll_event commands = {.events = EPOLLIN, .data.u32 = STDIN_KEY};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGINT, SIG_IGN); /* Ctrl-C is for the runner, who tells us */
    clock_gettime(CLOCK_REALTIME, &unix_time);
    began_s = now_s();
    began_unix_ms = unix_time.tv_sec * 1000ull + unix_time.tv_nsec / 1000000;
    random_state = 0x9e3779b97f4a7c15ull ^ (options.first + 1) * 0xbf58476d1ce4e5b9ull;
    devices = calloc(options.count, sizeof *devices);
    wheel = malloc(WHEEL_TICKS * sizeof *wheel);
    if (!devices || !wheel) fail("memory");
    for (int i = 0; i < WHEEL_TICKS; i++) wheel[i] = NONE;
    for (int i = 0; i < options.count; i++) devices[i].fd = devices[i].before = NONE;
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (poll_fd < 0 || epoll_ctl(poll_fd, EPOLL_CTL_ADD, 0, &commands)) fail("epoll");
#ifdef WITH_TLS
    if (options.ca) start_tls();
#else
    if (options.ca) {
        fprintf(stderr, "generator: compiled without TLS\n");
        exit(2);
    }
#endif
}

/* Read all answers that are there. */
static void poll_once(void) {
    static struct epoll_event events[EVENTS_MAX];
    int ready;
    do {
        ready = epoll_wait(poll_fd, events, EVENTS_MAX, 0);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.u32 == STDIN_KEY) {
                obey();
                continue;
            }
            struct device *it = &devices[events[i].data.u32];
            if (it->state == OPENING)
                opened(it);
            else if (it->state != AWAY && it->state != OVER)
                answered(it);
        }
    } while (ready == EVENTS_MAX);
}

int main(int count, char **values) {
    double printed_s = 0;
    read_options(count, values);
    start();
    while (!over) {
        turn();
        while (cursor < options.count && counts.opening < (uint64_t)options.opening_max) begin(&devices[cursor++]);
        if (introducing) introduce();
        poll_once();
        double at_s = now_s();
        if (at_s - printed_s >= 1) {
            printed_s = at_s;
            print_counts(0);
        }
        uint32_t rest_us = options.tick_us - (uint64_t)((at_s - began_s) * 1e6) % options.tick_us;
        struct timespec rest = {.tv_nsec = rest_us * 1000};
        nanosleep(&rest, NULL);
    }
    print_counts(1);
    return 0;
}
