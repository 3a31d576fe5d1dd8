/* Events of the simulated runtime.
 *
 * An event is a row of recordings. Recording numbers one; a stream waits for the recording
 * that was the last when it was told to wait, and an event never recorded makes nobody wait.
 * A recording that its failed stream threw away is NOT complete (nothing on a device would signal
 * it): the host's wait gets the stream's error, another stream waits on, until the limit of
 * aclrtSetOpWaitTimeout. SIM_EVENT_COMPLETE_ON_ERROR=1 completes it instead. */
#include "runtime.h"

#include <stdlib.h>

enum { QUERY_NOT_READY = 0, QUERY_COMPLETE = 1, WAIT_COMPLETE = 0, WAIT_NOT_READY = 1 };

typedef struct {
    atomic_int holders; /* its owner and its tasks */
    int32_t id;
    pthread_mutex_t lock;
    pthread_cond_t change;
    uint64_t recorded;  /* recordings asked for */
    uint64_t completed; /* the last of them that was reached */
    uint64_t lost;      /* the last of them that was thrown away, and why */
    aclError lost_why;
    int64_t reached_ns;
    atomic_int waits; /* stream waits that have not ended */
} event;

typedef struct {
    event *event;
    uint64_t recording;
    int32_t stream;
    bool ran;
} ticket;

static atomic_int ids;
static _Atomic uint32_t wait_limit_seconds; /* 0: none */

static void let_go(event *what)
{
    if (atomic_fetch_sub(&what->holders, 1) == 1) {
        pthread_cond_destroy(&what->change);
        pthread_mutex_destroy(&what->lock);
        free(what);
    }
}

static ticket *ticket_for(event *what, uint64_t recording, int32_t stream)
{
    ticket *made = malloc(sizeof *made);
    if (made == NULL) {
        sim_not_simulated("a machine without memory for an event");
    }
    *made = (ticket){.event = what, .recording = recording, .stream = stream};
    atomic_fetch_add(&what->holders, 1);
    return made;
}

SIM_API aclError aclrtCreateEventExWithFlag(aclrtEvent *handle, uint32_t flag)
{
    (void)flag;
    event *what = calloc(1, sizeof *what);
    if (what == NULL) {
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    atomic_store(&what->holders, 1);
    what->id = atomic_fetch_add(&ids, 1);
    pthread_mutex_init(&what->lock, NULL);
    sim_condition_init(&what->change);
    *handle = what;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtCreateEventWithFlag(aclrtEvent *handle, uint32_t flag)
{
    return aclrtCreateEventExWithFlag(handle, flag);
}

SIM_API aclError aclrtCreateEvent(aclrtEvent *handle)
{
    return aclrtCreateEventExWithFlag(handle, 0);
}

SIM_API aclError aclrtDestroyEvent(aclrtEvent handle)
{
    let_go(handle);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtResetEvent(aclrtEvent handle, aclrtStream stream)
{
    (void)handle, (void)stream; /* recording again is all that a reset is for */
    return ACL_SUCCESS;
}

static void settle(event *what, uint64_t recording, aclError lost_why)
{
    pthread_mutex_lock(&what->lock);
    if (lost_why == ACL_SUCCESS && recording > what->completed) {
        what->completed = recording;
        what->reached_ns = sim_now_ns();
    } else if (lost_why != ACL_SUCCESS && recording > what->lost) {
        what->lost = recording;
        what->lost_why = lost_why;
    }
    pthread_cond_broadcast(&what->change);
    pthread_mutex_unlock(&what->lock);
}

static aclError record_run(void *argument)
{
    ticket *record = argument;
    record->ran = true;
    settle(record->event, record->recording, ACL_SUCCESS);
    return ACL_SUCCESS;
}

static void record_drop(void *argument)
{
    ticket *record = argument;
    if (!record->ran) {
        bool complete = sim_knob_int("SIM_EVENT_COMPLETE_ON_ERROR", 0) != 0;
        settle(record->event, record->recording, complete ? ACL_SUCCESS : sim_drop_reason());
    }
    let_go(record->event);
    free(record);
}

SIM_API aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle)
{
    event *what = handle;
    sim_stream *stream = sim_stream_resolve(stream_handle);
    if (stream == NULL) {
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    int32_t id = sim_stream_id(stream);
    pthread_mutex_lock(&what->lock);
    uint64_t recording = ++what->recorded;
    pthread_mutex_unlock(&what->lock);
    sim_trace("aclrtRecordEvent", "event=%d recording=%llu stream=%d", what->id,
              (unsigned long long)recording, id);
    return sim_stream_push(stream, (sim_task){"aclrtRecordEvent", record_run, record_drop,
                                              ticket_for(what, recording, id)});
}

/* Milliseconds that a stream may wait for an event; negative: for ever. */
static int64_t wait_limit_ms(void)
{
    int64_t seconds = atomic_load(&wait_limit_seconds);
    return sim_knob_int("SIM_OP_WAIT_TIMEOUT_MS", seconds == 0 ? -1 : seconds * 1000);
}

static aclError wait_run(void *argument)
{
    const ticket *wait = argument;
    event *what = wait->event;
    int64_t limit = wait_limit_ms();
    int64_t began = sim_now_ns();
    aclError result = ACL_SUCCESS;
    pthread_mutex_lock(&what->lock);
    while (what->completed < wait->recording && result == ACL_SUCCESS) {
        struct timespec look = sim_in_ms(SIM_LOOK_MS);
        pthread_cond_timedwait(&what->change, &what->lock, &look);
        if (sim_task_cancelled()) {
            result = ACL_ERROR_RT_TASK_ABORTED;
        } else if (limit >= 0 && sim_now_ns() - began > limit * 1000000 &&
                   what->completed < wait->recording) {
            sim_set_error("waited longer than %lld ms for event %d", (long long)limit, what->id);
            result = ACL_ERROR_RT_NOTIFY_TIMEOUT;
        }
    }
    pthread_mutex_unlock(&what->lock);
    return result;
}

static void wait_drop(void *argument)
{
    ticket *wait = argument;
    atomic_fetch_sub(&wait->event->waits, 1);
    let_go(wait->event);
    free(wait);
}

SIM_API aclError aclrtStreamWaitEvent(aclrtStream stream_handle, aclrtEvent handle)
{
    event *what = handle;
    sim_stream *stream = sim_stream_resolve(stream_handle);
    if (stream == NULL) {
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    pthread_mutex_lock(&what->lock);
    uint64_t recording = what->recorded;
    pthread_mutex_unlock(&what->lock);
    sim_trace("aclrtStreamWaitEvent", "stream=%d event=%d recording=%llu", sim_stream_id(stream),
              what->id, (unsigned long long)recording);
    atomic_fetch_add(&what->waits, 1);
    return sim_stream_push(stream, (sim_task){"aclrtStreamWaitEvent", wait_run, wait_drop,
                                              ticket_for(what, recording, sim_stream_id(stream))});
}

SIM_API aclError aclrtSynchronizeEventWithTimeout(aclrtEvent handle, int32_t timeout_ms)
{
    event *what = handle;
    struct timespec deadline = sim_in_ms(timeout_ms < 0 ? 0 : timeout_ms);
    aclError result = ACL_SUCCESS;
    pthread_mutex_lock(&what->lock);
    uint64_t recording = what->recorded;
    sim_trace("aclrtSynchronizeEvent", "event=%d recording=%llu", what->id,
              (unsigned long long)recording);
    while (what->completed < recording && result == ACL_SUCCESS) {
        if (what->lost >= recording) {
            sim_set_error("event %d was thrown away by its stream (%d)", what->id, what->lost_why);
            result = what->lost_why;
        } else if (timeout_ms < 0) {
            pthread_cond_wait(&what->change, &what->lock);
        } else if (pthread_cond_timedwait(&what->change, &what->lock, &deadline) != 0) {
            result = ACL_ERROR_RT_EVENT_SYNC_TIMEOUT;
        }
    }
    pthread_mutex_unlock(&what->lock);
    return result;
}

SIM_API aclError aclrtSynchronizeEvent(aclrtEvent handle)
{
    return aclrtSynchronizeEventWithTimeout(handle, -1);
}

SIM_API aclError aclrtQueryEventStatus(aclrtEvent handle, int32_t *status)
{
    event *what = handle;
    pthread_mutex_lock(&what->lock);
    *status = what->completed >= what->recorded ? QUERY_COMPLETE : QUERY_NOT_READY;
    pthread_mutex_unlock(&what->lock);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtQueryEventWaitStatus(aclrtEvent handle, int32_t *status)
{
    event *what = handle;
    *status = atomic_load(&what->waits) == 0 ? WAIT_COMPLETE : WAIT_NOT_READY;
    return ACL_SUCCESS;
}

static int64_t reached_ns(event *what)
{
    pthread_mutex_lock(&what->lock);
    int64_t reached = what->reached_ns;
    pthread_mutex_unlock(&what->lock);
    return reached;
}

SIM_API aclError aclrtEventElapsedTime(float *ms, aclrtEvent from, aclrtEvent to)
{
    int64_t began = reached_ns(from);
    int64_t ended = reached_ns(to);
    if (began == 0 || ended == 0) {
        sim_set_error("the time between events of which one was not reached");
        return ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID;
    }
    *ms = (float)(ended - began) / 1e6F;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtEventGetTimestamp(aclrtEvent handle, uint64_t *microseconds)
{
    int64_t reached = reached_ns(handle);
    *microseconds = (uint64_t)(reached / 1000);
    return reached == 0 ? ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID : ACL_SUCCESS;
}

SIM_API aclError aclrtSetOpWaitTimeout(uint32_t seconds)
{
    sim_trace("aclrtSetOpWaitTimeout", "seconds=%u", seconds);
    atomic_store(&wait_limit_seconds, seconds);
    return ACL_SUCCESS;
}
