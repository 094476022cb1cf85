//! Which cards there are, and what they are.

use std::ffi::{CStr, c_int};

use cudarc::driver::sys::{self, CUresult};
use wardrobe_device::{DeviceError, Result};

use super::super::Card;
use super::{call, check, describe};

/// Why there is no card to use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// The driver's library is not installed.
    #[error("no NVIDIA driver: libcuda was not found")]
    NoDriver,
    /// The driver does not work.
    #[error("the NVIDIA driver does not work: {0}")]
    BrokenDriver(String),
    /// There is no card.
    #[error("the NVIDIA driver sees no GPU")]
    NoCard,
    /// Fewer cards than that.
    #[error("there is no GPU {wanted}: the driver sees {have}")]
    NoSuchCard {
        /// Its number.
        wanted: usize,
        /// Cards that are there.
        have: usize,
    },
}

/// The oldest cards that the kernels are written for: Ampere.
pub(super) const MIN_CAPABILITY: (u32, u32) = (8, 0);

/// How many cards there are.
///
/// # Errors
/// [`Absent`]
pub fn num_cards() -> std::result::Result<usize, Absent> {
    // SAFETY: looks for a library by its usual names.
    if !unsafe { sys::is_culib_present() } {
        return Err(Absent::NoDriver);
    }
    let mut count = 0;
    // SAFETY: as the driver's reference asks: first `cuInit`.
    unsafe {
        match sys::cuInit(0) {
            CUresult::CUDA_SUCCESS => {}
            CUresult::CUDA_ERROR_NO_DEVICE => return Err(Absent::NoCard),
            other => return Err(Absent::BrokenDriver(describe(other))),
        }
        let counted = sys::cuDeviceGetCount(&raw mut count);
        if counted != CUresult::CUDA_SUCCESS {
            return Err(Absent::BrokenDriver(describe(counted)));
        }
    }
    match usize::try_from(count) {
        Ok(0) | Err(_) => Err(Absent::NoCard),
        Ok(count) => Ok(count),
    }
}

/// All cards.
///
/// # Errors
/// [`Absent`]
pub fn cards() -> std::result::Result<Vec<Card>, Absent> {
    let broken = |error: DeviceError| Absent::BrokenDriver(error.to_string());
    (0..num_cards()?)
        .map(|ordinal| {
            let mut device = 0;
            // SAFETY: the driver was initialised; writes a handle.
            unsafe { call!(cuDeviceGet(&raw mut device, ordinal as c_int)) }.map_err(broken)?;
            card(device).map_err(broken)
        })
        .collect()
}

/// The version of CUDA that the driver has, such as 13000.
pub fn driver_version() -> Option<u32> {
    let mut version = 0;
    // SAFETY: writes an int.
    num_cards().ok().and_then(|_| unsafe {
        (sys::cuDriverGetVersion(&raw mut version) == CUresult::CUDA_SUCCESS).then_some(version as u32)
    })
}

pub(super) fn card(device: sys::CUdevice) -> Result<Card> {
    use sys::CUdevice_attribute_enum as Attribute;
    let attribute = |attribute| -> Result<u32> {
        let mut value = 0;
        // SAFETY: writes an int.
        unsafe { call!(cuDeviceGetAttribute(&raw mut value, attribute, device))? };
        Ok(value.max(0) as u32)
    };
    let (mut name, mut memory_bytes) = ([0; 128], 0);
    // SAFETY: the name has room for its length and ends with a zero.
    let name = unsafe {
        call!(cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device))?;
        call!(cuDeviceTotalMem_v2(&raw mut memory_bytes, device))?;
        CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    let card = Card {
        name,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        max_shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        memory_bytes,
    };
    Ok(card)
}
