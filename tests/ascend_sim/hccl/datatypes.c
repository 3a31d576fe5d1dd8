/* The data types of HCCL, and the arithmetic of reductions.
 *
 * A reduction is computed in rank order with one rounding per step, so that every rank gets
 * the same bits. That is more than HCCL promises. */
#include <string.h>

#include "../opapi/halves.h"
#include "internal.h"

enum { REDUCE_SUM = 0, REDUCE_PROD = 1, REDUCE_MAX = 2, REDUCE_MIN = 3 };

/* HCCL carries the 8-bit floats on Ascend950 only; elsewhere they have to travel as bytes. */
static int carries_8_bit_floats(void)
{
    return strncmp(sim_knob("SIM_SOC_NAME", "Ascend910B2"), "Ascend950", 9) == 0;
}

size_t element_bytes(HcclDataType type)
{
    switch (type) {
    case HCCL_DATA_TYPE_INT8:
    case HCCL_DATA_TYPE_UINT8:
        return 1;
    case HCCL_DATA_TYPE_FP8E4M3:
    case HCCL_DATA_TYPE_FP8E5M2:
        return carries_8_bit_floats() ? 1 : 0;
    case HCCL_DATA_TYPE_INT16:
    case HCCL_DATA_TYPE_UINT16:
    case HCCL_DATA_TYPE_FP16:
    case HCCL_DATA_TYPE_BFP16:
        return 2;
    case HCCL_DATA_TYPE_INT32:
    case HCCL_DATA_TYPE_UINT32:
    case HCCL_DATA_TYPE_FP32:
        return 4;
    case HCCL_DATA_TYPE_INT64:
    case HCCL_DATA_TYPE_UINT64:
    case HCCL_DATA_TYPE_FP64:
        return 8;
    default:
        return 0;
    }
}

int can_reduce(HcclDataType type, int32_t operator_)
{
    switch (type) {
    case HCCL_DATA_TYPE_INT8:
    case HCCL_DATA_TYPE_INT16:
    case HCCL_DATA_TYPE_INT32:
    case HCCL_DATA_TYPE_INT64:
    case HCCL_DATA_TYPE_FP16:
    case HCCL_DATA_TYPE_FP32:
    case HCCL_DATA_TYPE_BFP16:
        return operator_ >= REDUCE_SUM && operator_ <= REDUCE_MIN;
    default:
        return 0;
    }
}

static double combine(double a, double b, int32_t operator_)
{
    switch (operator_) {
    case REDUCE_SUM:
        return a + b;
    case REDUCE_PROD:
        return a * b;
    case REDUCE_MAX:
        return a > b ? a : b;
    default:
        return a < b ? a : b;
    }
}

/* Unsigned, because overflow wraps on the device and is undefined for signed numbers in C. */
static int64_t combine_whole(int64_t a, int64_t b, int32_t operator_)
{
    switch (operator_) {
    case REDUCE_SUM:
        return (int64_t)((uint64_t)a + (uint64_t)b);
    case REDUCE_PROD:
        return (int64_t)((uint64_t)a * (uint64_t)b);
    case REDUCE_MAX:
        return a > b ? a : b;
    default:
        return a < b ? a : b;
    }
}

#define REDUCE_AS(element, combination)                                                            \
    do {                                                                                           \
        element *into = target;                                                                    \
        const element *from = other;                                                               \
        for (uint64_t i = 0; i < count; i++) {                                                     \
            into[i] = (element)combination(into[i], from[i], operator_);                           \
        }                                                                                          \
    } while (0)

static uint16_t combine_half(uint16_t a, uint16_t b, int32_t operator_)
{
    return half_of(combine(of_half(a), of_half(b), operator_));
}

static uint16_t combine_bfloat(uint16_t a, uint16_t b, int32_t operator_)
{
    return bfloat_of(combine(of_bfloat(a), of_bfloat(b), operator_));
}

void reduce(HcclDataType type, int32_t operator_, void *target, const void *other, uint64_t count)
{
    switch (type) {
    case HCCL_DATA_TYPE_INT8:
        REDUCE_AS(int8_t, combine_whole);
        break;
    case HCCL_DATA_TYPE_INT16:
        REDUCE_AS(int16_t, combine_whole);
        break;
    case HCCL_DATA_TYPE_INT32:
        REDUCE_AS(int32_t, combine_whole);
        break;
    case HCCL_DATA_TYPE_INT64:
        REDUCE_AS(int64_t, combine_whole);
        break;
    case HCCL_DATA_TYPE_FP16:
        REDUCE_AS(uint16_t, combine_half);
        break;
    case HCCL_DATA_TYPE_BFP16:
        REDUCE_AS(uint16_t, combine_bfloat);
        break;
    case HCCL_DATA_TYPE_FP32:
        REDUCE_AS(float, combine);
        break;
    default:
        sim_not_simulated("a reduction of this data type");
    }
}
