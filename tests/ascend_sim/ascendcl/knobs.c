/* Knobs, the call log, error texts and the clock of the simulated runtime.
 *
 * Everything here is free of devices and streams; the call log costs one branch when off. */
#define _GNU_SOURCE
#include "runtime.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TRACE_UNKNOWN = -2, TRACE_OFF = -1 };

static _Atomic int trace_file = TRACE_UNKNOWN;
static pthread_once_t trace_once = PTHREAD_ONCE_INIT;
static _Thread_local char error_text[512];
static _Thread_local char error_read[512];

SIM_API const char *sim_knob(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : otherwise;
}

SIM_API int64_t sim_knob_int(const char *name, int64_t otherwise)
{
    const char *value = sim_knob(name, NULL);
    if (value == NULL) {
        return otherwise;
    }
    char *end = NULL;
    long long number = strtoll(value, &end, 0);
    if (end == value || *end != '\0') {
        fprintf(stderr, "[ascend simulator] %s=%s is not a whole number\n", name, value);
        abort();
    }
    return number;
}

static void trace_open(void)
{
    const char *path = sim_knob("SIM_CANN_TRACE", NULL);
    int file = TRACE_OFF;
    if (path != NULL) {
        file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (file < 0) {
            fprintf(stderr, "[ascend simulator] SIM_CANN_TRACE=%s cannot be opened\n", path);
            abort();
        }
    }
    atomic_store(&trace_file, file);
}

SIM_API void sim_trace(const char *call, const char *format, ...)
{
    int file = atomic_load_explicit(&trace_file, memory_order_relaxed);
    if (file == TRACE_OFF) {
        return;
    }
    if (file == TRACE_UNKNOWN) {
        pthread_once(&trace_once, trace_open);
        file = atomic_load(&trace_file);
        if (file == TRACE_OFF) {
            return;
        }
    }
    char line[1024];
    int64_t now = sim_now_ns();
    int used = snprintf(line, sizeof line, "%lld.%06lld %ld %ld %s ", (long long)(now / 1000000000),
                        (long long)(now % 1000000000 / 1000), (long)getpid(),
                        (long)syscall(SYS_gettid), call);
    va_list arguments;
    va_start(arguments, format);
    int more = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
    va_end(arguments);
    size_t length = (size_t)used + (more > 0 ? (size_t)more : 0);
    if (length > sizeof line - 2) {
        length = sizeof line - 2;
    }
    line[length] = '\n';
    /* One write to an O_APPEND file: lines of several processes do not mix. */
    ssize_t written = write(file, line, length + 1);
    (void)written;
}

SIM_API _Noreturn void sim_not_simulated(const char *what)
{
    fprintf(stderr, "[ascend simulator] %s is not simulated: aborting\n", what);
    sim_trace("not_simulated", "%s", what);
    abort();
}

SIM_API void sim_set_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error_text, sizeof error_text, format, arguments);
    va_end(arguments);
}

/* As in CANN: reading the message clears it, and it belongs to the thread. */
SIM_API const char *aclGetRecentErrMsg(void)
{
    if (error_text[0] == '\0') {
        return NULL;
    }
    snprintf(error_read, sizeof error_read, "[ascend simulator] %.480s", error_text);
    error_text[0] = '\0';
    return error_read;
}

const char *sim_error_text(void)
{
    return error_text;
}

int64_t sim_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

struct timespec sim_in_ms(int64_t ms)
{
    int64_t then = sim_now_ns() + ms * 1000000;
    return (struct timespec){.tv_sec = then / 1000000000, .tv_nsec = then % 1000000000};
}

void sim_condition_init(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}
