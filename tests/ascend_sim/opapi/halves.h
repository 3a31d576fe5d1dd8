/* The two 16-bit floating-point formats, in plain C.
 *
 * Rounding is to nearest, ties to even, as IEEE 754 and torch do it. */
#ifndef NETLOADER_ASCEND_SIM_HALVES_H
#define NETLOADER_ASCEND_SIM_HALVES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline double of_bfloat(uint16_t bits)
{
    return float_of_bits((uint32_t)bits << 16);
}

static inline uint16_t bfloat_of(double value)
{
    const uint32_t bits = bits_of_float((float)value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0x7fc0; /* what torch makes of any NaN */
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline double of_half(uint16_t bits)
{
    const double sign = (bits & 0x8000u) != 0 ? -1.0 : 1.0;
    const int exponent = (bits >> 10) & 31;
    const double fraction = bits & 1023;
    if (exponent == 31) {
        return fraction != 0 ? (double)NAN : sign * (double)INFINITY;
    }
    return exponent == 0 ? sign * ldexp(fraction, -24)
                         : sign * ldexp(1024.0 + fraction, exponent - 25);
}

static inline uint16_t half_of(double value)
{
    const uint16_t sign = signbit(value) ? 0x8000u : 0;
    const double size = fabs(value);
    if (isnan(value)) {
        return sign | 0x7e00u;
    }
    if (size >= 65520.0) { /* half way between the greatest number and the next power of two */
        return sign | 0x7c00u;
    }
    int exponent = -14;
    if (size >= ldexp(1.0, -14)) {
        frexp(size, &exponent);
        exponent -= 1;
    }
    /* Units of the last place, rounded to even by rint; 2048 of them carry into the exponent. */
    const uint32_t units = (uint32_t)rint(ldexp(size, 10 - exponent));
    return (uint16_t)(sign | (uint32_t)(((exponent + 14) << 10) + (int)units));
}

#endif
