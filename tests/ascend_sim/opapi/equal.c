/* aclnnEqual: whether two tensors have the same shape and elements; NaN equals nothing. */
#include "opapi.h"

typedef struct comparison {
    const aclTensor *other;
    int equal;
} comparison;

static int compare_element(const aclTensor *shape, char *a, const char *b, void *context)
{
    comparison *self = context;
    const element left = load(shape->type, a);
    const element right = load(self->other->type, b);
    self->equal = left.is_whole ? left.whole == right.whole : left.real == right.real;
    return self->equal;
}

static int same_shape(const aclTensor *a, const aclTensor *b)
{
    int same = a->dimensions == b->dimensions;
    for (uint64_t i = 0; same && i < a->dimensions; i++) {
        same = a->sizes[i] == b->sizes[i];
    }
    return same;
}

static void run_equal(const aclOpExecutor *self)
{
    const aclTensor *left = &self->tensors[0];
    comparison state = {.other = &self->tensors[1], .equal = same_shape(left, &self->tensors[1])};
    if (state.equal) {
        walk(left, state.other, compare_element, &state);
    }
    *first_element(&self->tensors[2]) = (char)state.equal;
}

SIM_API int aclnnEqualGetWorkspaceSize(const aclTensor *left, const aclTensor *right,
                                       const aclTensor *answer, uint64_t *workspace_size,
                                       aclOpExecutor **executor)
{
    if (left == NULL || right == NULL || answer == NULL) {
        return ACLNN_ERR_PARAM_NULLPTR;
    }
    aclOpExecutor draft = {.name = "aclnnEqual",
                           .run = run_equal,
                           .tensor_count = 3,
                           .tensors = {*left, *right, *answer}};
    if (!is_plain(left) || !is_plain(right)) {
        sim_not_simulated("aclnnEqual on a tensor that is stored in an internal format");
    }
    if (left->type != right->type || !is_number(left->type) || answer->type != ACL_BOOL) {
        return wrong("aclnnEqual", "no such types on this device");
    }
    return prepare(draft, workspace_size, executor);
}

SIM_API int aclnnEqual(void *workspace, uint64_t size, aclOpExecutor *executor, aclrtStream stream)
{
    (void)workspace;
    (void)size;
    return launch("aclnnEqual", executor, stream);
}
