/* Executors: the time between a kernel's two calls, and its turn on the stream.
 *
 * A kernel runs on the stream's thread, after all that was queued before it, on memory of the
 * stream's device. An executor is used once. */
#include <stdlib.h>

#include "opapi.h"

int wrong(const char *kernel, const char *why)
{
    sim_set_error("%s (simulated): %s", kernel, why);
    return ACLNN_ERR_PARAM_INVALID;
}

int prepare(aclOpExecutor draft, uint64_t *workspace_size, aclOpExecutor **executor)
{
    if (workspace_size == NULL || executor == NULL) {
        return ACLNN_ERR_PARAM_NULLPTR;
    }
    *executor = malloc(sizeof **executor);
    if (*executor == NULL) {
        return ACLNN_ERR_PARAM_NULLPTR;
    }
    **executor = draft;
    *workspace_size = 0;
    return ACLNN_SUCCESS;
}

static aclError run(void *argument)
{
    const aclOpExecutor *self = argument;
    self->run(self);
    return ACL_SUCCESS;
}

int launch(const char *name, aclOpExecutor *executor, aclrtStream stream)
{
    if (executor == NULL) {
        return ACLNN_ERR_PARAM_NULLPTR;
    }
    const aclTensor *first = &executor->tensors[0];
    sim_trace(name, "type=%d elements=%llu", first->type, (unsigned long long)element_count(first));
    for (size_t i = 0; i < executor->tensor_count; i++) {
        const aclTensor *tensor = &executor->tensors[i];
        if (element_count(tensor) > 0 &&
            sim_memory_device(tensor->data) != sim_stream_device(stream)) {
            free(executor);
            return wrong(name, "a tensor is not in the memory of the stream's device");
        }
    }
    sim_task task = {.name = executor->name, .run = run, .drop = free, .argument = executor};
    return sim_stream_push(stream, task);
}
