/* What the simulated CANN libraries share. libascendcl.so defines all of it; the others link to it.
 *
 * This is a SIMULATOR of the CANN runtime, for tests on machines without an NPU. "Device
 * memory" is host memory, a "stream" is a thread with a queue, "HCCL" is loopback TCP. */
#ifndef NETLOADER_ASCEND_SIM_H
#define NETLOADER_ASCEND_SIM_H

#include <stddef.h>
#include <stdint.h>

#define SIM_API __attribute__((visibility("default")))

typedef int32_t aclError;
typedef void *aclrtStream;
typedef void *aclrtEvent;
typedef void *aclrtContext;

enum {
    ACL_SUCCESS = 0,
    ACL_ERROR_INVALID_PARAM = 100000,
    ACL_ERROR_REPEAT_INITIALIZE = 100002,
    ACL_ERROR_RT_PARAM_INVALID = 107000,
    ACL_ERROR_RT_INVALID_DEVICEID = 107001,
    ACL_ERROR_RT_CONTEXT_NULL = 107002,      /* no device was set in this thread */
    ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID = 107006,
    ACL_ERROR_RT_TASK_ABORTED = 107022,      /* dropped by aclrtDeviceTaskAbort */
    ACL_ERROR_RT_STREAM_ABORTED = 107023,    /* dropped because its stream was destroyed */
    ACL_ERROR_RT_FEATURE_NOT_SUPPORT = 207000,
    ACL_ERROR_RT_MEMORY_ALLOCATION = 207001, /* out of device memory */
    ACL_ERROR_RT_REPORT_TIMEOUT = 507012,
    ACL_ERROR_RT_SYS_DMA = 507013,           /* a copy failed (SIM_FAIL_COPIES) */
    ACL_ERROR_RT_STREAM_SYNC_TIMEOUT = 507046,
    ACL_ERROR_RT_EVENT_SYNC_TIMEOUT = 507047,
    ACL_ERROR_RT_NOTIFY_TIMEOUT = 507048,    /* a stream waited too long for its peer */
};

/* --- knobs: environment variables, documented in README.md ------------------------------------ */

/* The value of a knob, or `otherwise` when it is unset or empty. */
SIM_API const char *sim_knob(const char *name, const char *otherwise);
SIM_API int64_t sim_knob_int(const char *name, int64_t otherwise);

/* --- the call log, and loud failures ---------------------------------------------------------- */

/* With SIM_CANN_TRACE=<file>: append one line "<seconds> <pid> <tid> <call> <details>". */
SIM_API void sim_trace(const char *call, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Say on stderr that `what` is not simulated, and abort: nothing may pass by accident. */
SIM_API _Noreturn void sim_not_simulated(const char *what);

/* What aclGetRecentErrMsg will say to this thread. */
SIM_API void sim_set_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* --- streams ---------------------------------------------------------------------------------- */

/* One piece of work for a stream. `run` is called on the stream's thread after all that was pushed
 * before it; it returns an aclError. `run` may block; it must then look at `sim_task_cancelled()`
 * at least every 50 ms and return ACL_ERROR_RT_TASK_ABORTED when that is true. `drop` frees
 * `argument`; it is called exactly once, whether the task ran or was thrown away. */
typedef struct sim_task {
    const char *name;
    aclError (*run)(void *argument);
    void (*drop)(void *argument);
    void *argument;
} sim_task;

/* Queue a task. A stream that has failed answers with its error, and drops the task. NULL is the
 * default stream of the device that is current in this thread. */
SIM_API aclError sim_stream_push(aclrtStream stream, sim_task task);

/* Whether the stream on whose thread this is called was told to abandon what it does. */
SIM_API int sim_task_cancelled(void);

/* The device that calls in this thread use (the one it set, else the default one of aclInit, else
 * -1); and the device of a stream. */
SIM_API int32_t sim_current_device(void);
SIM_API int32_t sim_stream_device(aclrtStream stream);

/* The device whose memory an address is in (-1: host memory that is pinned, -2: other memory). */
SIM_API int32_t sim_memory_device(const void *address);

/* Count bytes (negative: give back) against a device's HBM without allocating any: what a
 * communicator's buffers cost. ACL_ERROR_RT_MEMORY_ALLOCATION when they do not fit. */
SIM_API aclError sim_account(int32_t device, int64_t bytes);

#endif
