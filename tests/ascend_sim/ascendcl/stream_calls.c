/* The exported calls about streams, and about a device as the sum of its streams.
 *
 * Destroying a stream does not block: what was pushed is still done (or, by force, thrown
 * away) by its thread, which then ends. */
#include "runtime.h"

#include <stdlib.h>

enum { STATUS_COMPLETE = 0, STATUS_NOT_READY = 1 };
enum { STOP_ON_FAILURE = 1 };

/* How long aclrtDeviceTaskAbort waits for tasks that look whether they are cancelled. */
enum { ABORT_PATIENCE_MS = 10000 };

SIM_API aclError aclrtCreateStreamWithConfig(aclrtStream *handle, uint32_t priority, uint32_t flag)
{
    sim_device *device = sim_device_of(sim_current_device());
    if (device == NULL) {
        sim_set_error("a stream was asked for in a thread without a device");
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    sim_stream *stream = sim_stream_new(device);
    sim_trace("aclrtCreateStream", "stream=%d device=%d priority=%u flag=%u",
              sim_stream_id(stream), device->id, priority, flag);
    *handle = stream;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtCreateStream(aclrtStream *handle)
{
    return aclrtCreateStreamWithConfig(handle, 0, 0);
}

SIM_API aclError aclrtSetStreamFailureMode(aclrtStream handle, uint64_t mode)
{
    sim_stream *stream = sim_stream_resolve(handle);
    if (stream == NULL) {
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    sim_trace("aclrtSetStreamFailureMode", "stream=%d stop=%d", sim_stream_id(stream),
              mode == STOP_ON_FAILURE);
    sim_stream_stop_on_failure(stream, mode == STOP_ON_FAILURE);
    return ACL_SUCCESS;
}

static aclError destroy(const char *call, aclrtStream handle, bool force)
{
    sim_stream *stream = handle == NULL ? NULL : sim_stream_resolve(handle);
    if (stream == NULL) {
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    sim_trace(call, "stream=%d", sim_stream_id(stream));
    sim_stream_close(stream);
    if (force) {
        sim_stream_abandon(stream, ACL_ERROR_RT_STREAM_ABORTED);
    }
    return ACL_SUCCESS;
}

SIM_API aclError aclrtDestroyStream(aclrtStream handle)
{
    return destroy("aclrtDestroyStream", handle, false);
}

SIM_API aclError aclrtDestroyStreamForce(aclrtStream handle)
{
    return destroy("aclrtDestroyStreamForce", handle, true);
}

SIM_API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t timeout_ms)
{
    sim_stream *stream = sim_stream_resolve(handle);
    if (stream == NULL) {
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    aclError result = sim_stream_wait(stream, sim_stream_last(stream), timeout_ms);
    sim_trace("aclrtSynchronizeStream", "stream=%d result=%d", sim_stream_id(stream), result);
    return result;
}

SIM_API aclError aclrtSynchronizeStream(aclrtStream handle)
{
    return aclrtSynchronizeStreamWithTimeout(handle, -1);
}

SIM_API aclError aclrtStreamQuery(aclrtStream handle, int32_t *status)
{
    sim_stream *stream = sim_stream_resolve(handle);
    if (stream == NULL) {
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    bool idle;
    aclError error = sim_stream_look(stream, &idle);
    *status = idle ? STATUS_COMPLETE : STATUS_NOT_READY;
    return error;
}

SIM_API aclError aclrtStreamGetId(aclrtStream handle, int32_t *id)
{
    sim_stream *stream = sim_stream_resolve(handle);
    if (stream == NULL) {
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    *id = sim_stream_id(stream);
    return ACL_SUCCESS;
}

/* Wait for every stream of a device; the first error is the answer. */
static aclError wait_for_device(const sim_device *device, int64_t timeout_ms)
{
    int64_t deadline_ns = sim_now_ns() + timeout_ms * 1000000;
    aclError result = ACL_SUCCESS;
    for (sim_stream *each = sim_stream_first(); each != NULL; each = sim_stream_next(each)) {
        uint64_t last = sim_stream_last(each);
        if (sim_stream_owner(each) != device || sim_stream_is_closed(each)) {
            continue;
        }
        int64_t left_ms = (deadline_ns - sim_now_ns()) / 1000000;
        aclError error =
            sim_stream_wait(each, last, timeout_ms < 0 ? -1 : left_ms < 0 ? 0 : left_ms);
        result = result == ACL_SUCCESS ? error : result;
    }
    return result;
}

SIM_API aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout_ms)
{
    const sim_device *device = sim_device_of(sim_current_device());
    if (device == NULL) {
        sim_set_error("no device was set in this thread");
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    aclError result = wait_for_device(device, timeout_ms);
    sim_trace("aclrtSynchronizeDevice", "device=%d result=%d", device->id, result);
    return result;
}

SIM_API aclError aclrtSynchronizeDevice(void)
{
    return aclrtSynchronizeDeviceWithTimeout(-1);
}

/* Throw away all work of a device and make its streams work again (torch_npu.npu.stop_device). */
SIM_API aclError aclrtDeviceTaskAbort(int32_t id, uint32_t timeout_ms)
{
    sim_device *device = sim_device_of(id);
    sim_trace("aclrtDeviceTaskAbort", "device=%d", id);
    if (device == NULL) {
        return ACL_ERROR_RT_INVALID_DEVICEID;
    }
    for (sim_stream *each = sim_stream_first(); each != NULL; each = sim_stream_next(each)) {
        if (sim_stream_owner(each) == device) {
            sim_stream_abandon(each, ACL_ERROR_RT_TASK_ABORTED);
        }
    }
    aclError ended = wait_for_device(device, timeout_ms == 0 ? ABORT_PATIENCE_MS : timeout_ms);
    if (ended == ACL_ERROR_RT_STREAM_SYNC_TIMEOUT) {
        return ended;
    }
    atomic_store(&device->poison, ACL_SUCCESS);
    for (sim_stream *each = sim_stream_first(); each != NULL; each = sim_stream_next(each)) {
        if (sim_stream_owner(each) == device) {
            sim_stream_forgive(each);
        }
    }
    return ACL_SUCCESS;
}

typedef struct {
    void (*function)(void *argument);
    void *argument;
} host_call;

static aclError host_call_run(void *argument)
{
    host_call *call = argument;
    call->function(call->argument);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtLaunchHostFunc(aclrtStream stream, void (*function)(void *), void *argument)
{
    host_call *call = malloc(sizeof *call);
    if (call == NULL) {
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    *call = (host_call){function, argument};
    return sim_stream_push(stream, (sim_task){"aclrtLaunchHostFunc", host_call_run, free, call});
}

/* A real callback runs in the thread that subscribed for the stream; here, on the stream's. */
SIM_API aclError aclrtLaunchCallback(void (*function)(void *), void *argument, int32_t blocks,
                                     aclrtStream stream)
{
    (void)blocks;
    return aclrtLaunchHostFunc(stream, function, argument);
}
