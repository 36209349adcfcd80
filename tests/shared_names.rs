//! C's names and Rust's types on one instance, in one program: the C ABI's own source is a module here, so the
//! program's malloc is slabwright, too.
#![cfg(all(target_os = "linux", feature = "sim"))]
#![allow(unreachable_pub, clippy::undocumented_unsafe_blocks)]

extern crate slabwright as slabwright_core;

#[path = "../cabi/src/kernel.rs"]
mod kernel;
#[path = "../cabi/src/libc_abi.rs"]
mod libc_abi;
#[path = "../cabi/src/process.rs"]
mod process;

use core::ffi::c_void;

use slabwright::kernel::{Cache, Gfp, ObjectCache, PerCpu, SlabFlags};

// `slw_kmem_cache_alloc` as C declares it: its entry point in Rust has no arguments to name.
unsafe extern "C" {
    fn slw_kmem_cache_alloc(cache: *mut c_void, gfp: u32) -> *mut c_void;
    fn slw_kmem_cache_free(cache: *mut c_void, object: *mut c_void);
}

#[derive(Clone, Copy)]
struct Packet {
    length: u64,
    bytes: [u8; 56],
}

// rows: G6
#[test]
fn g6_c_and_rust_share_a_cache_by_its_name() {
    unsafe {
        let c = kernel::slw_kmem_cache_create(c"packet".as_ptr(), 64, 8, 0, None);
        assert!(!c.is_null());
        // C made it, Rust finds it.
        let rust = Cache::<Packet>::open("packet").unwrap();
        assert_eq!(kernel::slw_kmem_cache_find(c"packet".as_ptr()), c);
        assert_eq!(kernel::slw_kmem_cache_destroy(c), 0);
        let first = rust.insert(Packet { length: 3, bytes: [1; 56] }, Gfp::KERNEL).unwrap();
        let address = (&raw const *first).cast_mut();
        assert_eq!((first.length, first.bytes[55]), (3, 1));
        drop(first);
        // What the one freed the other gets.
        let object = slw_kmem_cache_alloc(c, Gfp::KERNEL.0);
        assert_eq!(object, address.cast());
        assert_eq!(kernel::slw_kmem_cache_size(c), 64);
        slw_kmem_cache_free(c, object);
        assert_eq!(kernel::slw_kmem_cache_destroy(c), 0);
        drop(rust);
        assert!(kernel::slw_kmem_cache_find(c"packet".as_ptr()).is_null(), "both gave it up");

        // Rust made it, C finds it.
        let rust = Cache::<Packet>::create("from-rust", SlabFlags::NONE).unwrap();
        let c = kernel::slw_kmem_cache_find(c"from-rust".as_ptr());
        let object = slw_kmem_cache_alloc(c, Gfp::KERNEL.0);
        assert!(!object.is_null());
        slw_kmem_cache_free(c, object);
        assert_eq!(kernel::slw_kmem_cache_destroy(c), 0);
        drop(rust);
    }
}

// rows: G8
#[test]
fn g8_a_constructed_cache_is_not_taken_for_another() {
    #[derive(Clone, Copy)]
    struct Built(u64);
    impl slabwright::kernel::Construct for Built {
        fn construct() -> Built {
            Built(77)
        }
    }
    let built = ObjectCache::<Built>::create("built", SlabFlags::NONE).unwrap();
    assert_eq!(built.get(Gfp::KERNEL).unwrap().0, 77);
    assert!(Cache::<u64>::open("built").is_err(), "its objects are constructed, and to be kept so");
}

/// A cache with a constructor, whoever made it: objects are constructed once, and one side finds what the other left.
// rows: G8
#[test]
fn g8_constructed_objects_are_shared_both_ways() {
    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Session {
        user: u64,
        uses: u64,
    }
    impl slabwright::kernel::Construct for Session {
        fn construct() -> Session {
            Session { user: 5, uses: 0 }
        }
    }
    unsafe extern "C" fn construct(object: *mut u8) {
        unsafe { object.cast::<Session>().write(Session { user: 9, uses: 0 }) };
    }
    unsafe {
        // C made it.
        let c = kernel::slw_kmem_cache_create(c"session".as_ptr(), 16, 8, 0, Some(construct));
        let rust = ObjectCache::<Session>::open("session").unwrap();
        assert!(ObjectCache::<[u64; 3]>::open("session").is_err(), "its objects are too small");
        let mut object = rust.get(Gfp::KERNEL).unwrap();
        assert_eq!((object.user, object.uses), (9, 0));
        object.uses += 1;
        let address = (&raw mut *object).cast::<c_void>();
        drop(object);
        let again = slw_kmem_cache_alloc(c, Gfp::KERNEL.0);
        assert_eq!((again, (*again.cast::<Session>()).uses), (address, 1));
        (*again.cast::<Session>()).uses += 1;
        slw_kmem_cache_free(c, again);
        assert_eq!(rust.get(Gfp::KERNEL).unwrap().uses, 2);
        assert_eq!(kernel::slw_kmem_cache_destroy(c), 0);
        drop(rust);
        assert!(kernel::slw_kmem_cache_find(c"session".as_ptr()).is_null());

        // Rust made it.
        let rust = ObjectCache::<Session>::create("built-in-rust", SlabFlags::NONE).unwrap();
        let c = kernel::slw_kmem_cache_find(c"built-in-rust".as_ptr());
        let object = slw_kmem_cache_alloc(c, Gfp::KERNEL.0).cast::<Session>();
        assert_eq!(((*object).user, (*object).uses), (5, 0));
        (*object).uses = 7;
        slw_kmem_cache_free(c, object.cast());
        assert_eq!(rust.get(Gfp::KERNEL).unwrap().uses, 7);
        assert_eq!(kernel::slw_kmem_cache_destroy(c), 0);
    }
    assert!(unsafe { ObjectCache::<Session>::open("built-in-rust").is_err() }, "nobody has it any more");
}

// rows: J5
#[test]
fn j5_per_cpu_data_of_one_is_the_others() {
    let counter = PerCpu::<u64>::alloc(0).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    counter.add(1);
                    unsafe { kernel::slw___this_cpu_add(counter.as_ptr().cast(), 8, 1) };
                    counter.get().update(|n| n + 1);
                }
            });
        }
    });
    assert_eq!(counter.sum(), 90_000);
}
