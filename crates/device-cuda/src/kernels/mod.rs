//! The kernels' entry points: their arguments, twins of the structs in `kernels/`, and handles to launch them with.

mod adapters;
mod attention;
mod backward;
mod experts;
mod linear;
mod rows;
mod sample;

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use wardrobe_device::{DType, Result};

use crate::driver::{Driver, Function, Launch, Stream};

/// A struct of a kernel's arguments.
///
/// # Safety
/// It is `#[repr(C)]`, has no padding, and is laid out as the kernel's.
pub(crate) unsafe trait Args: Copy {}

/// Declares structs of arguments, and checks that they have no padding.
macro_rules! kernel_args {
    ($($(#[$meta:meta])* struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$meta])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy)]
            pub(crate) struct $name { $($(#[$field_meta])* pub(crate) $field: $type,)* }
            const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*);
            // SAFETY: declared so, and checked above; a kernel that is loaded is compared in size.
            unsafe impl $crate::kernels::Args for $name {}
        )*
    };
}
pub(crate) use kernel_args;

pub(crate) use adapters::{LoraArgs, LoraTarget, ShortRowsArgs};
pub(crate) use attention::{AttentionArgs, DecodeArgs, KvWriteArgs, RopeArgs, RopeKvArgs};
pub(crate) use backward::*;
pub(crate) use experts::{
    CombineArgs, CombineBackwardArgs, ExpertGemvArgs, ExpertSlotsArgs, RouteArgs, RouteBackwardArgs,
};
pub(crate) use linear::{
    ConvertArgs, DequantiseArgs, EmbedArgs, GemmArgs, GemmF32Args, GemvArgs, GemvTarget, WeightArg,
};
pub(crate) use rows::{
    ColumnsArgs, GatherArgs, GeluArgs, LayerNormArgs, RmsNormArgs, SiluMulArgs, SoftcapArgs,
};
pub(crate) use sample::{EditArg, ReportArgs, ReportParams, SampleArgs, SampleParams};

/// One entry point.
#[derive(Debug)]
pub(crate) struct Kernel<A> {
    function: Function,
    args: PhantomData<fn(A)>,
}

impl<A: Args> Kernel<A> {
    /// Queues it. A launch of no blocks does nothing.
    ///
    /// # Safety
    /// The arguments are as the kernel's comments ask, and its launch as its file's head says.
    pub(crate) unsafe fn launch(
        &self,
        driver: &dyn Driver,
        stream: Stream,
        launch: Launch,
        args: &A,
    ) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: a struct without padding is its bytes.
        let bytes =
            unsafe { std::slice::from_raw_parts(std::ptr::from_ref(args).cast::<u8>(), size_of::<A>()) };
        // SAFETY: the caller's.
        unsafe { driver.launch(stream, self.function, launch, bytes) }
    }
}

/// Finds entry points by file and name, each once.
#[derive(Debug)]
pub(crate) struct Kernels {
    driver: Arc<dyn Driver>,
    functions: Mutex<HashMap<(&'static str, &'static str), Function>>,
}

impl Kernels {
    pub(crate) fn new(driver: Arc<dyn Driver>) -> Self {
        Kernels { driver, functions: Mutex::default() }
    }

    /// An entry point whose launches ask for no more dynamic shared memory than that.
    pub(crate) fn get<A: Args>(
        &self,
        file: &'static str,
        name: &'static str,
        max_shared_bytes: usize,
    ) -> Result<Kernel<A>> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let function = match functions.get(&(file, name)) {
            Some(function) => *function,
            None => {
                let function = self.driver.function(file, name, size_of::<A>(), max_shared_bytes as u32)?;
                functions.insert((file, name), function);
                function
            }
        };
        Ok(Kernel { function, args: PhantomData })
    }
}

/// A launch in one dimension.
pub(crate) fn blocks(blocks: usize, threads: u32) -> Launch {
    Launch { grid: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1], block: threads, shared_bytes: 0 }
}

/// `ElementType` of `kernels/lib/kernel.cuh`.
pub(crate) fn element_type(dtype: DType) -> u32 {
    match dtype {
        DType::F32 | DType::U32 => 0,
        DType::BF16 => 1,
        DType::F16 => 2,
    }
}
