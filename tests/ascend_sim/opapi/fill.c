/* aclnnInplaceZero, aclnnInplaceOne and aclnnInplaceFillScalar. */
#include "opapi.h"

static int fill_element(const aclTensor *shape, char *a, const char *b, void *context)
{
    (void)b;
    store(shape->type, a, *(const element *)context);
    return 1;
}

static void run_fill(const aclOpExecutor *self)
{
    element value = load(self->scalar.type, self->scalar.bytes);
    walk(&self->tensors[0], &self->tensors[0], fill_element, &value);
}

static int prepare_fill(const char *name, const aclTensor *target, aclScalar scalar,
                        uint64_t *workspace_size, aclOpExecutor **executor)
{
    if (target == NULL) {
        return ACLNN_ERR_PARAM_NULLPTR;
    }
    aclOpExecutor draft = {
        .name = name, .run = run_fill, .tensor_count = 1, .tensors = {*target}, .scalar = scalar};
    if (!is_plain(target)) {
        sim_not_simulated("a fill kernel on a tensor that is stored in an internal format");
    }
    if (!is_number(target->type) || !is_number(scalar.type)) {
        return wrong(name, "no such type on this device");
    }
    return prepare(draft, workspace_size, executor);
}

SIM_API int aclnnInplaceZeroGetWorkspaceSize(const aclTensor *target, uint64_t *workspace_size,
                                             aclOpExecutor **executor)
{
    return prepare_fill("aclnnInplaceZero", target, (aclScalar){.type = ACL_INT8, .bytes = {0}},
                        workspace_size, executor);
}

SIM_API int aclnnInplaceZero(void *workspace, uint64_t size, aclOpExecutor *executor,
                             aclrtStream stream)
{
    (void)workspace;
    (void)size;
    return launch("aclnnInplaceZero", executor, stream);
}

SIM_API int aclnnInplaceOneGetWorkspaceSize(const aclTensor *target, uint64_t *workspace_size,
                                            aclOpExecutor **executor)
{
    return prepare_fill("aclnnInplaceOne", target, (aclScalar){.type = ACL_INT8, .bytes = {1}},
                        workspace_size, executor);
}

SIM_API int aclnnInplaceOne(void *workspace, uint64_t size, aclOpExecutor *executor,
                            aclrtStream stream)
{
    (void)workspace;
    (void)size;
    return launch("aclnnInplaceOne", executor, stream);
}

SIM_API int aclnnInplaceFillScalarGetWorkspaceSize(const aclTensor *target, const aclScalar *value,
                                                   uint64_t *workspace_size,
                                                   aclOpExecutor **executor)
{
    if (value == NULL) {
        return ACLNN_ERR_PARAM_NULLPTR;
    }
    return prepare_fill("aclnnInplaceFillScalar", target, *value, workspace_size, executor);
}

SIM_API int aclnnInplaceFillScalar(void *workspace, uint64_t size, aclOpExecutor *executor,
                                   aclrtStream stream)
{
    (void)workspace;
    (void)size;
    return launch("aclnnInplaceFillScalar", executor, stream);
}
