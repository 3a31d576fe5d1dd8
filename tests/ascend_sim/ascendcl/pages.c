/* The host memory that stands in for device memory.
 *
 * Fresh memory reads as the poison byte everywhere, so that what nobody wrote shows. From
 * 2 MiB on the pages are private copies, made when first written, of one small poisoned file: a
 * block costs nothing until it is used, and goes back to the host when it is freed. A freed block
 * stays mapped until every task that had been queued by then has ended: a stream that still
 * works on it is a bug of the program under test, not a crash of the simulator. */
#define _GNU_SOURCE
#include "runtime.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Small enough to be written at the start, large enough for few mappings per block. */
enum { PATTERN = 8 << 20, MAPPED_FROM = 2 << 20 };

typedef struct retired {
    struct retired *next;
    void *address;
    size_t bytes;
    uint64_t arrived; /* the tasks that may still use it */
} retired;

static pthread_once_t pattern_once = PTHREAD_ONCE_INIT;
static int pattern_file = -1;
static pthread_mutex_t retired_lock = PTHREAD_MUTEX_INITIALIZER;
static retired *retired_blocks;

static int poison_byte(void)
{
    return (int)(sim_knob_int("SIM_POISON", 0xA5) & 0xFF);
}

void sim_poison(void *address, size_t bytes)
{
    memset(address, poison_byte(), bytes);
}

static void pattern_make(void)
{
    int file = memfd_create("simulated-hbm-poison", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, PATTERN) != 0) {
        sim_not_simulated("a machine without memory files");
    }
    void *page = mmap(NULL, PATTERN, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) {
        sim_not_simulated("a machine without memory for the poison pattern");
    }
    sim_poison(page, PATTERN);
    munmap(page, PATTERN);
    pattern_file = file;
}

static void *map_pattern(size_t bytes)
{
    pthread_once(&pattern_once, pattern_make);
    char *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    for (size_t done = 0; done < bytes; done += PATTERN) {
        size_t step = bytes - done < PATTERN ? bytes - done : PATTERN;
        if (mmap(base + done, step, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, pattern_file, 0) == MAP_FAILED) {
            munmap(base, bytes);
            return NULL;
        }
    }
    return base;
}

void *sim_pages_map(size_t bytes)
{
    if (bytes >= MAPPED_FROM) {
        return map_pattern(bytes);
    }
    void *address = aligned_alloc(512, (bytes + 511) & ~(size_t)511);
    if (address != NULL) {
        sim_poison(address, bytes);
    }
    return address;
}

static void unmap(const retired *block)
{
    if (block->bytes >= MAPPED_FROM) {
        munmap(block->address, block->bytes);
    } else {
        free(block->address);
    }
}

void sim_pages_retire(void *address, size_t bytes)
{
    retired *block = malloc(sizeof *block);
    if (block == NULL) {
        return; /* keep the pages: the host is out of memory anyway */
    }
    *block = (retired){.address = address, .bytes = bytes, .arrived = sim_tasks_arrived()};
    uint64_t oldest = sim_oldest_unfinished();
    pthread_mutex_lock(&retired_lock);
    block->next = retired_blocks;
    retired_blocks = block;
    retired **link = &retired_blocks;
    while (*link != NULL) {
        retired *each = *link;
        if (each->arrived < oldest) {
            *link = each->next;
            unmap(each);
            free(each);
        } else {
            link = &each->next;
        }
    }
    pthread_mutex_unlock(&retired_lock);
}
