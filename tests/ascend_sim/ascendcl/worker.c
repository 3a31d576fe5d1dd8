/* The thread of a simulated stream, started with its first task.
 *
 * Tasks run one at a time in the order of their arrival; a failed one stops the stream
 * (ACL_STOP_ON_FAILURE), and with SIM_CTX_POISON every stream of its context. */
#define _GNU_SOURCE
#include "stream.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static _Thread_local sim_stream *running_stream;
static _Thread_local uint64_t running_number;
static _Thread_local aclError drop_reason;

SIM_API int sim_task_cancelled(void)
{
    return running_stream != NULL && running_number <= atomic_load(&running_stream->cancelled);
}

aclError sim_drop_reason(void)
{
    return drop_reason;
}

void sim_throw_away(sim_job *list, aclError why)
{
    drop_reason = why;
    while (list != NULL) {
        sim_job *next = list->next;
        if (list->task.drop != NULL) {
            list->task.drop(list->task.argument);
        }
        free(list);
        list = next;
    }
    drop_reason = ACL_SUCCESS;
}

/* The whole context stops: what ACL_STOP_ON_FAILURE is documented to do on real devices. */
static void poison_context(sim_stream *failed, aclError error)
{
    atomic_store(&failed->device->poison, error);
    for (sim_stream *each = sim_stream_first(); each != NULL; each = each->older) {
        if (each != failed && each->device == failed->device) {
            sim_stream_abandon(each, error);
        }
    }
}

static void task_failed(sim_stream *stream, const char *name, aclError error)
{
    sim_trace("task_failed", "stream=%d task=%s error=%d", stream->id, name, error);
    pthread_mutex_lock(&stream->lock);
    if (stream->error == ACL_SUCCESS) {
        stream->error = error;
        snprintf(stream->message, sizeof stream->message, "%s on stream %d failed with %d: %.120s",
                 name, stream->id, error, sim_error_text());
    }
    sim_job *list = NULL;
    if (stream->stop_on_failure) {
        list = stream->head;
        stream->head = stream->tail = NULL;
    }
    bool stop = stream->stop_on_failure;
    pthread_mutex_unlock(&stream->lock);
    sim_throw_away(list, error);
    if (stop && sim_knob_int("SIM_CTX_POISON", 0) != 0) {
        poison_context(stream, error);
    }
}

static void run_one(sim_stream *stream, sim_job *job)
{
    running_number = job->number;
    aclError result = job->task.run(job->task.argument);
    bool failed = result != ACL_SUCCESS && !sim_task_cancelled();
    if (failed) {
        task_failed(stream, job->task.name, result);
    }
    drop_reason = result;
    if (job->task.drop != NULL) {
        job->task.drop(job->task.argument);
    }
    drop_reason = ACL_SUCCESS;
    free(job);
}

static void *stream_main(void *argument)
{
    sim_stream *stream = argument;
    running_stream = stream;
    sim_set_current_device(stream->device->id);
    pthread_mutex_lock(&stream->lock);
    for (;;) {
        while (stream->head == NULL && !stream->closed) {
            pthread_cond_wait(&stream->work, &stream->lock);
        }
        sim_job *job = stream->head;
        if (job == NULL) {
            break;
        }
        stream->head = job->next;
        if (stream->head == NULL) {
            stream->tail = NULL;
        }
        stream->running_arrival = job->arrival;
        pthread_mutex_unlock(&stream->lock);
        run_one(stream, job);
        pthread_mutex_lock(&stream->lock);
        stream->running_arrival = 0;
        stream->ended = stream->head != NULL ? stream->head->number - 1 : stream->pushed;
        pthread_cond_broadcast(&stream->ended_some);
    }
    pthread_mutex_unlock(&stream->lock);
    return NULL;
}

/* Detached, and deaf to signals: those are for the program's own threads. */
void sim_stream_start(sim_stream *stream)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    pthread_t thread;
    if (pthread_create(&thread, &attributes, stream_main, stream) != 0) {
        sim_not_simulated("a stream on a machine that refuses a thread");
    }
    pthread_setname_np(thread, "sim-stream");
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    stream->started = true;
}

