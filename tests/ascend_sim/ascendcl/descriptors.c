/* Descriptions of tensors and data for the old operator interface (aclop).
 *
 * They hold what they were given and say it again; operators.c reads them. */
#include "descriptors.h"

#include <stdlib.h>
#include <string.h>

static aclError keep(int64_t *room, int *room_count, int count, const int64_t *dimensions)
{
    if (count < 0 || count > MAX_DIMENSIONS) {
        return ACL_ERROR_INVALID_PARAM;
    }
    if (count > 0) {
        memcpy(room, dimensions, (size_t)count * sizeof *room);
    }
    *room_count = count;
    return ACL_SUCCESS;
}

SIM_API void *aclCreateTensorDesc(int32_t type, int count, const int64_t *dimensions,
                                  int32_t format)
{
    description *made = calloc(1, sizeof *made);
    if (made != NULL) {
        made->type = type;
        made->format = made->storage_format = format;
        if (keep(made->dimensions, &made->count, count, dimensions) != ACL_SUCCESS) {
            free(made);
            return NULL;
        }
    }
    return made;
}

SIM_API void aclDestroyTensorDesc(void *described)
{
    free(described);
}

SIM_API int32_t aclGetTensorDescType(const description *described)
{
    return described->type;
}

SIM_API int32_t aclGetTensorDescFormat(const description *described)
{
    return described->format;
}

SIM_API size_t aclGetTensorDescNumDims(const description *described)
{
    return (size_t)described->count;
}

SIM_API aclError aclGetTensorDescDimV2(const description *described, size_t index, int64_t *value)
{
    if (index >= (size_t)described->count) {
        return ACL_ERROR_INVALID_PARAM;
    }
    *value = described->dimensions[index];
    return ACL_SUCCESS;
}

SIM_API aclError aclSetTensorFormat(description *described, int32_t format)
{
    described->storage_format = format;
    return ACL_SUCCESS;
}

SIM_API aclError aclSetTensorShape(description *described, int count, const int64_t *dimensions)
{
    return keep(described->storage_dimensions, &described->storage_count, count, dimensions);
}

SIM_API void aclSetTensorDescName(description *described, const char *name)
{
    (void)described, (void)name;
}

SIM_API aclError aclSetTensorPlaceMent(description *described, int32_t kind)
{
    (void)described, (void)kind;
    return ACL_SUCCESS;
}

SIM_API void *aclCreateDataBuffer(void *data, size_t bytes)
{
    data_buffer *made = malloc(sizeof *made);
    if (made != NULL) {
        *made = (data_buffer){data, bytes};
    }
    return made;
}

SIM_API aclError aclDestroyDataBuffer(void *buffer)
{
    free(buffer);
    return ACL_SUCCESS;
}
