//! The kernel's calls as Rust would have them: values that own what they stand for, over any instance of the allocator.
//!
//! | type | in the kernel | what makes it safe |
//! |---|---|---|
//! | [`PageRun`] | `alloc_pages`, `alloc_pages_exact` | owns its frames; its bytes are `MaybeUninit` until written |
//! | [`Page`] | `struct page *` | a look at a descriptor, whose fields are atomics: what it says may be outdated, never invalid |
//! | [`Zone`] | `struct zone` | a name for a range of addresses |
//! | [`Cache`], [`CacheBox`] | `kmem_cache_create`, `_alloc`, `_free` | a box borrows its cache, so that no object outlives it |
//! | [`ObjectCache`], [`CacheObject`] | the same with a constructor | objects are never dropped and always valid: constructed before first use, kept over free |
//! | [`PerCpu`], [`PerCpuGuard`] | `alloc_percpu`, `get_cpu_ptr`, `this_cpu_add` | copies are read and written as wholes, never borrowed |
//! | [`VmArea`] | `vmalloc`, `vmap` | owns its addresses; another owner's frames are seen through raw pointers only |
//! | [`KmapGuard`] | `kmap_local_page`, `kmap_atomic` | stays on its thread, and so on its CPU; undone in reverse order |
//! | [`Pool`], [`PoolBox`] | `mempool_create`, `mempool_alloc` | a box borrows its pool, the pool its cache |
//! | [`Shrinker`] | `register_shrinker` | what is registered is borrowed for ever |
//!
//! The raw calls are methods of [`Mm`](crate::mm::Mm) (`alloc_pages`, `kmalloc`, `kmem_cache_create` …); these wrappers
//! add ownership and types, and nothing else. `slabwright::kernel` names them for the process's own instance.
#![allow(unsafe_code)]

mod cache;
mod mapping;
mod page;
mod percpu;
mod pressure;

pub use cache::{Cache, CacheBox, CacheObject, Construct, ObjectCache};
pub use mapping::{KmapGuard, VmArea, kmap_local};
pub use page::{Page, PageRun, Zone};
pub use percpu::{Count, PerCpu, PerCpuGuard};
pub use pressure::{Pool, PoolBox, Shrink, Shrinker};
