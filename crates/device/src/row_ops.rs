//! Operands of the ops that work row by row or element by element.

use crate::tensor::Tensor;

/// Operands of an RMS norm.
#[derive(Debug)]
pub struct RmsNorm<'a> {
    /// `[rows, n]` F32.
    pub x: &'a Tensor,
    /// `[w]` F32, `w` being a divisor of `n`: each run of `w` elements is normed by itself.
    pub weight: &'a Tensor,
    /// Added to the mean of the squares.
    pub eps: f32,
    /// Added to the result, as `x`.
    pub residual: Option<&'a Tensor>,
    /// As `x`, or of [`crate::Device::linear_input`].
    pub out: &'a Tensor,
}

/// Operands of a layer norm.
#[derive(Debug)]
pub struct LayerNorm<'a> {
    /// `[rows, n]` F32.
    pub x: &'a Tensor,
    /// `[n]` F32.
    pub weight: &'a Tensor,
    /// `[n]` F32.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f32,
    /// As `x`, or of [`crate::Device::linear_input`].
    pub out: &'a Tensor,
}

/// How GELU (Hendrycks & Gimpel, arXiv 1606.08415) is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeluKind {
    /// `x / 2 (1 + erf(x / sqrt 2))`.
    Erf,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³)))`.
    Tanh,
}

/// Operands of GELU.
#[derive(Debug)]
pub struct Gelu<'a> {
    /// `[rows, n]` F32.
    pub x: &'a Tensor,
    /// What the result is multiplied by, as `x` (GeGLU; Shazeer, arXiv 2002.05202).
    pub up: Option<&'a Tensor>,
    /// How it is computed.
    pub kind: GeluKind,
    /// As `x`, or of [`crate::Device::linear_input`].
    pub out: &'a Tensor,
}

/// Some columns of the groups that rows are made of, to be copied.
#[derive(Debug)]
pub struct Columns<'a> {
    /// `[rows, groups * from_len]` F32.
    pub from: &'a Tensor,
    /// `[rows, groups * to_len]` F32.
    pub to: &'a Tensor,
    /// Groups of a row.
    pub groups: usize,
    /// First column in each group of `from`.
    pub from_col: usize,
    /// First column in each group of `to`.
    pub to_col: usize,
    /// Columns of each group.
    pub width: usize,
}

impl Columns<'_> {
    /// Lengths of a group of `from`, and of `to`.
    pub fn group_lens(&self) -> (usize, usize) {
        let of = |t: &Tensor| t.shape().row_len() / self.groups.max(1);
        (of(self.from), of(self.to))
    }
}
