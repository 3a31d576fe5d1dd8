/* The simulated libhcomm.so: HcclGroupStart and HcclGroupEnd.
 *
 * torch_npu looks these two up here and everything else of HCCL in libhccl.so, which does the
 * work and to which this library is linked. */
#include "../include/sim.h"

extern int32_t sim_hccl_group_start(void);
extern int32_t sim_hccl_group_end(void);

SIM_API int32_t HcclGroupStart(void)
{
    return sim_hccl_group_start();
}

SIM_API int32_t HcclGroupEnd(void)
{
    return sim_hccl_group_end();
}
