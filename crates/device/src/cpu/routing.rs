//! Routing: which experts a step's rows go to, where their pairs stand, and the sum of what the experts gave.

use super::activations::TILE_ROWS;
use super::isa::Kernel;
use super::program::{Phase, Program};
use super::ptr;
use super::rows::{RowOp, Rows};
use super::simd::{LANES, Simd, load, store};
use crate::error::Result;
use crate::experts::Routing;
use crate::ops::Combine;
use crate::tensor::Tensor;

/// Where a step's routing lies.
#[derive(Clone, Copy)]
pub(crate) struct RoutingPlaces {
    pub(crate) num_rows: usize,
    pub(crate) top_k: usize,
    pub(crate) num_experts: usize,
    weights: *mut f32,
    experts: *mut u32,
    places: *mut u32,
    pub(crate) rows: *mut u32,
    starts: *mut u32,
}

// SAFETY: places in tensors that outlive the program's runs; tasks write disjoint parts.
unsafe impl Send for RoutingPlaces {}
// SAFETY: as above.
unsafe impl Sync for RoutingPlaces {}

/// An expert that some rows go to.
#[derive(Clone, Copy)]
pub(crate) struct ExpertRows {
    pub(crate) expert: usize,
    /// Its pairs.
    pub(crate) pairs: (usize, usize),
    /// Its first tile of quantised rows.
    pub(crate) tile: usize,
}

impl RoutingPlaces {
    pub(crate) fn of(routing: &Routing) -> Result<Self> {
        let op = "routing";
        Ok(RoutingPlaces {
            num_rows: routing.num_rows(),
            top_k: routing.top_k(),
            num_experts: routing.num_experts(),
            weights: ptr::<f32>(routing.weights(), op, "weights")?.0,
            experts: ptr::<u32>(routing.experts(), op, "experts")?.0,
            places: ptr::<u32>(routing.places(), op, "places")?.0,
            rows: ptr::<u32>(routing.rows(), op, "rows")?.0,
            starts: ptr::<u32>(routing.starts(), op, "starts")?.0,
        })
    }

    pub(crate) fn keep(program: &mut Program, routing: &Routing) {
        let tensors =
            [routing.weights(), routing.experts(), routing.places(), routing.rows(), routing.starts()];
        tensors.into_iter().for_each(|t| program.keep(t));
    }

    pub(crate) fn num_pairs(&self) -> usize {
        self.num_rows * self.top_k
    }

    /// The experts that some rows go to.
    ///
    /// # Safety
    /// The routing was written, and nobody writes it meanwhile.
    pub(crate) unsafe fn groups(&self) -> impl Iterator<Item = ExpertRows> {
        // SAFETY: one more than experts, by the caller.
        let starts = unsafe { std::slice::from_raw_parts(self.starts.cast_const(), self.num_experts + 1) };
        let mut tile = 0;
        let groups =
            starts.iter().zip(starts.iter().skip(1)).enumerate().map(move |(expert, (first, end))| {
                let pairs = (*first as usize, *end as usize);
                let group = ExpertRows { expert, pairs, tile };
                tile += (pairs.1 - pairs.0).div_ceil(TILE_ROWS);
                group
            });
        groups.filter(|group| group.pairs.0 < group.pairs.1)
    }

    /// The row of quantised activations that belongs to a pair.
    ///
    /// # Safety
    /// As [`RoutingPlaces::groups`]; the pair exists.
    pub(crate) unsafe fn tiled_row(&self, pair: usize) -> usize {
        // SAFETY: the caller's.
        let mut groups = unsafe { self.groups() };
        let group = groups.find(|group| pair < group.pairs.1);
        group.map_or(pair, |group| group.tile * TILE_ROWS + pair - group.pairs.0)
    }

    /// Rows of quantised activations at most.
    pub(crate) fn max_tiled_rows(&self) -> usize {
        self.num_pairs() + (TILE_ROWS - 1) * self.num_experts.min(self.num_pairs())
    }

    /// One row's experts, from its logits. Writes `top_k` different ones whatever the logits are.
    ///
    /// # Safety
    /// `num_experts` readable logits; the row exists and is this call's alone.
    pub(crate) unsafe fn route_row(&self, logits: *const f32, row: usize) {
        // SAFETY: the caller's.
        let (logits, experts, weights) = unsafe {
            (
                std::slice::from_raw_parts(logits.add(row * self.num_experts), self.num_experts),
                std::slice::from_raw_parts_mut(self.experts.add(row * self.top_k), self.top_k),
                std::slice::from_raw_parts_mut(self.weights.add(row * self.top_k), self.top_k),
            )
        };
        for j in 0..experts.len() {
            let (taken, rest) = experts.split_at_mut(j);
            let mut best: Option<(usize, f32)> = None;
            for (expert, &logit) in logits.iter().enumerate() {
                let logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit };
                if !taken.contains(&(expert as u32)) && best.is_none_or(|(_, most)| logit > most) {
                    best = Some((expert, logit));
                }
            }
            if let (Some(to), Some(weight), Some((expert, logit))) =
                (rest.first_mut(), weights.get_mut(j), best)
            {
                (*to, *weight) = (expert as u32, logit);
            }
        }
        let most = weights.first().copied().unwrap_or(0.0);
        weights.iter_mut().for_each(|w| *w = (*w - most).exp());
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
    }

    /// Sorts the pairs by expert.
    ///
    /// # Safety
    /// All rows were routed; nobody else refers to the routing.
    pub(crate) unsafe fn place_pairs(&self) {
        let pairs = self.num_pairs();
        // SAFETY: the caller's.
        let (experts, places, rows, starts) = unsafe {
            (
                std::slice::from_raw_parts(self.experts.cast_const(), pairs),
                std::slice::from_raw_parts_mut(self.places, pairs),
                std::slice::from_raw_parts_mut(self.rows, pairs),
                std::slice::from_raw_parts_mut(self.starts, self.num_experts + 1),
            )
        };
        starts.fill(0);
        for &expert in experts {
            if let Some(count) = starts.get_mut(expert as usize + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for count in starts.iter_mut() {
            sum += *count;
            *count = sum;
        }
        // Each expert's start moves on with its pairs, to where the next one's was.
        for (pair, (&expert, to)) in experts.iter().zip(places).enumerate() {
            let Some(next) = starts.get_mut(expert as usize) else { continue };
            *to = *next;
            if let Some(row) = rows.get_mut(*next as usize) {
                *row = (pair / self.top_k) as u32;
            }
            *next += 1;
        }
        starts.copy_within(0..self.num_experts, 1);
        if let Some(first) = starts.first_mut() {
            *first = 0;
        }
    }

    /// Gradient of a row's logits.
    ///
    /// # Safety
    /// `[rows, top_k]` and `[rows, num_experts]`; the row is this call's alone.
    pub(crate) unsafe fn route_row_backward(&self, d_weights: *const f32, d_logits: *mut f32, row: usize) {
        // SAFETY: the caller's.
        let (experts, weights, d_weights, d_logits) = unsafe {
            (
                std::slice::from_raw_parts(self.experts.add(row * self.top_k).cast_const(), self.top_k),
                std::slice::from_raw_parts(self.weights.add(row * self.top_k).cast_const(), self.top_k),
                std::slice::from_raw_parts(d_weights.add(row * self.top_k), self.top_k),
                std::slice::from_raw_parts_mut(d_logits.add(row * self.num_experts), self.num_experts),
            )
        };
        d_logits.fill(0.0);
        let mean: f32 = weights.iter().zip(d_weights).map(|(w, d)| w * d).sum();
        for ((&expert, w), d) in experts.iter().zip(weights).zip(d_weights) {
            if let Some(to) = d_logits.get_mut(expert as usize) {
                *to = w * (d - mean);
            }
        }
    }

    /// A row's places and weights.
    ///
    /// # Safety
    /// As [`RoutingPlaces::groups`]; the row exists.
    pub(crate) unsafe fn of_row<'a>(&self, row: usize) -> (&'a [u32], &'a [f32]) {
        // SAFETY: the caller's.
        unsafe {
            (
                std::slice::from_raw_parts(self.places.add(row * self.top_k).cast_const(), self.top_k),
                std::slice::from_raw_parts(self.weights.add(row * self.top_k).cast_const(), self.top_k),
            )
        }
    }
}

/// Lowers [`crate::Ops::route`].
pub(crate) fn lower_route(program: &mut Program, logits: &Tensor, routing: &Routing) -> Result<()> {
    let places = RoutingPlaces::of(routing)?;
    program.keep(logits);
    RoutingPlaces::keep(program, routing);
    let logits = ptr::<f32>(logits, "route", "logits")?.0.cast_const();
    let (rows, len) = (places.num_rows, places.num_experts);
    program.push(Phase::Rows(Rows::new(RowOp::Route { logits, routing: places }, rows, len)));
    program.push(Phase::Places(places));
    Ok(())
}

/// Lowers [`crate::Ops::combine`].
pub(crate) fn lower_combine(program: &mut Program, args: &Combine<'_>) -> Result<()> {
    let op = "combine";
    let routing = RoutingPlaces::of(args.routing)?;
    let kept = [Some(args.x), args.residual, Some(args.out)];
    kept.into_iter().flatten().for_each(|t| program.keep(t));
    RoutingPlaces::keep(program, args.routing);
    let residual = match args.residual {
        Some(t) => ptr::<f32>(t, op, "residual")?.0.cast_const(),
        None => std::ptr::null(),
    };
    let (x, out) = (ptr::<f32>(args.x, op, "x")?.0.cast_const(), ptr::<f32>(args.out, op, "out")?.0);
    let len = args.out.shape().row_len();
    let combine = RowOp::Combine { x, routing, weighted: args.weighted, residual, out, len };
    program.push(Phase::Rows(Rows::new(combine, routing.num_rows, len)));
    Ok(())
}

/// Adds up what a row's experts gave.
pub(crate) struct CombineRow<'a> {
    /// Row 0.
    pub(crate) x: *const f32,
    pub(crate) places: &'a [u32],
    /// As many, or none: then each counts once.
    pub(crate) weights: &'a [f32],
    /// The row's, or null.
    pub(crate) residual: *const f32,
    pub(crate) out: *mut f32,
    pub(crate) len: usize,
}

impl Kernel for CombineRow<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let CombineRow { x, places, weights, residual, out, len } = self;
        for i in (0..len).step_by(LANES) {
            let n = LANES.min(len - i);
            // SAFETY: `len` elements each, by the caller.
            unsafe {
                let mut sum = S::splat(0.0);
                for (j, &at) in places.iter().enumerate() {
                    let v = load::<S>(x.add(at as usize * len + i), n);
                    sum = match weights.get(j) {
                        Some(&weight) => S::fma(S::splat(weight), v, sum),
                        None => S::add(sum, v),
                    };
                }
                if !residual.is_null() {
                    sum = S::add(load::<S>(residual.add(i), n), sum);
                }
                store::<S>(out.add(i), sum, n);
            }
        }
    }
}
