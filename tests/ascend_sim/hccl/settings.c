/* The small answers of the simulated libhccl.so. */
#include "internal.h"

/* Which fields of HcclCommConfig this library knows: all whose number is below the answer. The
 * communicator's name has number 2, the execution time-out 8; 12 is what CANN 8.3 and later know.
 */
SIM_API uint32_t HcclGetCommConfigCapability(void)
{
    return 12;
}

SIM_API HcclResult HcclSetConfig(int32_t setting, int32_t value)
{
    sim_trace("HcclSetConfig", "setting=%d value=%d", setting, value);
    return HCCL_SUCCESS;
}

SIM_API const char *HcclGetErrorString(HcclResult code)
{
    switch (code) {
    case HCCL_SUCCESS:
        return "no error";
    case HCCL_E_PARA:
        return "parameter error";
    case HCCL_E_PTR:
        return "empty pointer";
    case HCCL_E_MEMORY:
        return "memory error";
    case HCCL_E_INTERNAL:
        return "internal error";
    case HCCL_E_NOT_SUPPORT:
        return "feature not supported";
    case HCCL_E_SYSCALL:
        return "error of a system call";
    case HCCL_E_TIMEOUT:
        return "timeout";
    case HCCL_E_TCP_CONNECT:
        return "tcp connect error";
    case HCCL_E_TCP_TRANSFER:
        return "tcp transfer error";
    case HCCL_E_RUNTIME:
        return "runtime error";
    case HCCL_E_REMOTE:
        return "error of the remote side";
    default:
        return "unknown error";
    }
}
