/* Time, and the knobs that several files of the simulated libhccl.so read.
 *
 * Knobs are read when they are needed, not at start, so that a test may turn them while the
 * process lives. */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void sleep_ms(int64_t duration)
{
    struct timespec left = {.tv_sec = duration / 1000, .tv_nsec = (duration % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0) {
    }
}

int knob_file_exists(const char *knob)
{
    const char *path = sim_knob(knob, "");
    return path[0] != '\0' && access(path, F_OK) == 0;
}

enum peer_death peer_death(void)
{
    const char *mode = sim_knob("SIM_HCCL_PEER_DEATH", "noticed");
    if (strcmp(mode, "noticed") == 0) {
        return PEER_DEATH_NOTICED;
    }
    if (strcmp(mode, "timeout") == 0) {
        return PEER_DEATH_TIMEOUT;
    }
    if (strcmp(mode, "never") == 0) {
        return PEER_DEATH_NEVER;
    }
    sim_not_simulated("SIM_HCCL_PEER_DEATH other than noticed, timeout or never");
}
