/* The wire: many messages at once, in both directions, to many peers.
 *
 * Per peer and direction there is one lane, and messages go over a lane one after the other;
 * lanes never wait for each other. A message is: the receiver says "clear" with the size it
 * expects, the sender answers with a header, then the bytes follow. Sizes or operations that do not
 * agree are an error on both sides. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "internal.h"

enum word { CLEAR_TO_SEND = 0x434c5253, HEADER = 0x48454144, MISMATCH = 0x4d49534d };

typedef struct frame {
    uint32_t word;
    uint32_t kind;
    uint64_t bytes;
} frame;

/* One system call moves this much at most: a millisecond or so of work. */
enum { MOST_AT_ONCE = 1 << 20 };

/* A sender listens for "clear", then speaks; a receiver speaks "clear", then listens. */
enum phase { CLEARING, HEADING, MOVING };

typedef struct lane {
    const transfer *current; /* NULL: nothing left */
    enum phase phase;
    frame frame;
    uint64_t moved; /* of the frame, or of the bytes */
    int silent;     /* the peer is gone, and the knob says that nobody may notice */
} lane;

enum verdict {
    RUNNING,
    FINISHED,
    PEER_LOST,
    SIZES_DIFFER,
    TIMED_OUT,
    CANCELLED,
    CLOSING,
    BAD_MEMORY
};

typedef struct traffic {
    sim_comm *comm;
    uint32_t kind;
    const transfer *list;
    size_t count;
    lane *lanes; /* [peer][direction] */
    struct pollfd *polled;
    uint32_t lanes_open;
    int64_t last_progress;
} traffic;

static int speaks(const lane *self)
{
    int sending = self->current->direction == SENDING;
    return self->phase == CLEARING ? !sending : sending;
}

static void *target(lane *self, uint64_t *size)
{
    if (self->phase == MOVING) {
        const uint64_t left = self->current->bytes - self->moved;
        *size = left < MOST_AT_ONCE ? left : MOST_AT_ONCE;
        return self->current->data + self->moved;
    }
    *size = sizeof self->frame - self->moved;
    return (char *)&self->frame + self->moved;
}

static const transfer *next_on_lane(const traffic *self, const transfer *after,
                                    uint32_t lane_number)
{
    for (const transfer *item = after; item < self->list + self->count; item++) {
        if (2 * item->peer + item->direction == lane_number) {
            return item;
        }
    }
    return NULL;
}

static void begin_phase(traffic *self, lane *mine, enum phase phase)
{
    mine->phase = phase;
    mine->moved = 0;
    if (phase != MOVING && speaks(mine)) {
        mine->frame.word = phase == CLEARING ? CLEAR_TO_SEND : HEADER;
        mine->frame.kind = self->kind;
        mine->frame.bytes = mine->current->bytes;
    }
}

static void begin_message(traffic *self, uint32_t number, const transfer *message)
{
    lane *mine = &self->lanes[number];
    mine->current = message;
    if (message == NULL) {
        self->lanes_open--;
    } else {
        begin_phase(self, mine, CLEARING);
    }
}

static void end_message(traffic *self, uint32_t number)
{
    const transfer *done = self->lanes[number].current;
    if (done->direction == RECEIVING && done->bytes > 0 && knob_file_exists("SIM_HCCL_CORRUPT")) {
        done->data[done->bytes / 2] ^= 0x10;
    }
    begin_message(self, number, next_on_lane(self, done + 1, number));
}

static const char *kind_name(uint32_t kind)
{
    static const char *const names[] = {"nothing", "point to point", "broadcast", "all-gather",
                                        "all-reduce"};
    return kind < sizeof names / sizeof *names ? names[kind] : "nonsense";
}

/* What was heard, against what this side is about to do. */
static enum verdict judge(const traffic *self, const lane *mine)
{
    const uint32_t expected = mine->phase == CLEARING ? CLEAR_TO_SEND : HEADER;
    if (mine->frame.word == expected && mine->frame.kind == self->kind &&
        mine->frame.bytes == mine->current->bytes) {
        return RUNNING;
    }
    if (mine->phase == CLEARING) {
        frame answer = {.word = MISMATCH, .kind = self->kind, .bytes = mine->current->bytes};
        int fd = self->comm->sockets[2 * mine->current->peer + SENDING];
        /* An empty socket takes 16 bytes; if not, the peer is lost anyway. */
        (void)!send(fd, &answer, sizeof answer, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    fprintf(stderr,
            "simulated HCCL: rank %u and its peer %u do not agree: %llu bytes of %s here, %llu of "
            "%s there\n",
            self->comm->rank, mine->current->peer, (unsigned long long)mine->current->bytes,
            kind_name(self->kind), (unsigned long long)mine->frame.bytes,
            kind_name(mine->frame.kind));
    return SIZES_DIFFER;
}

static enum verdict end_phase(traffic *self, uint32_t number)
{
    lane *mine = &self->lanes[number];
    if (mine->phase != MOVING && !speaks(mine)) {
        enum verdict verdict = judge(self, mine);
        if (verdict != RUNNING) {
            return verdict;
        }
    }
    if (mine->phase == CLEARING) {
        begin_phase(self, mine, HEADING);
    } else if (mine->phase == HEADING && mine->current->bytes > 0) {
        begin_phase(self, mine, MOVING);
    } else {
        end_message(self, number);
    }
    return RUNNING;
}

/* Moves a lane as far as it goes without blocking, but not so far that nobody looks around. */
static enum verdict advance(traffic *self, uint32_t number)
{
    lane *mine = &self->lanes[number];
    for (int turn = 0; turn < 32 && mine->current != NULL; turn++) {
        uint64_t size;
        char *data = target(mine, &size);
        int fd = self->comm->sockets[number];
        ssize_t moved = speaks(mine) ? send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT)
                                     : recv(fd, data, size, MSG_DONTWAIT);
        if (moved < 0 && (errno == EAGAIN || errno == EINTR)) {
            return RUNNING;
        }
        if (moved < 0 && errno == EFAULT) {
            return BAD_MEMORY;
        }
        if (moved <= 0) {
            return PEER_LOST;
        }
        self->last_progress = now_ms();
        mine->moved += (uint64_t)moved;
        if (mine->moved == (mine->phase == MOVING ? mine->current->bytes : sizeof mine->frame)) {
            enum verdict verdict = end_phase(self, number);
            if (verdict != RUNNING) {
                return verdict;
            }
        }
    }
    return RUNNING;
}

/* A lane whose peer is gone: an error at once, or silence until the time-out, or for ever. */
static enum verdict lose(lane *mine)
{
    if (peer_death() == PEER_DEATH_NOTICED) {
        return PEER_LOST;
    }
    mine->silent = 1;
    return RUNNING;
}

static enum verdict look_around(const traffic *self)
{
    const int64_t limit = self->comm->execution_timeout_ms;
    if (sim_task_cancelled()) {
        return CANCELLED;
    }
    if (atomic_load(&self->comm->closing)) {
        return CLOSING;
    }
    if (limit > 0 && now_ms() - self->last_progress >= limit && peer_death() != PEER_DEATH_NEVER) {
        return TIMED_OUT;
    }
    return RUNNING;
}

static void wait_for_lanes(traffic *self)
{
    nfds_t watched = 0;
    for (uint32_t number = 0; number < 2 * self->comm->ranks; number++) {
        lane *mine = &self->lanes[number];
        if (mine->current != NULL && !mine->silent) {
            self->polled[watched].fd = self->comm->sockets[number];
            self->polled[watched].events = speaks(mine) ? POLLOUT : POLLIN;
            watched++;
        }
    }
    poll(self->polled, watched, LOOK_AROUND_MS);
}

static enum verdict run(traffic *self)
{
    enum verdict verdict = RUNNING;
    self->last_progress = now_ms();
    while (verdict == RUNNING && self->lanes_open > 0) {
        for (uint32_t number = 0; number < 2 * self->comm->ranks && verdict == RUNNING; number++) {
            lane *mine = &self->lanes[number];
            if (mine->current != NULL && !mine->silent) {
                verdict = advance(self, number);
                verdict = verdict == PEER_LOST ? lose(mine) : verdict;
            }
        }
        if (verdict == RUNNING) {
            verdict = look_around(self);
        }
        if (verdict == RUNNING && self->lanes_open > 0) {
            wait_for_lanes(self);
        }
    }
    return verdict == RUNNING ? FINISHED : verdict;
}

/* *failure: what HcclGetCommAsyncError is to say, and HCCL_SUCCESS when only the stream knows. */
static aclError conclude(const sim_comm *comm, enum verdict verdict, HcclResult *failure)
{
    *failure = HCCL_SUCCESS;
    if (verdict == FINISHED || verdict == CLOSING) {
        return ACL_SUCCESS;
    }
    sim_trace("hccl.failure", "comm=%llu verdict=%d", (unsigned long long)comm->number,
              (int)verdict);
    switch (verdict) {
    case CANCELLED:
        return ACL_ERROR_RT_TASK_ABORTED;
    case TIMED_OUT:
        return ACL_ERROR_RT_NOTIFY_TIMEOUT;
    case SIZES_DIFFER:
        *failure = HCCL_E_PARA;
        break;
    case PEER_LOST:
        *failure = HCCL_E_REMOTE;
        break;
    default: /* BAD_MEMORY: the tensor was freed under the operation */
        *failure = HCCL_E_INTERNAL;
        break;
    }
    return ACL_ERROR_RT_AICPU_EXCEPTION;
}

aclError exchange(sim_comm *comm, enum kind_of_operation kind, const transfer *list, size_t count,
                  HcclResult *failure)
{
    traffic self = {.comm = comm, .kind = kind, .list = list, .count = count};
    enum verdict verdict = BAD_MEMORY;
    self.lanes = calloc(2 * comm->ranks, sizeof *self.lanes);
    self.polled = calloc(2 * comm->ranks, sizeof *self.polled);
    if (self.lanes != NULL && self.polled != NULL) {
        self.lanes_open = 2 * comm->ranks;
        for (uint32_t number = 0; number < 2 * comm->ranks; number++) {
            begin_message(&self, number, next_on_lane(&self, list, number));
        }
        verdict = run(&self);
    }
    free(self.lanes);
    free(self.polled);
    return conclude(comm, verdict, failure);
}
