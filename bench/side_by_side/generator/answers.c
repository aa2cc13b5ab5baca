/*
 * What comes back. Answers are counted rather than read, so that the generator costs less than the servers it
 * measures: a PUBACK has 4 bytes, a frame and a response say how long they are.
 */
#define _GNU_SOURCE
#include "generator.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static size_t least(size_t one, size_t other) { return one < other ? one : other; }

/* Gather a head up to its empty line; return how many bytes were taken, and in `whole` whether it is there. */
static size_t gather(struct answer *answer, const char *data, size_t bytes, int *whole) {
    size_t had = answer->have, took = least(bytes, sizeof answer->head - 1 - had);
    memcpy(answer->head + had, data, took);
    answer->head[had + took] = 0;
    char *end = strstr(answer->head, "\r\n\r\n");
    *whole = end != NULL;
    if (!end && had + took == sizeof answer->head - 1) errno = EMSGSIZE, fail("the head of a response");
    if (end) {
        end[2] = 0;
        took = end + 4 - answer->head - had;
    }
    answer->have = end ? 0 : had + took;
    return took;
}

static void expect(const struct answer *answer, const char *status) {
    if (strncmp(answer->head + 9, status, 3)) errno = EPROTO, fail(answer->head);
}

int upgraded(struct connection *it, const char *data, size_t bytes) {
    int whole;
    gather(&it->answer, data, bytes, &whole);
    if (whole) expect(&it->answer, "101");
    return whole;
}

static int of_responses(struct answer *answer, const char *data, size_t bytes) {
    int done = 0;
    while (bytes) {
        size_t took;
        if (!answer->body) {
            int whole;
            took = gather(answer, data, bytes, &whole);
            if (whole) {
                char *length = strcasestr(answer->head, "\r\nContent-Length:");
                expect(answer, "202");
                if (!length || !(answer->body = atoll(length + 17))) errno = EPROTO, fail(answer->head);
            }
        } else {
            took = least(bytes, answer->body);
            answer->body -= took;
            if (!answer->body) done += options.list;
        }
        data += took;
        bytes -= took;
    }
    return done;
}

/* Take the header of a frame, byte by byte; servers do not mask. */
static void frame_header(struct answer *answer, char next) {
    unsigned char *head = (unsigned char *)answer->head;
    head[answer->have++] = next;
    if (answer->have < 2 || (head[1] == 126 && answer->have < 4)) return;
    if (head[0] != 0x82 || head[1] > 126) errno = EPROTO, fail("a frame");
    answer->body = head[1] < 126 ? head[1] : head[2] << 8 | head[3];
    answer->have = 0;
}

static int of_pubacks(struct answer *answer, size_t bytes) {
    int part = answer->part + bytes;
    answer->part = part % 4;
    return part / 4;
}

static int of_frames(struct answer *answer, const char *data, size_t bytes) {
    int done = 0;
    while (bytes) {
        size_t took = 1;
        if (!answer->body)
            frame_header(answer, *data);
        else {
            took = least(bytes, answer->body);
            answer->body -= took;
            done += of_pubacks(answer, took);
        }
        data += took;
        bytes -= took;
    }
    return done;
}

int acknowledged(struct connection *it, const char *data, size_t bytes) {
    switch (options.speaks) {
    case MQTT: return of_pubacks(&it->answer, bytes);
    case WEBSOCKET: return of_frames(&it->answer, data, bytes);
    case HTTP: return of_responses(&it->answer, data, bytes);
    }
    abort();
}

/* A CONNACK, which comes alone: nothing was published before. */
int let_in(struct connection *it, const char *data, size_t bytes) {
    static const char frame[] = "\x82\4", connack[] = "\x20\2\0\0";
    size_t before = options.speaks == WEBSOCKET ? 2 : 0, whole = before + 4;
    struct answer *answer = &it->answer;
    if (answer->have + bytes > whole) errno = EPROTO, fail("more than a CONNACK");
    memcpy(answer->head + answer->have, data, bytes);
    answer->have += bytes;
    if (answer->have < whole) return 0;
    if (memcmp(answer->head, frame, before) || memcmp(answer->head + before, connack, 4)) errno = EPROTO, fail("CONNACK");
    answer->have = 0;
    return 1;
}
