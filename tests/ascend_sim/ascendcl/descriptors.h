/* What the old operator interface (aclop) says of tensors. */
#ifndef NETLOADER_ASCEND_SIM_DESCRIPTORS_H
#define NETLOADER_ASCEND_SIM_DESCRIPTORS_H

#include "../include/sim.h"

enum { MAX_DIMENSIONS = 32 };

typedef struct {
    int32_t type;
    int32_t format;
    int32_t storage_format;
    int count;
    int storage_count;
    int64_t dimensions[MAX_DIMENSIONS];
    int64_t storage_dimensions[MAX_DIMENSIONS];
} description;

typedef struct {
    void *data;
    size_t bytes;
} data_buffer;

#endif
