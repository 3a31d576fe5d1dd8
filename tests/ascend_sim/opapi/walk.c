/* Walking over strided tensors, two at a time.
 *
 * Strides may be zero (a broadcast dimension) or of any order; the visitor sees each element
 * of the first tensor exactly once, in row-major order. */
#include <string.h>

#include "opapi.h"

void walk(const aclTensor *a, const aclTensor *b, visitor visit, void *context)
{
    const int64_t width_a = (int64_t)type_bytes(a->type);
    const int64_t width_b = (int64_t)type_bytes(b->type);
    int64_t at[MOST_DIMENSIONS] = {0};
    char *here = first_element(a);
    const char *there = first_element(b);
    uint64_t left = element_count(a);
    while (left > 0 && visit(a, here, there, context)) {
        left--;
        for (uint64_t i = a->dimensions; left > 0 && i-- > 0;) {
            here += a->strides[i] * width_a;
            there += b->strides[i] * width_b;
            if (++at[i] < a->sizes[i]) {
                break;
            }
            here -= a->strides[i] * width_a * a->sizes[i];
            there -= b->strides[i] * width_b * a->sizes[i];
            at[i] = 0;
        }
    }
}

/* Gives `other` the sizes of `shape` by the rules of broadcasting; 0 when it cannot have them. */
int expand_to(const aclTensor *shape, aclTensor *other)
{
    if (other->dimensions > shape->dimensions) {
        return 0;
    }
    const uint64_t added = shape->dimensions - other->dimensions;
    memmove(other->sizes + added, other->sizes, other->dimensions * sizeof *other->sizes);
    memmove(other->strides + added, other->strides, other->dimensions * sizeof *other->strides);
    for (uint64_t i = 0; i < shape->dimensions; i++) {
        if (i >= added && other->sizes[i] == shape->sizes[i]) {
            continue;
        }
        if (i >= added && other->sizes[i] != 1) {
            return 0;
        }
        other->sizes[i] = shape->sizes[i];
        other->strides[i] = 0;
    }
    other->dimensions = shape->dimensions;
    return 1;
}
