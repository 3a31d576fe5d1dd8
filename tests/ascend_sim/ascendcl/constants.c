/* What the simulated runtime says about itself: versions, chip, capabilities.
 *
 * No state; two knobs (SIM_SOC_NAME, SIM_CANN_VERSION) and the numbers of an Ascend 910B2. */
#include "runtime.h"

#include <stdio.h>
#include <string.h>

enum { VERSION_BYTES = 128, PACKAGE_DRIVER = 7 };
enum { CAPABILITY_CUBE_CORES = 0, CAPABILITY_VECTOR_CORES = 1, CAPABILITY_L2_BYTES = 2 };
enum {
    ATTRIBUTE_AICPU_CORES = 1,
    ATTRIBUTE_AI_CORES = 101,
    ATTRIBUTE_CUBE_CORES = 102,
    ATTRIBUTE_VECTOR_CORES = 201,
    ATTRIBUTE_GLOBAL_MEMORY = 301,
    ATTRIBUTE_L2_BYTES = 302,
};
enum { AICPU_CORES = 6, CUBE_CORES = 24, VECTOR_CORES = 48, L2_BYTES = 192 << 20 };

/* The layout that the public header documents for aclCANNPackageVersion. */
typedef struct {
    char version[VERSION_BYTES];
    char parts[4][64];
    char reserved[VERSION_BYTES];
} package_version;

static const char *cann_version(void)
{
    return sim_knob("SIM_CANN_VERSION", "8.5.0");
}

static const char *driver_version(void)
{
    return sim_knob("SIM_DRIVER_VERSION", "25.5.0");
}

SIM_API const char *aclrtGetSocName(void)
{
    return sim_knob("SIM_SOC_NAME", "Ascend910B2");
}

SIM_API aclError aclsysGetCANNVersion(int32_t package, package_version *version)
{
    memset(version, 0, sizeof *version);
    snprintf(version->version, sizeof version->version, "%s",
             package == PACKAGE_DRIVER ? driver_version() : cann_version());
    return ACL_SUCCESS;
}

SIM_API aclError aclsysGetVersionStr(const char *package, char *version)
{
    bool driver = strcmp(package, "driver") == 0 || strcmp(package, "DRIVER") == 0;
    snprintf(version, VERSION_BYTES, "%s", driver ? driver_version() : cann_version());
    return ACL_SUCCESS;
}

SIM_API aclError aclGetDeviceCapability(uint32_t device, int32_t what, int64_t *value)
{
    (void)device;
    switch (what) {
    case CAPABILITY_CUBE_CORES:
        *value = CUBE_CORES;
        return ACL_SUCCESS;
    case CAPABILITY_VECTOR_CORES:
        *value = VECTOR_CORES;
        return ACL_SUCCESS;
    case CAPABILITY_L2_BYTES:
        *value = L2_BYTES;
        return ACL_SUCCESS;
    default:
        return ACL_ERROR_RT_PARAM_INVALID;
    }
}

SIM_API aclError aclrtGetDeviceInfo(uint32_t device, int32_t attribute, int64_t *value)
{
    switch (attribute) {
    case ATTRIBUTE_AICPU_CORES:
        *value = AICPU_CORES;
        break;
    case ATTRIBUTE_AI_CORES:
    case ATTRIBUTE_CUBE_CORES:
        *value = CUBE_CORES;
        break;
    case ATTRIBUTE_VECTOR_CORES:
        *value = VECTOR_CORES;
        break;
    case ATTRIBUTE_GLOBAL_MEMORY:
        *value = sim_hbm_bytes();
        break;
    case ATTRIBUTE_L2_BYTES:
        *value = L2_BYTES;
        break;
    default: /* places in a pod, and what else is a number of the device */
        *value = (int64_t)device;
    }
    return ACL_SUCCESS;
}
