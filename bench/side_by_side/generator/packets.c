/* What is sent: MQTT 3.1.1 packets, also in WebSocket frames, and HTTP requests. */
#include "generator.h"
#include <stdio.h>
#include <string.h>

#define PAYLOAD \
    "{\"ts\":1764000000000,\"seq\":12345,\"metrics\":{\"temperature\":21.53," \
    "\"humidity\":40.2,\"door\":true,\"state\":\"ok\"}}"
#define PAYLOAD_BYTES (sizeof PAYLOAD - 1)
#define PACKET_BYTES_MAX 512

static const unsigned char mask[4] = {0x37, 0xfa, 0x21, 0x3d};

static size_t put_string(char *to, const char *text) {
    size_t length = strlen(text);
    to[0] = length >> 8;
    to[1] = length & 0xff;
    memcpy(to + 2, text, length);
    return length + 2;
}

size_t put_connect(char *to, int device) {
    char client[32];
    snprintf(client, sizeof client, "bench-%d", options.first + device);
    memcpy(to, "\x10\0\0\4MQTT\4\2\0\0", 12);
    to[1] = 12 + strlen(client);
    return 12 + put_string(to + 12, client);
}

static size_t put_publish(char *to, int device, int packet_id) {
    char topic[64];
    snprintf(topic, sizeof topic, "dt/bench/bench-%d/metrics", options.first + device);
    size_t body = 2 + strlen(topic) + 2 + PAYLOAD_BYTES, at = 0;
    to[at++] = 0x32;
    to[at++] = (body & 0x7f) | 0x80;
    to[at++] = body >> 7;
    at += put_string(to + at, topic);
    to[at++] = packet_id >> 8;
    to[at++] = packet_id & 0xff;
    memcpy(to + at, PAYLOAD, PAYLOAD_BYTES);
    return at + PAYLOAD_BYTES;
}

/* A masked binary frame, as a client has to send it (RFC 6455, 5.1). */
size_t put_frame(char *to, const char *payload, size_t bytes) {
    size_t at = 0;
    to[at++] = (char)0x82;
    if (bytes < 126)
        to[at++] = 0x80 | bytes;
    else {
        to[at++] = (char)(0x80 | 126);
        to[at++] = bytes >> 8;
        to[at++] = bytes & 0xff;
    }
    memcpy(to + at, mask, sizeof mask);
    at += sizeof mask;
    for (size_t i = 0; i < bytes; i++) to[at++] = payload[i] ^ mask[i % 4];
    return at;
}

size_t put_upgrade(char *to) {
    return sprintf(to, "GET /mqtt HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                       "Sec-WebSocket-Protocol: mqtt\r\n\r\n");
}

/* One request with one message, or with a list of them. */
static size_t put_request(char *to, int device) {
    size_t list = options.list, body = options.list > 1 ? list * (PAYLOAD_BYTES + 1) + 1 : PAYLOAD_BYTES;
    size_t at = sprintf(to, "POST /v1/tenants/bench/devices/bench-%d/telemetry/metrics HTTP/1.1\r\n"
                            "Host: gateway\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                        options.first + device, body);
    for (size_t i = 0; i < list; i++) {
        if (list > 1) to[at++] = i ? ',' : '[';
        memcpy(to + at, PAYLOAD, PAYLOAD_BYTES);
        at += PAYLOAD_BYTES;
    }
    if (list > 1) to[at++] = ']';
    return at;
}

/* A window of publishes; over a WebSocket in so many frames, as `options.frames` says. */
size_t put_load(char *to, int device) {
    static char packets[65536];
    size_t at = 0, bytes = 0;
    if (options.speaks == HTTP) return put_request(to, device);
    for (int packet_id = 1; packet_id <= options.window; packet_id++) {
        if (options.speaks == MQTT) {
            at += put_publish(to + at, device, packet_id);
            continue;
        }
        bytes += put_publish(packets + bytes, device, packet_id);
        if (packet_id % (options.window / options.frames)) continue;
        at += put_frame(to + at, packets, bytes);
        bytes = 0;
    }
    return at;
}

size_t load_bytes_max(void) {
    size_t messages = options.speaks == HTTP ? options.list : options.window;
    return PACKET_BYTES_MAX + messages * PACKET_BYTES_MAX;
}
