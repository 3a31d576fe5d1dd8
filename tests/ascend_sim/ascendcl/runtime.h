/* What the files of the simulated CANN runtime share with each other, and with nobody else.
 *
 * A stream structure is never freed, so that a stale handle is an error and not a crash;
 * an event is freed when its last task lets go of it. No lock is held while a task runs. */
#ifndef NETLOADER_ASCEND_SIM_RUNTIME_H
#define NETLOADER_ASCEND_SIM_RUNTIME_H

#include "../include/sim.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum { SIM_MAX_DEVICES = 64 };

/* How long a wait may sleep before it looks again whether it was cancelled. */
enum { SIM_LOOK_MS = 50 };

typedef struct sim_stream sim_stream;

typedef struct sim_device {
    int32_t id;
    pthread_mutex_t lock;
    sim_stream *default_stream; /* what a NULL stream means; made when first used */
    _Atomic bool active;        /* some thread has set it */
    _Atomic aclError poison;    /* SIM_CTX_POISON: why no stream of the context works any more */
} sim_device;

/* --- device.c --- */
int32_t sim_device_count(void);
sim_device *sim_device_of(int32_t id);
void sim_set_current_device(int32_t id);

/* --- stream.c --- */
sim_stream *sim_stream_new(sim_device *device);
sim_stream *sim_stream_resolve(aclrtStream handle); /* NULL and an error message when unknown */
int32_t sim_stream_id(const sim_stream *stream);
sim_device *sim_stream_owner(const sim_stream *stream);
sim_stream *sim_stream_first(void); /* all streams, newest first */
sim_stream *sim_stream_next(const sim_stream *stream);
void sim_stream_stop_on_failure(sim_stream *stream, bool stop);
/* Queue a task and say its number, for sim_stream_wait. */
aclError sim_stream_push_numbered(aclrtStream stream, sim_task task, uint64_t *number);
/* Wait until everything up to task `number` has ended; timeout_ms < 0 means for ever. */
aclError sim_stream_wait(sim_stream *stream, uint64_t number, int64_t timeout_ms);
uint64_t sim_stream_last(sim_stream *stream);
/* Whether nothing is left to do, and the error with which the stream refuses work. */
aclError sim_stream_look(sim_stream *stream, bool *idle);
/* Throw away what waits and cancel what runs; `why` is what sim_drop_reason says meanwhile. */
void sim_stream_abandon(sim_stream *stream, aclError why);
void sim_stream_forgive(sim_stream *stream); /* forget its error */
bool sim_stream_is_closed(sim_stream *stream);
void sim_stream_close(sim_stream *stream);   /* its thread ends after what was pushed */
/* Inside a task's `drop`: what its `run` returned, or why it never ran. */
aclError sim_drop_reason(void);
/* Numbers the tasks of all streams in the order of their arrival, and says which is the oldest
 * that has not ended. */
uint64_t sim_tasks_arrived(void);
uint64_t sim_oldest_unfinished(void);

/* --- memory.c --- */
int64_t sim_hbm_bytes(void);

/* --- registry.c: which memory is whose --- */
typedef struct sim_block {
    uintptr_t address;
    size_t bytes;
    int32_t device; /* -1: pinned host memory */
} sim_block;
void sim_register(sim_block block);
bool sim_unregister(const void *address, sim_block *was);
bool sim_find_block(const void *address, sim_block *found);

/* --- pages.c: the host memory behind device memory --- */
void *sim_pages_map(size_t bytes);
void sim_pages_retire(void *address, size_t bytes);
void sim_poison(void *address, size_t bytes);

/* --- knobs.c: texts and time --- */
const char *sim_error_text(void); /* what sim_set_error said last in this thread */
int64_t sim_now_ns(void);
/* The CLOCK_MONOTONIC moment in `ms` milliseconds, for conditions made by sim_condition_init. */
struct timespec sim_in_ms(int64_t ms);
void sim_condition_init(pthread_cond_t *condition);

#endif
