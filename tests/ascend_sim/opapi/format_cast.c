/* aclnnNpuFormatCast: between the plain layout and FRACTAL_NZ (fractals.h). */
#include <stdlib.h>
#include <string.h>

#include "fractals.h"
#include "opapi.h"

static void run_format_cast(const aclOpExecutor *self)
{
    const aclTensor *source = &self->tensors[0];
    const aclTensor *target = &self->tensors[1];
    const fractals cut =
        cut_into_fractals(source->sizes, source->dimensions, type_bytes(source->type));
    if (target->format == ACL_FORMAT_FRACTAL_NZ) {
        permute_fractals(&cut, source->data, target->data, TO_FRACTALS);
    } else {
        permute_fractals(&cut, target->data, source->data, FROM_FRACTALS);
    }
}

/* Between ND and FRACTAL_NZ, one way or the other. */
static int can_cast(const aclTensor *source, int32_t format)
{
    return source->dimensions >= 2 && fractals_hold(source->type) &&
           ((is_plain(source) && format == ACL_FORMAT_FRACTAL_NZ) ||
            (source->format == ACL_FORMAT_FRACTAL_NZ && is_plain_format(format)));
}

/* The storage that the result needs. The caller frees the sizes with delete[], which in glibc's
 * world takes what malloc gave. */
SIM_API int aclnnNpuFormatCastCalculateSizeAndFormat(const aclTensor *source, int32_t format,
                                                     int32_t computed_in, int64_t **sizes,
                                                     uint64_t *dimensions, int32_t *actual_format)
{
    (void)computed_in;
    if (source == NULL || sizes == NULL || dimensions == NULL || actual_format == NULL) {
        return ACLNN_ERR_PARAM_NULLPTR;
    }
    if (!can_cast(source, format)) {
        return wrong("aclnnNpuFormatCast",
                     "only between ND and FRACTAL_NZ, two dimensions or more, and not this type");
    }
    *sizes = calloc(MOST_DIMENSIONS + 2, sizeof **sizes);
    if (*sizes == NULL) {
        return ACLNN_ERR_PARAM_NULLPTR;
    }
    memcpy(*sizes, source->sizes, source->dimensions * sizeof **sizes);
    *dimensions = source->dimensions;
    if (format == ACL_FORMAT_FRACTAL_NZ) {
        const fractals cut =
            cut_into_fractals(source->sizes, source->dimensions, type_bytes(source->type));
        const uint64_t first = source->dimensions - 2;
        (*sizes)[first] = cut.across;
        (*sizes)[first + 1] = cut.down;
        (*sizes)[first + 2] = FRACTAL_ROWS;
        (*sizes)[first + 3] = cut.fractal_columns;
        *dimensions += 2;
    }
    *actual_format = format;
    return ACLNN_SUCCESS;
}

SIM_API int aclnnNpuFormatCastGetWorkspaceSize(const aclTensor *source, const aclTensor *target,
                                               uint64_t *workspace_size, aclOpExecutor **executor)
{
    if (source == NULL || target == NULL) {
        return ACLNN_ERR_PARAM_NULLPTR;
    }
    aclOpExecutor draft = {.name = "aclnnNpuFormatCast",
                           .run = run_format_cast,
                           .tensor_count = 2,
                           .tensors = {*source, *target}};
    if (!can_cast(source, target->format) || source->type != target->type) {
        return wrong("aclnnNpuFormatCast", "only between ND and FRACTAL_NZ of one type");
    }
    if (!is_contiguous(source) || source->offset != 0 || target->offset != 0) {
        return wrong("aclnnNpuFormatCast", "whole tensors only");
    }
    return prepare(draft, workspace_size, executor);
}

SIM_API int aclnnNpuFormatCast(void *workspace, uint64_t size, aclOpExecutor *executor,
                               aclrtStream stream)
{
    (void)workspace;
    (void)size;
    return launch("aclnnNpuFormatCast", executor, stream);
}
