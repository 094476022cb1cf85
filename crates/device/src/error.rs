//! What can go wrong in a device, with the op and the shapes at fault.

use crate::{DType, Shape};

/// Failure of an allocation, an upload or an op.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// An operand has the wrong shape.
    #[error("{op}: {operand} has shape {actual}, expected {expected}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// Which operand.
        operand: &'static str,
        /// What the op needs.
        expected: Shape,
        /// What it was given.
        actual: Shape,
    },
    /// An operand has the wrong element type.
    #[error("{op}: {operand} is {actual:?}, expected {expected:?}")]
    DType {
        /// The op that refused.
        op: &'static str,
        /// Which operand.
        operand: &'static str,
        /// What the op needs.
        expected: DType,
        /// What it was given.
        actual: DType,
    },
    /// A scratch tensor was used after its scope had been released.
    #[error("{op}: {operand} is a scratch tensor whose scope has ended")]
    Stale {
        /// The op that refused.
        op: &'static str,
        /// Which operand.
        operand: &'static str,
    },
    /// The arena, sized at start, cannot hold another tensor.
    #[error(
        "the arena holds {capacity_bytes} bytes; {wanted_bytes} more do not fit beside {used_bytes} in use"
    )]
    ArenaFull {
        /// Size of the arena.
        capacity_bytes: usize,
        /// Bytes in use.
        used_bytes: usize,
        /// Bytes asked for.
        wanted_bytes: usize,
    },
    /// Memory could not be had from the device.
    #[error("the device could not provide {bytes} bytes for {what}")]
    OutOfMemory {
        /// Purpose of the allocation.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
    },
    /// A value lies outside what the op accepts: an index, a length, a parameter.
    #[error("{op}: {reason}")]
    Invalid {
        /// The op that refused.
        op: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The device has no implementation of this.
    #[error("{device} does not support {what}")]
    Unsupported {
        /// Name of the device.
        device: String,
        /// What was asked for.
        what: String,
    },
    /// A call of the device's driver, compiler or library failed.
    #[error("{call}: {reason}")]
    Driver {
        /// The call, as its documentation names it.
        call: &'static str,
        /// Its words.
        reason: String,
    },
    /// The device failed as a whole; nothing that runs on it can go on.
    #[error("the device is lost: {reason}")]
    Lost {
        /// The driver's words.
        reason: String,
    },
}

/// Result of a device operation.
pub type Result<T> = std::result::Result<T, DeviceError>;

pub(crate) fn invalid<T>(op: &'static str, reason: impl Into<String>) -> Result<T> {
    Err(DeviceError::Invalid { op, reason: reason.into() })
}
