/* Counts the bytes of live tensors of a process, on all of its threads. Loaded by LD_PRELOAD.
 *
 * PyTorch's CPU allocator takes every block from posix_memalign, also inside operators and on the threads of gloo, and
 * hardly anything else does. Blocks below SMALLEST bytes are not counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define SMALLEST 1024
#define ALIGNMENT 64 /* of PyTorch; oneDNN takes its scratchpads at other ones */
#define SLOTS (1u << 20)
#define GONE ((void *)1)

static struct { void *block; size_t bytes; } table[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t live, peak;
static int (*real_memalign)(void **, size_t, size_t);
static void (*real_free)(void *);

static unsigned slot_of(void *block) { return (unsigned)(((uintptr_t)block >> 6) * 2654435761u) & (SLOTS - 1); }

int posix_memalign(void **out, size_t alignment, size_t bytes) {
    if (!real_memalign) real_memalign = dlsym(RTLD_NEXT, "posix_memalign");
    int failed = real_memalign(out, alignment, bytes);
    if (failed || bytes < SMALLEST || alignment != ALIGNMENT) return failed;
    pthread_mutex_lock(&lock);
    unsigned slot = slot_of(*out);
    while (table[slot].block && table[slot].block != GONE) slot = (slot + 1) & (SLOTS - 1);
    table[slot].block = *out;
    table[slot].bytes = bytes;
    live += (int64_t)bytes;
    if (live > peak) peak = live;
    pthread_mutex_unlock(&lock);
    return 0;
}

void free(void *block) {
    if (!real_free) real_free = dlsym(RTLD_NEXT, "free");
    if (block && live) {
        pthread_mutex_lock(&lock);
        for (unsigned slot = slot_of(block); table[slot].block; slot = (slot + 1) & (SLOTS - 1)) {
            if (table[slot].block != block) continue;
            table[slot].block = GONE;
            live -= (int64_t)table[slot].bytes;
            break;
        }
        pthread_mutex_unlock(&lock);
    }
    real_free(block);
}

int64_t live_bytes(void) { return live; }
int64_t peak_bytes(void) { return peak; }
void reset_peak(void) { peak = live; }
