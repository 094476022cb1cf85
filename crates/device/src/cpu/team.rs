//! The pool's threads on a sequence of phases: a phase starts when all tasks of the one before are done.
//!
//! To start and end a job costs more than a small op does. Here the threads stay in one job for all phases, and what
//! lies between two is a few writes to one cache line. As in a job of the pool, a thread's share of the tasks is the
//! same in phases of as many, it takes what others leave, and nobody waits for a thread that holds no task: one that
//! comes late goes on where the others are.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::pool::{ThreadPool, Wait};

/// A phase in the upper half, a number of tasks in the lower one; on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct PhaseCount(AtomicU64);

fn pack(phase: usize, count: usize) -> u64 {
    ((phase as u64) << 32) | count as u64
}

fn unpack(packed: u64) -> (usize, usize) {
    ((packed >> 32) as usize, packed as u32 as usize)
}

/// What the threads share.
pub(crate) struct Team {
    /// Tasks taken of each worker's share. A count of an earlier phase counts as none.
    taken: Box<[PhaseCount]>,
    /// The phase that runs, and its tasks that are done.
    done: PhaseCount,
    failed: AtomicBool,
}

impl Team {
    /// For pools of `num_workers` threads.
    pub(crate) fn new(num_workers: usize) -> Self {
        Team {
            taken: (0..num_workers.max(1)).map(|_| PhaseCount::default()).collect(),
            done: PhaseCount::default(),
            failed: AtomicBool::new(false),
        }
    }

    /// Runs `phase(0, …)`, …, `phase(num_phases - 1, …)`, and passes a panic on. Each must call [`Worker::each`] or
    /// [`Worker::each_of`] once, the same on every thread, and return what that returned. A phase that `is_small` is run
    /// whole by the thread that ended the one before: the others would hardly be there in time.
    pub(crate) fn run(
        &mut self,
        pool: &ThreadPool,
        num_phases: usize,
        is_small: &(dyn Fn(usize) -> bool + Sync),
        phase: &(dyn Fn(usize, Worker<'_>) -> Ended + Sync),
    ) {
        for count in self.taken.iter().chain([&self.done]) {
            count.0.store(0, Ordering::Relaxed);
        }
        self.failed.store(false, Ordering::Relaxed);
        let team = &*self;
        let alone = |idx: usize| phase(idx, Worker { team, idx: 0, phase: idx, alone: true });
        if (0..num_phases).all(is_small) {
            return (0..num_phases).for_each(|idx| drop(alone(idx)));
        }
        pool.run(team.taken.len(), &|idx| {
            let _release = ReleaseOthers(&team.failed);
            let mut current = 0;
            while current < num_phases && !team.failed.load(Ordering::Relaxed) {
                let Ended(ended) = phase(current, Worker { team, idx, phase: current, alone: false });
                if !ended {
                    current = team.wait_beyond(current);
                    continue;
                }
                current += 1;
                while current < num_phases && is_small(current) {
                    let Ended(_) = alone(current);
                    current += 1;
                }
                team.done.0.store(pack(current, 0), Ordering::Release);
            }
        });
    }

    /// Waits for the end of a phase and returns the one that runs then.
    fn wait_beyond(&self, phase: usize) -> usize {
        let mut wait = Wait::default();
        loop {
            let (current, _) = unpack(self.done.0.load(Ordering::Acquire));
            if current != phase || self.failed.load(Ordering::Relaxed) {
                return current;
            }
            wait.spin();
        }
    }
}

/// Tells the others not to wait for a thread that panics.
struct ReleaseOthers<'a>(&'a AtomicBool);

impl Drop for ReleaseOthers<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// One thread's part in a phase.
pub(crate) struct Worker<'a> {
    team: &'a Team,
    idx: usize,
    phase: usize,
    /// All of the phase is this one's.
    alone: bool,
}

/// Whether a worker was the last, and so has to start the next phase.
#[must_use]
pub(crate) struct Ended(bool);

impl Worker<'_> {
    /// Threads in the team.
    pub(crate) fn num_workers(&self) -> usize {
        self.team.taken.len()
    }

    /// Runs `task(worker, i)` for `i` below `share(worker)` and all workers, each once, on whatever thread: on this one
    /// first those of its own share, then what is left of the others'.
    pub(crate) fn each(self, share: impl Fn(usize) -> usize, mut task: impl FnMut(usize, usize)) -> Ended {
        let num_workers = self.num_workers();
        if self.alone {
            (0..num_workers).for_each(|owner| (0..share(owner)).for_each(|i| task(owner, i)));
            return Ended(true);
        }
        let mut tasks_done = 0;
        for owner in (self.idx..num_workers).chain(0..self.idx) {
            let Some(taken) = self.team.taken.get(owner) else { break };
            let share = share(owner);
            while let Some(i) = self.take(taken, share) {
                task(owner, i);
                tasks_done += 1;
            }
        }
        let num_tasks: usize = (0..num_workers).map(share).sum();
        let done = &self.team.done.0;
        if num_tasks == 0 {
            // The first to count one that is not there; later ones find another count, or another phase.
            let (none, one) = (pack(self.phase, 0), pack(self.phase, 1));
            return Ended(done.compare_exchange(none, one, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        }
        if tasks_done == 0 {
            return Ended(false);
        }
        // The phase cannot have ended before these tasks, so the count is of this phase.
        let (_, before) = unpack(done.fetch_add(tasks_done as u64, Ordering::AcqRel));
        Ended(before + tasks_done == num_tasks)
    }

    /// [`Worker::each`] of `0..num_tasks` in even shares.
    pub(crate) fn each_of(self, num_tasks: usize, mut task: impl FnMut(usize)) -> Ended {
        let num_workers = self.num_workers();
        let first = move |worker: usize| worker * num_tasks / num_workers;
        self.each(|worker| first(worker + 1) - first(worker), |worker, i| task(first(worker) + i))
    }

    /// The next task of a share, unless all are taken.
    fn take(&self, taken: &PhaseCount, share: usize) -> Option<usize> {
        let mut now = taken.0.load(Ordering::Relaxed);
        loop {
            let (phase, count) = unpack(now);
            let count = if phase == self.phase { count } else { 0 };
            if phase > self.phase || count >= share {
                return None;
            }
            let next = pack(self.phase, count + 1);
            match taken.0.compare_exchange_weak(now, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(count),
                Err(changed) => now = changed,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn each_phase_sees_all_of_the_one_before() {
        const MAX_TASKS: usize = 38;
        for threads in [1, 2, 3, 8] {
            let pool = ThreadPool::new(threads).unwrap();
            let mut team = Team::new(threads);
            for _ in 0..20 {
                let runs: Vec<AtomicUsize> = (0..MAX_TASKS).map(|_| AtomicUsize::new(0)).collect();
                let num_tasks = |phase: usize| phase * 7 % MAX_TASKS;
                let runs_before =
                    |phase: usize, task: usize| (0..phase).filter(|&p| task < num_tasks(p)).count();
                team.run(&pool, 200, &|phase| phase % 3 == 1, &|phase, worker| {
                    worker.each_of(num_tasks(phase), |i| {
                        for (task, runs) in runs.iter().enumerate() {
                            let here = usize::from(task < num_tasks(phase));
                            let seen = runs.load(Ordering::Relaxed) - runs_before(phase, task);
                            assert!(seen <= here, "{threads} threads, phase {phase}, task {task}");
                        }
                        assert_eq!(runs[i].fetch_add(1, Ordering::Relaxed), runs_before(phase, i));
                    })
                });
                for (task, runs) in runs.iter().enumerate() {
                    assert_eq!(runs.load(Ordering::Relaxed), runs_before(200, task));
                }
            }
        }
    }

    #[test]
    fn shares_may_be_uneven() {
        let pool = ThreadPool::new(3).unwrap();
        let runs: [AtomicUsize; 6] = Default::default();
        Team::new(3).run(&pool, 1, &|_| false, &|_, worker| {
            worker.each(
                |owner| [1, 0, 5][owner],
                |owner, i| {
                    runs[owner / 2 + i].fetch_add(1, Ordering::Relaxed);
                },
            )
        });
        assert_eq!(runs.map(AtomicUsize::into_inner), [1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_panic_ends_the_run_for_all() {
        let pool = ThreadPool::new(3).unwrap();
        let mut team = Team::new(3);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            team.run(&pool, 10, &|_| false, &|phase, worker| {
                worker.each_of(9, |i| assert!((phase, i) != (4, 5), "task 5 of phase 4"))
            });
        }));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        team.run(&pool, 10, &|_| false, &|_, worker| {
            worker.each_of(9, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            })
        });
        assert_eq!(sum.into_inner(), 360);
    }
}
