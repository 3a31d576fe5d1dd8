/* Which addresses are device memory, and which are pinned host memory.
 *
 * One sorted table of blocks that do not overlap; an address inside a block belongs to it. */
#define _GNU_SOURCE
#include "runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static sim_block *blocks;
static size_t count;
static size_t room;

/* The number of blocks that begin at or before the address. */
static size_t after(uintptr_t address)
{
    size_t low = 0;
    size_t high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (blocks[middle].address <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

void sim_register(sim_block block)
{
    pthread_rwlock_wrlock(&lock);
    if (count == room) {
        room = room == 0 ? 256 : room * 2;
        blocks = realloc(blocks, room * sizeof *blocks);
        if (blocks == NULL) {
            sim_not_simulated("a machine without memory for the table of blocks");
        }
    }
    size_t place = after(block.address);
    memmove(&blocks[place + 1], &blocks[place], (count - place) * sizeof *blocks);
    blocks[place] = block;
    count++;
    pthread_rwlock_unlock(&lock);
}

bool sim_unregister(const void *address, sim_block *was)
{
    pthread_rwlock_wrlock(&lock);
    size_t place = after((uintptr_t)address);
    bool found = place > 0 && blocks[place - 1].address == (uintptr_t)address;
    if (found) {
        *was = blocks[place - 1];
        memmove(&blocks[place - 1], &blocks[place], (count - place) * sizeof *blocks);
        count--;
    }
    pthread_rwlock_unlock(&lock);
    return found;
}

bool sim_find_block(const void *address, sim_block *found)
{
    pthread_rwlock_rdlock(&lock);
    size_t place = after((uintptr_t)address);
    bool inside = place > 0 &&
                  (uintptr_t)address - blocks[place - 1].address < blocks[place - 1].bytes;
    if (inside) {
        *found = blocks[place - 1];
    }
    pthread_rwlock_unlock(&lock);
    return inside;
}

SIM_API int32_t sim_memory_device(const void *address)
{
    sim_block block;
    return sim_find_block(address, &block) ? block.device : -2;
}
