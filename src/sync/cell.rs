//! A cell for data under a lock. In production it is the plain one and an [`Access`] is nothing; under loom every
//! access is followed for as long as it lasts, so that two at once, or one that no ordering puts behind another, fail
//! the model.

#[cfg(not(loom))]
mod plain {
    pub use core::cell::UnsafeCell;
    use core::marker::PhantomData;

    /// An access that goes on until it is dropped.
    pub struct Access<T>(PhantomData<*mut T>);

    impl<T> Access<T> {
        /// The value of `cell`, the one that the access was made of.
        #[inline]
        pub fn get(&self, cell: &UnsafeCell<T>) -> *mut T {
            cell.get()
        }
    }

    /// Starts an access.
    #[inline]
    pub fn access<T>(_cell: &UnsafeCell<T>) -> Access<T> {
        Access(PhantomData)
    }
}

#[cfg(loom)]
mod followed {
    pub use loom::cell::UnsafeCell;

    /// An access that goes on until it is dropped.
    pub struct Access<T>(loom::cell::MutPtr<T>);

    impl<T> Access<T> {
        /// The value of the cell that the access was made of.
        pub fn get(&self, _cell: &UnsafeCell<T>) -> *mut T {
            self.0.with(|value| value)
        }
    }

    /// Starts an access.
    pub fn access<T>(cell: &UnsafeCell<T>) -> Access<T> {
        Access(cell.get_mut())
    }
}

#[cfg(loom)]
pub use followed::{Access, UnsafeCell, access};
#[cfg(not(loom))]
pub use plain::{Access, UnsafeCell, access};
