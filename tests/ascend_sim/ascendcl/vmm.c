/* Virtual memory calls of the simulated runtime, for PYTORCH_NPU_ALLOC_CONF=expandable_segments.
 *
 * Physical memory is a file in memory, counted against the HBM of its device; a reserved
 * range holds nothing until something is mapped into it. */
#define _GNU_SOURCE
#include "runtime.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct {
    int file;
    size_t bytes;
    int32_t device;
} physical;

/* The layout that the public header documents for aclrtPhysicalMemProp. */
typedef struct {
    int32_t handle_type;
    int32_t allocation_type;
    int32_t memory_kind;
    uint32_t location_id;
    int32_t location_type;
    uint64_t reserved;
} physical_properties;

SIM_API aclError aclrtReserveMemAddress(void **address, size_t bytes, size_t alignment,
                                        void *wanted, uint64_t flags)
{
    (void)alignment;
    (void)flags;
    const int nothing = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *range = mmap(wanted, bytes, PROT_NONE, nothing, -1, 0);
    sim_trace("aclrtReserveMemAddress", "bytes=%zu", bytes);
    if (range == MAP_FAILED) {
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    *address = range;
    return ACL_SUCCESS;
}

/* The size of a range is not said here, and the host does not miss reserved addresses. */
SIM_API aclError aclrtReleaseMemAddress(void *address)
{
    sim_trace("aclrtReleaseMemAddress", "address=%p", address);
    return ACL_SUCCESS;
}

static int poisoned_file(size_t bytes)
{
    int file = memfd_create("simulated-hbm", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)bytes) != 0) {
        return -1;
    }
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (pages == MAP_FAILED) {
        close(file);
        return -1;
    }
    sim_poison(pages, bytes);
    munmap(pages, bytes);
    return file;
}

SIM_API aclError aclrtMallocPhysical(void **handle, size_t bytes,
                                     const physical_properties *properties, uint64_t flags)
{
    (void)flags;
    int32_t device = (int32_t)properties->location_id;
    aclError error = sim_account(device, (int64_t)bytes);
    sim_trace("aclrtMallocPhysical", "device=%d bytes=%zu result=%d", device, bytes, error);
    if (error != ACL_SUCCESS) {
        return error;
    }
    physical *memory = malloc(sizeof *memory);
    int file = poisoned_file(bytes);
    if (memory == NULL || file < 0) {
        free(memory);
        sim_account(device, -(int64_t)bytes);
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    *memory = (physical){file, bytes, device};
    *handle = memory;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtFreePhysical(void *handle)
{
    physical *memory = handle;
    sim_trace("aclrtFreePhysical", "device=%d bytes=%zu", memory->device, memory->bytes);
    sim_account(memory->device, -(int64_t)memory->bytes);
    close(memory->file);
    free(memory);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtMapMem(void *address, size_t bytes, size_t offset, void *handle,
                             uint64_t flags)
{
    (void)flags;
    const physical *memory = handle;
    sim_trace("aclrtMapMem", "device=%d bytes=%zu", memory->device, bytes);
    if (offset + bytes > memory->bytes ||
        mmap(address, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory->file,
             (off_t)offset) == MAP_FAILED) {
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    sim_register((sim_block){(uintptr_t)address, bytes, memory->device});
    return ACL_SUCCESS;
}

SIM_API aclError aclrtUnmapMem(void *address)
{
    sim_block block;
    if (!sim_unregister(address, &block)) {
        sim_set_error("aclrtUnmapMem: nothing is mapped at %p", address);
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    sim_trace("aclrtUnmapMem", "device=%d bytes=%zu", block.device, block.bytes);
    /* The range stays reserved. */
    void *range = mmap(address, block.bytes, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return range == MAP_FAILED ? ACL_ERROR_RT_PARAM_INVALID : ACL_SUCCESS;
}

/* Not "feature not supported": torch_npu prints that one and goes on as if all were well. */
static aclError no_sharing(void)
{
    sim_set_error("sharing device memory between processes is not simulated");
    return ACL_ERROR_RT_PARAM_INVALID;
}

SIM_API aclError aclrtMemExportToShareableHandle(void *handle, int32_t type, uint64_t flags,
                                                 uint64_t *shareable)
{
    (void)handle, (void)type, (void)flags, (void)shareable;
    return no_sharing();
}

SIM_API aclError aclrtMemImportFromShareableHandle(uint64_t shareable, int32_t device,
                                                   void **handle)
{
    (void)shareable, (void)device, (void)handle;
    return no_sharing();
}

SIM_API aclError aclrtMemSetPidToShareableHandle(uint64_t shareable, int32_t *pids, size_t count)
{
    (void)shareable, (void)pids, (void)count;
    return no_sharing();
}
