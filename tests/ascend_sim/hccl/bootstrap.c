/* The birth of a communicator: from root info to one socket per pair of ranks and direction.
 *
 * Nobody has a communicator before all ranks have one. Every rank says hello to the root, the
 * root answers with the table of all, the ranks link to each other (the higher dials the lower),
 * say so, and wait for the root's word. Up to the deadline a missing rank is only a late one.
 *
 * HCCL does the last part over the NPUs' own network; the order and what blocks are the same. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

typedef struct hello {
    unsigned char identity[IDENTITY_BYTES];
    uint32_t ranks;
    uint32_t rank;
    int32_t device;
    uint32_t port;
    char address[TEXT_BYTES];
    char host[TEXT_BYTES];
} hello;

typedef struct link_hello {
    unsigned char identity[IDENTITY_BYTES];
    uint32_t rank;
    uint32_t direction; /* of the data, seen by the rank that dials */
} link_hello;

typedef struct session {
    sim_comm *comm;
    const root_address *root;
    int64_t deadline;
    int listener;  /* of this rank, for its peers */
    hello *table;  /* one per rank */
    int *controls; /* in the root: to every rank; in the others [0] leads to the root; else -1 */
} session;

/* What a rank makes of a peer that went away while the communicator was set up. */
static HcclResult lost(const session *self)
{
    if (errno == ETIMEDOUT) {
        return HCCL_E_TIMEOUT;
    }
    if (peer_death() == PEER_DEATH_NOTICED) {
        return HCCL_E_TCP_TRANSFER;
    }
    while (now_ms() < self->deadline) {
        sleep_ms(LOOK_AROUND_MS);
    }
    return HCCL_E_TIMEOUT;
}

static HcclResult refused(const char *why, uint32_t rank)
{
    sim_set_error("simulated HCCL: rank %u: %s", rank, why);
    fprintf(stderr, "simulated HCCL: rank %u: %s\n", rank, why);
    return HCCL_E_PARA;
}

static void host_name(char into[TEXT_BYTES])
{
    char name[TEXT_BYTES] = "";
    gethostname(name, sizeof name - 1);
    snprintf(into, TEXT_BYTES, "%s", sim_knob("SIM_HOST_ID", name));
}

static hello own_hello(const session *self, uint16_t port)
{
    hello own = {.ranks = self->comm->ranks,
                 .rank = self->comm->rank,
                 .device = self->comm->device,
                 .port = port};
    memcpy(own.identity, self->root->identity, IDENTITY_BYTES);
    snprintf(own.address, sizeof own.address, "%s", interface_address());
    host_name(own.host);
    return own;
}

/* Two ranks on one device of one host: HCCL cannot, so neither can the simulator. */
static HcclResult check_devices(const session *self)
{
    const hello *table = self->table;
    if (sim_knob_int("SIM_HCCL_ALLOW_SAME_DEVICE", 0) != 0) {
        return HCCL_SUCCESS;
    }
    for (uint32_t a = 0; a < self->comm->ranks; a++) {
        for (uint32_t b = a + 1; b < self->comm->ranks; b++) {
            if (table[a].device == table[b].device && strcmp(table[a].host, table[b].host) == 0) {
                return refused(
                    "two ranks on one device of one host (SIM_HOST_ID, SIM_HCCL_ALLOW_SAME_DEVICE)",
                    b);
            }
        }
    }
    return HCCL_SUCCESS;
}

/* Root: one newcomer. Strangers (a stale or foreign dial) are sent away without a word. */
static HcclResult admit(session *self, int fd, uint32_t *present)
{
    hello theirs;
    if (read_until(fd, &theirs, sizeof theirs, self->deadline) != 0 ||
        memcmp(theirs.identity, self->root->identity, IDENTITY_BYTES) != 0) {
        close(fd);
        return HCCL_SUCCESS;
    }
    if (theirs.ranks != self->comm->ranks || theirs.rank >= self->comm->ranks) {
        close(fd);
        return refused("the ranks do not agree on how many they are", theirs.rank);
    }
    if (theirs.rank == self->comm->rank || self->controls[theirs.rank] >= 0) {
        close(fd);
        return refused("two processes have the same rank", theirs.rank);
    }
    self->table[theirs.rank] = theirs;
    self->controls[theirs.rank] = fd;
    (*present)++;
    return HCCL_SUCCESS;
}

static HcclResult gather_as_root(session *self, int root_listener)
{
    HcclResult result = HCCL_SUCCESS;
    uint32_t present = 1;
    while (present < self->comm->ranks && result == HCCL_SUCCESS) {
        int fd = accept_until(root_listener, self->deadline);
        if (fd < 0) {
            return HCCL_E_TIMEOUT;
        }
        result = admit(self, fd, &present);
    }
    if (result == HCCL_SUCCESS) {
        result = check_devices(self);
    }
    for (uint32_t rank = 0; rank < self->comm->ranks; rank++) {
        int fd = self->controls[rank];
        if (fd >= 0 && write_until(fd, &result, sizeof result, self->deadline) == 0 &&
            result == HCCL_SUCCESS) {
            write_until(fd, self->table, self->comm->ranks * sizeof *self->table, self->deadline);
        }
    }
    return result;
}

static HcclResult gather_as_member(session *self)
{
    HcclResult result = HCCL_SUCCESS;
    const hello *own = &self->table[self->comm->rank];
    int fd = connect_until(self->root->address, (uint16_t)self->root->port, self->deadline);
    if (fd < 0) {
        return HCCL_E_TIMEOUT;
    }
    self->controls[0] = fd;
    if (write_until(fd, own, sizeof *own, self->deadline) != 0 ||
        read_until(fd, &result, sizeof result, self->deadline) != 0) {
        return lost(self);
    }
    if (result != HCCL_SUCCESS) {
        return refused("the root refused the communicator", self->comm->rank);
    }
    if (read_until(fd, self->table, self->comm->ranks * sizeof *self->table, self->deadline) != 0) {
        return lost(self);
    }
    return HCCL_SUCCESS;
}

/* Seen from the rank that dials: its SENDING socket is the other's RECEIVING one. */
static HcclResult dial(session *self, uint32_t peer)
{
    const hello *theirs = &self->table[peer];
    for (uint32_t direction = SENDING; direction <= RECEIVING; direction++) {
        link_hello word = {.rank = self->comm->rank, .direction = direction};
        memcpy(word.identity, self->root->identity, IDENTITY_BYTES);
        int fd = connect_until(theirs->address, (uint16_t)theirs->port, self->deadline);
        if (fd < 0) {
            return HCCL_E_TIMEOUT;
        }
        self->comm->sockets[2 * peer + direction] = fd;
        if (write_until(fd, &word, sizeof word, self->deadline) != 0) {
            return lost(self);
        }
    }
    return HCCL_SUCCESS;
}

static int someone_left(const session *self)
{
    for (uint32_t rank = 0; rank < self->comm->ranks; rank++) {
        if (self->controls[rank] >= 0 && has_ended(self->controls[rank])) {
            return 1;
        }
    }
    return 0;
}

static HcclResult take_link(session *self, int fd, uint32_t *missing)
{
    link_hello word;
    if (read_until(fd, &word, sizeof word, self->deadline) != 0 ||
        memcmp(word.identity, self->root->identity, IDENTITY_BYTES) != 0 ||
        word.rank <= self->comm->rank || word.rank >= self->comm->ranks ||
        word.direction > RECEIVING) {
        close(fd);
        return HCCL_SUCCESS;
    }
    int *slot =
        &self->comm->sockets[2 * word.rank + (word.direction == SENDING ? RECEIVING : SENDING)];
    if (*slot >= 0) {
        close(fd);
        return refused("a rank linked twice", word.rank);
    }
    *slot = fd;
    (*missing)--;
    return HCCL_SUCCESS;
}

static HcclResult link_ranks(session *self)
{
    uint32_t missing = 2 * (self->comm->ranks - 1 - self->comm->rank);
    HcclResult result = HCCL_SUCCESS;
    for (uint32_t peer = 0; peer < self->comm->rank && result == HCCL_SUCCESS; peer++) {
        result = dial(self, peer);
    }
    while (missing > 0 && result == HCCL_SUCCESS) {
        int64_t look_up = now_ms() + LOOK_AROUND_MS;
        int fd = accept_until(self->listener, look_up < self->deadline ? look_up : self->deadline);
        if (fd >= 0) {
            result = take_link(self, fd, &missing);
        } else if (now_ms() >= self->deadline) {
            result = HCCL_E_TIMEOUT;
        } else if (peer_death() == PEER_DEATH_NOTICED && someone_left(self)) {
            result = HCCL_E_TCP_TRANSFER;
        }
    }
    return result;
}

/* All say "linked" to the root, the root says "go" to all. */
static HcclResult agree_as_root(session *self)
{
    char word = 'G';
    for (uint32_t rank = 0; rank < self->comm->ranks; rank++) {
        char linked;
        if (self->controls[rank] >= 0 &&
            read_until(self->controls[rank], &linked, 1, self->deadline) != 0) {
            return lost(self);
        }
    }
    for (uint32_t rank = 0; rank < self->comm->ranks; rank++) {
        if (self->controls[rank] >= 0 &&
            write_until(self->controls[rank], &word, 1, self->deadline) != 0) {
            return lost(self);
        }
    }
    return HCCL_SUCCESS;
}

static HcclResult agree_as_member(session *self)
{
    char word = 'L';
    if (write_until(self->controls[0], &word, 1, self->deadline) != 0 ||
        read_until(self->controls[0], &word, 1, self->deadline) != 0) {
        return lost(self);
    }
    return HCCL_SUCCESS;
}

static HcclResult run(session *self, int root_listener)
{
    uint16_t port = 0;
    self->listener = listen_on(interface_address(), &port);
    if (self->listener < 0) {
        return HCCL_E_SYSCALL;
    }
    self->table[self->comm->rank] = own_hello(self, port);
    HcclResult result =
        root_listener >= 0 ? gather_as_root(self, root_listener) : gather_as_member(self);
    if (result == HCCL_SUCCESS) {
        result = link_ranks(self);
    }
    if (result == HCCL_SUCCESS) {
        result = root_listener >= 0 ? agree_as_root(self) : agree_as_member(self);
    }
    return result;
}

HcclResult bootstrap(sim_comm *comm, const root_address *root, int listener, int64_t deadline)
{
    session self = {.comm = comm, .root = root, .deadline = deadline, .listener = -1};
    self.table = calloc(comm->ranks, sizeof *self.table);
    self.controls = malloc(comm->ranks * sizeof *self.controls);
    HcclResult result = HCCL_E_MEMORY;
    if (self.table != NULL && self.controls != NULL) {
        memset(self.controls, -1, comm->ranks * sizeof *self.controls);
        result = run(&self, listener);
        for (uint32_t rank = 0; rank < comm->ranks; rank++) {
            if (self.controls[rank] >= 0) {
                close(self.controls[rank]);
            }
        }
    }
    if (self.listener >= 0) {
        close(self.listener);
    }
    free(self.table);
    free(self.controls);
    return result;
}
