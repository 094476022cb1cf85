//! The workers of a run, and how their gradients come together.
//!
//! Workers take micro-batches one after the other, and add their gradients to the batch's in the micro-batches' order,
//! each waiting for its turn: the sum is the same bits whatever the number of workers and whoever is faster.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use wardrobe_device::{Device, LoraTable, Tensor, TrainedModule};
use wardrobe_models::{Decoder, RopeSpec};

use crate::error::{Result, TrainError};
use crate::microbatch::MicroBatch;
use crate::parameters::Parameters;
use crate::worker::{BackwardInputs, Losses, Worker, WorkerSize};

/// A worker with its gradients.
struct Member {
    worker: Worker,
    gradients: Tensor,
    modules: Vec<Option<TrainedModule>>,
}

/// See the module's head.
pub(crate) struct Team {
    members: Vec<Member>,
}

/// Whose turn it is to add.
struct Turn {
    next: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Turn {
    /// Waits until all before `idx` have added; `false` if one failed.
    fn wait(&self, idx: usize) -> bool {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        while next.is_some_and(|n| n < idx) {
            next = self.changed.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        next.is_some()
    }

    /// Gives the turn on, or says that there will be none.
    fn pass(&self, ok: bool) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = if ok { next.map(|n| n + 1) } else { None };
        self.changed.notify_all();
    }
}

/// Says that there will be no turn, should its holder panic.
struct PassOn<'a>(&'a Turn, bool);

impl Drop for PassOn<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.pass(false);
        }
    }
}

impl Team {
    /// `num_workers` workers with an even share of `num_threads` each.
    pub(crate) fn new(
        device: &Arc<dyn Device>,
        model: &Arc<dyn Decoder>,
        rope: &RopeSpec,
        parameters: &Parameters,
        size: WorkerSize,
        (num_workers, num_threads): (usize, usize),
    ) -> Result<Self> {
        let members = (0..num_workers)
            .map(|i| {
                let threads = (i + 1) * num_threads / num_workers - i * num_threads / num_workers;
                let device = device.with_threads(threads.max(1))?;
                let worker = Worker::new(device, model.clone(), rope, size)?;
                let gradients = parameters.layout.gradients(&worker.ctx)?;
                let modules = parameters.trained(model.modules().len(), &gradients)?;
                Ok(Member { worker, gradients, modules })
            })
            .collect::<Result<_>>()?;
        Ok(Team { members })
    }

    /// Losses of all micro-batches, in order; with `weight` and `dropout` of [`BackwardInputs`] also their gradients, added to
    /// `sum`.
    pub(crate) fn run(
        &mut self,
        batches: &[MicroBatch],
        table: Option<&Arc<LoraTable>>,
        backward: Option<(&Tensor, BackwardOptions)>,
        between: &(dyn Fn() + Sync),
    ) -> Result<Losses> {
        let next_batch = AtomicUsize::new(0);
        let turn = Turn { next: Mutex::new(Some(0)), changed: Condvar::new() };
        let losses = Mutex::new(vec![Losses::default(); batches.len()]);
        let work = |member: &mut Member| -> Result<()> {
            loop {
                let idx = next_batch.fetch_add(1, Ordering::Relaxed);
                let Some(batch) = batches.get(idx) else { return Ok(()) };
                let mut pass = PassOn(&turn, false);
                let Member { worker, gradients, modules } = &mut *member;
                let inputs = match &backward {
                    Some((_, options)) => {
                        worker.ctx.clear(gradients)?;
                        Some(BackwardInputs { modules, weight: options.weight, dropout: options.dropout })
                    }
                    None => None,
                };
                let of_batch = worker.run(batch, table, inputs, between)?;
                if !turn.wait(idx) {
                    // Whoever failed tells why.
                    return Ok(());
                }
                if let Some((sum, _)) = &backward {
                    worker.ctx.add_scaled(gradients, 1.0, sum)?;
                    worker.ctx.publish()?;
                }
                if let Some(entry) = losses.lock().unwrap_or_else(PoisonError::into_inner).get_mut(idx) {
                    *entry = of_batch;
                }
                pass.1 = true;
                turn.pass(true);
            }
        };
        let num_members = self.members.len().min(batches.len()).max(1);
        std::thread::scope(|scope| {
            let mut members = self.members.iter_mut().take(num_members);
            let first = members.next();
            let others: Vec<_> = members.map(|member| scope.spawn(|| work(member))).collect();
            let mine = first.map_or(Ok(()), work);
            let theirs = others.into_iter().map(|other| other.join().unwrap_or(Err(TrainError::Worker)));
            theirs.fold(mine, |so_far, result| so_far.and(result))
        })?;
        let mut total = Losses::default();
        for of_batch in losses.into_inner().unwrap_or_else(PoisonError::into_inner) {
            total.add(of_batch);
        }
        Ok(total)
    }

    /// The first worker, for what one does alone.
    pub(crate) fn first(&mut self) -> Option<&mut Worker> {
        self.members.first_mut().map(|member| &mut member.worker)
    }
}

/// See [`BackwardInputs`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackwardOptions {
    pub(crate) weight: f32,
    pub(crate) dropout: Option<wardrobe_device::Dropout>,
}
