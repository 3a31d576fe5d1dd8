/* HcclGroupStart and HcclGroupEnd: sends and receives that become one operation.
 *
 * A group belongs to the thread that opened it, and what it holds is queued at its end, in
 * order, as one operation per communicator and stream. The two exported names are looked up in
 * libhcomm.so, which only passes the calls on. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

typedef struct kept_message {
    sim_comm *comm; /* held */
    aclrtStream stream;
    transfer message;
} kept_message;

static _Thread_local struct group {
    int depth;
    kept_message *list;
    size_t count;
    size_t room;
} group;

int group_collects(sim_comm *comm, aclrtStream stream, transfer message, HcclResult *result)
{
    if (group.depth == 0) {
        return 0;
    }
    if (group.count == group.room) {
        size_t room = group.room > 0 ? 2 * group.room : 16;
        kept_message *list = realloc(group.list, room * sizeof *list);
        if (list == NULL) {
            *result = HCCL_E_MEMORY;
            return 1;
        }
        group.list = list;
        group.room = room;
    }
    atomic_fetch_add(&comm->references, 1);
    group.list[group.count++] = (kept_message){.comm = comm, .stream = stream, .message = message};
    *result = HCCL_SUCCESS;
    return 1;
}

/* Everything in the group that goes the way of its first message. */
static HcclResult submit_first(void)
{
    const kept_message first = group.list[0];
    transfer *list = calloc(group.count, sizeof *list);
    size_t count = 0;
    size_t left = 0;
    if (list == NULL) {
        return HCCL_E_MEMORY;
    }
    for (size_t i = 0; i < group.count; i++) {
        if (group.list[i].comm == first.comm && group.list[i].stream == first.stream) {
            list[count++] = group.list[i].message;
        } else {
            group.list[left++] = group.list[i];
        }
    }
    group.count = left;
    HcclResult result = submit_messages(first.comm, first.stream, list, count);
    for (size_t i = 0; i < count; i++) {
        comm_release(first.comm);
    }
    return result;
}

SIM_API HcclResult sim_hccl_group_start(void)
{
    group.depth++;
    sim_trace("HcclGroupStart", "depth=%d", group.depth);
    return HCCL_SUCCESS;
}

SIM_API HcclResult sim_hccl_group_end(void)
{
    HcclResult result = HCCL_SUCCESS;
    if (group.depth == 0) {
        return HCCL_E_PARA;
    }
    group.depth--;
    sim_trace("HcclGroupEnd", "messages=%zu", group.count);
    while (group.depth == 0 && group.count > 0 && result == HCCL_SUCCESS) {
        result = submit_first();
    }
    if (group.depth == 0) {
        for (size_t i = 0; i < group.count; i++) {
            comm_release(group.list[i].comm);
        }
        free(group.list);
        memset(&group, 0, sizeof group);
    }
    return result;
}
