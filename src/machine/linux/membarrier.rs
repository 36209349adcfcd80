//! Making every CPU, or one, leave its critical section.

use super::sys;

const QUERY: usize = 0;
const PRIVATE_EXPEDITED_RSEQ: usize = 1 << 7;
const REGISTER_PRIVATE_EXPEDITED_RSEQ: usize = 1 << 8;
const ONE_CPU: usize = 1;

fn call(command: usize, flags: usize, cpu: usize) -> Result<usize, sys::Errno> {
    // SAFETY: touches no memory of ours.
    unsafe { sys::ask(libc::SYS_membarrier, [command, flags, cpu, 0, 0, 0]) }
}

/// Announces the use of [`restart`]; false where the kernel (before 5.10) has none.
pub(super) fn register() -> bool {
    let both = PRIVATE_EXPEDITED_RSEQ | REGISTER_PRIVATE_EXPEDITED_RSEQ;
    call(QUERY, 0, 0).is_ok_and(|known| known & both == both) && call(REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0).is_ok()
}

/// Restarts the critical section that runs on `cpu`, if any: afterwards all that this thread stored before is seen by
/// whatever section runs there. False where the kernel refuses; then nothing may be assumed.
pub(super) fn restart(cpu: usize) -> bool {
    match call(PRIVATE_EXPEDITED_RSEQ, ONE_CPU, cpu) {
        Ok(_) => true,
        // Not registered: a child of a raw clone. Once more.
        Err(sys::Errno(libc::EPERM)) => register() && call(PRIVATE_EXPEDITED_RSEQ, ONE_CPU, cpu).is_ok(),
        Err(_) => false,
    }
}
