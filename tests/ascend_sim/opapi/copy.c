/* aclnnInplaceCopy and aclnnCast: strided copies, with or without a change of type. */
#include <string.h>

#include "opapi.h"

static int move_element(const aclTensor *shape, char *a, const char *b, void *context)
{
    (void)context;
    memcpy(a, b, type_bytes(shape->type));
    return 1;
}

static int cast_element(const aclTensor *shape, char *a, const char *b, void *context)
{
    const aclTensor *source = context;
    store(shape->type, a, load(source->type, b));
    return 1;
}

void run_copy(const aclOpExecutor *self)
{
    const aclTensor *target = &self->tensors[0];
    aclTensor source = self->tensors[1];
    if (target->type != source.type) {
        walk(target, &source, cast_element, &source);
    } else if (is_contiguous(target) && is_contiguous(&source)) {
        memmove(first_element(target), first_element(&source),
                element_count(target) * type_bytes(target->type));
    } else {
        walk(target, &source, move_element, NULL);
    }
}

static int prepare_copy(const char *name, const aclTensor *target, const aclTensor *source,
                        uint64_t *workspace_size, aclOpExecutor **executor)
{
    if (target == NULL || source == NULL) {
        return ACLNN_ERR_PARAM_NULLPTR;
    }
    aclOpExecutor draft = {
        .name = name, .run = run_copy, .tensor_count = 2, .tensors = {*target, *source}};
    if (!is_plain(target) || !is_plain(source)) {
        sim_not_simulated("a copy kernel on a tensor that is stored in an internal format");
    }
    if (!expand_to(target, &draft.tensors[1])) {
        return wrong(name, "the shapes do not fit");
    }
    if (target->type != source->type && (!is_number(target->type) || !is_number(source->type))) {
        return wrong(name, "no such cast on this device");
    }
    return prepare(draft, workspace_size, executor);
}

SIM_API int aclnnInplaceCopyGetWorkspaceSize(const aclTensor *target, const aclTensor *source,
                                             uint64_t *workspace_size, aclOpExecutor **executor)
{
    return prepare_copy("aclnnInplaceCopy", target, source, workspace_size, executor);
}

SIM_API int aclnnInplaceCopy(void *workspace, uint64_t size, aclOpExecutor *executor,
                             aclrtStream stream)
{
    (void)workspace;
    (void)size;
    return launch("aclnnInplaceCopy", executor, stream);
}

SIM_API int aclnnCastGetWorkspaceSize(const aclTensor *source, int32_t type,
                                      const aclTensor *target, uint64_t *workspace_size,
                                      aclOpExecutor **executor)
{
    if (target != NULL && target->type != type) {
        return wrong("aclnnCast", "the output has another type than asked for");
    }
    return prepare_copy("aclnnCast", target, source, workspace_size, executor);
}

SIM_API int aclnnCast(void *workspace, uint64_t size, aclOpExecutor *executor, aclrtStream stream)
{
    (void)workspace;
    (void)size;
    return launch("aclnnCast", executor, stream);
}
