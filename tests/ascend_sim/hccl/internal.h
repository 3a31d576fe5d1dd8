/* What the files of the simulated libhccl.so share.
 *
 * This is a SIMULATOR of HCCL. Ranks talk over TCP loopback, one socket per pair of ranks and
 * direction, and every message is a rendezvous: nothing leaves the sender before the receiver has
 * said that it is ready and for how many bytes. Nobody may rely on a message fitting a buffer. */
#ifndef NETLOADER_ASCEND_SIM_HCCL_INTERNAL_H
#define NETLOADER_ASCEND_SIM_HCCL_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "../include/sim.h"

typedef int32_t HcclResult;
typedef int32_t HcclDataType;
typedef void *HcclComm;

enum {
    HCCL_SUCCESS = 0,
    HCCL_E_PARA = 1,
    HCCL_E_PTR = 2,
    HCCL_E_MEMORY = 3,
    HCCL_E_INTERNAL = 4,
    HCCL_E_NOT_SUPPORT = 5,
    HCCL_E_SYSCALL = 8,
    HCCL_E_TIMEOUT = 9,
    HCCL_E_TCP_CONNECT = 11,
    HCCL_E_TCP_TRANSFER = 13,
    HCCL_E_RUNTIME = 15,
    HCCL_E_REMOTE = 21,
};

enum {
    HCCL_DATA_TYPE_INT8 = 0,
    HCCL_DATA_TYPE_INT16 = 1,
    HCCL_DATA_TYPE_INT32 = 2,
    HCCL_DATA_TYPE_FP16 = 3,
    HCCL_DATA_TYPE_FP32 = 4,
    HCCL_DATA_TYPE_INT64 = 5,
    HCCL_DATA_TYPE_UINT64 = 6,
    HCCL_DATA_TYPE_UINT8 = 7,
    HCCL_DATA_TYPE_UINT16 = 8,
    HCCL_DATA_TYPE_UINT32 = 9,
    HCCL_DATA_TYPE_FP64 = 10,
    HCCL_DATA_TYPE_BFP16 = 11,
    HCCL_DATA_TYPE_FP8E4M3 = 15,
    HCCL_DATA_TYPE_FP8E5M2 = 16,
};

/* The stream's error for an operation that failed because of its peer. Which code hardware
 * reports is not known; this one is what CANN gives for a fault in a communication kernel. */
enum { ACL_ERROR_RT_AICPU_EXCEPTION = 507018 };

enum { HCCL_ROOT_INFO_BYTES = 4108, COMM_NAME_BYTES = 128, TEXT_BYTES = 64, IDENTITY_BYTES = 16 };

/* How often something that blocks looks around: sim.h asks for 50 ms. */
enum { LOOK_AROUND_MS = 50 };

/* SIM_HCCL_PEER_DEATH: how the end of a peer's socket shows. */
enum peer_death { PEER_DEATH_NOTICED, PEER_DEATH_TIMEOUT, PEER_DEATH_NEVER };

enum direction { SENDING = 0, RECEIVING = 1 };

/* What every message must agree on besides its size: real ranks hang when one of them broadcasts
 * and the other receives; the simulator says so instead. */
enum kind_of_operation { POINT_TO_POINT = 1, BROADCAST, ALL_GATHER, ALL_REDUCE };

typedef struct sim_comm {
    uint64_t number; /* names the communicator in the trace: 1, 2, ... per process */
    char name[COMM_NAME_BYTES];
    uint32_t ranks;
    uint32_t rank;
    int32_t device;
    int64_t buffer_bytes;
    int64_t execution_timeout_ms; /* 0: waits for ever */
    int *sockets;                 /* [peer][direction] */

    atomic_int references; /* the registry's one, and one per queued operation */
    atomic_int closing;
    atomic_int asynchronous_error;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    int busy;         /* an operation is on the wire */
    int accounted;    /* buffer_bytes are counted against the device */
    aclError failure; /* the wire is out of step: every later operation ends with this */
} sim_comm;

/* One message of an operation. */
typedef struct transfer {
    uint32_t peer;
    enum direction direction;
    char *data;
    uint64_t bytes;
} transfer;

/* clock.c */
int64_t now_ms(void);
void sleep_ms(int64_t duration);
int knob_file_exists(const char *knob);
enum peer_death peer_death(void);

/* sockets.c */
int listen_on(const char *address, uint16_t *port);
int accept_until(int listener, int64_t deadline);
int connect_until(const char *address, uint16_t port, int64_t deadline);
int write_until(int fd, const void *data, size_t size, int64_t deadline);
int read_until(int fd, void *data, size_t size, int64_t deadline);
int wait_readable(int fd, int64_t deadline);
int has_ended(int fd);

/* rootinfo.c */
typedef struct root_address {
    char magic[16];
    char address[TEXT_BYTES];
    uint32_t port;
    unsigned char identity[IDENTITY_BYTES];
} root_address;

const char *interface_address(void);
int read_root(const void *root_info, root_address *into);
int claim_root(const root_address *root);

/* bootstrap.c: fills comm->sockets; `listener` is the root's, or -1 in every other rank. */
HcclResult bootstrap(sim_comm *comm, const root_address *root, int listener, int64_t deadline);

/* communicator.c */
sim_comm *comm_acquire(HcclComm handle);
void comm_release(sim_comm *comm);
HcclResult comm_account(sim_comm *comm);
int comm_enter(sim_comm *comm, aclError *outcome);
void comm_leave(sim_comm *comm, aclError outcome);
void comm_report(sim_comm *comm, HcclResult error);

/* wire.c: runs on the stream's thread; *failure is for comm_report. */
aclError exchange(sim_comm *comm, enum kind_of_operation kind, const transfer *list, size_t count,
                  HcclResult *failure);

/* datatypes.c: the bytes of an element, 0 for what HCCL does not carry; and target = a (op) b. */
size_t element_bytes(HcclDataType type);
int can_reduce(HcclDataType type, int32_t operator_);
void reduce(HcclDataType type, int32_t operator_, void *target, const void *other, uint64_t count);

/* group.c: whether the calling thread collects messages between HcclGroupStart and End; if so the
 * message is kept, and *result says how that went. */
int group_collects(sim_comm *comm, aclrtStream stream, transfer message, HcclResult *result);

/* operations.c: queues messages as one operation; takes over the list. */
HcclResult submit_messages(sim_comm *comm, aclrtStream stream, transfer *list, size_t count);

#endif
