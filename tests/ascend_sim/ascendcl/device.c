/* Initialisation, devices and contexts of the simulated runtime.
 *
 * The current device belongs to a THREAD and is unset in a new one. Only when the
 * configuration of aclInit names a default device (torch_npu names 0 from CANN 8.3 on) do calls
 * in such a thread use that one. A device has exactly one context; its handle is the device. */
#include "runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static sim_device devices[SIM_MAX_DEVICES];
static int32_t device_count;
static pthread_once_t devices_once = PTHREAD_ONCE_INIT;
static _Atomic bool initialised;
static _Atomic int32_t default_device = -1;
static _Thread_local int32_t current = -1;

static void devices_make(void)
{
    int64_t wanted = sim_knob_int("SIM_NPU_COUNT", 2);
    device_count = (int32_t)(wanted < 0 ? 0 : wanted > SIM_MAX_DEVICES ? SIM_MAX_DEVICES : wanted);
    for (int32_t id = 0; id < device_count; id++) {
        devices[id].id = id;
        pthread_mutex_init(&devices[id].lock, NULL);
    }
}

int32_t sim_device_count(void)
{
    pthread_once(&devices_once, devices_make);
    return device_count;
}

sim_device *sim_device_of(int32_t id)
{
    return id >= 0 && id < sim_device_count() ? &devices[id] : NULL;
}

SIM_API int32_t sim_current_device(void)
{
    return current >= 0 ? current : atomic_load(&default_device);
}

void sim_set_current_device(int32_t id)
{
    current = id;
}

/* {"defaultDevice": {"default_device": "0"}} is all that is looked for. */
static int32_t default_device_in(const char *path)
{
    static const char key[] = "\"default_device\"";
    char text[4096];
    FILE *file = path == NULL ? NULL : fopen(path, "re");
    if (file == NULL) {
        return -1;
    }
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = '\0';
    const char *found = strstr(text, key);
    const char *number = found == NULL ? NULL : strpbrk(found + sizeof key - 1, "0123456789");
    return number == NULL ? -1 : (int32_t)strtol(number, NULL, 10);
}

SIM_API aclError aclInit(const char *config)
{
    int32_t named = default_device_in(config);
    sim_trace("aclInit", "default_device=%d", named);
    if (sim_device_of(named) != NULL) {
        atomic_store(&default_device, named);
    }
    return atomic_exchange(&initialised, true) ? ACL_ERROR_REPEAT_INITIALIZE : ACL_SUCCESS;
}

SIM_API aclError aclFinalize(void)
{
    sim_trace("aclFinalize", "-");
    atomic_store(&initialised, false);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtGetDeviceCount(uint32_t *count)
{
    *count = (uint32_t)sim_device_count();
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSetDevice(int32_t id)
{
    sim_trace("aclrtSetDevice", "device=%d", id);
    if (sim_device_of(id) == NULL) {
        sim_set_error("device %d does not exist, there are %d", id, sim_device_count());
        return ACL_ERROR_RT_INVALID_DEVICEID;
    }
    atomic_store(&devices[id].active, true);
    current = id;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtGetDevice(int32_t *id)
{
    if (current < 0) {
        sim_set_error("no device was set in this thread");
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    *id = current;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtResetDevice(int32_t id)
{
    sim_trace("aclrtResetDevice", "device=%d", id);
    if (sim_device_of(id) == NULL) {
        return ACL_ERROR_RT_INVALID_DEVICEID;
    }
    if (current == id) {
        current = -1;
    }
    return ACL_SUCCESS;
}

SIM_API aclError aclrtGetCurrentContext(aclrtContext *context)
{
    sim_device *device = sim_device_of(sim_current_device());
    if (device == NULL) {
        sim_set_error("no device was set in this thread");
        return ACL_ERROR_RT_CONTEXT_NULL;
    }
    *context = device;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSetCurrentContext(aclrtContext context)
{
    for (int32_t id = 0; id < sim_device_count(); id++) {
        if (context == &devices[id]) {
            current = id;
            return ACL_SUCCESS;
        }
    }
    sim_set_error("%p is no context", context);
    return ACL_ERROR_RT_PARAM_INVALID;
}

SIM_API aclError aclrtGetPrimaryCtxState(int32_t id, uint32_t *flags, int32_t *active)
{
    if (sim_device_of(id) == NULL) {
        return ACL_ERROR_RT_INVALID_DEVICEID;
    }
    if (flags != NULL) {
        *flags = 0;
    }
    if (active != NULL) {
        *active = atomic_load(&devices[id].active);
    }
    return ACL_SUCCESS;
}

SIM_API aclError aclrtGetLogicDevIdByUserDevId(int32_t user, int32_t *logic)
{
    *logic = user;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t id, int32_t peer)
{
    *can = id != peer && sim_device_of(id) != NULL && sim_device_of(peer) != NULL;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags)
{
    (void)flags;
    return sim_device_of(peer) == NULL ? ACL_ERROR_RT_INVALID_DEVICEID : ACL_SUCCESS;
}

SIM_API aclError aclrtDeviceGetUuid(int32_t id, char uuid[16])
{
    memset(uuid, 0, 16);
    memcpy(uuid, "simulated npu", 13);
    uuid[15] = (char)id;
    return sim_device_of(id) == NULL ? ACL_ERROR_RT_INVALID_DEVICEID : ACL_SUCCESS;
}
