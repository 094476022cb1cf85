//! Tensors, contexts and the op set that models are written over, and the CPU device.
//!
//! - [`Device`] hands out memory, repacks weights and opens contexts; [`Ops`] is the op set of one context.
//! - [`Ctx`] is what models use: it checks operands, allocates outputs in an arena and runs steps that a device may
//!   record and replay.
//! - [`cpu`] is the device that runs everywhere.
//!
//! A device for other hardware is a crate of its own that implements [`Device`] and [`Ops`] and passes the
//! conformance cases.

mod arena;
mod backward;
mod backward_moe;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod cpu;
mod ctx;
mod ctx_grad;
mod ctx_moe;
mod ctx_rows;
mod ctx_sample;
mod dtype;
mod error;
mod experts;
#[cfg(any(test, feature = "conformance"))]
pub mod fake_async;
mod grad;
mod kv;
mod lora;
mod ops;
mod row_ops;
mod sample;
mod step;
mod tape;
mod tensor;
mod weight;

pub use arena::Reservation;
pub use ctx::{AttentionSpec, Ctx, CtxConfig, Projection};
pub use dtype::{DType, Shape, WeightFormat};
pub use error::{DeviceError, Result};
pub use experts::{ExpertModules, ExpertTarget, Experts, Routing};
pub use grad::{
    AdamW, AttentionBackward, CombineBackward, DoraBackward, Dropout, DropoutArgs, GeluBackward, GradOps,
    LoraGrads, TrainedModule,
};
pub use kv::{BLOCK_SIZE, KvCache, KvConfig, KvLayer};
pub use lora::{BoundAdapter, LoraBatch, LoraFactors, LoraModules, LoraTable, ModuleIdx, NULL_SLOT};
pub use ops::{Combine, Device, LinearTarget, Ops, PagedAttention, RopeTables, StepMode};
pub use row_ops::{Columns, Gelu, GeluKind, LayerNorm, RmsNorm};
pub use sample::{LogprobRow, SampleRow, Sampled, TokenCount, TokenEdit, TokenLogprobs};
pub use step::{GraphKey, Step, StepBounds, StepInputs, StepLimits};
pub use tape::{AttentionMemo, BlockMemo, LinearMemo, MemoUse, Seed, Tape};
pub use tensor::{Memory, Tensor};
pub use weight::{HostTensor, Weight, WeightData};
