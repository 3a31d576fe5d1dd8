/* The old operator interface (aclop): one operator, by which torch_npu changes storage formats.
 *
 * Identity copies a tensor from the layout of its input to that of its output. It is how
 * torch_npu copies between formats, and how it casts them when CANN is older than 9.1.0. Every
 * other operator says its name and aborts. */
#include "../opapi/fractals.h"
#include "descriptors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FORMAT_FRACTAL_NZ = 29 };

typedef struct {
    enum { PLAIN_COPY, INTO_FRACTALS, OUT_OF_FRACTALS } way;
    fractals cut;
    char *source;
    char *target;
    size_t bytes;
} identity;

static _Noreturn void no_operator(const char *type)
{
    char what[128];
    snprintf(what, sizeof what, "the operator %.100s (aclop)", type);
    sim_not_simulated(what);
}

static aclError run_identity(void *argument)
{
    const identity *self = argument;
    switch (self->way) {
    case INTO_FRACTALS:
        permute_fractals(&self->cut, self->source, self->target, TO_FRACTALS);
        break;
    case OUT_OF_FRACTALS:
        permute_fractals(&self->cut, self->target, self->source, FROM_FRACTALS);
        break;
    default:
        memmove(self->target, self->source, self->bytes);
    }
    return ACL_SUCCESS;
}

static size_t storage_elements(const description *described)
{
    size_t count = 1;
    for (int at = 0; at < described->storage_count; at++) {
        count *= (size_t)described->storage_dimensions[at];
    }
    return count;
}

/* A vector is a matrix of one column, as in torch_npu's own reckoning of the storage. */
static fractals cut_of(const description *plain, size_t width)
{
    int64_t sizes[MAX_DIMENSIONS + 2] = {1, 1};
    int count = plain->count;
    memcpy(sizes, plain->dimensions, (size_t)count * sizeof *sizes);
    while (count < 2) {
        sizes[count++] = 1;
    }
    return cut_into_fractals(sizes, (uint64_t)count, width);
}

static aclError queue_identity(const description *from, const data_buffer *source,
                               const description *to, const data_buffer *target, aclrtStream stream)
{
    const int was = from->storage_format == FORMAT_FRACTAL_NZ;
    const int becomes = to->storage_format == FORMAT_FRACTAL_NZ;
    const size_t elements = storage_elements(from);
    if (was != becomes && !fractals_hold(from->type)) {
        no_operator("Identity between ND and FRACTAL_NZ of this type");
    }
    identity *self = calloc(1, sizeof *self);
    if (self == NULL || elements == 0) {
        free(self);
        return elements == 0 ? ACL_SUCCESS : ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    self->source = source->data;
    self->target = target->data;
    self->bytes = source->bytes < target->bytes ? source->bytes : target->bytes;
    self->cut = cut_of(was ? to : from, source->bytes / elements);
    if (was != becomes) {
        self->way = becomes ? INTO_FRACTALS : OUT_OF_FRACTALS;
    }
    sim_trace("aclop.Identity", "from=%d to=%d bytes=%zu", from->storage_format, to->storage_format,
              self->bytes);
    sim_task task = {.name = "aclop.Identity", .run = run_identity, .drop = free, .argument = self};
    return sim_stream_push(stream, task);
}

SIM_API aclError aclopCompileAndExecute(const char *type, int inputs,
                                        const description *const *input_descriptions,
                                        const data_buffer *const *input_buffers, int outputs,
                                        const description *const *output_descriptions,
                                        data_buffer *const *output_buffers, const void *attributes,
                                        int32_t engine, int32_t compile, const char *path,
                                        aclrtStream stream)
{
    (void)attributes, (void)engine, (void)compile, (void)path;
    if (strcmp(type, "Identity") != 0 || inputs != 1 || outputs != 1) {
        no_operator(type);
    }
    return queue_identity(input_descriptions[0], input_buffers[0], output_descriptions[0],
                          output_buffers[0], stream);
}

SIM_API aclError aclopCompileAndExecuteV2(const char *type, ...)
{
    no_operator(type);
}
