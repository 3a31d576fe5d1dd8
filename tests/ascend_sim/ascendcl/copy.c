/* Copies and fills of the simulated runtime.
 *
 * An asynchronous copy really happens later, on its stream; only memory that is neither
 * device memory nor pinned makes the caller wait, as on a real device. Ranges are checked before
 * a byte moves: what would corrupt memory is an error of the call. */
#include "runtime.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT_KIND };

typedef struct {
    void *to;
    const void *from; /* NULL: fill with `value` */
    int value;
    size_t bytes;
} move;

static const char *kind_name(int32_t kind)
{
    static const char *const names[] = {"h2h", "h2d", "d2h", "d2d", "default"};
    bool known = kind >= 0 && kind < (int32_t)(sizeof names / sizeof names[0]);
    return known ? names[kind] : "other";
}

/* Memory of a copy that is said to be on the device must be, and must hold the whole range; a
 * range may span blocks that were mapped next to each other. */
static bool range_is_sound(const char *call, const void *address, size_t bytes, bool on_device)
{
    const char *next = address;
    size_t left = bytes;
    sim_block block;
    while (sim_find_block(next, &block)) {
        size_t here = block.bytes - ((uintptr_t)next - block.address);
        if (here >= left) {
            return true;
        }
        next += here;
        left -= here;
    }
    if (left == bytes && !on_device) {
        return true;
    }
    sim_set_error("%s: of %zu bytes at %p, %zu are outside of device memory", call, bytes, address,
                  left);
    return false;
}

static aclError check_copy(const char *call, const void *to, size_t room, const void *from,
                           size_t bytes, int32_t kind)
{
    if (bytes > room) {
        sim_set_error("%s: %zu bytes into %zu", call, bytes, room);
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    bool to_device = kind == HOST_TO_DEVICE || kind >= DEVICE_TO_DEVICE;
    bool from_device = kind == DEVICE_TO_HOST || kind >= DEVICE_TO_DEVICE;
    if (kind == DEFAULT_KIND) {
        to_device = from_device = false;
    }
    bool sound = range_is_sound(call, to, bytes, to_device) &&
                 range_is_sound(call, from, bytes, from_device);
    return sound ? ACL_SUCCESS : ACL_ERROR_RT_PARAM_INVALID;
}

static aclError move_run(void *argument)
{
    move *what = argument;
    if (what->from == NULL) {
        memset(what->to, what->value, what->bytes);
        return ACL_SUCCESS;
    }
    const char *failing = sim_knob("SIM_FAIL_COPIES", NULL);
    if (failing != NULL && access(failing, F_OK) == 0) {
        sim_set_error("SIM_FAIL_COPIES says so");
        return ACL_ERROR_RT_SYS_DMA;
    }
    memmove(what->to, what->from, what->bytes);
    return ACL_SUCCESS;
}

static aclError push_move(const char *call, move what, aclrtStream stream, uint64_t *number)
{
    move *argument = malloc(sizeof *argument);
    if (argument == NULL) {
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    *argument = what;
    return sim_stream_push_numbered(stream, (sim_task){call, move_run, free, argument}, number);
}

SIM_API aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes,
                                  int32_t kind, aclrtStream handle)
{
    sim_stream *stream = sim_stream_resolve(handle);
    if (stream == NULL) {
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    aclError error = check_copy("aclrtMemcpyAsync", to, room, from, bytes, kind);
    bool waits = sim_memory_device(to) == -2 || sim_memory_device(from) == -2;
    sim_trace("aclrtMemcpyAsync", "kind=%s bytes=%zu stream=%d device=%d pageable=%d",
              kind_name(kind), bytes, sim_stream_id(stream), sim_stream_owner(stream)->id, waits);
    if (error != ACL_SUCCESS || bytes == 0) {
        return error;
    }
    uint64_t number;
    error = push_move("aclrtMemcpyAsync", (move){to, from, 0, bytes}, handle, &number);
    return error == ACL_SUCCESS && waits ? sim_stream_wait(stream, number, -1) : error;
}

SIM_API aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, int32_t kind)
{
    sim_trace("aclrtMemcpy", "kind=%s bytes=%zu", kind_name(kind), bytes);
    if (sim_current_device() < 0) {
        sim_set_error("aclrtMemcpy in a thread without a device");
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    aclError error = check_copy("aclrtMemcpy", to, room, from, bytes, kind);
    if (error == ACL_SUCCESS) {
        memmove(to, from, bytes);
    }
    return error;
}

static aclError check_fill(const char *call, const void *to, size_t room, size_t bytes)
{
    bool sound = bytes <= room && range_is_sound(call, to, bytes, true);
    return sound ? ACL_SUCCESS : ACL_ERROR_RT_PARAM_INVALID;
}

SIM_API aclError aclrtMemset(void *to, size_t room, int32_t value, size_t bytes)
{
    sim_trace("aclrtMemset", "bytes=%zu", bytes);
    aclError error = check_fill("aclrtMemset", to, room, bytes);
    if (error == ACL_SUCCESS) {
        memset(to, value, bytes);
    }
    return error;
}

SIM_API aclError aclrtMemsetAsync(void *to, size_t room, int32_t value, size_t bytes,
                                  aclrtStream stream)
{
    sim_trace("aclrtMemsetAsync", "bytes=%zu", bytes);
    aclError error = check_fill("aclrtMemsetAsync", to, room, bytes);
    uint64_t number;
    return error != ACL_SUCCESS
               ? error
               : push_move("aclrtMemsetAsync", (move){to, NULL, value, bytes}, stream, &number);
}
