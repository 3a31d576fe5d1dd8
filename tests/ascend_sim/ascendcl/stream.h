/* What a stream is made of: for stream.c (its queue) and worker.c (its thread).
 *
 * `lock` guards every field that is not atomic and not set once; no task runs under it. */
#ifndef NETLOADER_ASCEND_SIM_STREAM_H
#define NETLOADER_ASCEND_SIM_STREAM_H

#include "runtime.h"

enum { STREAM_MAGIC = 0x5157ea3d };

typedef struct sim_job {
    struct sim_job *next;
    sim_task task;
    uint64_t number;  /* counts the tasks of this stream */
    uint64_t arrival; /* counts the tasks of all streams */
} sim_job;

struct sim_stream {
    uint32_t magic;
    int32_t id;
    sim_device *device;
    sim_stream *older; /* the list of all streams, newest first */
    pthread_mutex_t lock;
    pthread_cond_t work;
    pthread_cond_t ended_some;
    sim_job *head;
    sim_job *tail;
    uint64_t pushed;
    uint64_t ended;             /* every task up to this number has ended */
    uint64_t running_arrival;   /* 0: nothing runs */
    _Atomic uint64_t cancelled; /* a running task up to this number must give up */
    aclError error;
    char message[256];
    bool stop_on_failure;
    bool started;
    bool closed;
};

/* Call `drop` of every job of a list, none of which ran; no lock is held. */
void sim_throw_away(sim_job *list, aclError why);
/* Start the thread of a stream; the lock is held. */
void sim_stream_start(sim_stream *stream);

#endif
