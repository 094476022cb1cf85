//! The thread pool: one for the whole device, spinning between ops and parking when idle.
//!
//! The caller is worker 0. A job is a number of tasks. Each worker has an even share of adjacent ones, the same in
//! every job of as many, so that what it left in its cache is there for the next op; a worker that is done with its
//! own takes what is left of the others'. Which worker runs which task never matters to the result. A worker that
//! wakes late simply finds the job closed, so a short job does not wait for parked threads.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Spins before a worker parks: about 0.2 ms, longer than the pauses between the ops of a step.
const SPINS_BEFORE_PARK: u32 = 5_000;
/// Spins before a waiting thread yields: longer than the tail of a job when every worker has a core.
const SPINS_BEFORE_YIELD: u32 = 2_000;
/// Bit of `state` that says a job is open; the bits below count the workers in it.
const OPEN: u64 = 1 << 32;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

struct Job {
    task: *const Task<'static>,
    num_tasks: usize,
}

struct Shared {
    state: AtomicU64,
    /// The next task of each worker's share.
    next_tasks: Box<[NextTask]>,
    job: UnsafeCell<Job>,
    stop: AtomicBool,
    panicked: AtomicBool,
    parked: Box<[AtomicBool]>,
}

/// On a cache line of its own: it is written for every task.
#[derive(Default)]
#[repr(align(64))]
struct NextTask(AtomicUsize);

// SAFETY: `job` is written only by the caller that holds the run lock while no worker is in a job (`state` is 0), and
// read only by workers that have entered the open job.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is only followed while the job is open, when its owner waits in `run`.
unsafe impl Send for Shared {}

/// A fixed set of worker threads.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    run_lock: Mutex<()>,
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ThreadPool({})", self.num_threads())
    }
}

impl ThreadPool {
    /// A pool in which `num_threads` threads work, the caller included.
    pub fn new(num_threads: usize) -> std::io::Result<Self> {
        let num_workers = num_threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next_tasks: (0..=num_workers).map(|_| NextTask::default()).collect(),
            job: UnsafeCell::new(Job {
                task: std::ptr::null::<fn(usize)>() as *const Task<'static>,
                num_tasks: 0,
            }),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            parked: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = ThreadPool { shared: shared.clone(), workers: Vec::new(), run_lock: Mutex::new(()) };
        for idx in 0..num_workers {
            let shared = shared.clone();
            let worker = thread::Builder::new().name(format!("wardrobe-cpu-{}", idx + 1));
            pool.workers.push(worker.spawn(move || work(&shared, idx))?);
        }
        Ok(pool)
    }

    /// Threads that work, the caller included.
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)`, …, `task(num_tasks - 1)`, each once, and returns when all are done. A panic in a task is
    /// passed on to the caller after the others have finished.
    pub fn run(&self, num_tasks: usize, task: &Task<'_>) {
        if num_tasks <= 1 || self.workers.is_empty() {
            (0..num_tasks).for_each(task);
            return;
        }
        let _one_job_at_a_time = self.run_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed; the job is closed and left by every worker before `run` returns.
        let task_ptr = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        // SAFETY: we hold the run lock and no job is open, so nobody else looks at `job`.
        unsafe { *shared.job.get() = Job { task: task_ptr, num_tasks } };
        for (worker, next) in shared.next_tasks.iter().enumerate() {
            next.0.store(shared.share(worker, num_tasks).0, Ordering::Relaxed);
        }
        shared.state.store(OPEN, Ordering::SeqCst);
        for (parked, worker) in shared.parked.iter().zip(&self.workers) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let result = catch_unwind(AssertUnwindSafe(|| claim(shared, 0, num_tasks, task)));
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut wait = Wait::default();
        while shared.state.load(Ordering::Acquire) != 0 {
            wait.spin();
        }
        if let Err(panic) = result {
            shared.panicked.store(false, Ordering::Relaxed);
            resume_unwind(panic);
        }
        if shared.panicked.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a task panicked on a worker thread"));
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its tasks' panics, so joining cannot fail.
            let _ = worker.join();
        }
    }
}

/// Spins, and gives the core away when it takes long: whoever is waited for may be in need of one.
#[derive(Default)]
pub(super) struct Wait {
    spins: u32,
}

impl Wait {
    pub(super) fn spin(&mut self) {
        if self.spins < SPINS_BEFORE_YIELD {
            self.spins += 1;
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
}

impl Shared {
    /// The tasks that are a worker's own: from the first to before the second.
    fn share(&self, worker: usize, num_tasks: usize) -> (usize, usize) {
        let num_threads = self.next_tasks.len();
        (worker * num_tasks / num_threads, (worker + 1) * num_tasks / num_threads)
    }

    fn has_tasks(&self, num_tasks: usize) -> bool {
        let left = |(worker, next): (usize, &NextTask)| {
            next.0.load(Ordering::Relaxed) < self.share(worker, num_tasks).1
        };
        self.next_tasks.iter().enumerate().any(left)
    }
}

/// Runs the worker's own tasks, then what is left of the others'.
fn claim(shared: &Shared, worker: usize, num_tasks: usize, task: &Task<'_>) {
    let num_threads = shared.next_tasks.len();
    for owner in (worker..num_threads).chain(0..worker) {
        let Some(next) = shared.next_tasks.get(owner) else { return };
        let (_, end) = shared.share(owner, num_tasks);
        loop {
            let idx = next.0.fetch_add(1, Ordering::Relaxed);
            if idx >= end {
                break;
            }
            task(idx);
        }
    }
}

/// Enters the open job, if there is one.
fn enter(shared: &Shared) -> bool {
    let mut state = shared.state.load(Ordering::Acquire);
    while state & OPEN != 0 {
        match shared.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            Err(now) => state = now,
        }
    }
    false
}

fn work(shared: &Shared, idx: usize) {
    let Some(parked) = shared.parked.get(idx) else { return };
    let mut spins = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        if enter(shared) {
            // SAFETY: the job is open and stays so at least until we leave it.
            let (task, num_tasks) = unsafe { (&*(*shared.job.get()).task, (*shared.job.get()).num_tasks) };
            if shared.has_tasks(num_tasks)
                && catch_unwind(AssertUnwindSafe(|| claim(shared, idx + 1, num_tasks, task))).is_err()
            {
                shared.panicked.store(true, Ordering::Relaxed);
            }
            shared.state.fetch_sub(1, Ordering::AcqRel);
            // The job stays open until its owner runs out of tasks too: wait for that instead of re-entering.
            let mut wait = Wait::default();
            while shared.state.load(Ordering::Acquire) & OPEN != 0
                && !shared.has_tasks(num_tasks)
                && !shared.stop.load(Ordering::Relaxed)
            {
                wait.spin();
            }
            spins = 0;
        } else if spins < SPINS_BEFORE_PARK {
            spins += 1;
            std::hint::spin_loop();
        } else {
            parked.store(true, Ordering::SeqCst);
            // A job opened after this store sees the flag and unparks; one opened before is seen here.
            if shared.state.load(Ordering::SeqCst) & OPEN == 0 && !shared.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
            spins = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = ThreadPool::new(threads).unwrap();
            for round in 0..2_000 {
                let num_tasks = round % 37;
                let counts: Vec<AtomicUsize> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                    "{threads} threads, round {round}"
                );
            }
        }
    }

    #[test]
    fn parked_workers_wake() {
        let pool = ThreadPool::new(3).unwrap();
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let sum = AtomicUsize::new(0);
            pool.run(100, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = ThreadPool::new(2).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(64, &|i| assert!(i != 40, "task 40"))));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn two_callers_share_the_pool() {
        let pool = ThreadPool::new(2).unwrap();
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for _ in 0..500 {
                        let sum = AtomicUsize::new(0);
                        pool.run(16, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 120);
                    }
                });
            }
        });
    }
}
