/*
 * A load generator for MQTT 3.1.1: N connections over one epoll loop, each with w QoS 1 publishes in flight.
 *
 * Packets are built beforehand and answers are counted by their length (a PUBACK has 4 bytes), so that the
 * generator costs less than the servers it measures. A publish is sent when the last answer of its window is
 * there. Prints one line of JSON: messages_per_s, p50_ms, p99_ms (of a window's last answer).
 *
 *     generator PORT CONNECTIONS WINDOW SECONDS WARM_UP_SECONDS
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAYLOAD \
    "{\"ts\":1764000000000,\"seq\":12345,\"metrics\":{\"temperature\":21.53," \
    "\"humidity\":40.2,\"door\":true,\"state\":\"ok\"}}"
#define PACKET_MAX 512
#define EVENTS_MAX 1024
#define SLOTS 200000 /* latencies in steps of 10 us, up to 2 s */
#define SLOT_S 1e-5

struct connection {
    int fd;
    int owed;
    double sent_s;
    size_t unsent;
    char *packets;
};

static struct connection *connections;
static size_t packets_bytes_max;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    fprintf(stderr, "generator: %s: %s\n", what, strerror(errno));
    exit(1);
}

static size_t put_string(char *to, const char *text) {
    size_t length = strlen(text);
    to[0] = length >> 8;
    to[1] = length & 0xff;
    memcpy(to + 2, text, length);
    return length + 2;
}

static size_t put_publish(char *to, const char *topic, int packet_id) {
    size_t body = 2 + strlen(topic) + 2 + strlen(PAYLOAD), at = 0;
    to[at++] = 0x32;
    to[at++] = body & 0x7f | 0x80;
    to[at++] = body >> 7;
    at += put_string(to + at, topic);
    to[at++] = packet_id >> 8;
    to[at++] = packet_id & 0xff;
    memcpy(to + at, PAYLOAD, strlen(PAYLOAD));
    return at + strlen(PAYLOAD);
}

static void open_connection(struct connection *it, int number, int port, int window) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    char client[32], topic[64], packet[PACKET_MAX], answer[4];
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    it->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (it->fd < 0 || connect(it->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(it->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    snprintf(client, sizeof client, "bench-%d", number);
    snprintf(topic, sizeof topic, "dt/bench/%s/metrics", client);
    packet[0] = 0x10;
    packet[1] = 12 + strlen(client);
    memcpy(packet + 2, "\0\4MQTT\4\2\0\0", 10);
    put_string(packet + 12, client);
    if (write(it->fd, packet, 14 + strlen(client)) < 0) fail("CONNECT");
    if (recv(it->fd, answer, 4, MSG_WAITALL) != 4 || memcmp(answer, "\x20\2\0\0", 4)) fail("CONNACK");
    it->packets = malloc((size_t)window * PACKET_MAX);
    packets_bytes_max = 0;
    for (int packet_id = 1; packet_id <= window; packet_id++)
        packets_bytes_max += put_publish(it->packets + packets_bytes_max, topic, packet_id);
    it->unsent = packets_bytes_max; /* the same for a connection of the same name length; kept a connection */
}

int main(int count, char **values) {
    if (count != 6) {
        fprintf(stderr, "usage: generator PORT CONNECTIONS WINDOW SECONDS WARM_UP_SECONDS\n");
        return 2;
    }
    int port = atoi(values[1]), total = atoi(values[2]), window = atoi(values[3]);
    double seconds = atof(values[4]), warm_up_s = atof(values[5]);
    int poll = epoll_create1(0);
    uint64_t rounds = 0, measured = 0;
    uint32_t *slots = calloc(SLOTS, sizeof *slots);
    size_t *sizes = calloc(total, sizeof *sizes);
    static char buffer[65536];
    connections = calloc(total, sizeof *connections);
    for (int i = 0; i < total; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        open_connection(&connections[i], i, port, window);
        sizes[i] = connections[i].unsent;
        epoll_ctl(poll, EPOLL_CTL_ADD, connections[i].fd, &event);
    }
    for (int i = 0; i < total; i++) {
        connections[i].sent_s = now_s();
        connections[i].owed = 4 * window;
        if (write(connections[i].fd, connections[i].packets, sizes[i]) != (ssize_t)sizes[i]) fail("PUBLISH");
    }
    double began_s = now_s() + warm_up_s, over_s = began_s + seconds;
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        int ready = epoll_wait(poll, events, EVENTS_MAX, 1000);
        double at_s = now_s();
        if (at_s >= over_s) break;
        for (int i = 0; i < ready; i++) {
            struct connection *it = &connections[events[i].data.u32];
            ssize_t got = recv(it->fd, buffer, sizeof buffer, 0);
            if (got <= 0) fail("a connection ended");
            it->owed -= got;
            if (it->owed > 0) continue;
            if (at_s >= began_s) {
                size_t slot = (now_s() - it->sent_s) / SLOT_S;
                slots[slot < SLOTS ? slot : SLOTS - 1]++;
                measured++;
                rounds++;
            }
            it->owed = 4 * window;
            it->sent_s = now_s();
            if (send(it->fd, it->packets, sizes[events[i].data.u32], 0) != (ssize_t)sizes[events[i].data.u32])
                fail("PUBLISH");
        }
    }
    uint64_t seen = 0;
    double p50_ms = 0, p99_ms = 0;
    for (size_t slot = 0; slot < SLOTS; slot++) {
        seen += slots[slot];
        if (!p50_ms && seen * 2 >= measured) p50_ms = (slot + 0.5) * SLOT_S * 1e3;
        if (!p99_ms && seen * 100 >= measured * 99) p99_ms = (slot + 0.5) * SLOT_S * 1e3;
    }
    printf("{\"messages_per_s\": %.1f, \"p50_ms\": %.3f, \"p99_ms\": %.3f}\n", rounds * window / seconds, p50_ms, p99_ms);
    return 0;
}
