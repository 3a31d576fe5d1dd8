/* Single elements: how they are stored, and what a cast makes of them.
 *
 * Whole numbers keep all 64 bits, a real number becomes a whole one by dropping its fraction,
 * and everything but zero is true; as torch does it. */
#include <string.h>

#include "halves.h"
#include "opapi.h"

size_t type_bytes(int32_t type)
{
    switch (type) {
    case ACL_INT8:
    case ACL_UINT8:
    case ACL_BOOL:
    case ACL_FLOAT8_E5M2:
    case ACL_FLOAT8_E4M3FN:
        return 1;
    case ACL_FLOAT16:
    case ACL_BF16:
    case ACL_INT16:
    case ACL_UINT16:
        return 2;
    case ACL_FLOAT:
    case ACL_INT32:
    case ACL_UINT32:
        return 4;
    case ACL_DOUBLE:
    case ACL_INT64:
    case ACL_UINT64:
    case ACL_COMPLEX64:
        return 8;
    case ACL_COMPLEX128:
        return 16;
    default:
        sim_not_simulated("a kernel on this aclDataType");
    }
}

/* Whether load and store know the type; the others can only be moved. */
int is_number(int32_t type)
{
    return type != ACL_FLOAT8_E5M2 && type != ACL_FLOAT8_E4M3FN && type != ACL_COMPLEX64 &&
           type != ACL_COMPLEX128;
}

#define LOAD_WHOLE(c_type)                                                                         \
    do {                                                                                           \
        c_type value;                                                                              \
        memcpy(&value, from, sizeof value);                                                        \
        return (element){.is_whole = 1, .whole = (int64_t)value};                                  \
    } while (0)

static element real_element(double value)
{
    return (element){.real = value};
}

element load(int32_t type, const char *from)
{
    uint16_t half;
    float single;
    double twice;
    switch (type) {
    case ACL_INT8:
        LOAD_WHOLE(int8_t);
    case ACL_UINT8:
    case ACL_BOOL:
        LOAD_WHOLE(uint8_t);
    case ACL_INT16:
        LOAD_WHOLE(int16_t);
    case ACL_UINT16:
        LOAD_WHOLE(uint16_t);
    case ACL_INT32:
        LOAD_WHOLE(int32_t);
    case ACL_UINT32:
        LOAD_WHOLE(uint32_t);
    case ACL_INT64:
    case ACL_UINT64:
        LOAD_WHOLE(int64_t);
    case ACL_FLOAT16:
        memcpy(&half, from, sizeof half);
        return real_element(of_half(half));
    case ACL_BF16:
        memcpy(&half, from, sizeof half);
        return real_element(of_bfloat(half));
    case ACL_FLOAT:
        memcpy(&single, from, sizeof single);
        return real_element(single);
    case ACL_DOUBLE:
        memcpy(&twice, from, sizeof twice);
        return real_element(twice);
    default:
        sim_not_simulated("arithmetic on this aclDataType");
    }
}

/* Out of range and NaN: undefined in C and different on every device, so the least number. */
static int64_t to_whole(element value)
{
    if (value.is_whole) {
        return value.whole;
    }
    return value.real > -9.2e18 && value.real < 9.2e18 ? (int64_t)value.real : INT64_MIN;
}

static double to_real(element value)
{
    return value.is_whole ? (double)value.whole : value.real;
}

void store(int32_t type, char *into, element value)
{
    int64_t whole;
    uint16_t half;
    float single;
    double twice;
    switch (type) {
    case ACL_BOOL:
        *into = value.is_whole ? value.whole != 0 : value.real != 0.0;
        return;
    case ACL_FLOAT16:
        half = half_of(to_real(value));
        memcpy(into, &half, sizeof half);
        return;
    case ACL_BF16:
        half = bfloat_of(to_real(value));
        memcpy(into, &half, sizeof half);
        return;
    case ACL_FLOAT:
        single = (float)to_real(value);
        memcpy(into, &single, sizeof single);
        return;
    case ACL_DOUBLE:
        twice = to_real(value);
        memcpy(into, &twice, sizeof twice);
        return;
    default:
        if (!is_number(type)) {
            sim_not_simulated("a cast to this aclDataType");
        }
        whole = to_whole(value); /* little-endian: the low bytes are the narrower number */
        memcpy(into, &whole, type_bytes(type));
    }
}
