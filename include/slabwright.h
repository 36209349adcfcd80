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

/* The same into *out; returns 0, EINVAL (align must be a multiple of sizeof(void *) too; errno stays as it was), or ENOMEM (in
   errno, too). */
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

/* Reports in the formats of the kernel's files that they are named after: "slabinfo" (version 2.1), "buddyinfo", "pagetypeinfo",
   "zoneinfo", "vmallocinfo" and "iomem" of /proc, and "unusable_index" of debugfs. The first writes to a buffer as snprintf does: as much
   as fits with the zero behind it; it returns the length of the whole. The second writes to a descriptor and returns 0. Both return -1 with
   ENOENT for another name, with EDEADLK in a handler that interrupted the allocator. */
long slw_report(const char *name, char *buffer, size_t size) SLW_NOEXCEPT;
int slw_report_fd(const char *name, int descriptor) SLW_NOEXCEPT;
/* Keeps the reports as files in directory/PID from now on, filled when they are read, as SLABWRIGHT_PROC does from the program's start. A child
   of fork has files of its own a tenth of a second after it began. 0, or -1 with the system's errno; EBUSY: they are in another directory. */
int slw_serve_reports(const char *directory) SLW_NOEXCEPT;

/* "major.minor.patch" of the library. */
const char *slw_version(void) SLW_NOEXCEPT;

/*
 * The kernel's calls. Each is the kernel's function of that name with slw_ before it, with the kernel's arguments, meaning and
 * flag values (6.x). What differs in a process is said here. With SLW_KERNEL_NAMES defined before the header is included
 * for the first time, the names without slw_ and SLW_ are there as well.
 *
 * A call that returns NULL (0 where it returns an address as a number) sets errno: ENOMEM; EINVAL for flags that contradict each
 * other, which are named in one line on the error output unless __GFP_NOWARN is set; ENOTSUP for what a process cannot do.
 * Wrong use (a double free, a wrong order, a wrong cache ...) is reported and ends the program as SLABWRIGHT_ABORT says.
 */
#ifdef SLW_KERNEL_NAMES
#define SLW_TAG(name) name
#else
#define SLW_TAG(name) slw_##name
#endif

struct SLW_TAG(page);
struct SLW_TAG(kmem_cache);
struct SLW_TAG(mempool_s);
struct SLW_TAG(shrinker);
typedef struct SLW_TAG(mempool_s) slw_mempool_t;
typedef struct SLW_TAG(page) slw_page;
typedef struct SLW_TAG(kmem_cache) slw_kmem_cache;
typedef unsigned int slw_gfp_t;
typedef unsigned int slw_slab_flags_t;

/* Flags of a request: where the memory may come from, and what may be done to get it. */
#define SLW___GFP_DMA 0x1u             /* below 16 MiB */
#define SLW___GFP_HIGHMEM 0x2u         /* accepted by calls that return pages; there is no such memory in a process */
#define SLW___GFP_DMA32 0x4u           /* below 4 GiB: for programs that store pointers in 32 bits; for kmalloc, too */
#define SLW___GFP_MOVABLE 0x8u
#define SLW___GFP_RECLAIMABLE 0x10u
#define SLW___GFP_HIGH 0x20u           /* may use the reserve */
#define SLW___GFP_IO 0x40u             /* may enter the system for memory */
#define SLW___GFP_FS 0x80u             /* may call shrinkers */
#define SLW___GFP_ZERO 0x100u
#define SLW___GFP_DIRECT_RECLAIM 0x400u /* may wait for locks, and reclaim */
#define SLW___GFP_KSWAPD_RECLAIM 0x800u
#define SLW___GFP_WRITE 0x1000u
#define SLW___GFP_NOWARN 0x2000u
#define SLW___GFP_RETRY_MAYFAIL 0x4000u
#define SLW___GFP_NOFAIL 0x8000u       /* all that is there is given; then it fails nevertheless */
#define SLW___GFP_NORETRY 0x10000u
#define SLW___GFP_MEMALLOC 0x20000u
#define SLW___GFP_COMP 0x40000u
#define SLW___GFP_NOMEMALLOC 0x80000u
#define SLW___GFP_HARDWALL 0x100000u
#define SLW___GFP_THISNODE 0x200000u
#define SLW___GFP_ACCOUNT 0x400000u
#define SLW___GFP_RECLAIM (SLW___GFP_DIRECT_RECLAIM | SLW___GFP_KSWAPD_RECLAIM)
#define SLW___GFP_WAIT SLW___GFP_DIRECT_RECLAIM

/* GFP_ATOMIC makes no system call, waits for no lock, and takes no page fault on memory of the reserve (slw_atomic_reserve): for
   signal handlers and real-time threads. */
#define SLW_GFP_ATOMIC (SLW___GFP_HIGH | SLW___GFP_KSWAPD_RECLAIM)
#define SLW_GFP_KERNEL (SLW___GFP_RECLAIM | SLW___GFP_IO | SLW___GFP_FS)
#define SLW_GFP_KERNEL_ACCOUNT (SLW_GFP_KERNEL | SLW___GFP_ACCOUNT)
#define SLW_GFP_NOWAIT (SLW___GFP_KSWAPD_RECLAIM | SLW___GFP_NOWARN)
#define SLW_GFP_NOIO SLW___GFP_RECLAIM
#define SLW_GFP_NOFS (SLW___GFP_RECLAIM | SLW___GFP_IO)
#define SLW_GFP_USER (SLW_GFP_KERNEL | SLW___GFP_HARDWALL)
#define SLW_GFP_DMA SLW___GFP_DMA
#define SLW_GFP_DMA32 SLW___GFP_DMA32
#define SLW_GFP_HIGHUSER (SLW_GFP_USER | SLW___GFP_HIGHMEM)
#define SLW_GFP_HIGHUSER_MOVABLE (SLW_GFP_HIGHUSER | SLW___GFP_MOVABLE)

/* Pages: 2^order adjacent ones of 4096 bytes, order 0 to 10. Frees may be made in any context. */
slw_page *slw_alloc_pages(slw_gfp_t gfp, unsigned int order) SLW_NOEXCEPT;
slw_page *slw_alloc_page(slw_gfp_t gfp) SLW_NOEXCEPT;
/* Node -1 is the caller's. */
slw_page *slw_alloc_pages_node(int node, slw_gfp_t gfp, unsigned int order) SLW_NOEXCEPT;
unsigned long slw___get_free_pages(slw_gfp_t gfp, unsigned int order) SLW_NOEXCEPT;
unsigned long slw___get_free_page(slw_gfp_t gfp) SLW_NOEXCEPT;
unsigned long slw_get_zeroed_page(slw_gfp_t gfp) SLW_NOEXCEPT;
/* slw_get_zeroed_page under its name of Linux 2.2. */
unsigned long slw_get_free_page(slw_gfp_t gfp) SLW_NOEXCEPT;
unsigned long slw___get_dma_pages(slw_gfp_t gfp, unsigned int order) SLW_NOEXCEPT;
/* Drops a reference, and frees the pages with the last. */
void slw___free_pages(slw_page *page, unsigned int order) SLW_NOEXCEPT;
void slw___free_page(slw_page *page) SLW_NOEXCEPT;
void slw_free_pages(unsigned long address, unsigned int order) SLW_NOEXCEPT;
void slw_free_page(unsigned long address) SLW_NOEXCEPT;
void slw_get_page(slw_page *page) SLW_NOEXCEPT;
void slw_put_page(slw_page *page) SLW_NOEXCEPT;
/* As many whole pages as size bytes need, up to 4 MiB. */
void *slw_alloc_pages_exact(size_t size, slw_gfp_t gfp) SLW_NOEXCEPT;
void slw_free_pages_exact(void *address, size_t size) SLW_NOEXCEPT;
/* NULL (-1, ~0) for what is no page of this allocator's. */
void *slw_page_address(const slw_page *page) SLW_NOEXCEPT;
slw_page *slw_virt_to_page(const void *address) SLW_NOEXCEPT;
unsigned long slw_page_to_pfn(const slw_page *page) SLW_NOEXCEPT;
slw_page *slw_pfn_to_page(unsigned long pfn) SLW_NOEXCEPT;
int slw_page_to_nid(const slw_page *page) SLW_NOEXCEPT;
int slw_page_count(const slw_page *page) SLW_NOEXCEPT;

/* Objects of any size. What slw_kmalloc returns may be given to free and realloc, and the other way round. slw_kfree never waits and never
   enters the system. */
void *slw_kmalloc(size_t size, slw_gfp_t gfp) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc, alloc_size(1)));
void *slw_kzalloc(size_t size, slw_gfp_t gfp) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc, alloc_size(1)));
void *slw_kmalloc_array(size_t count, size_t size, slw_gfp_t gfp) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc, alloc_size(1, 2)));
void *slw_kcalloc(size_t count, size_t size, slw_gfp_t gfp) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc, alloc_size(1, 2)));
void *slw_kmalloc_node(size_t size, slw_gfp_t gfp, int node) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc, alloc_size(1)));
void *slw_krealloc(void *block, size_t size, slw_gfp_t gfp) SLW_NOEXCEPT SLW_ATTRIBUTE((alloc_size(2)));
void slw_kfree(const void *block) SLW_NOEXCEPT;
size_t slw_ksize(const void *block) SLW_NOEXCEPT;

/* Caches of objects of one size. A constructor runs once for each object, before it is first handed out; its work is kept while the
   object is free. Caches of the same shape without constructor share their slabs. */
#define SLW_SLAB_CONSISTENCY_CHECKS 0x100u /* always so */
#define SLW_SLAB_RED_ZONE 0x400u           /* what lies in front of an object and behind it is checked */
#define SLW_SLAB_POISON 0x800u             /* freed objects are filled with 0x6b and checked; none with a constructor */
#define SLW_SLAB_HWCACHE_ALIGN 0x2000u
#define SLW_SLAB_CACHE_DMA 0x4000u         /* objects below 16 MiB */
#define SLW_SLAB_CACHE_DMA32 0x8000u       /* objects below 4 GiB */
#define SLW_SLAB_STORE_USER 0x10000u       /* reports name who allocated and who freed */
#define SLW_SLAB_RECLAIM_ACCOUNT 0x20000u
#define SLW_SLAB_PANIC 0x40000u            /* the program ends if the cache cannot be made */
#define SLW_SLAB_NO_MERGE 0x1000000u
#define SLW_SLAB_ACCOUNT 0x4000000u        /* always so */

slw_kmem_cache *slw_kmem_cache_create(const char *name, unsigned int size, unsigned int align, slw_slab_flags_t flags,
                                      void (*ctor)(void *)) SLW_NOEXCEPT;
/* The cache that somebody, perhaps in Rust, made by this name; NULL with ENOENT. It is to be destroyed like one's own. */
slw_kmem_cache *slw_kmem_cache_find(const char *name) SLW_NOEXCEPT;
/* 0; EBUSY where objects are in use, which are reported, or, without a report, where locks may not be waited for: in a handler that
   interrupted the allocator, in a child that lost one. The cache stays. */
int slw_kmem_cache_destroy(slw_kmem_cache *cache) SLW_NOEXCEPT;
int slw_kmem_cache_shrink(slw_kmem_cache *cache) SLW_NOEXCEPT;
unsigned int slw_kmem_cache_size(slw_kmem_cache *cache) SLW_NOEXCEPT;
void *slw_kmem_cache_alloc(slw_kmem_cache *cache, slw_gfp_t gfp) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc));
void *slw_kmem_cache_zalloc(slw_kmem_cache *cache, slw_gfp_t gfp) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc));
void slw_kmem_cache_free(slw_kmem_cache *cache, void *object) SLW_NOEXCEPT;
/* The pages of one slab, as the cache itself gets and gives them. Node -1 is the caller's. */
void *slw_kmem_getpages(slw_kmem_cache *cache, slw_gfp_t gfp, int node) SLW_NOEXCEPT;
void slw_kmem_freepages(slw_kmem_cache *cache, void *address) SLW_NOEXCEPT;

/* Contiguous addresses over memory that need not be adjacent. */
void *slw_vmalloc(size_t size) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc, alloc_size(1)));
void *slw_vzalloc(size_t size) SLW_NOEXCEPT SLW_ATTRIBUTE((malloc, alloc_size(1)));
void slw_vfree(const void *address) SLW_NOEXCEPT;
/* In a process memory has one address, and a vmalloc area no page frames: NULL with ENOTSUP. */
slw_page *slw_vmalloc_to_page(const void *address) SLW_NOEXCEPT;
#define SLW_VM_MAP 0x4ul    /* for slw_vmap; of no consequence, as is the next */
#define SLW_PAGE_KERNEL 0ul /* the protection of ordinary memory */
void *slw_vmap(slw_page **pages, unsigned int count, unsigned long flags, unsigned long prot) SLW_NOEXCEPT;
void slw_vunmap(const void *address) SLW_NOEXCEPT;
/* Maps a range of physical addresses that slw_add_resource has made stand for a part of a file (/dev/mem, a PCI or UIO device's file, a
   memfd), at whole pages. One is always there: a simulated local APIC at 0xfee00000. EINVAL where nothing is. */
void *slw_ioremap(unsigned long physical, size_t size) SLW_NOEXCEPT;
void slw_iounmap(const void *address) SLW_NOEXCEPT;
/* 0, EINVAL or ENOMEM. The descriptor stays the caller's, and open. */
int slw_add_resource(unsigned long physical, size_t size, int fd, unsigned long offset) SLW_NOEXCEPT;
/* An address for a page. Every page of a process has one, so these are slw_page_address with the kernel's rules: slw_kmap may sleep,
   and between slw_kmap_atomic and slw_kunmap_atomic nothing may. */
void *slw_kmap(slw_page *page) SLW_NOEXCEPT;
void slw_kunmap(slw_page *page) SLW_NOEXCEPT;
void *slw_kmap_atomic(slw_page *page) SLW_NOEXCEPT;
void slw_kunmap_atomic(const void *address) SLW_NOEXCEPT;

/* Pools: so many elements are kept back that a request that may wait never fails; it waits for one to come back (of a pool that keeps
   none, tries again until there is memory). With GFP_ATOMIC, and to give
   elements back, handlers may use them, whatever they interrupted, as far as the pool's own functions allow that. */
slw_mempool_t *slw_mempool_create(int least, void *(*alloc)(slw_gfp_t gfp, void *data), void (*release)(void *element, void *data),
                                  void *data) SLW_NOEXCEPT;
slw_mempool_t *slw_mempool_create_kmalloc_pool(int least, size_t size) SLW_NOEXCEPT;
slw_mempool_t *slw_mempool_create_slab_pool(int least, slw_kmem_cache *cache) SLW_NOEXCEPT;
void *slw_mempool_alloc(slw_mempool_t *pool, slw_gfp_t gfp) SLW_NOEXCEPT;
void slw_mempool_free(void *element, slw_mempool_t *pool) SLW_NOEXCEPT;
void slw_mempool_destroy(slw_mempool_t *pool) SLW_NOEXCEPT;

/* Shrinkers: asked, before a request with __GFP_FS fails (malloc is one), how many objects they could free, and to free some. They are called
   without any lock and may allocate and free; they must not wait for a lock that the program holds while it allocates. Compilers take malloc for
   a function that changes no variable of the program: what these functions change should be volatile or atomic. */
struct SLW_TAG(shrink_control) {
    slw_gfp_t gfp_mask;
    int nid;
    size_t nr_to_scan;
    size_t nr_scanned; /* to be set if it is not nr_to_scan */
};
typedef struct SLW_TAG(shrink_control) slw_shrink_control;
struct SLW_TAG(shrinker) {
    size_t (*count_objects)(struct SLW_TAG(shrinker) *shrinker, slw_shrink_control *control); /* 0 or SLW_SHRINK_EMPTY: none */
    size_t (*scan_objects)(struct SLW_TAG(shrinker) *shrinker, slw_shrink_control *control);  /* objects freed, or SLW_SHRINK_STOP */
    long batch;                                                                               /* objects at a time, 0: 128 */
    int seeks;                                                                                /* of no consequence */
    unsigned int flags;                                                                       /* of no consequence */
};
typedef struct SLW_TAG(shrinker) slw_shrinker;
#define SLW_SHRINK_STOP (~(size_t)0)
#define SLW_SHRINK_EMPTY (~(size_t)0 - 1)
#define SLW_DEFAULT_SEEKS 2
/* 0, EINVAL or ENOMEM. */
int slw_register_shrinker(slw_shrinker *shrinker) SLW_NOEXCEPT;
/* Waits until no thread is in its functions; not to be called from one of them. */
void slw_unregister_shrinker(slw_shrinker *shrinker) SLW_NOEXCEPT;

/* Between the two the calling thread is in atomic context: a request that may sleep is reported. Nothing stops it from being
   preempted. They nest. */
void slw_preempt_disable(void) SLW_NOEXCEPT;
void slw_preempt_enable(void) SLW_NOEXCEPT;
int slw_in_atomic(void) SLW_NOEXCEPT;

/* Per-CPU data: a copy of an object for each CPU, zeroed, up to 32 KiB. Where a type is asked for, it is SLW_ALLOC_PERCPU(type) and
   SLW_DEFINE_PER_CPU(type, name); an initial value may follow the latter. Variables so defined are only to be used by these calls; where the
   header is included with SLW_KERNEL_NAMES or SLW_STATIC_PER_CPU defined, they are made known when the program or library is loaded. */
void *slw___alloc_percpu(size_t size, size_t align, slw_gfp_t gfp) SLW_NOEXCEPT;
void slw_free_percpu(void *first) SLW_NOEXCEPT;
void *slw___per_cpu_ptr(void *object, int cpu) SLW_NOEXCEPT;
/* The copy of the CPU that the thread is on at this moment; it may be another one's the next. */
void *slw___this_cpu_ptr(void *object) SLW_NOEXCEPT;
/* The same, for this thread alone until slw___put_cpu_ptr, wherever it is moved meanwhile. Nests. The thread is in atomic context in between,
   and other threads on that CPU that ask for it wait. */
void *slw___get_cpu_ptr(void *object) SLW_NOEXCEPT;
void slw___put_cpu_ptr(void *object) SLW_NOEXCEPT;
/* Adds to this CPU's copy of an integer; nothing is lost, wherever the thread is moved and whatever interrupts it. */
void slw___this_cpu_add(void *word, size_t size, unsigned long value) SLW_NOEXCEPT;
int slw_num_possible_cpus(void) SLW_NOEXCEPT;
int slw_smp_processor_id(void) SLW_NOEXCEPT;
/* Makes copies of what lies in a section of templates, up to 32 KiB, for up to 64 modules at a time. Where there is no room for them the program ends. */
void slw___percpu_module(const void *start, const void *end) SLW_NOEXCEPT;

#define SLW_ALLOC_PERCPU(type) ((__typeof__(type) *)slw___alloc_percpu(sizeof(type), __alignof__(type), SLW_GFP_KERNEL))
#define SLW_ALLOC_PERCPU_GFP(type, gfp) ((__typeof__(type) *)slw___alloc_percpu(sizeof(type), __alignof__(type), gfp))
#define SLW_DEFINE_PER_CPU(type, name) __attribute__((section("slw_percpu"))) __typeof__(type) name
#define SLW_DECLARE_PER_CPU(type, name) extern __typeof__(type) name
#define SLW_PER_CPU_PTR(pointer, cpu) ((__typeof__(pointer))slw___per_cpu_ptr(pointer, cpu))
#define SLW_PER_CPU(variable, cpu) (*SLW_PER_CPU_PTR(&(variable), cpu))
#define SLW_THIS_CPU_PTR(pointer) ((__typeof__(pointer))slw___this_cpu_ptr(pointer))
#define SLW_GET_CPU_PTR(pointer) ((__typeof__(pointer))slw___get_cpu_ptr(pointer))
#define SLW_PUT_CPU_PTR(pointer) slw___put_cpu_ptr(pointer)
#define SLW_GET_CPU_VAR(variable) (*SLW_GET_CPU_PTR(&(variable)))
#define SLW_PUT_CPU_VAR(variable) slw___put_cpu_ptr(&(variable))
#define SLW_THIS_CPU_READ(variable) (*SLW_THIS_CPU_PTR(&(variable)))
#define SLW_THIS_CPU_WRITE(variable, value) ((void)(SLW_GET_CPU_VAR(variable) = (value)), SLW_PUT_CPU_VAR(variable))
#define SLW_THIS_CPU_ADD(variable, value) slw___this_cpu_add(&(variable), sizeof(variable), (unsigned long)(value))
#define SLW_THIS_CPU_SUB(variable, value) slw___this_cpu_add(&(variable), sizeof(variable), 0ul - (unsigned long)(value))
#define SLW_THIS_CPU_INC(variable) SLW_THIS_CPU_ADD(variable, 1)
#define SLW_THIS_CPU_DEC(variable) SLW_THIS_CPU_SUB(variable, 1)
#define SLW_FOR_EACH_POSSIBLE_CPU(cpu) for ((cpu) = 0; (cpu) < slw_num_possible_cpus(); (cpu)++)

#if defined(SLW_KERNEL_NAMES) || defined(SLW_STATIC_PER_CPU)
extern const char __start_slw_percpu[] __attribute__((weak, visibility("hidden")));
extern const char __stop_slw_percpu[] __attribute__((weak, visibility("hidden")));
__attribute__((constructor, unused)) static void SLW_percpu_register(void)
{
    if (__start_slw_percpu)
        slw___percpu_module(__start_slw_percpu, __stop_slw_percpu);
}
#endif

/* Keeps that many bytes populated for GFP_ATOMIC from now on, and touches what such requests touch; returns how many there are. What was kept beyond that serves others. Without it
   there are SLABWRIGHT_RESERVE bytes from the first of these calls on that may sleep. Half of the reserve is had without a lock: while it
   lasts, requests for up to 32 KiB are served whatever a handler interrupted and whoever is not running with a lock held. Larger ones (orders above
   3) need the zone's lock, which they only try: while somebody has it they are NULL. Calls that may sleep fill the reserve up again. What the child of a fork shares with its parent still faults when it is written to first. */
size_t slw_atomic_reserve(size_t bytes) SLW_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#ifdef SLW_KERNEL_NAMES
#define __GFP_DMA SLW___GFP_DMA
#define __GFP_HIGHMEM SLW___GFP_HIGHMEM
#define __GFP_DMA32 SLW___GFP_DMA32
#define __GFP_MOVABLE SLW___GFP_MOVABLE
#define __GFP_RECLAIMABLE SLW___GFP_RECLAIMABLE
#define __GFP_HIGH SLW___GFP_HIGH
#define __GFP_IO SLW___GFP_IO
#define __GFP_FS SLW___GFP_FS
#define __GFP_ZERO SLW___GFP_ZERO
#define __GFP_DIRECT_RECLAIM SLW___GFP_DIRECT_RECLAIM
#define __GFP_KSWAPD_RECLAIM SLW___GFP_KSWAPD_RECLAIM
#define __GFP_WRITE SLW___GFP_WRITE
#define __GFP_NOWARN SLW___GFP_NOWARN
#define __GFP_RETRY_MAYFAIL SLW___GFP_RETRY_MAYFAIL
#define __GFP_NOFAIL SLW___GFP_NOFAIL
#define __GFP_NORETRY SLW___GFP_NORETRY
#define __GFP_MEMALLOC SLW___GFP_MEMALLOC
#define __GFP_COMP SLW___GFP_COMP
#define __GFP_NOMEMALLOC SLW___GFP_NOMEMALLOC
#define __GFP_HARDWALL SLW___GFP_HARDWALL
#define __GFP_THISNODE SLW___GFP_THISNODE
#define __GFP_ACCOUNT SLW___GFP_ACCOUNT
#define __GFP_RECLAIM SLW___GFP_RECLAIM
#define __GFP_WAIT SLW___GFP_WAIT
#define GFP_ATOMIC SLW_GFP_ATOMIC
#define GFP_KERNEL SLW_GFP_KERNEL
#define GFP_KERNEL_ACCOUNT SLW_GFP_KERNEL_ACCOUNT
#define GFP_NOWAIT SLW_GFP_NOWAIT
#define GFP_NOIO SLW_GFP_NOIO
#define GFP_NOFS SLW_GFP_NOFS
#define GFP_USER SLW_GFP_USER
#define GFP_DMA SLW_GFP_DMA
#define GFP_DMA32 SLW_GFP_DMA32
#define GFP_HIGHUSER SLW_GFP_HIGHUSER
#define GFP_HIGHUSER_MOVABLE SLW_GFP_HIGHUSER_MOVABLE
#define SLAB_CONSISTENCY_CHECKS SLW_SLAB_CONSISTENCY_CHECKS
#define SLAB_RED_ZONE SLW_SLAB_RED_ZONE
#define SLAB_POISON SLW_SLAB_POISON
#define SLAB_HWCACHE_ALIGN SLW_SLAB_HWCACHE_ALIGN
#define SLAB_CACHE_DMA SLW_SLAB_CACHE_DMA
#define SLAB_CACHE_DMA32 SLW_SLAB_CACHE_DMA32
#define SLAB_STORE_USER SLW_SLAB_STORE_USER
#define SLAB_RECLAIM_ACCOUNT SLW_SLAB_RECLAIM_ACCOUNT
#define SLAB_PANIC SLW_SLAB_PANIC
#define SLAB_NO_MERGE SLW_SLAB_NO_MERGE
#define SLAB_ACCOUNT SLW_SLAB_ACCOUNT
typedef slw_gfp_t gfp_t;
typedef slw_slab_flags_t slab_flags_t;
#define alloc_pages slw_alloc_pages
#define alloc_page slw_alloc_page
#define alloc_pages_node slw_alloc_pages_node
#define __get_free_pages slw___get_free_pages
#define __get_free_page slw___get_free_page
#define get_zeroed_page slw_get_zeroed_page
#define get_free_page slw_get_free_page
#define __get_dma_pages slw___get_dma_pages
#define __free_pages slw___free_pages
#define __free_page slw___free_page
#define free_pages slw_free_pages
#define free_page slw_free_page
#define get_page slw_get_page
#define put_page slw_put_page
#define alloc_pages_exact slw_alloc_pages_exact
#define free_pages_exact slw_free_pages_exact
#define page_address slw_page_address
#define virt_to_page slw_virt_to_page
#define page_to_pfn slw_page_to_pfn
#define pfn_to_page slw_pfn_to_page
#define page_to_nid slw_page_to_nid
#define page_count slw_page_count
#define kmalloc slw_kmalloc
#define kzalloc slw_kzalloc
#define kmalloc_array slw_kmalloc_array
#define kcalloc slw_kcalloc
#define kmalloc_node slw_kmalloc_node
#define krealloc slw_krealloc
#define kfree slw_kfree
#define ksize slw_ksize
#define kmem_cache_create slw_kmem_cache_create
#define kmem_cache_find slw_kmem_cache_find
#define kmem_cache_destroy slw_kmem_cache_destroy
#define kmem_cache_shrink slw_kmem_cache_shrink
#define kmem_cache_size slw_kmem_cache_size
#define kmem_cache_alloc slw_kmem_cache_alloc
#define kmem_cache_zalloc slw_kmem_cache_zalloc
#define kmem_cache_free slw_kmem_cache_free
#define kmem_getpages slw_kmem_getpages
#define kmem_freepages slw_kmem_freepages
#define preempt_disable slw_preempt_disable
#define preempt_enable slw_preempt_enable
#define in_atomic slw_in_atomic
typedef slw_mempool_t mempool_t;
#define SHRINK_STOP SLW_SHRINK_STOP
#define SHRINK_EMPTY SLW_SHRINK_EMPTY
#define DEFAULT_SEEKS SLW_DEFAULT_SEEKS
#define vmalloc slw_vmalloc
#define vzalloc slw_vzalloc
#define vfree slw_vfree
#define vmalloc_to_page slw_vmalloc_to_page
#define vmap slw_vmap
#define VM_MAP SLW_VM_MAP
#define PAGE_KERNEL SLW_PAGE_KERNEL
#define vunmap slw_vunmap
#define ioremap slw_ioremap
#define iounmap slw_iounmap
#define kmap slw_kmap
#define kunmap slw_kunmap
#define kmap_atomic slw_kmap_atomic
#define kunmap_atomic slw_kunmap_atomic
#define mempool_create slw_mempool_create
#define mempool_create_kmalloc_pool slw_mempool_create_kmalloc_pool
#define mempool_create_slab_pool slw_mempool_create_slab_pool
#define mempool_alloc slw_mempool_alloc
#define mempool_free slw_mempool_free
#define mempool_destroy slw_mempool_destroy
#define register_shrinker slw_register_shrinker
#define unregister_shrinker slw_unregister_shrinker
#define alloc_percpu SLW_ALLOC_PERCPU
#define alloc_percpu_gfp SLW_ALLOC_PERCPU_GFP
#define per_cpu_ptr SLW_PER_CPU_PTR
#define per_cpu SLW_PER_CPU
#define this_cpu_ptr SLW_THIS_CPU_PTR
#define get_cpu_ptr SLW_GET_CPU_PTR
#define put_cpu_ptr SLW_PUT_CPU_PTR
#define get_cpu_var SLW_GET_CPU_VAR
#define put_cpu_var SLW_PUT_CPU_VAR
#define this_cpu_read SLW_THIS_CPU_READ
#define this_cpu_write SLW_THIS_CPU_WRITE
#define this_cpu_add SLW_THIS_CPU_ADD
#define this_cpu_sub SLW_THIS_CPU_SUB
#define this_cpu_inc SLW_THIS_CPU_INC
#define this_cpu_dec SLW_THIS_CPU_DEC
#define for_each_possible_cpu SLW_FOR_EACH_POSSIBLE_CPU
#define DEFINE_PER_CPU SLW_DEFINE_PER_CPU
#define DECLARE_PER_CPU SLW_DECLARE_PER_CPU
#define free_percpu slw_free_percpu
#define num_possible_cpus slw_num_possible_cpus
#define smp_processor_id slw_smp_processor_id
#endif

#undef SLW_NOEXCEPT
#undef SLW_ATTRIBUTE

#endif
