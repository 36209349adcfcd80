/*
 * slabwright: a memory allocator built like the Linux kernel's memory management.
 *
 * libslabwright.so and libslabwright.a define malloc and its family under their usual names, for which <stdlib.h> is all a
 * program needs. This header declares what goes beyond: the same functions under names of their own, for programs that
 * keep another malloc beside this one, and the calls that look at the heap.
 *
 * All functions may be called from any thread. C99, C11, C17, C23, C++98 and later.
 */
#ifndef SLABWRIGHT_H
#define SLABWRIGHT_H

#include <stddef.h>

#if defined(__cplusplus) && __cplusplus >= 201103L
#define SLW_NOEXCEPT noexcept
#else
#define SLW_NOEXCEPT
#endif

#if defined(__GNUC__) || defined(__clang__)
#define SLW_ATTRIBUTE(list) __attribute__(list)
#else
#define SLW_ATTRIBUTE(list)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The family. Each is the function it is named after, errno and all. */

/* A block of size bytes, aligned to 16 from 16 bytes on; NULL with ENOMEM. */
void *slw_malloc(size_t size) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc, alloc_size(1)));

/* Gives a block back; nothing for NULL. Leaves errno alone. */
void slw_free(void *block) SLW_NOEXCEPT;

/* count * size bytes that read zero; NULL with ENOMEM, also where the product overflows. */
void *slw_calloc(size_t count, size_t size) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc, alloc_size(1, 2)));

/* The block at its new size, moved perhaps. For size 0 the block is freed and NULL returned; if memory runs out, NULL with
   ENOMEM, and the block stays as it was. */
void *slw_realloc(void *block, size_t size) SLW_NOEXCEPT SLW_ATTRIBUTE((alloc_size(2)));

/* slw_realloc to count * size bytes; NULL with ENOMEM where the product overflows. */
void *slw_reallocarray(void *block, size_t count, size_t size) SLW_NOEXCEPT SLW_ATTRIBUTE((alloc_size(2, 3)));

/* slw_free of a block that was asked for with this size (and alignment): saves a look-up. */
void slw_free_sized(void *block, size_t size) SLW_NOEXCEPT;
void slw_free_aligned_sized(void *block, size_t align, size_t size) SLW_NOEXCEPT;

/* A block at a multiple of align, a power of two of any size; NULL with EINVAL for another align, or with ENOMEM. */
void *slw_aligned_alloc(size_t align, size_t size) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc, alloc_size(2)));

/* The same into *out; returns 0, EINVAL (align must be a multiple of sizeof(void *) too) or ENOMEM, and leaves errno alone. */
int slw_posix_memalign(void **out, size_t align, size_t size) SLW_NOEXCEPT;

/* Bytes of the block that the program may use, at least as many as it asked for; 0 for NULL. */
size_t slw_usable_size(const void *block) SLW_NOEXCEPT;

/* Bytes that a block of size bytes really gets. */
size_t slw_good_size(size_t size) SLW_NOEXCEPT;

/* The heap. */

/* Gives all memory that is not in use back to the system. Returns 1 if there was any, else 0. */
int slw_trim(void) SLW_NOEXCEPT;

/* Prints the statistics to the error output, as SLABWRIGHT_STATS=1 does at exit. */
void slw_stats_print(void) SLW_NOEXCEPT;

/* Checks every structure of the heap against every other. Returns 0, or -1 after one line on the error output that names the
   first contradiction. Takes time in proportion to the heap, during which other threads wait. */
int slw_verify(void) SLW_NOEXCEPT;

/* "major.minor.patch" of the library. */
const char *slw_version(void) SLW_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#undef SLW_NOEXCEPT
#undef SLW_ATTRIBUTE

#endif
