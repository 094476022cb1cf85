//! Memory of the card that is given back when nobody refers to it.

use std::sync::Arc;

use wardrobe_device::{Memory, Result};

use crate::driver::{DevicePtr, Driver};

/// A range of the card's memory.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    driver: Arc<dyn Driver>,
    ptr: DevicePtr,
    len_bytes: usize,
}

impl DeviceMemory {
    /// Memory with any contents.
    pub(crate) fn new(driver: &Arc<dyn Driver>, what: &'static str, len_bytes: usize) -> Result<Arc<Self>> {
        let ptr = driver.alloc(what, len_bytes)?;
        Ok(Arc::new(DeviceMemory { driver: driver.clone(), ptr, len_bytes }))
    }

    pub(crate) fn ptr(&self) -> DevicePtr {
        self.ptr
    }
}

impl Memory for DeviceMemory {
    fn addr(&self) -> usize {
        self.ptr.0 as usize
    }

    fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: ours, given back once; the driver waits for what was queued.
        unsafe { self.driver.free(self.ptr) };
    }
}

/// Room that ops need while they run, grown to what was asked for so far. Its address is part of recorded steps, so whoever grows it
/// forgets those.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    memory: Option<Arc<DeviceMemory>>,
}

impl Workspace {
    /// Whether there is room for so many bytes already.
    pub(crate) fn has(&self, bytes: usize) -> bool {
        bytes == 0 || self.memory.as_ref().is_some_and(|memory| memory.len_bytes >= bytes)
    }

    /// Room for so many bytes.
    pub(crate) fn get(&mut self, driver: &Arc<dyn Driver>, bytes: usize) -> Result<DevicePtr> {
        if !self.has(bytes) {
            // What a little more costs is less than growing again.
            let wanted = bytes.next_multiple_of(1 << 20);
            self.memory = None;
            self.memory = Some(DeviceMemory::new(driver, "room for ops", wanted)?);
        }
        Ok(self.memory.as_ref().map_or(DevicePtr::NULL, |memory| memory.ptr))
    }
}
