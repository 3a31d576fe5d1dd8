/* Tensors, scalars and lists as the callers of kernels describe them.
 *
 * Descriptions only, copied when made; the data stays where it is. Lists are there because
 * torch_npu looks their constructors up together with the others; no simulated kernel takes one. */
#include <stdlib.h>
#include <string.h>

#include "opapi.h"

static void copy_sizes(int64_t *into, const int64_t *from, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        into[i] = from[i];
    }
}

SIM_API aclTensor *aclCreateTensor(const int64_t *sizes, uint64_t dimensions, int32_t type,
                                   const int64_t *strides, int64_t offset, int32_t format,
                                   const int64_t *storage_sizes, uint64_t storage_dimensions,
                                   void *data)
{
    if (dimensions > MOST_DIMENSIONS || storage_dimensions > MOST_DIMENSIONS) {
        sim_not_simulated("an aclTensor of more than 8 dimensions");
    }
    aclTensor *tensor = calloc(1, sizeof *tensor);
    if (tensor != NULL) {
        tensor->type = type;
        tensor->format = format;
        tensor->dimensions = dimensions;
        tensor->offset = offset;
        tensor->storage_dimensions = storage_dimensions;
        tensor->data = data;
        copy_sizes(tensor->sizes, sizes, dimensions);
        copy_sizes(tensor->strides, strides, dimensions);
        copy_sizes(tensor->storage_sizes, storage_sizes, storage_dimensions);
    }
    return tensor;
}

SIM_API int aclDestroyTensor(const aclTensor *tensor)
{
    free((void *)tensor);
    return ACLNN_SUCCESS;
}

SIM_API aclScalar *aclCreateScalar(const void *value, int32_t type)
{
    aclScalar *scalar = calloc(1, sizeof *scalar);
    if (scalar != NULL) {
        scalar->type = type;
        memcpy(scalar->bytes, value, type_bytes(type));
    }
    return scalar;
}

SIM_API int aclDestroyScalar(const aclScalar *scalar)
{
    free((void *)scalar);
    return ACLNN_SUCCESS;
}

/* aclIntArray and its kin: never read by a simulated kernel. */
static void *new_list(const void *values, size_t bytes)
{
    char *list = malloc(bytes + 1);
    if (list != NULL && bytes > 0) {
        memcpy(list, values, bytes);
    }
    return list;
}

SIM_API void *aclCreateIntArray(const int64_t *values, uint64_t count)
{
    return new_list(values, count * sizeof *values);
}

SIM_API void *aclCreateFloatArray(const float *values, uint64_t count)
{
    return new_list(values, count * sizeof *values);
}

SIM_API void *aclCreateBoolArray(const char *values, uint64_t count)
{
    return new_list(values, count);
}

SIM_API void *aclCreateTensorList(const aclTensor *const *values, uint64_t count)
{
    return new_list(values, count * sizeof *values);
}

SIM_API void *aclCreateScalarList(const aclScalar *const *values, uint64_t count)
{
    return new_list(values, count * sizeof *values);
}

static int free_list(const void *list)
{
    free((void *)list);
    return ACLNN_SUCCESS;
}

SIM_API int aclDestroyIntArray(const void *list)
{
    return free_list(list);
}

SIM_API int aclDestroyFloatArray(const void *list)
{
    return free_list(list);
}

SIM_API int aclDestroyBoolArray(const void *list)
{
    return free_list(list);
}

SIM_API int aclDestroyTensorList(const void *list)
{
    return free_list(list);
}

SIM_API int aclDestroyScalarList(const void *list)
{
    return free_list(list);
}

uint64_t element_count(const aclTensor *tensor)
{
    uint64_t count = 1;
    for (uint64_t i = 0; i < tensor->dimensions; i++) {
        count *= (uint64_t)tensor->sizes[i];
    }
    return count;
}

char *first_element(const aclTensor *tensor)
{
    return tensor->data + tensor->offset * (int64_t)type_bytes(tensor->type);
}

int is_plain_format(int32_t format)
{
    switch (format) {
    case ACL_FORMAT_ND:
    case ACL_FORMAT_NCHW:
    case ACL_FORMAT_NHWC:
    case ACL_FORMAT_NCDHW:
    case ACL_FORMAT_NCL:
        return 1;
    default:
        return 0;
    }
}

int is_plain(const aclTensor *tensor)
{
    return is_plain_format(tensor->format);
}

int is_contiguous(const aclTensor *tensor)
{
    int64_t expected = 1;
    for (uint64_t i = tensor->dimensions; i-- > 0;) {
        if (tensor->sizes[i] != 1 && tensor->strides[i] != expected) {
            return 0;
        }
        expected *= tensor->sizes[i];
    }
    return 1;
}
