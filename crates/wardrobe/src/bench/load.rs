//! A closed loop of workers, whatever it is that answers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::report::ServingResult;
use super::stats::Percentiles;
use crate::error::Result;

/// When the parts of one answer came.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Timeline {
    started: Option<Instant>,
    first_ms: Option<f64>,
    last: Option<Instant>,
    gaps_ms: Vec<f64>,
    /// Tokens of the prompt.
    pub(super) prompt_tokens: usize,
    /// Tokens of the answer.
    pub(super) output_tokens: usize,
}

impl Timeline {
    /// The request is sent now.
    pub(super) fn start() -> Self {
        Timeline { started: Some(Instant::now()), ..Timeline::default() }
    }

    /// A part of the answer has come.
    pub(super) fn arrived(&mut self) {
        let now = Instant::now();
        let ms = |since: Instant| now.duration_since(since).as_secs_f64() * 1e3;
        match (self.last, self.started) {
            (Some(last), _) => self.gaps_ms.push(ms(last)),
            (None, Some(started)) => self.first_ms = Some(ms(started)),
            (None, None) => {}
        }
        self.last = Some(now);
    }
}

/// Runs `concurrency` workers that each ask `requests_per_worker` times; `ask` gets the number of the request.
///
/// # Errors
/// The first that any of them meets; the others then stop after their request.
pub(super) fn closed_loop(
    concurrency: usize,
    requests_per_worker: usize,
    ask: impl Fn(usize) -> Result<Timeline> + Sync,
) -> Result<ServingResult> {
    let failed = AtomicBool::new(false);
    let results = Mutex::new(Vec::new());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for worker in 0..concurrency {
            let (ask, results, failed) = (&ask, &results, &failed);
            scope.spawn(move || {
                for i in 0..requests_per_worker {
                    if failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let answer = ask(i * concurrency + worker);
                    failed.fetch_or(answer.is_err(), Ordering::Relaxed);
                    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(answer);
                }
            });
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let timelines = results.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(summarise(concurrency, seconds, &timelines))
}

fn summarise(concurrency: usize, seconds: f64, timelines: &[Timeline]) -> ServingResult {
    let firsts: Vec<f64> = timelines.iter().filter_map(|t| t.first_ms).collect();
    let gaps: Vec<f64> = timelines.iter().flat_map(|t| t.gaps_ms.iter().copied()).collect();
    let prompt_tokens: usize = timelines.iter().map(|t| t.prompt_tokens).sum();
    let output_tokens: usize = timelines.iter().map(|t| t.output_tokens).sum();
    let rate = |tokens: usize| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    ServingResult {
        concurrency,
        num_adapters: 0,
        num_requests: timelines.len(),
        prompt_tokens,
        output_tokens,
        seconds,
        output_tokens_per_second: rate(output_tokens),
        total_tokens_per_second: rate(prompt_tokens + output_tokens),
        time_to_first_token_ms: Percentiles::of(&firsts),
        inter_token_latency_ms: Percentiles::of(&gaps),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn every_worker_asks_and_everything_is_counted() {
        let asked = Mutex::new(Vec::new());
        let result = closed_loop(3, 2, |i| {
            asked.lock().unwrap().push(i);
            let mut timeline = Timeline::start();
            (0..4).for_each(|_| timeline.arrived());
            Ok(Timeline { prompt_tokens: 10, output_tokens: 4, ..timeline })
        })
        .unwrap();
        let mut asked = asked.into_inner().unwrap();
        asked.sort_unstable();
        assert_eq!(asked, [0, 1, 2, 3, 4, 5]);
        assert_eq!((result.num_requests, result.prompt_tokens, result.output_tokens), (6, 60, 24));
        assert_eq!(result.time_to_first_token_ms.count, 6);
        assert_eq!(result.inter_token_latency_ms.count, 18);
    }

    #[test]
    fn one_failure_fails_the_run() {
        let result = closed_loop(2, 50, |i| match i {
            7 => Err(Error::Setting("seven".to_owned())),
            _ => Ok(Timeline::default()),
        });
        assert!(result.unwrap_err().to_string().contains("seven"));
    }
}
