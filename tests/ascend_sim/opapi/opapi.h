/* What the files of the simulated libopapi.so share.
 *
 * A SIMULATOR of the few kernels that moving weights needs. A kernel has two calls, as in
 * CANN:
 * ...GetWorkspaceSize copies the description of its tensors into an executor, the second call
 * queues it. Kernels that are not here do not exist: torch_npu then says so itself, or takes the
 * road of aclopCompileAndExecute, which aborts. */
#ifndef NETLOADER_ASCEND_SIM_OPAPI_H
#define NETLOADER_ASCEND_SIM_OPAPI_H

#include <stddef.h>
#include <stdint.h>

#include "../include/sim.h"

enum { ACLNN_SUCCESS = 0, ACLNN_ERR_PARAM_NULLPTR = 161001, ACLNN_ERR_PARAM_INVALID = 161002 };

enum {
    ACL_FLOAT = 0,
    ACL_FLOAT16 = 1,
    ACL_INT8 = 2,
    ACL_INT32 = 3,
    ACL_UINT8 = 4,
    ACL_INT16 = 6,
    ACL_UINT16 = 7,
    ACL_UINT32 = 8,
    ACL_INT64 = 9,
    ACL_UINT64 = 10,
    ACL_DOUBLE = 11,
    ACL_BOOL = 12,
    ACL_COMPLEX64 = 16,
    ACL_COMPLEX128 = 17,
    ACL_BF16 = 27,
    ACL_FLOAT8_E5M2 = 35,
    ACL_FLOAT8_E4M3FN = 36,
};

/* The formats whose storage is the tensor itself (they differ in the names of dimensions), and the
 * one that is not. torch_npu calls tensors of 3, 4 and 5 dimensions NCL, NCHW and NCDHW. */
enum {
    ACL_FORMAT_NCHW = 0,
    ACL_FORMAT_NHWC = 1,
    ACL_FORMAT_ND = 2,
    ACL_FORMAT_FRACTAL_NZ = 29,
    ACL_FORMAT_NCDHW = 30,
    ACL_FORMAT_NCL = 47,
};

/* torch allows 64 dimensions, aclnn 8. */
enum { MOST_DIMENSIONS = 8 };

typedef struct aclTensor {
    int32_t type;
    int32_t format;
    uint64_t dimensions;
    int64_t sizes[MOST_DIMENSIONS];
    int64_t strides[MOST_DIMENSIONS]; /* in elements */
    int64_t offset;                   /* in elements */
    uint64_t storage_dimensions;
    int64_t storage_sizes[MOST_DIMENSIONS];
    char *data; /* where the storage begins */
} aclTensor;

typedef struct aclScalar {
    int32_t type;
    char bytes[16];
} aclScalar;

/* An element, as a whole number or as a real one. */
typedef struct element {
    int is_whole;
    int64_t whole;
    double real;
} element;

/* A kernel that was prepared, and all it needs. */
typedef struct aclOpExecutor {
    const char *name;
    void (*run)(const struct aclOpExecutor *self);
    size_t tensor_count;
    aclTensor tensors[3];
    aclScalar scalar;
} aclOpExecutor;

/* tensor.c */
uint64_t element_count(const aclTensor *tensor);
char *first_element(const aclTensor *tensor);
int is_plain_format(int32_t format);
int is_plain(const aclTensor *tensor);
int is_contiguous(const aclTensor *tensor);

/* executor.c */
int prepare(aclOpExecutor draft, uint64_t *workspace_size, aclOpExecutor **executor);
int launch(const char *name, aclOpExecutor *executor, aclrtStream stream);
int wrong(const char *kernel, const char *why);

/* elements.c */
size_t type_bytes(int32_t type);
int is_number(int32_t type);
element load(int32_t type, const char *from);
void store(int32_t type, char *into, element value);

/* walk.c: visits every element of `shape`, in order; stops when the visitor answers 0. */
typedef int (*visitor)(const aclTensor *shape, char *a, const char *b, void *context);
void walk(const aclTensor *a, const aclTensor *b, visitor visit, void *context);
int expand_to(const aclTensor *shape, aclTensor *other);

/* copy.c */
void run_copy(const aclOpExecutor *self);

#endif
