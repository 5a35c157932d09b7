/* load - put a load on a worker, check every reply, and print what it took as one JSON object.
 *
 *   load --addr tcp://127.0.0.1:5555 [--clients 1] [--sessions 1] [--window 1] [--requests 1] [--count 10000] [--vocab 100]
 *        [--rate R] [--parts 1] [--name S] [--number] [--echo] [--plain]
 *
 * Each client is a DEALER socket with sessions of its own, which take turns. A body holds so many requests.
 * Closed loop: each client has `window` bodies in flight.
 * Open loop (--rate): R bodies a second, over all clients, each due at a time fixed beforehand. Its latency counts from then,
 * so that a server that stalls cannot hide it by slowing the load down.
 * --count: requests in all. --vocab: token ids are below it. --name: first letter of the sessions' names. --number: with
 * producer and n. --parts: also print p99 and speed of so many equal parts of the run. --echo: expect the requests back, without a t.
 * --plain: speak to a plain TCP server, each body behind its length, 4 bytes, big-endian.
 *
 * "errors" counts the replies that are errors, of another session, with another t than the next, or no reply at all.
 * scripts/bench/wire.py builds this; all it needs is gcc and the libzmq that pyzmq's wheel brings, which has no header. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

typedef struct { void *socket; int fd; short events, revents; } zmq_pollitem_t;
enum { ZMQ_DEALER = 5, ZMQ_LINGER = 17, ZMQ_SNDHWM = 23, ZMQ_RCVHWM = 24, ZMQ_RCVTIMEO = 27, ZMQ_DONTWAIT = 1, ZMQ_POLLIN = 1 };
void *zmq_ctx_new(void), *zmq_socket(void *, int);
int zmq_setsockopt(void *, int, const void *, size_t), zmq_connect(void *, const char *);
int zmq_send(void *, const void *, size_t, int), zmq_recv(void *, void *, size_t, int), zmq_poll(zmq_pollitem_t *, int, long);

typedef unsigned char byte;
enum {
  BODY_BYTES = 1 << 20,  /* what a worker takes and sends at most, unless told otherwise */
  REQUEST_BYTES = 128,   /* more than a request of ours can have */
  NAME_BYTES = 24,
  NAP_NS = 20000,        /* open loop: between looks at the clock; the server needs the processor too */
  SILENCE_S = 20,        /* without a reply the server is taken for dead */
};

typedef struct {
  zmq_pollitem_t *at;    /* its socket, or with --plain its descriptor */
  double *due;           /* closed loop: a ring, when each body in flight was sent */
  long sent, got;        /* bodies */
  byte *in, *out;        /* --plain: bytes read and not yet used, bytes not yet written */
  size_t used, in_end, out_end, out_size;
} client;

static int clients = 1, sessions = 1, window = 1, requests = 1, vocab = 100, parts = 1, number, echo, plain;
static long count = 10000, errors;
static double rate;
static const char *address = "tcp://127.0.0.1:5555", *prefix = "s";
static byte (*names)[NAME_BYTES]; /* of all sessions, as they stand in a body */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fail(const char *what) {
  fprintf(stderr, "load: %s\n", what);
  exit(1);
}

static void print_plain(const byte *p, const byte *end) { /* other bytes could be orders to the terminal */
  for (; p && p < end; p++) fputc(*p >= ' ' && *p <= '~' ? *p : '.', stderr);
  fputc('\n', stderr);
}

/* ---- MessagePack: what a request needs, and enough to walk through replies ---- */

static byte *put(byte *p, const void *from, size_t n) { return (byte *)memcpy(p, from, n) + n; }

static byte *put_uint(byte *p, uint32_t v) {
  if (v < 0x80) { *p++ = v; return p; }
  if (v < 0x100) { *p++ = 0xcc; *p++ = v; return p; }
  if (v < 0x10000) { *p++ = 0xcd; *p++ = v >> 8; *p++ = v; return p; }
  *p++ = 0xce;
  return put(p, &(uint32_t){htonl(v)}, 4);
}

static uint64_t big_endian(const byte *p, int n) {
  uint64_t v = 0;
  while (n--) v = v << 8 | *p++;
  return v;
}

static int64_t get_uint(const byte *p) { /* -1 where it is none */
  return *p < 0x80 ? *p : *p >= 0xcc && *p <= 0xcf ? (int64_t)big_endian(p + 1, 1 << (*p - 0xcc)) : -1;
}

static const byte *skip(const byte *p, const byte *end) { /* behind the value at p; NULL if it is cut short or nested */
  static const byte fixed[] = {[0x00] = 1, [0x02] = 1, 1, [0x0a] = 5, 9, 2, 3, 5, 9, 2, 3, 5, 9}; /* nil, bool, numbers */
  if (p >= end) return NULL;
  int kind = *p;
  size_t n = 0;
  if (kind < 0x80 || kind >= 0xe0) n = 1;
  else if (kind >= 0xa0 && kind < 0xc0) n = 1 + (kind & 31);
  else if ((kind >= 0xc4 && kind <= 0xc6) || (kind >= 0xd9 && kind <= 0xdb)) { /* bin, str */
    int width = 1 << (kind - (kind < 0xd0 ? 0xc4 : 0xd9));
    if (end - p < 1 + width) return NULL;
    n = 1 + width + big_endian(p + 1, width);
  } else if (kind >= 0xc0 && kind - 0xc0 < (int)sizeof fixed) n = fixed[kind - 0xc0];
  return n && n <= (size_t)(end - p) ? p + n : NULL;
}

static const byte *check(const byte *p, const byte *end, const byte *name, long t) { /* behind a good reply; else NULL */
  if (p >= end || (*p & 0xf0) != 0x80) return NULL;
  int has_name = 0, has_t = echo;
  for (int keys = *p++ & 15; keys; keys--) {
    const byte *value = skip(p, end), *next = value ? skip(value, end) : NULL;
    if (!next) return NULL;
    if (!memcmp(p, "\xa7session", 8)) has_name = !memcmp(value, name, 1 + (*name & 31));
    else if (!memcmp(p, "\xa1t", 2)) has_t = get_uint(value) == t;
    else if (!memcmp(p, "\xa5" "error", 6)) return NULL;
    p = next;
  }
  return has_name && has_t ? p : NULL;
}

/* ---- bodies over a socket ---- */

static void connect_client(client *c, void *context) { /* returns when the connection is up */
  int zero = 0, one = 1, silence_ms = 1000 * SILENCE_S;
  if (!plain) {
    c->at->socket = zmq_socket(context, ZMQ_DEALER);
    for (int i = 0, none[] = {ZMQ_LINGER, ZMQ_SNDHWM, ZMQ_RCVHWM}; i < 3; i++)
      zmq_setsockopt(c->at->socket, none[i], &zero, sizeof zero);
    zmq_setsockopt(c->at->socket, ZMQ_RCVTIMEO, &silence_ms, sizeof silence_ms);
    if (zmq_connect(c->at->socket, address)) fail("bad address");
    zmq_send(c->at->socket, "\x81\xa2op\xa4ping", 9, 0);
    if (zmq_recv(c->at->socket, NULL, 0, 0) < 0) fail("no reply to a ping");
    return;
  }
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  to.sin_port = htons(atoi(strrchr(address, ':') + 1));
  c->at->fd = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(c->at->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(c->at->fd, (struct sockaddr *)&to, sizeof to)) fail("cannot connect");
  c->in = malloc(2 * BODY_BYTES + NAME_BYTES);
}

static void send_body(client *c, const byte *body, size_t n) {
  if (!plain && zmq_send(c->at->socket, body, n, 0) < 0) fail("cannot send");
  if (!plain) return;
  if (c->out_end + n + 4 > c->out_size) c->out = realloc(c->out, c->out_size = 2 * (c->out_end + n + 4));
  put(put(c->out + c->out_end, &(uint32_t){htonl(n)}, 4), body, n);
  c->out_end += n + 4;
}

static void flush(client *c) { /* what was sent in a turn is one write */
  ssize_t n = c->out_end ? send(c->at->fd, c->out, c->out_end, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
  if (n < 0 && errno != EAGAIN) fail("connection lost");
  if (n > 0) memmove(c->out, c->out + n, c->out_end -= n);
}

static const byte *receive(client *c, long *n) { /* a body that has arrived and its length, or NULL */
  static byte body[BODY_BYTES + NAME_BYTES]; /* comparing a name may read beyond the end */
  if (!plain) {
    *n = zmq_recv(c->at->socket, body, BODY_BYTES, ZMQ_DONTWAIT);
    return *n < 0 ? NULL : body;
  }
  for (int again = 0;; again = 1) {
    size_t left = c->in_end - c->used;
    if (left >= 4 && left >= 4 + (size_t)(*n = big_endian(c->in + c->used, 4))) {
      c->used += 4 + *n;
      return c->in + c->used - *n;
    }
    if (again) return NULL;
    memmove(c->in, c->in + c->used, left);
    c->used = 0;
    ssize_t more = recv(c->at->fd, c->in + left, 2 * BODY_BYTES - left, MSG_DONTWAIT);
    if (!more || (more < 0 && errno != EAGAIN)) fail("connection lost");
    c->in_end = left + (more > 0 ? more : 0);
  }
}

/* ---- the load ---- */

static void submit(client *c, int who, double due) {
  static byte body[BODY_BYTES];
  static uint32_t seed = 1;
  byte *p = body;
  for (long k = c->sent * requests; k < (c->sent + 1) * requests; k++) {
    const byte *name = names[who * sessions + k % sessions];
    *p++ = number ? 0x84 : 0x82;
    p = put(put(p, "\xa7session", 8), name, 1 + (*name & 31));
    seed = seed * 1103515245u + 12345u;
    p = put_uint(put(p, "\xa1x", 2), (seed >> 8) % vocab);
    if (number) {
      p = put(put(p, "\xa8producer\xaf" "producer-", 19), name + 1, 6);
      p = put_uint(put(p, "\xa1n", 2), k / sessions + 1);
    }
  }
  c->due[c->sent++ % window] = due;
  send_body(c, body, p - body);
}

static void check_body(client *c, int who, const byte *p, long n) {
  const byte *end = p + n;
  long first = c->got * requests;
  if (n > BODY_BYTES) p = NULL;
  for (long k = first; k < first + requests; k++) {
    const byte *next = p ? check(p, end, names[who * sessions + k % sessions], k / sessions + 1) : NULL;
    if (!next && !errors++) {
      fprintf(stderr, "load: first bad reply, %ld of client %d: ", k, who);
      print_plain(p, end);
    }
    p = next;
  }
  if (p && p != end) errors++; /* more than was asked for */
}

static int by_value(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static double at(const float *sorted, long n, double q) { return sorted[(long)((n - 1) * q)]; }

int main(int argc, char **argv) {
  static const struct option options[] = {
    {"addr", required_argument, NULL, 'a'},     {"clients", required_argument, NULL, 'c'},
    {"sessions", required_argument, NULL, 's'}, {"window", required_argument, NULL, 'w'},
    {"requests", required_argument, NULL, 'b'}, {"count", required_argument, NULL, 'k'},
    {"vocab", required_argument, NULL, 'v'},    {"rate", required_argument, NULL, 'r'},
    {"parts", required_argument, NULL, 'p'},    {"name", required_argument, NULL, 'n'},
    {"number", no_argument, &number, 1},        {"echo", no_argument, &echo, 1},
    {"plain", no_argument, &plain, 1},          {NULL, 0, NULL, 0}};
  static int *const numbers[] = {
    ['c'] = &clients, ['s'] = &sessions, ['w'] = &window, ['b'] = &requests, ['v'] = &vocab, ['p'] = &parts};
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) >= 0;) switch (option) {
    case 'a': address = optarg; break;
    case 'n': prefix = optarg; break;
    case 'k': count = atol(optarg); break;
    case 'r': rate = atof(optarg); break;
    case 0: break; /* a flag */
    case '?': return 2;
    default: *numbers[option] = atoi(optarg);
  }
  if (clients < 1 || sessions < 1 || window < 1 || requests < 1 || vocab < 1 || parts < 1) fail("numbers begin at 1");
  if (clients > 9999 || sessions > 9999999) fail("names have no more digits");
  if (requests > BODY_BYTES / REQUEST_BYTES) fail("too many requests in a body");
  long bodies = (count + requests - 1) / requests, sent = 0, got = 0;
  if (bodies < parts) fail("fewer bodies than parts");
  prctl(PR_SET_TIMERSLACK, 1); /* ns; a nap is as short as it says */

  void *context = plain ? NULL : zmq_ctx_new();
  client *all = calloc(clients, sizeof *all);
  zmq_pollitem_t *items = calloc(clients, sizeof *items);
  names = malloc((size_t)clients * sessions * NAME_BYTES);
  for (int i = 0; i < clients; i++) {
    for (int k = 0; k < sessions; k++) {
      char *name = (char *)names[i * sessions + k];
      *name = 0xa0 | snprintf(name + 1, NAME_BYTES - 1, "%.1s-%04d-%07d", prefix, i, k);
    }
    items[i].events = ZMQ_POLLIN;
    all[i].at = items + i;
    all[i].due = malloc(window * sizeof(double));
    connect_client(all + i, context);
  }

  float *latency = malloc(bodies * sizeof *latency); /* µs */
  double *ended = calloc(parts + 1, sizeof *ended); /* when each part was answered; the first is the beginning */
  int part = 1;
  double start = now(), last = start;
  for (; !rate && sent < bodies && sent < (long)window * clients; sent++) submit(all + sent % clients, sent % clients, now());
  while (got < bodies) {
    for (; rate && sent < bodies && start + sent / rate <= now(); sent++) submit(all + sent % clients, sent % clients, 0);
    for (int i = 0; i < clients && plain; i++) flush(all + i);
    if (!zmq_poll(items, clients, rate ? 0 : 1000)) {
      struct timespec nap = {0, NAP_NS};
      if (rate) nanosleep(&nap, NULL);
      if (now() - last > SILENCE_S) fail("no reply for too long");
      continue;
    }
    for (int i = 0; i < clients; i++) {
      client *c = all + i;
      const byte *body;
      for (long n; items[i].revents && got < bodies && (body = receive(c, &n)); got++) {
        double due = rate ? start + (c->got * clients + i) / rate : c->due[c->got % window];
        latency[got] = ((last = now()) - due) * 1e6;
        if (got + 1 == bodies * part / parts) ended[part++] = last;
        check_body(c, i, body, n);
        c->got++;
        if (!rate && sent < bodies) { submit(c, i, last); sent++; }
      }
    }
  }

  double took = now() - start;
  printf("{\"count\": %ld, \"seconds\": %.9f, \"per_second\": %.1f, ", got * requests, took, got * requests / took);
  if (parts > 1) {
    printf("\"parts_p99_us\": [");
    for (int i = 0; i < parts; i++) {
      long from = bodies * i / parts, n = bodies * (i + 1) / parts - from;
      qsort(latency + from, n, sizeof *latency, by_value);
      printf("%s%.1f", i ? ", " : "", at(latency + from, n, .99));
    }
    printf("], \"parts_per_second\": [");
    ended[0] = start;
    for (int i = 0; i < parts; i++)
      printf("%s%.1f", i ? ", " : "", (bodies * (i + 1) / parts - bodies * i / parts) * requests / (ended[i + 1] - ended[i]));
    printf("], ");
  }
  qsort(latency, got, sizeof *latency, by_value);
  printf("\"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, \"errors\": %ld}\n", at(latency, got, .5),
         at(latency, got, .99), at(latency, got, .999), at(latency, got, 1), errors);
  return 0;
}
