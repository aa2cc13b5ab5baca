/*
 * Mutual TLS 1.3: each device has a key and a certificate of its own (ECDSA P-256), signed here, and keeps its last
 * session ticket. The certificate of the server is not checked: this is about the cost of the server.
 */
#include "generator.h"
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define TRUST "URI:spiffe://headworks.local/tenant/bench/device/"

static struct {
    EVP_PKEY *key;
    X509 *certificate;
    SSL_SESSION *ticket;
} *devices;
static SSL_CTX *context;

static void fail_tls(const char *what) {
    fprintf(stderr, "generator: %s: ", what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static void extend(X509 *certificate, X509V3_CTX *with, int nid, const char *value) {
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, with, nid, value);
    if (!extension || !X509_add_ext(certificate, extension, -1)) fail_tls("an extension");
    X509_EXTENSION_free(extension);
}

static X509 *sign(int device, EVP_PKEY *key, X509 *ca, EVP_PKEY *ca_key) {
    X509V3_CTX with;
    X509 *made = X509_new();
    char uri[128], *name = uri + sizeof TRUST - 1;
    snprintf(uri, sizeof uri, TRUST "bench-%d", options.first + device);
    X509_set_version(made, X509_VERSION_3);
    ASN1_INTEGER_set_uint64(X509_get_serialNumber(made), (uint64_t)time(NULL) << 20 | device);
    X509_gmtime_adj(X509_getm_notBefore(made), -300);
    X509_gmtime_adj(X509_getm_notAfter(made), 86400);
    X509_set_issuer_name(made, X509_get_subject_name(ca));
    X509_NAME *subject = X509_get_subject_name(made);
    X509_NAME_add_entry_by_txt(subject, "O", MBSTRING_ASC, (const unsigned char *)"bench", -1, -1, 0);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_pubkey(made, key);
    X509V3_set_ctx(&with, ca, made, NULL, NULL, 0);
    extend(made, &with, NID_subject_alt_name, uri);
    extend(made, &with, NID_ext_key_usage, "clientAuth");
    if (!X509_sign(made, ca_key, EVP_sha256())) fail_tls("signing a certificate");
    return made;
}

static int keep_ticket(SSL *ssl, SSL_SESSION *ticket) {
    int device = ((struct connection *)SSL_get_app_data(ssl))->device;
    SSL_SESSION_free(devices[device].ticket);
    devices[device].ticket = ticket;
    return 1; /* we keep the reference */
}

static FILE *opened(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) fail(path);
    return file;
}

void start_tls(void) {
    FILE *file = opened(options.ca);
    X509 *ca = PEM_read_X509(file, NULL, NULL, NULL);
    fclose(file);
    file = opened(options.ca_key);
    EVP_PKEY *ca_key = PEM_read_PrivateKey(file, NULL, NULL, NULL);
    fclose(file);
    context = SSL_CTX_new(TLS_client_method());
    devices = calloc(options.devices, sizeof *devices);
    if (!ca || !ca_key || !context || !devices) fail_tls("the CA");
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, keep_ticket);
    for (int i = 0; i < options.devices; i++) {
        devices[i].key = EVP_EC_gen("P-256");
        devices[i].certificate = sign(i, devices[i].key, ca, ca_key);
    }
}

int has_ticket(int device) { return devices[device].ticket != NULL; }

void begin_tls(struct connection *it) {
    it->ssl = SSL_new(context);
    if (!it->ssl || !SSL_set_fd(it->ssl, it->fd)) fail_tls("SSL_new");
    SSL_set_app_data(it->ssl, it);
    SSL_use_certificate(it->ssl, devices[it->device].certificate);
    SSL_use_PrivateKey(it->ssl, devices[it->device].key);
    if (options.does == RESUME && has_ticket(it->device)) SSL_set_session(it->ssl, devices[it->device].ticket);
}

/* Go on with a handshake; return whether it is over. */
int handshake(struct connection *it) {
    ERR_clear_error();
    int done = SSL_connect(it->ssl);
    if (done == 1) return 1;
    int why = SSL_get_error(it->ssl, done);
    if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) fail_tls("a handshake");
    return 0;
}

int was_resumed(const struct connection *it) { return SSL_session_reused(it->ssl); }

void end_tls(struct connection *it) {
    SSL_shutdown(it->ssl);
    SSL_free(it->ssl);
    it->ssl = NULL;
}
