//! The driver's pool of memory, in stream order.

use cudarc::driver::sys;
use wardrobe_device::Result;

use super::{call, check};

/// Who uses memory, and what is to be given back.
pub(super) struct Memory {
    /// On which memory is taken and given back.
    pub(super) stream: sys::CUstream,
    /// The streams that may be using memory.
    pub(super) users: Vec<sys::CUstream>,
    /// Streams that are being recorded: they cannot be asked how far they are.
    pub(super) num_captures: usize,
    /// What was given back meanwhile.
    pub(super) deferred: Vec<sys::CUdeviceptr>,
}

impl Memory {
    /// Gives back what was deferred, behind all that the other streams have queued so far.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.num_captures > 0 || self.deferred.is_empty() {
            return Ok(());
        }
        for &user in &self.users {
            let mut event = std::ptr::null_mut();
            // SAFETY: streams of this context; an event may be destroyed while it is waited for.
            unsafe {
                call!(cuEventCreate(&raw mut event, DISABLE_TIMING))?;
                call!(cuEventRecord(event, user))?;
                call!(cuStreamWaitEvent(self.stream, event, 0))?;
                call!(cuEventDestroy_v2(event))?;
            }
        }
        for ptr in self.deferred.drain(..) {
            // SAFETY: the pointer came from the pool and was given back once.
            unsafe { call!(cuMemFreeAsync(ptr, self.stream))? };
        }
        Ok(())
    }
}

/// An event that only orders.
const DISABLE_TIMING: u32 = 2;
