/* The root info: how the ranks of a new communicator find each other.
 *
 * HcclGetRootInfo opens the root's listening socket at once, and whoever holds the 4108 bytes
 * can dial it. The communicator that claims the socket closes it; a claimed root never answers
 * again, so stale root info leads to a dead port, as it does with HCCL. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "internal.h"

_Static_assert(sizeof(root_address) <= HCCL_ROOT_INFO_BYTES, "the address fits the root info");

static const char MAGIC[16] = "simulated HCCL";

/* Roots whose communicator has not been asked for yet. A process that gets root info again and
 * again without using it is wrong, hence the small bound. */
enum { MOST_PENDING_ROOTS = 256 };

static struct pending_root {
    unsigned char identity[IDENTITY_BYTES];
    int listener;
} pending[MOST_PENDING_ROOTS];
static size_t pending_count;
static pthread_mutex_t pending_lock = PTHREAD_MUTEX_INITIALIZER;

const char *interface_address(void)
{
    return sim_knob("HCCL_IF_IP", "127.0.0.1");
}

static int remember(const root_address *root, int listener)
{
    int kept = 0;
    pthread_mutex_lock(&pending_lock);
    if (pending_count < MOST_PENDING_ROOTS) {
        memcpy(pending[pending_count].identity, root->identity, IDENTITY_BYTES);
        pending[pending_count].listener = listener;
        pending_count++;
        kept = 1;
    }
    pthread_mutex_unlock(&pending_lock);
    return kept;
}

SIM_API HcclResult HcclGetRootInfo(void *root_info)
{
    if (root_info == NULL) {
        return HCCL_E_PTR;
    }
    root_address root = {0};
    uint16_t port = 0;
    int listener = listen_on(interface_address(), &port);
    if (listener < 0) {
        sim_set_error("HcclGetRootInfo: cannot listen on %s: %s", interface_address(),
                      strerror(errno));
        return HCCL_E_SYSCALL;
    }
    memcpy(root.magic, MAGIC, sizeof root.magic);
    snprintf(root.address, sizeof root.address, "%s", interface_address());
    root.port = port;
    if (getrandom(root.identity, IDENTITY_BYTES, 0) != IDENTITY_BYTES ||
        !remember(&root, listener)) {
        sim_not_simulated("more than 256 unused HcclRootInfo in one process");
    }
    memset(root_info, 0, HCCL_ROOT_INFO_BYTES);
    memcpy(root_info, &root, sizeof root);
    sim_trace("HcclGetRootInfo", "address=%s port=%u", root.address, (unsigned)port);
    return HCCL_SUCCESS;
}

/* Copied, because callers hold the 4108 bytes wherever they like, at any alignment. */
int read_root(const void *root_info, root_address *into)
{
    memcpy(into, root_info, sizeof *into);
    return memcmp(into->magic, MAGIC, sizeof MAGIC) == 0;
}

/* The listening socket of a root of this process, for the first that asks; else -1. */
int claim_root(const root_address *root)
{
    int listener = -1;
    pthread_mutex_lock(&pending_lock);
    for (size_t i = 0; i < pending_count && listener < 0; i++) {
        if (memcmp(pending[i].identity, root->identity, IDENTITY_BYTES) == 0) {
            listener = pending[i].listener;
            pending[i] = pending[--pending_count];
        }
    }
    pthread_mutex_unlock(&pending_lock);
    return listener;
}
