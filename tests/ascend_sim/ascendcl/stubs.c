/* Calls that torch_npu makes and that mean nothing without a device.
 *
 * A stub here may only ignore what cannot change a result (profiling, dumps, compiler
 * options, attributes of operators that are not executed). What would have computed something
 * says its name and aborts. */
#define _GNU_SOURCE
#include "runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One exported call that takes what it likes and returns 0. The caller's arguments stay in
 * registers or on its own stack, so they need no names here. */
#define SIM_IGNORED(name)                                                                          \
    SIM_API int64_t name(void);                                                                    \
    SIM_API int64_t name(void)                                                                     \
    {                                                                                              \
        return 0;                                                                                  \
    }

#define SIM_REFUSED(name)                                                                          \
    SIM_API int64_t name(void);                                                                    \
    SIM_API int64_t name(void)                                                                     \
    {                                                                                              \
        sim_not_simulated(#name);                                                                  \
    }

/* Profiling */
SIM_IGNORED(MsprofRegisterCallback)
SIM_IGNORED(MsprofReportAdditionalInfo)
SIM_IGNORED(MsprofReportApi)
SIM_IGNORED(MsprofReportCompactInfo)

SIM_API uint64_t MsprofGetHashId(const char *text, size_t length)
{
    uint64_t hash = 1469598103934665603U;
    for (size_t at = 0; at < length; at++) {
        hash = (hash ^ (unsigned char)text[at]) * 1099511628211U;
    }
    return hash;
}

SIM_API uint64_t MsprofSysCycleTime(void)
{
    return (uint64_t)sim_now_ns();
}

/* Logs and dumps */
SIM_IGNORED(aclAppLog)
SIM_IGNORED(aclmdlInitDump)
SIM_IGNORED(aclmdlSetDump)
SIM_IGNORED(aclmdlFinalizeDump)

/* Modes and limits of a real device */
SIM_IGNORED(aclrtSetDeviceSatMode)
SIM_IGNORED(aclrtSetOpExecuteTimeOut)
SIM_IGNORED(aclrtSetStreamAttribute)
SIM_IGNORED(aclrtSetStreamOverflowSwitch)
SIM_IGNORED(aclrtGetSysParamOpt)
SIM_IGNORED(aclrtSetSysParamOpt)
SIM_IGNORED(aclrtCtxSetSysParamOpt)
SIM_IGNORED(aclrtGetLastError)
SIM_IGNORED(aclrtPeekAtLastError)
SIM_IGNORED(aclrtSubscribeReport)
SIM_IGNORED(aclrtUnSubscribeReport)

SIM_API aclError aclrtGetStreamOverflowSwitch(aclrtStream stream, uint32_t *flag)
{
    (void)stream;
    *flag = 0;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSetOpExecuteTimeOutV2(uint64_t microseconds, uint64_t *actual)
{
    *actual = microseconds;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtDeviceGetBareTgid(int32_t *pid)
{
    *pid = (int32_t)getpid();
    return ACL_SUCCESS;
}

/* Callbacks run on their stream: there is never one to report. */
SIM_API aclError aclrtProcessReport(int32_t timeout_ms)
{
    usleep((useconds_t)(timeout_ms < 0 || timeout_ms > 100 ? 100 : timeout_ms) * 1000);
    return ACL_ERROR_RT_REPORT_TIMEOUT;
}

/* Options of the operator compiler: kept nowhere, read as empty. */
SIM_IGNORED(aclSetCompileopt)

SIM_API size_t aclGetCompileoptSize(int32_t option)
{
    (void)option;
    return 1;
}

SIM_API aclError aclGetCompileopt(int32_t option, char *value, size_t room)
{
    (void)option;
    if (room > 0) {
        value[0] = '\0';
    }
    return ACL_SUCCESS;
}

/* Attributes of operators: those that are executed (operators.c) have none */
SIM_API void *aclopCreateAttr(void)
{
    return malloc(1);
}

SIM_API void aclopDestroyAttr(void *attributes)
{
    free(attributes);
}

SIM_IGNORED(aclopSetAttrBool)
SIM_IGNORED(aclopSetAttrDataType)
SIM_IGNORED(aclopSetAttrFloat)
SIM_IGNORED(aclopSetAttrInt)
SIM_IGNORED(aclopSetAttrListBool)
SIM_IGNORED(aclopSetAttrListFloat)
SIM_IGNORED(aclopSetAttrListInt)
SIM_IGNORED(aclopSetAttrListListInt)
SIM_IGNORED(aclopSetAttrString)

/* Kernels of other libraries may be loaded, which some do at import, but not run. */
SIM_IGNORED(rtFunctionRegister)

SIM_API aclError rtDevBinaryRegister(const void *binary, void **handle)
{
    (void)binary;
    *handle = malloc(1);
    return ACL_SUCCESS;
}

SIM_API aclError rtGetC2cCtrlAddr(uint64_t *address, uint32_t *length)
{
    *address = 0;
    *length = 0;
    return ACL_SUCCESS;
}

SIM_REFUSED(rtKernelLaunch)
SIM_REFUSED(aclrtBinaryLoadFromData)
SIM_REFUSED(aclrtBinaryGetFunction)
SIM_REFUSED(aclrtGetFunctionAddr)
