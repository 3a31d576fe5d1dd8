/* Communicators: made, named, asked for their health, destroyed.
 *
 * A handle is looked up before it is used, so a NULL or a destroyed one is an error code and
 * never a crash. Queued operations keep the communicator's memory alive, not its sockets. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

enum { MIB = 1 << 20, NOT_SET = -1, MOST_RANKS = 4096 };

/* The part of HcclCommConfig that the simulator reads; only offsets matter, what follows is longer.
 */
typedef struct comm_config {
    char header[24];
    int32_t buffer_mib;
    int32_t deterministic;
    char name[COMM_NAME_BYTES];
    char udi[128];
    uint32_t expansion_mode;
    uint32_t traffic_class;
    uint32_t service_level;
    uint32_t world_rank;
    uint64_t job;
    uint8_t zero_copy;
    int32_t execution_timeout_s;
} comm_config;

_Static_assert(offsetof(comm_config, execution_timeout_s) == 316, "the layout of HcclCommConfig");

/* Live communicators. */
enum { MOST_COMMUNICATORS = 1024 };
static sim_comm *living[MOST_COMMUNICATORS];
static pthread_mutex_t living_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint_fast64_t last_number;

static int enlist(sim_comm *comm)
{
    int found = 0;
    pthread_mutex_lock(&living_lock);
    for (size_t i = 0; i < MOST_COMMUNICATORS && !found; i++) {
        if (living[i] == NULL) {
            living[i] = comm;
            found = 1;
        }
    }
    pthread_mutex_unlock(&living_lock);
    return found;
}

static int strike_off(const sim_comm *comm)
{
    int found = 0;
    pthread_mutex_lock(&living_lock);
    for (size_t i = 0; i < MOST_COMMUNICATORS && !found; i++) {
        if (living[i] == comm) {
            living[i] = NULL;
            found = 1;
        }
    }
    pthread_mutex_unlock(&living_lock);
    return found;
}

/* The communicator of a handle, held until comm_release; NULL when there is none such. */
sim_comm *comm_acquire(HcclComm handle)
{
    sim_comm *found = NULL;
    pthread_mutex_lock(&living_lock);
    for (size_t i = 0; handle != NULL && i < MOST_COMMUNICATORS && found == NULL; i++) {
        if (living[i] == handle) {
            found = living[i];
            atomic_fetch_add(&found->references, 1);
        }
    }
    pthread_mutex_unlock(&living_lock);
    return found;
}

void comm_release(sim_comm *comm)
{
    if (atomic_fetch_sub(&comm->references, 1) > 1) {
        return;
    }
    for (uint32_t i = 0; i < 2 * comm->ranks; i++) {
        if (comm->sockets[i] >= 0) {
            close(comm->sockets[i]);
        }
    }
    pthread_mutex_destroy(&comm->lock);
    pthread_cond_destroy(&comm->changed);
    free(comm->sockets);
    free(comm);
}

static sim_comm *new_comm(uint32_t ranks, uint32_t rank, const comm_config *config)
{
    sim_comm *comm = calloc(1, sizeof *comm);
    int *sockets = malloc(2 * ranks * sizeof *sockets);
    if (comm == NULL || sockets == NULL) {
        free(comm);
        free(sockets);
        return NULL;
    }
    memset(sockets, -1, 2 * ranks * sizeof *sockets);
    comm->sockets = sockets;
    comm->number = atomic_fetch_add(&last_number, 1) + 1;
    comm->ranks = ranks;
    comm->rank = rank;
    comm->device = sim_current_device();
    atomic_init(&comm->references, 1);
    pthread_mutex_init(&comm->lock, NULL);
    pthread_cond_init(&comm->changed, NULL);
    int64_t buffer_mib = sim_knob_int("HCCL_BUFFSIZE", 200);
    int64_t timeout_ms = sim_knob_int("HCCL_EXEC_TIMEOUT", 1836) * 1000;
    if (config != NULL && config->buffer_mib != NOT_SET) {
        buffer_mib = (uint32_t)config->buffer_mib;
    }
    if (config != NULL && config->execution_timeout_s != NOT_SET) {
        timeout_ms = (int64_t)config->execution_timeout_s * 1000;
    }
    comm->buffer_bytes = 2 * buffer_mib * MIB; /* one buffer in, one out */
    comm->execution_timeout_ms = sim_knob_int("SIM_HCCL_EXEC_TIMEOUT_MS", timeout_ms);
    if (config != NULL && config->name[0] != '\0') {
        snprintf(comm->name, sizeof comm->name, "%.*s", COMM_NAME_BYTES - 1, config->name);
    } else {
        snprintf(comm->name, sizeof comm->name, "simulated_hccl_%d_%llu", (int)getpid(),
                 (unsigned long long)comm->number);
    }
    return comm;
}

/* SIM_HCCL_INIT_BLOCKS: creation that hangs for a reason that no peer knows. */
static HcclResult wait_while_blocked(int64_t deadline)
{
    while (knob_file_exists("SIM_HCCL_INIT_BLOCKS")) {
        if (now_ms() >= deadline) {
            return HCCL_E_TIMEOUT;
        }
        sleep_ms(LOOK_AROUND_MS);
    }
    return HCCL_SUCCESS;
}

static HcclResult create(uint32_t ranks, const void *root_info, uint32_t rank,
                         const comm_config *config, HcclComm *into)
{
    root_address root;
    if (root_info == NULL || into == NULL) {
        return HCCL_E_PTR;
    }
    if (ranks == 0 || ranks > MOST_RANKS || rank >= ranks || !read_root(root_info, &root)) {
        sim_set_error("simulated HCCL: rank %u of %u, or root info that HcclGetRootInfo never gave",
                      rank, ranks);
        return HCCL_E_PARA;
    }
    if (sim_current_device() < 0) {
        sim_set_error("simulated HCCL: a communicator needs a device set in its thread");
        return HCCL_E_RUNTIME;
    }
    sim_comm *comm = new_comm(ranks, rank, config);
    if (comm == NULL) {
        return HCCL_E_MEMORY;
    }
    sim_trace("HcclCommInit", "comm=%llu name=%s rank=%u ranks=%u device=%d world_rank=%u",
              (unsigned long long)comm->number, comm->name, rank, ranks, comm->device,
              config != NULL ? config->world_rank : 0);
    int64_t deadline = now_ms() + sim_knob_int("HCCL_CONNECT_TIMEOUT", 120) * 1000;
    int listener = claim_root(&root);
    HcclResult result = wait_while_blocked(deadline);
    if (result == HCCL_SUCCESS) {
        result = bootstrap(comm, &root, listener, deadline);
    }
    if (listener >= 0) {
        close(listener);
    }
    if (result == HCCL_SUCCESS && !enlist(comm)) {
        sim_not_simulated("more than 1024 communicators in one process");
    }
    sim_trace("HcclCommInit.done", "comm=%llu result=%d", (unsigned long long)comm->number, result);
    if (result != HCCL_SUCCESS) {
        sim_set_error("simulated HCCL: communicator creation failed with %d", result);
        comm_release(comm);
        return result;
    }
    *into = comm;
    return HCCL_SUCCESS;
}

SIM_API HcclResult HcclCommInitRootInfo(uint32_t ranks, const void *root_info, uint32_t rank,
                                        HcclComm *into)
{
    return create(ranks, root_info, rank, NULL, into);
}

SIM_API HcclResult HcclCommInitRootInfoConfig(uint32_t ranks, const void *root_info, uint32_t rank,
                                              const void *config, HcclComm *into)
{
    return create(ranks, root_info, rank, config, into);
}

/* Waits for the operation that is on the wire, which ends because it sees `closing`. What becomes
 * of such an operation on hardware is not known: here it is dropped, and its stream reads as
 * successful, which is the reading that is most dangerous to trust. */
SIM_API HcclResult HcclCommDestroy(HcclComm handle)
{
    sim_comm *comm = comm_acquire(handle);
    if (comm == NULL) {
        return HCCL_E_PTR;
    }
    if (!strike_off(comm)) { /* two threads at once: the other one destroys it */
        comm_release(comm);
        return HCCL_E_PTR;
    }
    atomic_store(&comm->closing, 1);
    pthread_mutex_lock(&comm->lock);
    while (comm->busy) {
        pthread_cond_wait(&comm->changed, &comm->lock);
    }
    for (uint32_t i = 0; i < 2 * comm->ranks; i++) {
        if (comm->sockets[i] >= 0) {
            close(comm->sockets[i]);
            comm->sockets[i] = -1;
        }
    }
    if (comm->accounted) {
        sim_account(comm->device, -comm->buffer_bytes);
        comm->accounted = 0;
    }
    pthread_mutex_unlock(&comm->lock);
    sim_trace("HcclCommDestroy", "comm=%llu", (unsigned long long)comm->number);
    comm_release(comm); /* what comm_acquire took */
    comm_release(comm); /* the registry's */
    return HCCL_SUCCESS;
}

/* The buffers that HCCL allocates on the device when a communicator is first used. */
HcclResult comm_account(sim_comm *comm)
{
    aclError error = ACL_SUCCESS;
    pthread_mutex_lock(&comm->lock);
    if (!comm->accounted && !atomic_load(&comm->closing)) {
        error = sim_account(comm->device, comm->buffer_bytes);
        comm->accounted = error == ACL_SUCCESS;
    }
    pthread_mutex_unlock(&comm->lock);
    if (error == ACL_SUCCESS) {
        return HCCL_SUCCESS;
    }
    sim_set_error("simulated HCCL: no room for %lld bytes of communicator buffers on device %d",
                  (long long)comm->buffer_bytes, comm->device);
    return HCCL_E_MEMORY;
}

/* The wire is for one operation at a time. Whether it is the caller's now, until comm_leave; if
 * not, *outcome is what becomes of the operation. */
int comm_enter(sim_comm *comm, aclError *outcome)
{
    int entered = 0;
    pthread_mutex_lock(&comm->lock);
    while (comm->busy && !atomic_load(&comm->closing) && !sim_task_cancelled()) {
        struct timespec wake;
        clock_gettime(CLOCK_REALTIME, &wake);
        wake.tv_nsec += LOOK_AROUND_MS * 1000000L;
        wake.tv_sec += wake.tv_nsec / 1000000000L;
        wake.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&comm->changed, &comm->lock, &wake);
    }
    if (sim_task_cancelled()) {
        *outcome = ACL_ERROR_RT_TASK_ABORTED;
    } else if (atomic_load(&comm->closing)) {
        *outcome = ACL_SUCCESS;
    } else if (comm->failure != ACL_SUCCESS) {
        *outcome = comm->failure;
    } else {
        comm->busy = 1;
        entered = 1;
    }
    pthread_mutex_unlock(&comm->lock);
    return entered;
}

void comm_leave(sim_comm *comm, aclError outcome)
{
    pthread_mutex_lock(&comm->lock);
    comm->busy = 0;
    if (outcome != ACL_SUCCESS) {
        comm->failure = outcome;
    }
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->lock);
}

void comm_report(sim_comm *comm, HcclResult error)
{
    if (sim_knob_int("SIM_HCCL_NO_ASYNC_ERR", 0) == 0) {
        int none = HCCL_SUCCESS;
        atomic_compare_exchange_strong(&comm->asynchronous_error, &none, error);
    }
}

/* Only an error is traced: torch_npu asks this every time somebody polls a work. */
SIM_API HcclResult HcclGetCommAsyncError(HcclComm handle, HcclResult *into)
{
    sim_comm *comm = into == NULL ? NULL : comm_acquire(handle);
    if (comm == NULL) {
        return HCCL_E_PTR;
    }
    *into = atomic_load(&comm->asynchronous_error);
    if (*into != HCCL_SUCCESS) {
        sim_trace("HcclGetCommAsyncError", "comm=%llu error=%d", (unsigned long long)comm->number,
                  *into);
    }
    comm_release(comm);
    return HCCL_SUCCESS;
}

SIM_API HcclResult HcclGetCommName(HcclComm handle, char *into)
{
    sim_comm *comm = into == NULL ? NULL : comm_acquire(handle);
    if (comm == NULL) {
        return HCCL_E_PTR;
    }
    memcpy(into, comm->name, COMM_NAME_BYTES);
    comm_release(comm);
    return HCCL_SUCCESS;
}

/* After aclrtDeviceTaskAbort: fine when no operation was torn apart, else there is no way back. */
SIM_API HcclResult HcclCommResume(HcclComm handle)
{
    sim_comm *comm = comm_acquire(handle);
    if (comm == NULL) {
        return HCCL_E_PTR;
    }
    pthread_mutex_lock(&comm->lock);
    HcclResult result = comm->failure == ACL_SUCCESS ? HCCL_SUCCESS : HCCL_E_INTERNAL;
    pthread_mutex_unlock(&comm->lock);
    sim_trace("HcclCommResume", "comm=%llu result=%d", (unsigned long long)comm->number, result);
    comm_release(comm);
    return result;
}
