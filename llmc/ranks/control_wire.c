// control_wire.c: see control_wire.h.
#include "llmc/ranks/control_wire.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

typedef struct {
    uint32_t type, bytes;
} FrameHead;

enum { FIRST_ROOM = 1024, MAX_PARTS = 4 };

void link_init(Link *link, int fd, size_t max_frame) {
    *link = (Link){.fd = fd, .in_room = FIRST_ROOM, .out_room = FIRST_ROOM, .max_frame = max_frame};
    link->in = xmalloc(link->in_room);
    link->out = xmalloc(link->out_room);
}
void link_free(Link *link) {
    if (link->fd >= 0) close(link->fd);
    free(link->in);
    free(link->out);
    *link = (Link){.fd = -1};
}

// Room for `count` more bytes at the end of a buffer whose bytes [*first, *end) are in use.
static void make_room(uint8_t **buffer, size_t *first, size_t *end, size_t *room, size_t count) {
    if (*room - *end >= count) return;
    memmove(*buffer, *buffer + *first, *end - *first);
    *end -= *first;
    *first = 0;
    while (*room - *end < count) {
        *room *= 2;
        *buffer = xrealloc(*buffer, *room);
    }
}

// The number of bytes sent; marks the link as broken when the connection has failed.
static size_t send_now(Link *link, struct iovec *pieces, size_t count) {
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
    for (;;) {
        ssize_t sent = sendmsg(link->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) return (size_t)sent;
        if (errno == EINTR) continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK) link->broken = true;
        return 0;
    }
}

void link_send(Link *link, FrameType type, const Part *parts, int count) {
    CHECK(count < MAX_PARTS, "a frame of %d parts", count);
    if (link->fd < 0 || link->broken) return;
    size_t bytes = 0;
    for (int i = 0; i < count; ++i) bytes += parts[i].count;
    CHECK(bytes <= UINT32_MAX, "a frame of %zu bytes", bytes);
    FrameHead head = {type, (uint32_t)bytes};
    struct iovec pieces[MAX_PARTS] = {{&head, sizeof head}};
    for (int i = 0; i < count; ++i) pieces[i + 1] = (struct iovec){(void *)(uintptr_t)parts[i].bytes, parts[i].count};
    size_t sent = link_has_output(link) ? 0 : send_now(link, pieces, (size_t)count + 1);
    for (int i = 0; i <= count; ++i) {
        size_t skip = sent < pieces[i].iov_len ? sent : pieces[i].iov_len;
        sent -= skip;
        size_t left = pieces[i].iov_len - skip;
        if (left == 0) continue;
        make_room(&link->out, &link->out_first, &link->out_end, &link->out_room, left);
        memcpy(link->out + link->out_end, (const uint8_t *)pieces[i].iov_base + skip, left);
        link->out_end += left;
    }
}

void link_flush(Link *link) {
    while (link->fd >= 0 && link_has_output(link)) {
        struct iovec piece = {link->out + link->out_first, link->out_end - link->out_first};
        size_t sent = send_now(link, &piece, 1);
        if (sent == 0) return;
        link->out_first += sent;
    }
    link->out_first = link->out_end = 0;
}

int link_receive(Link *link) {
    if (link->fd < 0) return -1;
    // If the frame's length is already known, make room for all of it at once.
    size_t wanted = FIRST_ROOM / 2;
    FrameHead head;
    if (link->in_end - link->in_first >= sizeof head) {
        memcpy(&head, link->in + link->in_first, sizeof head);
        size_t whole = sizeof head + head.bytes, have = link->in_end - link->in_first;
        if (head.bytes <= link->max_frame && whole > have) wanted = whole - have;
    }
    make_room(&link->in, &link->in_first, &link->in_end, &link->in_room, wanted);
    ssize_t got;
    do got = recv(link->fd, link->in + link->in_end, link->in_room - link->in_end, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
    if (got <= 0) return -1;
    link->in_end += (size_t)got;
    return 1;
}

int link_next(Link *link, Frame *out) {
    FrameHead head;
    size_t have = link->in_end - link->in_first;
    if (have < sizeof head) return 0;
    memcpy(&head, link->in + link->in_first, sizeof head);
    if (head.type < FRAME_HELLO || head.type >= FRAME_END || head.bytes > link->max_frame) return -1;
    if (have < sizeof head + head.bytes) return 0;
    *out = (Frame){(FrameType)head.type, link->in + link->in_first + sizeof head, head.bytes};
    link->in_first += sizeof head + head.bytes;
    if (link->in_first == link->in_end) link->in_first = link->in_end = 0;
    return 1;
}

int wait_for_socket(int fd, short events, double seconds) {
    for (double until = now_seconds() + seconds;;) {
        double left = until - now_seconds();
        struct pollfd one = {fd, events, 0};
        int ready = poll(&one, 1, left > 0 ? (int)ceil(fmin(left, 1000) * 1e3) : 0);
        if (ready > 0) return one.revents;
        CHECK(ready == 0 || errno == EINTR, "poll: %s", strerror(errno));
        if (left <= 0) return 0;
    }
}

int link_await(Link *link, Frame *out, double seconds) {
    for (double until = now_seconds() + seconds;;) {
        int got = link_next(link, out);
        if (got != 0) return got;
        link_flush(link);
        short events = (short)(POLLIN | (link_has_output(link) ? POLLOUT : 0));
        double left = until - now_seconds();
        if (left <= 0 || wait_for_socket(link->fd, events, left) == 0) return 0;
        if (link_receive(link) < 0) return -1;
    }
}

void watch_clock_start(WatchClock *clock, double most) { *clock = (WatchClock){0, now_seconds(), most}; }
void watch_clock_advance(WatchClock *clock) {
    double real = now_seconds(), passed = real - clock->real;
    clock->now += passed < clock->most ? passed : clock->most;
    clock->real = real;
}
