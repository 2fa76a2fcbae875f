// control_meet.c: see control_meet.h.
#include "llmc/ranks/control_meet.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <math.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PLACE_TITLE "tokamak hub 1"
#define BUSY_PORT_SECONDS 10.0  // an earlier run may be about to end
#define CONNECT_SECONDS 3.0     // for one address
#define WELCOME_SECONDS 5.0

// ---- rank 0: listening, and describing the place ----

static int listen_at(int family, int port, int *bound_port) {
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    int yes = 1, no = 0;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address = {.any = {.sa_family = (sa_family_t)family}};
    socklen_t bytes = family == AF_INET6 ? sizeof address.v6 : sizeof address.v4;
    if (family == AF_INET6) address.v6 = (struct sockaddr_in6){AF_INET6, htons((uint16_t)port), 0, in6addr_any, 0};
    else address.v4 = (struct sockaddr_in){AF_INET, htons((uint16_t)port), {htonl(INADDR_ANY)}, {0}};
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
        (family != AF_INET6 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no) == 0) &&
        bind(fd, &address.any, bytes) == 0 && listen(fd, 4096) == 0 && getsockname(fd, &address.any, &bytes) == 0) {
        *bound_port = ntohs(family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port);
        return fd;
    }
    int reason = errno;
    close(fd);
    errno = reason;
    return -1;
}

static void add_address(HubPlace *place, const char *address) {
    if (place->addresses < PLACE_ADDRESSES)
        snprintf(place->address[place->addresses++], PLACE_ADDRESS_BYTES, "%s", address);
}

// The addresses of this host that other hosts may reach, then its name (last: resolving an unknown name may take long).
static void list_addresses(HubPlace *place) {
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all) == 0) {
        for (const struct ifaddrs *one = all; one != NULL; one = one->ifa_next) {
            if (one->ifa_addr == NULL || !(one->ifa_flags & IFF_UP) || (one->ifa_flags & IFF_LOOPBACK)) continue;
            char text[INET6_ADDRSTRLEN];
            const void *bytes = NULL;
            if (one->ifa_addr->sa_family == AF_INET)
                bytes = &((const struct sockaddr_in *)(const void *)one->ifa_addr)->sin_addr;
            if (one->ifa_addr->sa_family == AF_INET6) {
                const struct in6_addr *v6 = &((const struct sockaddr_in6 *)(const void *)one->ifa_addr)->sin6_addr;
                if (!IN6_IS_ADDR_LINKLOCAL(v6)) bytes = v6;
            }
            if (bytes != NULL && place->addresses < PLACE_ADDRESSES - 1 &&
                inet_ntop(one->ifa_addr->sa_family, bytes, text, sizeof text) != NULL)
                add_address(place, text);
        }
        freeifaddrs(all);
    }
    add_address(place, place->host);
}

bool meet_listen(int *listener, HubPlace *place, const Launch *launch, bool any_port, double timeout_seconds,
                 Error *err) {
    *place = (HubPlace){.world = launch->world, .pid = (int)getpid()};
    snprintf(place->host, sizeof place->host, "%s", launch->host);
    time_t now = time(NULL);
    struct tm parts;
    CHECK(localtime_r(&now, &parts) != NULL && strftime(place->started, sizeof place->started, "%F %T", &parts) > 0,
          "time %lld", (long long)now);
    for (size_t have = 0; have < sizeof place->nonce;) {
        ssize_t got = getrandom(place->nonce + have, sizeof place->nonce - have, 0);
        if (got < 0 && errno != EINTR) return error_set(err, "getrandom failed: %s", strerror(errno));
        if (got > 0) have += (size_t)got;
    }
    double until = now_seconds() + fmin(timeout_seconds, BUSY_PORT_SECONDS);
    int port = any_port ? 0 : launch->port;
    for (;;) {
        // One IPv6 socket accepts both families; a kernel without IPv6 gets an IPv4 socket.
        *listener = listen_at(AF_INET6, port, &place->port);
        if (*listener < 0 && errno != EADDRINUSE) *listener = listen_at(AF_INET, port, &place->port);
        if (*listener >= 0) break;
        int reason = errno;
        if (reason != EADDRINUSE || now_seconds() > until)
            return error_set(
                err, "rank 0 on %s cannot listen at port %d: %s%s", launch->host, port, strerror(reason),
                reason == EADDRINUSE ? "; stop the process that uses it (an earlier run?) or set another MASTER_PORT" : "");
        usleep(100000);
    }
    list_addresses(place);
    return true;
}

void meet_write_place(char *text, const HubPlace *place) {
    int used = snprintf(text, PLACE_TEXT_BYTES, "%s\nnonce ", PLACE_TITLE);
    for (int i = 0; i < CONTROL_NONCE_BYTES; ++i)
        used += snprintf(text + used, PLACE_TEXT_BYTES - (size_t)used, "%02x", place->nonce[i]);
    used +=
        snprintf(text + used, PLACE_TEXT_BYTES - (size_t)used, "\nworld %d\nhost %s\npid %d\nstarted %s\nport %d\n",
                 place->world, place->host, place->pid, place->started, place->port);
    for (int i = 0; i < place->addresses; ++i)
        used += snprintf(text + used, PLACE_TEXT_BYTES - (size_t)used, "address %s\n", place->address[i]);
    used += snprintf(text + used, PLACE_TEXT_BYTES - (size_t)used, "end\n");
    CHECK(used < PLACE_TEXT_BYTES, "%d bytes of addresses", used);
}

static bool read_nonce(uint8_t *out, const char *hex) {
    if (strlen(hex) != 2 * CONTROL_NONCE_BYTES || strspn(hex, "0123456789abcdef") != 2 * CONTROL_NONCE_BYTES)
        return false;
    for (int i = 0; i < CONTROL_NONCE_BYTES; ++i) {
        const char digits[3] = {hex[2 * i], hex[2 * i + 1], '\0'};
        out[i] = (uint8_t)strtol(digits, NULL, 16);
    }
    return true;
}
static bool read_int(int *out, const char *text, int64_t low, int64_t high) {
    int64_t value;
    if (!parse_i64(text, &value) || value < low || value > high) return false;
    *out = (int)value;
    return true;
}

static bool read_line(HubPlace *place, const char *key, const char *value) {
    if (strcmp(key, "nonce") == 0) return read_nonce(place->nonce, value);
    if (strcmp(key, "world") == 0) return read_int(&place->world, value, 1, INT32_MAX);
    if (strcmp(key, "pid") == 0) return read_int(&place->pid, value, 1, INT32_MAX);
    if (strcmp(key, "port") == 0) return read_int(&place->port, value, 1, 65535);
    if (strcmp(key, "host") == 0)
        return (size_t)snprintf(place->host, sizeof place->host, "%s", value) < sizeof place->host;
    if (strcmp(key, "started") == 0)
        return (size_t)snprintf(place->started, sizeof place->started, "%s", value) < sizeof place->started;
    if (strcmp(key, "address") != 0 || strlen(value) >= PLACE_ADDRESS_BYTES) return false;
    add_address(place, value);
    return true;
}

bool meet_read_place(HubPlace *place, const char *text, Error *err) {
    *place = (HubPlace){0};
    for (int line = 0;; ++line) {
        const char *end = strchr(text, '\n');
        char copy[PLACE_ADDRESS_BYTES + 16];
        if (end == NULL || (size_t)(end - text) >= sizeof copy) break;
        memcpy(copy, text, (size_t)(end - text));
        copy[end - text] = '\0';
        text = end + 1;
        if (line == 0) {
            if (strcmp(copy, PLACE_TITLE) != 0) break;
            continue;
        }
        if (strcmp(copy, "end") == 0) {
            if (place->world == 0 || place->port == 0 || place->addresses == 0 || *text != '\0') break;
            return true;
        }
        char *value = strchr(copy, ' ');
        if (value == NULL) break;
        *value++ = '\0';
        if (!read_line(place, copy, value)) break;
    }
    return error_set(err, "expected the place of a hub (\"%s\" and further lines), found other text", PLACE_TITLE);
}

char *meet_file(const Launch *launch) {
    char *name = xasprintf("tokamak-hub-%d", launch->world), *path = path_join(launch->directory, name);
    free(name);
    return path;
}

static bool read_file(HubPlace *place, const char *path, Error *err) {
    char *text;
    if (!file_read_all(path, PLACE_TEXT_BYTES, &text, NULL, err)) return false;
    bool ok = meet_read_place(place, text, err);
    free(text);
    return ok;
}

void meet_remove_file(const char *path, const uint8_t nonce[CONTROL_NONCE_BYTES]) {
    HubPlace now;
    // If it cannot be removed, ranks that find it later detect that it is stale.
    if (read_file(&now, path, NULL) && memcmp(now.nonce, nonce, CONTROL_NONCE_BYTES) == 0) unlink(path);
}

// ---- every rank: finding the hub ----

static bool set_no_delay(int fd) {
    int yes = 1;
    return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) == 0;
}

// A connected non-blocking socket, or -1 and *err.
static int connect_to(const char *address, int port, double seconds, Error *err) {
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int code = getaddrinfo(address, service, &hints, &found);
    if (code != 0) {
        error_set(err, "%s: %s", address, gai_strerror(code));
        return -1;
    }
    int fd = -1;
    for (const struct addrinfo *one = found; one != NULL && fd < 0; one = one->ai_next) {
        fd = socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) {
            error_set(err, "socket: %s", strerror(errno));
            continue;
        }
        int reason = connect(fd, one->ai_addr, one->ai_addrlen) == 0 ? 0 : errno;
        socklen_t bytes = sizeof reason;
        if (reason == EINPROGRESS || reason == EINTR) {
            if (wait_for_socket(fd, POLLOUT, seconds) == 0) reason = ETIMEDOUT;
            else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &reason, &bytes) != 0) reason = errno;
        }
        if (reason == 0 && !set_no_delay(fd)) reason = errno;
        if (reason == 0) break;
        error_set(err, "%s port %d: %s", address, port, strerror(reason));
        close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    return fd;
}

typedef enum { JOIN_DONE, JOIN_AGAIN, JOIN_FAILED } Join;

static Join read_refusal(const Frame *frame, const HubPlace *place, const char *address, Error *err) {
    uint32_t again;
    if (frame->count < sizeof again) {
        error_set(err, "%s port %d: another program answers there", address, place->port);
        return JOIN_AGAIN;
    }
    memcpy(&again, frame->bytes, sizeof again);
    error_set(err, "%s port %d: %.*s", address, place->port, (int)(frame->count - sizeof again),
              (const char *)frame->bytes + sizeof again);
    return again != 0 ? JOIN_AGAIN : JOIN_FAILED;
}

// The handshake with the process that listens there.
static Join greet(Link *link, const Meeting *meeting, const HubPlace *place, const char *address, Error *err) {
    const Launch *launch = meeting->launch;
    HelloFrame hello = {CONTROL_MAGIC, CONTROL_VERSION, launch->rank, launch->world, (int32_t)getpid(), {0}, {0}};
    memcpy(hello.nonce, place->nonce, sizeof hello.nonce);
    snprintf(hello.host, sizeof hello.host, "%s", launch->host);
    link_send(link, FRAME_HELLO, &(Part){&hello, sizeof hello}, 1);
    Frame frame;
    int got = link_await(link, &frame, fmin(WELCOME_SECONDS, meeting->timeout_seconds));
    if (got == 1 && frame.type == FRAME_REFUSE) return read_refusal(&frame, place, address, err);
    static const uint8_t UNKNOWN[CONTROL_NONCE_BYTES];
    WelcomeFrame welcome;
    if (got == 1 && frame.type == FRAME_WELCOME && frame.count == sizeof welcome) {
        memcpy(&welcome, frame.bytes, sizeof welcome);
        if (memcmp(welcome.magic, CONTROL_MAGIC, sizeof welcome.magic) == 0 && welcome.version == CONTROL_VERSION) {
            if (memcmp(place->nonce, UNKNOWN, sizeof UNKNOWN) == 0 ||
                memcmp(place->nonce, welcome.nonce, sizeof welcome.nonce) == 0)
                return JOIN_DONE;
            error_set(err, "%s port %d: the hub of another start answers there", address, place->port);
            return JOIN_AGAIN;
        }
    }
    error_set(
        err, "%s port %d: %s", address, place->port,
        got == 0 ? "connected, but there is no answer" : "another program answers there");
    return JOIN_AGAIN;
}

// After the welcome: the hub waits for the other ranks and sends a beat twice a second.
static Join await_start(Link *link, Frame *start, const Meeting *meeting, Error *err) {
    for (;;) {
        int got = link_await(link, start, fmax(meeting->timeout_seconds, 2));
        if (got == 1 && start->type == FRAME_START) return JOIN_DONE;
        if (got == 1 && start->type == FRAME_ABORT) {
            error_set(err, "%.*s", (int)start->count, (const char *)start->bytes);
            return JOIN_FAILED;
        }
        if (got == 1) continue;
        error_set(err,
                  got == 0 ? "rank 0 stopped answering before all ranks connected"
                           : "rank 0 ended before all ranks connected");
        return JOIN_AGAIN;
    }
}

static Join try_place(Link *link, Frame *start, const Meeting *meeting, const HubPlace *place, double until,
                      Error *err) {
    bool here = meeting->launch->rank == 0 || strcmp(place->host, meeting->launch->host) == 0;
    for (int i = here ? -2 : 0; i < place->addresses; ++i) {
        const char *address = i == -2 ? "127.0.0.1" : i == -1 ? "::1" : place->address[i];
        // The error of another address is more useful than that nothing listens at ::1.
        Error connecting = {""};
        double left = fmax(0.1, until - now_seconds());
        int fd = connect_to(address, place->port, fmin(left, CONNECT_SECONDS), &connecting);
        if (fd < 0) {
            if (i != -1) *err = connecting;
            continue;
        }
        link_init(link, fd, CONTROL_DATA_BYTES);
        Join join = greet(link, meeting, place, address, err);
        if (join == JOIN_DONE) join = await_start(link, start, meeting, err);
        if (join == JOIN_DONE) return join;
        link_free(link);
        if (join == JOIN_FAILED) return join;
    }
    return JOIN_AGAIN;
}

static bool find_place(HubPlace *place, const Meeting *meeting, const char *file, Error *err) {
    const Launch *launch = meeting->launch;
    if (meeting->place != NULL) {
        *place = *meeting->place;
        return true;
    }
    if (file == NULL) {
        *place = (HubPlace){.world = launch->world, .port = launch->port};
        add_address(place, launch->address);
        return true;
    }
    // NFS caches that a file is absent; opening the directory refreshes the cache.
    DIR *directory = opendir(launch->directory);
    if (directory == NULL) return error_set(err, "%s: %s", launch->directory, strerror(errno));
    closedir(directory);
    return read_file(place, file, err);
}

bool meet_join(Link *link, Frame *start, const Meeting *meeting, Error *err) {
    const Launch *launch = meeting->launch;
    char *file = meeting->place == NULL && launch->kind == LAUNCH_DIRECTORY ? meet_file(launch) : NULL;
    double until = now_seconds() + meeting->timeout_seconds, pause = 0.01;
    Error why = {""};
    Join join;
    do {
        HubPlace place = {0};
        join = JOIN_AGAIN;
        if (find_place(&place, meeting, file, &why)) {
            join = try_place(link, start, meeting, &place, until, &why);
            if (join == JOIN_AGAIN && file != NULL)
                error_prefix(&why, "it was written by %s, pid %d, at %s", place.host, place.pid, place.started);
        }
        if (join != JOIN_AGAIN) break;
        usleep((useconds_t)(1e6 * pause));
        pause = fmin(1.5 * pause, 0.5);
    } while (now_seconds() < until);
    if (join == JOIN_AGAIN) {
        char *where = file != NULL ? xasprintf("through %s", file)
                      : meeting->place != NULL
                          ? xasprintf("on %s", meeting->place->host)
                          : xasprintf("at MASTER_ADDR=%s, MASTER_PORT=%d", launch->address, launch->port);
        error_set(err, "rank %d did not find rank 0 %s within %g s: %s", launch->rank, where,
                  meeting->timeout_seconds, why.message);
        free(where);
    } else if (join == JOIN_FAILED && err != NULL) {
        *err = why;
    }
    free(file);
    return join == JOIN_DONE;
}
