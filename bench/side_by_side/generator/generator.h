/* What the parts of the generator share. */
#ifndef GENERATOR_H
#define GENERATOR_H

#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum speaks { MQTT, WEBSOCKET, HTTP };
enum does { PUBLISH, CONNECT, RESUME, HOLD };
enum state { HANDSHAKE, UPGRADE, GREETING, UP };

struct options {
    enum speaks speaks;
    enum does does;
    int port, connections, first, devices, window, list, frames, per_s;
    uint64_t messages;
    double seconds, warm_up_s;
    const char *ca, *ca_key;
};

extern struct options options;

/* An answer of which a part is there. */
struct answer {
    char head[1024];
    size_t have;   /* bytes of the head: of a response, of a frame, or a CONNACK */
    uint64_t body; /* bytes of the body that are to come */
    int part;      /* bytes of a PUBACK */
};

struct connection {
    int fd, device, owed; /* the index of the device: it is called bench-(first + device) */
    enum state state;
    SSL *ssl;
    double began_s;
    char *load; /* what it sends in each turn */
    size_t load_bytes;
    struct answer answer;
};

double now_s(void);
void fail(const char *what);

/* packets.c */
size_t put_connect(char *to, int device);
size_t put_upgrade(char *to);
size_t put_frame(char *to, const char *payload, size_t bytes);
size_t put_load(char *to, int device);
size_t load_bytes_max(void);

/* answers.c: how many messages are acknowledged by what has come; the others are 1 once it is there as a whole. */
int acknowledged(struct connection *it, const char *data, size_t bytes);
int let_in(struct connection *it, const char *data, size_t bytes);
int upgraded(struct connection *it, const char *data, size_t bytes);

/* tls.c */
void start_tls(void);
void begin_tls(struct connection *it);
int handshake(struct connection *it);
void end_tls(struct connection *it);
int has_ticket(int device);
int was_resumed(const struct connection *it);

#endif
