/* Streams of the simulated runtime: the queue of each, and what it answers.
 *
 * A stream that failed, was destroyed or whose context stopped takes no work; what it
 * refuses or abandons is dropped, exactly once, outside its lock. */
#include "stream.h"

#include <stdio.h>
#include <stdlib.h>

static _Atomic(sim_stream *) newest;
static _Atomic int32_t ids;
static _Atomic uint64_t arrivals;

sim_stream *sim_stream_first(void)
{
    return atomic_load(&newest);
}

sim_stream *sim_stream_next(const sim_stream *stream)
{
    return stream->older;
}

sim_device *sim_stream_owner(const sim_stream *stream)
{
    return stream->device;
}

int32_t sim_stream_id(const sim_stream *stream)
{
    return stream->id;
}

sim_stream *sim_stream_new(sim_device *device)
{
    sim_stream *stream = calloc(1, sizeof *stream);
    stream->magic = STREAM_MAGIC;
    stream->id = atomic_fetch_add(&ids, 1);
    stream->device = device;
    pthread_mutex_init(&stream->lock, NULL);
    sim_condition_init(&stream->work);
    sim_condition_init(&stream->ended_some);
    stream->older = atomic_load(&newest);
    while (!atomic_compare_exchange_weak(&newest, &stream->older, stream)) {
    }
    return stream;
}

sim_stream *sim_stream_resolve(aclrtStream handle)
{
    sim_stream *stream = handle;
    if (stream == NULL) {
        sim_device *device = sim_device_of(sim_current_device());
        if (device == NULL) {
            sim_set_error("the default stream was asked for in a thread without a device");
            return NULL;
        }
        pthread_mutex_lock(&device->lock);
        if (device->default_stream == NULL) {
            device->default_stream = sim_stream_new(device);
        }
        stream = device->default_stream;
        pthread_mutex_unlock(&device->lock);
    }
    if (stream->magic != STREAM_MAGIC) {
        sim_set_error("%p is no stream", handle);
        return NULL;
    }
    return stream;
}

SIM_API int32_t sim_stream_device(aclrtStream handle)
{
    sim_stream *stream = sim_stream_resolve(handle);
    return stream == NULL ? -1 : stream->device->id;
}

/* Take the queue away; the lock is held. The caller throws it away without the lock. */
static sim_job *take_queue(sim_stream *stream)
{
    sim_job *list = stream->head;
    stream->head = stream->tail = NULL;
    if (stream->running_arrival == 0) {
        stream->ended = stream->pushed;
        pthread_cond_broadcast(&stream->ended_some);
    }
    return list;
}

void sim_stream_abandon(sim_stream *stream, aclError why)
{
    pthread_mutex_lock(&stream->lock);
    atomic_store(&stream->cancelled, stream->pushed);
    sim_job *list = take_queue(stream);
    pthread_mutex_unlock(&stream->lock);
    sim_throw_away(list, why);
}

/* Why the stream takes no work; the lock is held. */
static aclError refusal(const sim_stream *stream)
{
    if (stream->closed) {
        sim_set_error("stream %d was destroyed", stream->id);
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    aclError poison = atomic_load(&stream->device->poison);
    if (poison != ACL_SUCCESS) {
        sim_set_error("the context of device %d was stopped by a failed task",
                      stream->device->id);
        return poison;
    }
    if (stream->error != ACL_SUCCESS && stream->stop_on_failure) {
        sim_set_error("%s", stream->message);
        return stream->error;
    }
    return ACL_SUCCESS;
}

aclError sim_stream_push_numbered(aclrtStream handle, sim_task task, uint64_t *number)
{
    sim_job *job = calloc(1, sizeof *job);
    job->task = task;
    sim_stream *stream = sim_stream_resolve(handle);
    if (stream == NULL) {
        sim_throw_away(job, ACL_ERROR_RT_CONTEXT_NULL);
        return handle == NULL ? ACL_ERROR_RT_CONTEXT_NULL : ACL_ERROR_RT_PARAM_INVALID;
    }
    pthread_mutex_lock(&stream->lock);
    aclError refused = refusal(stream);
    if (refused != ACL_SUCCESS) {
        pthread_mutex_unlock(&stream->lock);
        sim_throw_away(job, refused);
        return refused;
    }
    job->number = ++stream->pushed;
    job->arrival = atomic_fetch_add(&arrivals, 1) + 1;
    if (stream->tail == NULL) {
        stream->head = job;
    } else {
        stream->tail->next = job;
    }
    stream->tail = job;
    *number = job->number;
    if (!stream->started) {
        sim_stream_start(stream);
    }
    pthread_cond_signal(&stream->work);
    pthread_mutex_unlock(&stream->lock);
    return ACL_SUCCESS;
}

SIM_API aclError sim_stream_push(aclrtStream handle, sim_task task)
{
    uint64_t number;
    return sim_stream_push_numbered(handle, task, &number);
}

/* What the stream has to say about its tasks; one that goes on after failures says it once. */
static aclError verdict(sim_stream *stream)
{
    aclError error = stream->error;
    if (error != ACL_SUCCESS) {
        sim_set_error("%s", stream->message);
        if (!stream->stop_on_failure) {
            stream->error = ACL_SUCCESS;
        }
        return error;
    }
    return refusal(stream);
}

aclError sim_stream_wait(sim_stream *stream, uint64_t number, int64_t timeout_ms)
{
    struct timespec deadline = sim_in_ms(timeout_ms < 0 ? 0 : timeout_ms);
    aclError result = ACL_SUCCESS;
    pthread_mutex_lock(&stream->lock);
    while (stream->ended < number && result == ACL_SUCCESS) {
        if (timeout_ms < 0) {
            pthread_cond_wait(&stream->ended_some, &stream->lock);
        } else if (pthread_cond_timedwait(&stream->ended_some, &stream->lock, &deadline) != 0) {
            sim_set_error("stream %d did not finish within %lld ms", stream->id,
                          (long long)timeout_ms);
            result = ACL_ERROR_RT_STREAM_SYNC_TIMEOUT;
        }
    }
    if (result == ACL_SUCCESS) {
        result = verdict(stream);
    }
    pthread_mutex_unlock(&stream->lock);
    return result;
}

uint64_t sim_stream_last(sim_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    uint64_t last = stream->pushed;
    pthread_mutex_unlock(&stream->lock);
    return last;
}

aclError sim_stream_look(sim_stream *stream, bool *idle)
{
    pthread_mutex_lock(&stream->lock);
    *idle = stream->ended == stream->pushed;
    aclError error = refusal(stream);
    pthread_mutex_unlock(&stream->lock);
    return error;
}

void sim_stream_forgive(sim_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    stream->error = ACL_SUCCESS;
    pthread_mutex_unlock(&stream->lock);
}

void sim_stream_stop_on_failure(sim_stream *stream, bool stop)
{
    pthread_mutex_lock(&stream->lock);
    stream->stop_on_failure = stop;
    pthread_mutex_unlock(&stream->lock);
}

void sim_stream_close(sim_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    stream->closed = true;
    pthread_cond_signal(&stream->work);
    pthread_mutex_unlock(&stream->lock);
}

bool sim_stream_is_closed(sim_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    bool closed = stream->closed;
    pthread_mutex_unlock(&stream->lock);
    return closed;
}

uint64_t sim_tasks_arrived(void)
{
    return atomic_load(&arrivals);
}

uint64_t sim_oldest_unfinished(void)
{
    uint64_t oldest = UINT64_MAX;
    for (sim_stream *each = sim_stream_first(); each != NULL; each = each->older) {
        pthread_mutex_lock(&each->lock);
        uint64_t first = each->running_arrival;
        if (first == 0 && each->head != NULL) {
            first = each->head->arrival;
        }
        pthread_mutex_unlock(&each->lock);
        if (first != 0 && first < oldest) {
            oldest = first;
        }
    }
    return oldest;
}
