/* Device and pinned memory of the simulated runtime, and who pays for it.
 *
 * Every byte of device memory is counted against the HBM of its device (SIM_HBM_BYTES, for
 * this process alone); what does not fit is ACL_ERROR_RT_MEMORY_ALLOCATION. */
#include "runtime.h"

#include <stdlib.h>

enum { LOCATION_HOST = 0, LOCATION_DEVICE = 1, LOCATION_UNREGISTERED = 2 };

static const int64_t HBM_BYTES = (int64_t)64 << 30; /* what an Ascend 910B2 has */

static pthread_mutex_t account_lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t used[SIM_MAX_DEVICES];

int64_t sim_hbm_bytes(void)
{
    return sim_knob_int("SIM_HBM_BYTES", HBM_BYTES);
}

SIM_API aclError sim_account(int32_t device, int64_t bytes)
{
    if (sim_device_of(device) == NULL) {
        return ACL_ERROR_RT_INVALID_DEVICEID;
    }
    int64_t total = sim_hbm_bytes();
    pthread_mutex_lock(&account_lock);
    int64_t free_bytes = total - used[device];
    bool fits = bytes <= free_bytes;
    if (fits) {
        used[device] += bytes;
    }
    pthread_mutex_unlock(&account_lock);
    if (!fits) {
        sim_set_error("device %d is out of memory: %lld bytes wanted, %lld free of %lld", device,
                      (long long)bytes, (long long)free_bytes, (long long)total);
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    return ACL_SUCCESS;
}

static aclError hbm_allocate(const char *call, void **address, size_t bytes)
{
    int32_t device = sim_current_device();
    if (device < 0) {
        sim_set_error("%s in a thread without a device", call);
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    if (address == NULL || bytes == 0) {
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    aclError error = sim_account(device, (int64_t)bytes);
    if (error == ACL_SUCCESS) {
        *address = sim_pages_map(bytes);
        if (*address == NULL) {
            sim_account(device, -(int64_t)bytes);
            error = ACL_ERROR_RT_MEMORY_ALLOCATION;
        } else {
            sim_register((sim_block){(uintptr_t)*address, bytes, device});
        }
    }
    sim_trace(call, "device=%d bytes=%zu result=%d", device, bytes, error);
    return error;
}

SIM_API aclError aclrtMalloc(void **address, size_t bytes, int32_t policy)
{
    (void)policy;
    return hbm_allocate("aclrtMalloc", address, bytes);
}

SIM_API aclError aclrtMallocAlign32(void **address, size_t bytes, int32_t policy)
{
    (void)policy;
    return hbm_allocate("aclrtMallocAlign32", address, bytes);
}

SIM_API aclError aclrtFree(void *address)
{
    sim_block block;
    if (!sim_unregister(address, &block) || block.device < 0) {
        sim_set_error("aclrtFree: %p is no device memory", address);
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    sim_trace("aclrtFree", "device=%d bytes=%zu", block.device, block.bytes);
    sim_account(block.device, -(int64_t)block.bytes);
    sim_pages_retire(address, block.bytes);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtMallocHost(void **address, size_t bytes)
{
    if (address == NULL || bytes == 0) {
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    *address = sim_pages_map(bytes);
    sim_trace("aclrtMallocHost", "bytes=%zu", bytes);
    if (*address == NULL) {
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    }
    sim_register((sim_block){(uintptr_t)*address, bytes, -1});
    return ACL_SUCCESS;
}

SIM_API aclError aclrtFreeHost(void *address)
{
    sim_block block;
    if (!sim_unregister(address, &block) || block.device != -1) {
        sim_set_error("aclrtFreeHost: %p is no pinned memory", address);
        return ACL_ERROR_RT_PARAM_INVALID;
    }
    sim_trace("aclrtFreeHost", "bytes=%zu", block.bytes);
    sim_pages_retire(address, block.bytes);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtHostRegister(void *address, uint64_t bytes, int32_t type, void **mapped)
{
    (void)type;
    sim_trace("aclrtHostRegister", "bytes=%llu", (unsigned long long)bytes);
    sim_register((sim_block){(uintptr_t)address, bytes, -1});
    *mapped = address;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtHostRegisterV2(void *address, uint64_t bytes, uint32_t flag)
{
    void *mapped;
    return aclrtHostRegister(address, bytes, (int32_t)flag, &mapped);
}

SIM_API aclError aclrtHostUnregister(void *address)
{
    sim_block block;
    sim_trace("aclrtHostUnregister", "-");
    return sim_unregister(address, &block) ? ACL_SUCCESS : ACL_ERROR_RT_PARAM_INVALID;
}

/* The kind of memory (HBM, large pages or small) makes no difference here. */
SIM_API aclError aclrtGetMemInfo(int32_t kind, size_t *free_bytes, size_t *total_bytes)
{
    (void)kind;
    int32_t device = sim_current_device();
    if (device < 0) {
        sim_set_error("aclrtGetMemInfo in a thread without a device");
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    pthread_mutex_lock(&account_lock);
    *total_bytes = (size_t)sim_hbm_bytes();
    *free_bytes = *total_bytes - (size_t)used[device];
    pthread_mutex_unlock(&account_lock);
    sim_trace("aclrtGetMemInfo", "device=%d free=%zu", device, *free_bytes);
    return ACL_SUCCESS;
}

typedef struct {
    uint32_t device;
    int32_t location;
    uint32_t page_bytes;
    uint32_t reserved[4];
} pointer_attributes;

SIM_API aclError aclrtPointerGetAttributes(const void *address, pointer_attributes *attributes)
{
    sim_block block;
    *attributes = (pointer_attributes){.location = LOCATION_UNREGISTERED};
    if (sim_find_block(address, &block)) {
        attributes->location = block.device < 0 ? LOCATION_HOST : LOCATION_DEVICE;
        attributes->device = block.device < 0 ? 0 : (uint32_t)block.device;
        attributes->page_bytes = block.device < 0 ? 4 << 10 : 2 << 20;
    }
    return ACL_SUCCESS;
}
