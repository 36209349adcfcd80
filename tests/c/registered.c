// Blocks that the kernel was given for input and output (io_uring's registered buffers) keep their pages as long as it
// has them, however the heap moves what is free beside them, and also where the program frees them first.
#include <errno.h>
#include <linux/io_uring.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "check.h"

enum { MANY = 5 };
static const size_t SIZES[MANY] = {4096, 20000, 300000, 3 << 20, 9 << 20};

static int ring;
static unsigned char *submissions, *completions;
static struct io_uring_sqe *entries;
static struct io_uring_params params;

static unsigned *word(unsigned char *base, unsigned offset) {
    return (unsigned *)(base + offset);
}

// Reads `size` bytes of the pipe into the registered block `nth`; what io_uring says.
static int read_fixed(int fd, int nth, void *block, unsigned size) {
    unsigned tail = *word(submissions, params.sq_off.tail), at = tail & *word(submissions, params.sq_off.ring_mask);
    entries[at] = (struct io_uring_sqe){.opcode = IORING_OP_READ_FIXED, .fd = fd, .addr = (uintptr_t)block, .len = size, .buf_index = (uint16_t)nth};
    word(submissions, params.sq_off.array)[at] = at;
    __atomic_store_n(word(submissions, params.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    CHECK(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1);
    unsigned head = *word(completions, params.cq_off.head);
    CHECK(__atomic_load_n(word(completions, params.cq_off.tail), __ATOMIC_ACQUIRE) == head + 1);
    struct io_uring_cqe *all = (struct io_uring_cqe *)(completions + params.cq_off.cqes);
    int result = all[head & *word(completions, params.cq_off.ring_mask)].res;
    __atomic_store_n(word(completions, params.cq_off.head), head + 1, __ATOMIC_RELEASE);
    return result;
}

// Makes the heap move, give back and take anew what is free.
static void churn(void) {
    void *blocks[40];
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < 40; i++) {
            size_t size = i % 4 == 0 ? (i + 1) << 18 : i * 5000 + 100;
            CHECK((blocks[i] = malloc(size)));
            memset(blocks[i], 0x55, size);
        }
        for (size_t i = 0; i < 40; i += 4)
            CHECK((blocks[i] = realloc(blocks[i], (i + 2) << 20)));
        for (int i = 0; i < 40; i++)
            free(blocks[i]);
        malloc_trim(0);
    }
}

int main(void) {
    ring = (int)syscall(SYS_io_uring_setup, 4, &params);
    if (ring < 0) {
        CHECK(errno == ENOSYS || errno == EPERM);
        return 0;
    }
    submissions = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    completions = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    entries = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    CHECK(submissions != MAP_FAILED && completions != MAP_FAILED && entries != MAP_FAILED);
    int ends[2];
    CHECK(!pipe(ends));
    unsigned char text[3000];
    for (int round = 0; round < 4; round++) {
        struct iovec blocks[MANY];
        for (int i = 0; i < MANY; i++) {
            blocks[i] = (struct iovec){malloc(SIZES[i]), SIZES[i]};
            CHECK(blocks[i].iov_base);
            memset(blocks[i].iov_base, i + 1, SIZES[i]);
        }
        if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, blocks, MANY)) {
            // Not enough memory may be locked.
            CHECK(errno == ENOMEM || errno == EPERM);
            return 0;
        }
        churn();
        for (int i = 0; i < MANY; i++) {
            unsigned char *end = (unsigned char *)blocks[i].iov_base + SIZES[i] - sizeof text;
            mark(text, sizeof text, (unsigned)(round * MANY + i));
            CHECK(write(ends[1], text, sizeof text) == sizeof text);
            CHECK(read_fixed(ends[0], i, end, sizeof text) == sizeof text);
            // What the kernel wrote to is what the program sees.
            CHECK(marked(end, sizeof text, (unsigned)(round * MANY + i)) && *(unsigned char *)blocks[i].iov_base == i + 1);
        }
        // Freed before the kernel lets go of them: the pages must not be anybody's whom it could still write to, and
        // nobody who has them next may lose any.
        for (int i = 0; i < MANY; i++)
            free(blocks[i].iov_base);
        if (round % 2)
            churn();
        unsigned char *next[MANY];
        for (int i = 0; i < MANY; i++) {
            CHECK((next[i] = malloc(SIZES[i])));
            mark(next[i], SIZES[i], (unsigned)i);
        }
        churn();
        CHECK(!syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0));
        churn();
        for (int i = 0; i < MANY; i++) {
            CHECK(marked(next[i], SIZES[i], (unsigned)i));
            free(next[i]);
        }
    }
    return 0;
}
