/* Sockets with a deadline, for the setting up of communicators.
 *
 * Nothing here waits past its deadline (milliseconds of now_ms), and no descriptor leaks into
 * a child process. Answers: a descriptor or 0, and -1 with errno (ETIMEDOUT for the deadline,
 * ECONNRESET for a peer that went away). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

static int fail(int fd, int reason)
{
    if (fd >= 0) {
        close(fd);
    }
    errno = reason;
    return -1;
}

static void tune(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static int wait_for(int fd, short events, int64_t deadline)
{
    for (;;) {
        int64_t left = deadline - now_ms();
        if (left <= 0) {
            return fail(-1, ETIMEDOUT);
        }
        struct pollfd item = {.fd = fd, .events = events};
        int ready = poll(&item, 1, left > 1000 ? 1000 : (int)left);
        if (ready > 0) {
            return 0;
        }
        if (ready < 0 && errno != EINTR) {
            return -1;
        }
    }
}

int wait_readable(int fd, int64_t deadline)
{
    return wait_for(fd, POLLIN, deadline);
}

static int socket_address(const char *address, uint16_t port, struct sockaddr_in *into)
{
    memset(into, 0, sizeof *into);
    into->sin_family = AF_INET;
    into->sin_port = htons(port);
    if (inet_pton(AF_INET, address, &into->sin_addr) != 1) {
        return fail(-1, EINVAL);
    }
    return 0;
}

int listen_on(const char *address, uint16_t *port)
{
    struct sockaddr_in name;
    socklen_t size = sizeof name;
    if (socket_address(address, 0, &name) != 0) {
        return -1;
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -1;
    }
    if (bind(fd, (struct sockaddr *)&name, size) != 0 || listen(fd, SOMAXCONN) != 0 ||
        getsockname(fd, (struct sockaddr *)&name, &size) != 0) {
        return fail(fd, errno);
    }
    *port = ntohs(name.sin_port);
    return fd;
}

int accept_until(int listener, int64_t deadline)
{
    for (;;) {
        if (wait_for(listener, POLLIN, deadline) != 0) {
            return -1;
        }
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            tune(fd);
            return fd;
        }
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
            return -1;
        }
    }
}

static int connect_once(const struct sockaddr_in *name, int64_t deadline)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -1;
    }
    if (connect(fd, (const struct sockaddr *)name, sizeof *name) != 0) {
        int reason = errno;
        socklen_t size = sizeof reason;
        if (reason != EINPROGRESS) {
            return fail(fd, reason);
        }
        if (wait_for(fd, POLLOUT, deadline) != 0) {
            return fail(fd, ETIMEDOUT);
        }
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &reason, &size) != 0 || reason != 0) {
            return fail(fd, reason);
        }
    }
    tune(fd);
    return fd;
}

/* A rank dials before the other listens (or long after it is gone): it cannot know, and goes on. */
int connect_until(const char *address, uint16_t port, int64_t deadline)
{
    struct sockaddr_in name;
    if (socket_address(address, port, &name) != 0) {
        return -1;
    }
    for (;;) {
        int fd = connect_once(&name, deadline);
        if (fd >= 0) {
            return fd;
        }
        int64_t left = deadline - now_ms();
        if (left <= 0) {
            return fail(-1, ETIMEDOUT);
        }
        sleep_ms(left < 100 ? left : 100);
    }
}

int write_until(int fd, const void *data, size_t size, int64_t deadline)
{
    const char *next = data;
    while (size > 0) {
        ssize_t sent = send(fd, next, size, MSG_NOSIGNAL);
        if (sent > 0) {
            next += sent;
            size -= (size_t)sent;
        } else if (errno == EAGAIN) {
            if (wait_for(fd, POLLOUT, deadline) != 0) {
                return -1;
            }
        } else if (errno != EINTR) {
            return fail(-1, ECONNRESET);
        }
    }
    return 0;
}

int read_until(int fd, void *data, size_t size, int64_t deadline)
{
    char *next = data;
    while (size > 0) {
        ssize_t got = recv(fd, next, size, 0);
        if (got > 0) {
            next += got;
            size -= (size_t)got;
        } else if (got == 0) {
            return fail(-1, ECONNRESET);
        } else if (errno == EAGAIN) {
            if (wait_for(fd, POLLIN, deadline) != 0) {
                return -1;
            }
        } else if (errno != EINTR) {
            return fail(-1, ECONNRESET);
        }
    }
    return 0;
}

/* Whether the other side has closed, with nothing left to read. */
int has_ended(int fd)
{
    char byte;
    ssize_t got = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
}
