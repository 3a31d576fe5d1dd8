/* The operations: checked at once, then queued on the stream that was passed.
 *
 * A call returns before anything is sent; what the peer does shows on the stream and in
 * HcclGetCommAsyncError. Buffers are device memory of the communicator's device, or the call fails.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

typedef struct operation {
    sim_comm *comm;
    enum kind_of_operation kind;
    transfer *list;
    size_t count;
    /* collectives only */
    const char *source;
    char *target;
    char *scratch; /* one part per rank */
    uint64_t part_bytes;
    uint64_t elements;
    HcclDataType type;
    int32_t reduction;
} operation;

typedef struct HcclSendRecvItem {
    int32_t direction; /* 0: send, 1: receive */
    void *buffer;
    uint64_t count;
    HcclDataType type;
    uint32_t peer;
} HcclSendRecvItem;

/* Exported by libascendcl.so. */
extern aclError aclrtStreamGetId(aclrtStream stream, int32_t *id);

static int stream_number(aclrtStream stream)
{
    int32_t id = -1;
    aclrtStreamGetId(stream, &id);
    return id;
}

static void finish(const operation *self)
{
    if (self->kind == ALL_GATHER) {
        memmove(self->target + self->comm->rank * self->part_bytes, self->source, self->part_bytes);
    }
    if (self->kind == ALL_REDUCE) {
        memcpy(self->scratch + self->comm->rank * self->part_bytes, self->source, self->part_bytes);
        for (uint32_t rank = 1; rank < self->comm->ranks; rank++) {
            reduce(self->type, self->reduction, self->scratch,
                   self->scratch + rank * self->part_bytes, self->elements);
        }
        memcpy(self->target, self->scratch, self->part_bytes);
    }
}

/* A device needs its time to find out that something is wrong: the host has long done what
 * it does right after a launch (recording an event, above all) when the stream fails. */
static void let_the_host_go_on(int64_t begun)
{
    int64_t left = begun + LOOK_AROUND_MS - now_ms();
    if (left > 0) {
        sleep_ms(left);
    }
}

static aclError run(void *argument)
{
    operation *self = argument;
    aclError outcome = ACL_SUCCESS;
    const int64_t begun = now_ms();
    if (!comm_enter(self->comm, &outcome)) {
        return outcome;
    }
    HcclResult failure = HCCL_E_REMOTE;
    if (knob_file_exists("SIM_HCCL_FAIL")) {
        outcome = ACL_ERROR_RT_AICPU_EXCEPTION;
    } else {
        outcome = exchange(self->comm, self->kind, self->list, self->count, &failure);
    }
    if (outcome != ACL_SUCCESS) {
        let_the_host_go_on(begun);
        comm_report(self->comm, failure);
    } else if (!atomic_load(&self->comm->closing)) {
        finish(self);
    }
    comm_leave(self->comm, outcome);
    return outcome;
}

static void drop(void *argument)
{
    operation *self = argument;
    comm_release(self->comm);
    free(self->list);
    free(self->scratch);
    free(self);
}

static const char *name_of(enum kind_of_operation kind)
{
    switch (kind) {
    case BROADCAST:
        return "hccl.broadcast";
    case ALL_GATHER:
        return "hccl.all_gather";
    case ALL_REDUCE:
        return "hccl.all_reduce";
    default:
        return "hccl.point_to_point";
    }
}

/* Queues a copy of `draft`; takes over its list and scratch, whatever happens. */
static HcclResult submit(const operation *draft, aclrtStream stream)
{
    operation *self = malloc(sizeof *self);
    HcclResult result = self == NULL ? HCCL_E_MEMORY : comm_account(draft->comm);
    if (result != HCCL_SUCCESS) {
        free(self);
        free(draft->list);
        free(draft->scratch);
        return result;
    }
    *self = *draft;
    atomic_fetch_add(&self->comm->references, 1); /* given back by drop */
    sim_task task = {.name = name_of(self->kind), .run = run, .drop = drop, .argument = self};
    return sim_stream_push(stream, task) == ACL_SUCCESS ? HCCL_SUCCESS : HCCL_E_RUNTIME;
}

HcclResult submit_messages(sim_comm *comm, aclrtStream stream, transfer *list, size_t count)
{
    operation draft = {.comm = comm, .kind = POINT_TO_POINT, .list = list, .count = count};
    return submit(&draft, stream);
}

static HcclResult check_call(sim_comm *comm, aclrtStream stream)
{
    if (sim_stream_device(stream) != comm->device) {
        sim_set_error("simulated HCCL: the stream is on device %d, the communicator on %d",
                      sim_stream_device(stream), comm->device);
        return HCCL_E_PARA;
    }
    if (knob_file_exists("SIM_HCCL_SYNC_ERR")) {
        sim_set_error("simulated HCCL: refused, as SIM_HCCL_SYNC_ERR asks");
        return HCCL_E_REMOTE;
    }
    return HCCL_SUCCESS;
}

static HcclResult check_buffer(const sim_comm *comm, const void *buffer, uint64_t bytes)
{
    if (bytes > 0 && sim_memory_device(buffer) != comm->device) {
        sim_set_error("simulated HCCL: the buffer is not memory of device %d", comm->device);
        return buffer == NULL ? HCCL_E_PTR : HCCL_E_PARA;
    }
    return HCCL_SUCCESS;
}

static HcclResult check_message(const sim_comm *comm, const HcclSendRecvItem *item, transfer *into)
{
    const size_t width = element_bytes(item->type);
    if (width == 0) {
        sim_set_error("simulated HCCL: data type %d does not travel on this device", item->type);
        return HCCL_E_NOT_SUPPORT;
    }
    if (item->peer >= comm->ranks || item->peer == comm->rank || item->direction < SENDING ||
        item->direction > RECEIVING) {
        sim_set_error("simulated HCCL: rank %u cannot talk to rank %u", comm->rank, item->peer);
        return HCCL_E_PARA;
    }
    into->peer = item->peer;
    into->direction = (enum direction)item->direction;
    into->data = item->buffer;
    into->bytes = item->count * width;
    return check_buffer(comm, item->buffer, into->bytes);
}

static HcclResult messages(const char *call, const HcclSendRecvItem *items, uint32_t count,
                           HcclComm handle, aclrtStream stream)
{
    uint64_t bytes[2] = {0, 0};
    uint32_t numbers[2] = {0, 0};
    sim_comm *comm = items == NULL ? NULL : comm_acquire(handle);
    if (comm == NULL) {
        return HCCL_E_PTR;
    }
    transfer *list = calloc(count > 0 ? count : 1, sizeof *list);
    HcclResult result = list == NULL ? HCCL_E_MEMORY : check_call(comm, stream);
    for (uint32_t i = 0; i < count && result == HCCL_SUCCESS; i++) {
        result = check_message(comm, &items[i], &list[i]);
        if (result == HCCL_SUCCESS) {
            bytes[list[i].direction] += list[i].bytes;
            numbers[list[i].direction]++;
        }
    }
    sim_trace(call,
              "comm=%llu peer=%u sends=%u sent=%llu receives=%u received=%llu stream=%d result=%d",
              (unsigned long long)comm->number, count > 0 ? items[0].peer : comm->rank,
              numbers[SENDING], (unsigned long long)bytes[SENDING], numbers[RECEIVING],
              (unsigned long long)bytes[RECEIVING], stream_number(stream), result);
    if (result != HCCL_SUCCESS || (count == 1 && group_collects(comm, stream, list[0], &result))) {
        free(list);
    } else {
        result = submit_messages(comm, stream, list, count);
    }
    comm_release(comm);
    return result;
}

SIM_API HcclResult HcclSend(void *buffer, uint64_t count, HcclDataType type, uint32_t peer,
                            HcclComm handle, aclrtStream stream)
{
    HcclSendRecvItem item = {
        .direction = SENDING, .buffer = buffer, .count = count, .type = type, .peer = peer};
    return messages("HcclSend", &item, 1, handle, stream);
}

SIM_API HcclResult HcclRecv(void *buffer, uint64_t count, HcclDataType type, uint32_t peer,
                            HcclComm handle, aclrtStream stream)
{
    HcclSendRecvItem item = {
        .direction = RECEIVING, .buffer = buffer, .count = count, .type = type, .peer = peer};
    return messages("HcclRecv", &item, 1, handle, stream);
}

SIM_API HcclResult HcclBatchSendRecv(const HcclSendRecvItem *items, uint32_t count, HcclComm handle,
                                     aclrtStream stream)
{
    return messages("HcclBatchSendRecv", items, count, handle, stream);
}

/* A collective where this rank says the same to every peer and may hear a part from each. */
static void add_peers(operation *draft, enum direction direction, char *data, uint64_t stride)
{
    for (uint32_t rank = 0; rank < draft->comm->ranks; rank++) {
        if (rank != draft->comm->rank) {
            draft->list[draft->count++] = (transfer){.peer = rank,
                                                     .direction = direction,
                                                     .data = data + rank * stride,
                                                     .bytes = draft->part_bytes};
        }
    }
}

static HcclResult begin_collective(const char *call, operation *draft, HcclComm handle,
                                   aclrtStream stream)
{
    draft->comm = comm_acquire(handle);
    if (draft->comm == NULL) {
        return HCCL_E_PTR;
    }
    const size_t width = element_bytes(draft->type);
    draft->part_bytes = draft->elements * width;
    HcclResult result = width == 0 ? HCCL_E_NOT_SUPPORT : check_call(draft->comm, stream);
    if (result == HCCL_SUCCESS) {
        result = check_buffer(draft->comm, draft->source, draft->part_bytes);
    }
    if (result == HCCL_SUCCESS) {
        result = check_buffer(draft->comm, draft->target, draft->part_bytes);
    }
    draft->list = calloc(2 * draft->comm->ranks, sizeof *draft->list);
    if (result == HCCL_SUCCESS && draft->list == NULL) {
        result = HCCL_E_MEMORY;
    }
    sim_trace(call, "comm=%llu bytes=%llu stream=%d result=%d",
              (unsigned long long)draft->comm->number, (unsigned long long)draft->part_bytes,
              stream_number(stream), result);
    return result;
}

static HcclResult end_collective(operation *draft, HcclResult result, aclrtStream stream)
{
    if (result == HCCL_SUCCESS) {
        result = submit(draft, stream);
    } else {
        free(draft->list);
        free(draft->scratch);
    }
    if (draft->comm != NULL) {
        comm_release(draft->comm);
    }
    return result;
}

SIM_API HcclResult HcclBroadcast(void *buffer, uint64_t count, HcclDataType type, uint32_t root,
                                 HcclComm handle, aclrtStream stream)
{
    operation draft = {
        .kind = BROADCAST, .source = buffer, .target = buffer, .elements = count, .type = type};
    HcclResult result = begin_collective("HcclBroadcast", &draft, handle, stream);
    if (result == HCCL_SUCCESS && root >= draft.comm->ranks) {
        result = HCCL_E_PARA;
    }
    if (result == HCCL_SUCCESS && root == draft.comm->rank) {
        add_peers(&draft, SENDING, buffer, 0);
    } else if (result == HCCL_SUCCESS) {
        draft.list[draft.count++] = (transfer){
            .peer = root, .direction = RECEIVING, .data = buffer, .bytes = draft.part_bytes};
    }
    return end_collective(&draft, result, stream);
}

SIM_API HcclResult HcclAllGather(void *source, void *target, uint64_t count, HcclDataType type,
                                 HcclComm handle, aclrtStream stream)
{
    operation draft = {
        .kind = ALL_GATHER, .source = source, .target = target, .elements = count, .type = type};
    HcclResult result = begin_collective("HcclAllGather", &draft, handle, stream);
    if (result == HCCL_SUCCESS) {
        add_peers(&draft, SENDING, source, 0);
        add_peers(&draft, RECEIVING, target, draft.part_bytes);
    }
    return end_collective(&draft, result, stream);
}

SIM_API HcclResult HcclAllReduce(void *source, void *target, uint64_t count, HcclDataType type,
                                 int32_t reduction, HcclComm handle, aclrtStream stream)
{
    operation draft = {.kind = ALL_REDUCE,
                       .source = source,
                       .target = target,
                       .elements = count,
                       .type = type,
                       .reduction = reduction};
    HcclResult result = begin_collective("HcclAllReduce", &draft, handle, stream);
    if (result == HCCL_SUCCESS && !can_reduce(type, reduction)) {
        result = HCCL_E_NOT_SUPPORT;
    }
    if (result == HCCL_SUCCESS) {
        draft.scratch = malloc(draft.comm->ranks * draft.part_bytes + 1);
        result = draft.scratch == NULL ? HCCL_E_MEMORY : HCCL_SUCCESS;
    }
    if (result == HCCL_SUCCESS) {
        add_peers(&draft, SENDING, source, 0);
        add_peers(&draft, RECEIVING, draft.scratch, draft.part_bytes);
    }
    return end_collective(&draft, result, stream);
}
