//! Linear layers and the embedding.
//!
//! Few rows wait for the weight's bytes: `gemv` reads them once, in whatever format they have. Many rows are a product of matrices in 16
//! bits, by the vendor's library where it is there and else by our own kernel; a quantised weight is dequantised first, a panel at a
//! time. Weights in f32 are multiplied in f32.

use wardrobe_device::{DType, LinearTarget, Result, Tensor, Weight, WeightFormat};

use crate::driver::{Addend, DevicePtr, Gemm, GemmOperands, GemmType, Launch};
use crate::kernels::{
    ConvertArgs, DequantiseArgs, EmbedArgs, GemmArgs, GemmF32Args, GemvArgs, GemvTarget, WeightArg, blocks,
    element_type,
};
use crate::ops::{CudaOps, Room, addr, addr_or_null, int};
use crate::planes::PlaneFormat;
use crate::weight::CudaWeight;

/// Layers of one launch of `gemv`.
const GEMV_TARGETS: usize = 3;
/// Rows up to which `gemv` takes weights of 16 bits and more, whose products are fast, and quantised ones, whose are not.
const GEMV_ROWS: usize = 16;
const GEMV_ROWS_QUANTISED: usize = 32;
/// Rows that it takes of F32 weights.
const GEMV_ROWS_F32: usize = 8;
/// Largest panel of a dequantised weight.
const PANEL_BYTES: usize = 64 << 20;
/// What the vendor's library may use; its documentation asks for 32 MiB on Hopper.
const BLAS_BYTES: usize = 32 << 20;

/// Operands of a product of matrices, `out = x wᵀ + bias + residual`, or `x w` if `w` is not transposed.
#[derive(Debug, Clone, Copy)]
struct Product {
    element: GemmType,
    transposed: bool,
    x: DevicePtr,
    w: DevicePtr,
    bias: DevicePtr,
    residual: DevicePtr,
    out: DevicePtr,
    rows: usize,
    n: usize,
    k: usize,
    x_stride: usize,
    w_stride: usize,
    out_stride: usize,
}

/// A matrix in the element type and with the strides that a product asks for.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    at: DevicePtr,
    stride: usize,
}

fn gemm_type(format: WeightFormat) -> GemmType {
    match format {
        WeightFormat::F32 => GemmType::F32,
        WeightFormat::F16 => GemmType::F16,
        _ => GemmType::BF16,
    }
}

impl GemmType {
    fn dtype(self) -> DType {
        match self {
            GemmType::BF16 => DType::BF16,
            GemmType::F16 => DType::F16,
            GemmType::F32 => DType::F32,
        }
    }
}

impl CudaOps {
    /// `out[i] = table[ids[i]]`.
    pub(crate) fn queue_embed(
        &mut self,
        ids: &Tensor,
        table: &Weight,
        scale: f32,
        out: &Tensor,
    ) -> Result<()> {
        let weight = CudaWeight::of(table)?;
        let rows = ids.shape().rows();
        let args = EmbedArgs {
            table: weight.arg(),
            ids: addr("embed", "ids", ids)?,
            out: addr("embed", "out", out)?,
            rows: int(rows),
            scale,
        };
        let threads = rows * 4 * weight.units();
        let kernel = self.kernels().get::<EmbedArgs>("embed", "embed", 0)?;
        // SAFETY: operands are as `Ops` promises; the kernel gets what its comments ask for.
        unsafe {
            kernel.launch(self.driver().as_ref(), self.stream(), blocks(threads.div_ceil(128), 128), &args)
        }
    }

    /// Whether `gemv` computes a layer of so many rows.
    fn takes_gemv(&self, rows: usize, format: PlaneFormat) -> bool {
        let max_rows = match format {
            PlaneFormat::F32 => GEMV_ROWS_F32,
            format if format.is_quantised() => GEMV_ROWS_QUANTISED,
            _ => GEMV_ROWS,
        };
        rows <= max_rows && !self.is_deterministic()
    }

    /// The layers without their adapters.
    pub(crate) fn queue_linear(&mut self, x: &Tensor, targets: &[LinearTarget<'_>]) -> Result<()> {
        let rows = x.shape().rows();
        let mut rest = targets;
        while let Some(first) = rest.first() {
            // Neighbours of one format go together.
            let format = CudaWeight::of(first.weight)?.format();
            let same =
                rest.iter().take_while(|t| CudaWeight::of(t.weight).is_ok_and(|w| w.format() == format));
            let (group, others) = rest.split_at(same.count().clamp(1, GEMV_TARGETS));
            rest = others;
            if self.takes_gemv(rows, format) {
                self.queue_gemv(x, group)?;
            } else {
                group.iter().try_for_each(|target| self.queue_gemm(x, target))?;
            }
        }
        Ok(())
    }

    fn queue_gemv(&mut self, x: &Tensor, group: &[LinearTarget<'_>]) -> Result<()> {
        let op = "linear";
        let (rows, cols) = (x.shape().rows(), x.shape().row_len());
        let Some(first) = group.first() else { return Ok(()) };
        let format = CudaWeight::of(first.weight)?.format();
        let is_f32 = format == PlaneFormat::F32;
        // Beyond 8 rows, x has to be BF16.
        let x_type = if is_f32 || rows <= 8 { x.dtype() } else { DType::BF16 };
        let matrix =
            if is_f32 { Matrix { at: addr(op, "x", x)?, stride: cols } } else { self.matrix_of(x, x_type)? };
        let none = GemvTarget {
            weight: WeightArg::NONE,
            bias: DevicePtr::NULL,
            residual: DevicePtr::NULL,
            out: DevicePtr::NULL,
        };
        let mut own = [none; GEMV_TARGETS];
        let mut features = 0;
        for (to, target) in own.iter_mut().zip(group) {
            *to = GemvTarget {
                weight: CudaWeight::of(target.weight)?.arg(),
                bias: addr_or_null(op, "bias", target.bias)?,
                residual: addr_or_null(op, "residual", target.residual)?,
                out: addr(op, "out", target.out)?,
            };
            features += target.weight.rows();
        }
        let multiprocessors = self.driver().card().num_multiprocessors as usize;
        let [narrow, wide, of_16_rows, of_32_rows] = format.gemv();
        let (name, of_block) = match rows {
            _ if is_f32 => (narrow, 4),
            3..=8 if features >= 2 * 32 * multiprocessors => (wide, 32),
            ..=8 => (narrow, 16),
            9..=16 => (of_16_rows, 32),
            _ => (of_32_rows, 64),
        };
        let args = GemvArgs {
            targets: own,
            x: matrix.at,
            num_targets: int(group.len()),
            rows: int(rows),
            x_stride: int(matrix.stride),
            x_type: element_type(x_type),
        };
        let num_blocks: usize = group.iter().map(|target| target.weight.rows().div_ceil(of_block)).sum();
        let kernel = self.kernels().get::<GemvArgs>("gemv", name, 0)?;
        // SAFETY: as above.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), blocks(num_blocks, 256), &args) }
    }

    fn queue_gemm(&mut self, x: &Tensor, target: &LinearTarget<'_>) -> Result<()> {
        let op = "linear";
        let weight = CudaWeight::of(target.weight)?;
        let (rows, n, cols) = (x.shape().rows(), target.weight.rows(), target.weight.cols());
        let element = gemm_type(target.weight.format());
        let x = self.matrix_of(x, element.dtype())?;
        let bias = addr_or_null(op, "bias", target.bias)?;
        let residual = addr_or_null(op, "residual", target.residual)?;
        let out = addr(op, "out", target.out)?;
        self.for_panels(weight, element, |ops, first, count, w| {
            let from = |at: DevicePtr| if at == DevicePtr::NULL { at } else { at.offset(4 * first) };
            ops.queue_product(&Product {
                element,
                transposed: true,
                x: x.at,
                w: w.at,
                bias: from(bias),
                residual: from(residual),
                out: out.offset(4 * first),
                rows,
                n: count,
                k: cols,
                x_stride: x.stride,
                w_stride: w.stride,
                out_stride: n,
            })
        })
    }

    /// `d_x = d_out W`, or added to it.
    pub(crate) fn multiply_backward(
        &mut self,
        weight: &Weight,
        d_out: &Tensor,
        d_x: &Tensor,
        adds: bool,
    ) -> Result<()> {
        let op = "linear_backward";
        let (rows, cols) = (d_x.shape().rows(), weight.cols());
        let element = gemm_type(weight.format());
        let d_out = self.matrix_of(d_out, element.dtype())?;
        let out = addr(op, "d_x", d_x)?;
        self.for_panels(CudaWeight::of(weight)?, element, |ops, first, count, w| {
            let has_some = adds || first > 0;
            ops.queue_product(&Product {
                element,
                transposed: false,
                x: d_out.at.offset(first * element.dtype().size_bytes()),
                w: w.at,
                bias: DevicePtr::NULL,
                residual: if has_some { out } else { DevicePtr::NULL },
                out,
                rows,
                n: cols,
                k: count,
                x_stride: d_out.stride,
                w_stride: w.stride,
                out_stride: cols,
            })
        })
    }

    /// Calls `f` with some rows of the weight at a time, as a matrix: their first, how many, and where they are.
    fn for_panels(
        &mut self,
        weight: &CudaWeight,
        element: GemmType,
        mut f: impl FnMut(&mut Self, usize, usize, Matrix) -> Result<()>,
    ) -> Result<()> {
        let stride = weight.cols().next_multiple_of(8);
        if !weight.format().is_quantised() {
            return f(self, 0, weight.rows(), Matrix { at: weight.arg().elements, stride });
        }
        let row_bytes = stride * element.dtype().size_bytes();
        // Whole groups of 8 rows, so that a panel's part of a 16-bit matrix is aligned.
        let panel_rows = (PANEL_BYTES / row_bytes.max(1)).max(8) / 8 * 8;
        let panel_rows = panel_rows.min(weight.rows());
        let at = self.room(Room::Weights, panel_rows * row_bytes)?;
        let kernel = self.kernels().get::<DequantiseArgs>("dequantise", "dequantise", 0)?;
        for first in (0..weight.rows()).step_by(panel_rows.max(1)) {
            let count = panel_rows.min(weight.rows() - first);
            let args = DequantiseArgs {
                weight: weight.arg(),
                out: at,
                first: int(first),
                count: int(count),
                out_stride: int(stride),
                out_type: element_type(element.dtype()),
            };
            let threads = count * 4 * weight.units();
            // SAFETY: as above; the room holds the panel.
            unsafe {
                let launch = blocks(threads.div_ceil(256), 256);
                kernel.launch(self.driver().as_ref(), self.stream(), launch, &args)?;
            }
            f(self, first, count, Matrix { at, stride })?;
        }
        Ok(())
    }

    /// A tensor as a matrix of this type whose rows are aligned to 16 bytes; itself if it is one.
    fn matrix_of(&mut self, x: &Tensor, dtype: DType) -> Result<Matrix> {
        let (rows, cols) = (x.shape().rows(), x.shape().row_len());
        let at = addr("linear", "x", x)?;
        if x.dtype() == dtype && cols.is_multiple_of(8) {
            return Ok(Matrix { at, stride: cols });
        }
        let stride = cols.next_multiple_of(8);
        let to = self.room(Room::Input, rows * stride * dtype.size_bytes())?;
        let args = ConvertArgs {
            x: at,
            out: to,
            rows: int(rows),
            cols: int(cols),
            x_stride: int(cols),
            out_stride: int(stride),
            x_type: element_type(x.dtype()),
            out_type: element_type(dtype),
        };
        let kernel = self.kernels().get::<ConvertArgs>("convert", "convert", 0)?;
        let threads = rows * stride / 8;
        // SAFETY: as above; the room holds the matrix.
        unsafe {
            let launch = blocks(threads.div_ceil(256), 256);
            kernel.launch(self.driver().as_ref(), self.stream(), launch, &args)?;
        }
        Ok(Matrix { at: to, stride })
    }

    /// Rows of this type that are aligned to 16 bytes, and the elements from one to the next.
    pub(crate) fn aligned_rows(&mut self, x: &Tensor, dtype: DType) -> Result<(DevicePtr, usize)> {
        let Matrix { at, stride } = self.matrix_of(x, dtype)?;
        Ok((at, stride))
    }

    fn queue_product(&mut self, product: &Product) -> Result<()> {
        let Product { element, transposed, x, w, bias, residual, out, rows, n, k, .. } = *product;
        if !self.is_deterministic() {
            let gemm = Gemm {
                rows,
                n,
                k,
                element,
                transposed,
                x_stride: product.x_stride,
                w_stride: product.w_stride,
                out_stride: product.out_stride,
                addend: match residual {
                    DevicePtr::NULL => Addend::None,
                    residual if residual == out => Addend::Out,
                    _ => Addend::Residual,
                },
                with_bias: bias != DevicePtr::NULL,
            };
            let workspace = (self.room(Room::Blas, BLAS_BYTES)?, BLAS_BYTES);
            let operands = GemmOperands { x, w, bias, residual, out };
            // SAFETY: as above.
            if unsafe { self.driver().gemm(self.stream(), &gemm, operands, workspace)? } {
                return Ok(());
            }
        }
        if element == GemmType::F32 {
            return self.queue_product_f32(product);
        }
        let args = GemmArgs {
            x,
            w,
            bias,
            residual,
            out,
            rows: int(rows),
            n: int(n),
            k: int(k),
            x_stride: int(product.x_stride),
            w_stride: int(product.w_stride),
            out_stride: int(product.out_stride),
            out_type: element_type(DType::F32),
            unused: 0,
        };
        let multiprocessors = self.driver().card().num_multiprocessors as usize;
        let tiles = |[tile_rows, tile_cols]: [usize; 2]| rows.div_ceil(tile_rows) * n.div_ceil(tile_cols);
        let (tile, threads, shared) = match () {
            () if rows <= 32 => ([32, 64], 128, 24_576),
            () if tiles([128, 128]) >= 2 * multiprocessors => ([128, 128], 256, 65_536),
            () => ([64, 64], 128, 32_768),
        };
        let name = gemm_name(element, transposed, tile);
        let kernel = self.kernels().get::<GemmArgs>("gemm", name, shared)?;
        let launch = Launch { shared_bytes: shared as u32, ..blocks(tiles(tile), threads) };
        // SAFETY: as above.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), launch, &args) }
    }

    fn queue_product_f32(&mut self, product: &Product) -> Result<()> {
        let Product { transposed, x, w, bias, residual, out, rows, n, k, .. } = *product;
        let args = GemmF32Args {
            x,
            w,
            bias,
            residual,
            out,
            rows: int(rows),
            n: int(n),
            k: int(k),
            x_stride: int(product.x_stride),
            w_stride: int(product.w_stride),
            out_stride: int(product.out_stride),
        };
        let multiprocessors = self.driver().card().num_multiprocessors as usize;
        let tiles = |tile: usize| rows.div_ceil(tile) * n.div_ceil(tile);
        let is_large = tiles(128) >= 2 * multiprocessors;
        let (name, tile, threads) = match (transposed, is_large) {
            (true, true) => ("gemm_f32_128x128", 128, 256),
            (true, false) => ("gemm_f32_64x64", 64, 128),
            (false, true) => ("gemm_f32_nn_128x128", 128, 256),
            (false, false) => ("gemm_f32_nn_64x64", 64, 128),
        };
        let kernel = self.kernels().get::<GemmF32Args>("gemm_f32", name, 0)?;
        // SAFETY: as above.
        unsafe { kernel.launch(self.driver().as_ref(), self.stream(), blocks(tiles(tile), threads), &args) }
    }
}

/// Entry points of `gemm.cu`, whose products are of 16 bits.
fn gemm_name(element: GemmType, transposed: bool, tile: [usize; 2]) -> &'static str {
    match (element, transposed, tile) {
        (GemmType::BF16 | GemmType::F32, true, [128, _]) => "gemm_bf16_128x128",
        (GemmType::BF16 | GemmType::F32, true, [64, _]) => "gemm_bf16_64x64",
        (GemmType::BF16 | GemmType::F32, true, _) => "gemm_bf16_32x64",
        (GemmType::BF16 | GemmType::F32, false, [128, _]) => "gemm_nn_bf16_128x128",
        (GemmType::BF16 | GemmType::F32, false, [64, _]) => "gemm_nn_bf16_64x64",
        (GemmType::BF16 | GemmType::F32, false, _) => "gemm_nn_bf16_32x64",
        (GemmType::F16, true, [128, _]) => "gemm_f16_128x128",
        (GemmType::F16, true, [64, _]) => "gemm_f16_64x64",
        (GemmType::F16, true, _) => "gemm_f16_32x64",
        (GemmType::F16, false, [128, _]) => "gemm_nn_f16_128x128",
        (GemmType::F16, false, [64, _]) => "gemm_nn_f16_64x64",
        (GemmType::F16, false, _) => "gemm_nn_f16_32x64",
    }
}
