//! The kernel's calls on the process's own instance.
//!
//! ```
//! use slabwright::kernel::{Cache, Gfp, PageRun, SlabFlags, Zone, ZoneKind};
//!
//! struct Session { user: u32, name: String }
//!
//! let sessions = Cache::<Session>::create("session", SlabFlags::HWCACHE_ALIGN)?;
//! let mut one = sessions.insert(Session { user: 7, name: "seven".into() }, Gfp::KERNEL)?;
//! one.user += 1;
//!
//! let low = Zone::of(0, ZoneKind::Dma32).alloc(Gfp::KERNEL, 0)?;
//! assert!(low.page().address().addr() < 1 << 32);
//!
//! let pages = PageRun::alloc(Gfp::KERNEL | Gfp::ZERO, 2)?;
//! assert_eq!(pages.bytes().len(), 4 * 4096);
//! # Ok::<(), slabwright::error::AllocError>(())
//! ```

#![allow(unsafe_code)]

mod percpu;

use crate::api;
use crate::global::mm;
use crate::machine::linux::Linux;

pub use self::percpu::{StaticPerCpu, first_copy, register_module};
pub use crate::api::{Construct, Count, Shrink};
pub use crate::error::AllocError;
pub use crate::gfp::Gfp;
pub use crate::machine::ZoneKind;
pub use crate::slab::SlabFlags;
pub use crate::types::Pfn;

/// See [`api::Page`].
pub type Page = api::Page<'static, Linux>;
/// See [`api::PageRun`].
pub type PageRun = api::PageRun<'static, Linux>;
/// See [`api::Zone`].
pub type Zone = api::Zone<'static, Linux>;
/// See [`api::Cache`].
pub type Cache<T> = api::Cache<'static, Linux, T>;
/// See [`api::CacheBox`].
pub type CacheBox<'c, T> = api::CacheBox<'c, Linux, T>;
/// See [`api::VmArea`].
pub type VmArea = api::VmArea<'static, Linux>;
/// See [`api::Pool`].
pub type Pool<'c, T> = api::Pool<'c, Linux, T>;
/// See [`api::PoolBox`].
pub type PoolBox<'p, T> = api::PoolBox<'p, Linux, T>;
/// See [`api::Shrinker`].
pub type Shrinker<S> = api::Shrinker<'static, Linux, S>;
/// See [`api::PerCpu`].
pub type PerCpu<T> = api::PerCpu<'static, Linux, T>;
/// See [`api::PerCpuGuard`].
pub type PerCpuGuard<'p, T> = api::PerCpuGuard<'p, Linux, T>;
/// See [`api::ObjectCache`].
pub type ObjectCache<T> = api::ObjectCache<'static, Linux, T>;
/// See [`api::CacheObject`].
pub type CacheObject<'c, T> = api::CacheObject<'c, Linux, T>;

impl Page {
    /// The page that holds `address` (`virt_to_page`).
    pub fn of_address(address: *const u8) -> Option<Page> {
        Page::containing(mm(), address)
    }

    /// The page of a frame (`pfn_to_page`).
    pub fn of_frame(pfn: Pfn) -> Option<Page> {
        Page::of(mm(), pfn)
    }
}

impl PageRun {
    /// [`api::PageRun::new`].
    ///
    /// # Errors
    /// As there.
    pub fn alloc(gfp: Gfp, order: u32) -> Result<PageRun, AllocError> {
        PageRun::new(mm(), gfp, order)
    }

    /// [`api::PageRun::on_node`].
    ///
    /// # Errors
    /// As there.
    pub fn alloc_node(node: usize, gfp: Gfp, order: u32) -> Result<PageRun, AllocError> {
        PageRun::on_node(mm(), node, gfp, order)
    }

    /// [`api::PageRun::exact`].
    ///
    /// # Errors
    /// As there.
    pub fn alloc_exact(gfp: Gfp, bytes: usize) -> Result<PageRun, AllocError> {
        PageRun::exact(mm(), gfp, bytes)
    }
}

impl Zone {
    /// [`api::Zone::new`].
    pub fn of(node: usize, kind: ZoneKind) -> Zone {
        Zone::new(mm(), node, kind)
    }
}

impl<T> Cache<T> {
    /// [`api::Cache::new`].
    ///
    /// # Errors
    /// As there.
    pub fn create(name: &str, flags: SlabFlags) -> Result<Cache<T>, AllocError> {
        Cache::new(mm(), name, flags)
    }

    /// [`api::Cache::find`].
    ///
    /// # Errors
    /// As there.
    pub fn open(name: &str) -> Result<Cache<T>, AllocError> {
        Cache::find(mm(), name)
    }
}

impl<T: Construct> ObjectCache<T> {
    /// [`api::ObjectCache::new`].
    ///
    /// # Errors
    /// As there.
    pub fn create(name: &str, flags: SlabFlags) -> Result<ObjectCache<T>, AllocError> {
        ObjectCache::new(mm(), name, flags)
    }
}

impl<T> ObjectCache<T> {
    /// [`api::ObjectCache::find`].
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// As there.
    pub unsafe fn open(name: &str) -> Result<ObjectCache<T>, AllocError> {
        // SAFETY: the caller's condition.
        unsafe { ObjectCache::find(mm(), name) }
    }
}

impl VmArea {
    /// [`api::VmArea::new`].
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn alloc(bytes: usize, gfp: Gfp) -> Result<VmArea, AllocError> {
        VmArea::new(mm(), bytes, gfp)
    }
}

impl<S: Shrink + 'static> Shrinker<S> {
    /// [`api::Shrinker::new`].
    ///
    /// # Errors
    /// As there.
    pub fn register(what: &'static S) -> Result<Shrinker<S>, AllocError> {
        Shrinker::new(mm(), what)
    }
}

impl<T: Copy> PerCpu<T> {
    /// [`api::PerCpu::new`].
    ///
    /// # Errors
    /// As there.
    pub fn alloc(value: T) -> Result<PerCpu<T>, AllocError> {
        PerCpu::new(mm(), value)
    }
}

/// Keeps `bytes` of memory populated for `GFP_ATOMIC` from now on; returns how many there are. A program that cannot
/// take a page fault calls this at its start.
pub fn atomic_reserve(bytes: usize) -> usize {
    mm().keep_reserve(bytes)
}
