//! The engine thread under simulation: no threads, virtual time, every random choice from one seed.

mod behaviour;
mod constraints;
mod device_bytes;
mod load;
mod speculation;

use super::*;
use crate::adapter::{AdapterLoader, AdapterSource, LoadOptions};
use crate::config::{EngineConfig, Speculation};
use crate::ids::TokenId;
use crate::request::Request;
use crate::response::{Completion, Event};
use crate::scheduler::sequence::blocks_for;
use crate::simulation::{SIM_EOS, SimAdapter, SimCodec, SimControl, SimExecutor, SimLoader};
use crate::stream::ResponseStream;

pub(super) const VOCAB: usize = 101;

/// An engine core in the hands of a test.
pub(super) struct Bench {
    pub shared: Arc<Shared>,
    pub core: Core,
    pub control: SimControl,
    pub loader: Arc<SimLoader>,
    pub now: Instant,
    pub last: Next,
}

/// Size of a simulated device.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub num_blocks: usize,
    pub num_slots: usize,
    pub max_context_tokens: usize,
}

pub(super) const ROOMY: Size = Size { num_blocks: 256, num_slots: 4, max_context_tokens: 256 };

/// Without drafts, whose lengths depend on how fast the machine is.
pub(super) fn plain() -> EngineConfig {
    EngineConfig { speculation: Speculation::Off, ..EngineConfig::default() }
}

impl Bench {
    pub fn new(size: Size, config: EngineConfig) -> Self {
        Self::echoing(0, size, config)
    }

    /// Over a model that after `eighths` of eight texts goes on as the text did before.
    pub fn echoing(eighths: u64, size: Size, config: EngineConfig) -> Self {
        let executor = SimExecutor::new(size.num_blocks, size.num_slots, VOCAB, size.max_context_tokens)
            .with_echo(eighths)
            .with_max_device_bytes(config.max_adapters_device_bytes.unwrap_or(u64::MAX));
        let control = executor.control();
        let config = EngineConfig { eos_token_ids: vec![SIM_EOS], ..config };
        let shared = Arc::new(Shared::new(executor.limits(), Arc::new(SimCodec), config).unwrap());
        let core = Core::new(shared.clone(), Box::new(executor));
        Self { shared, core, control, loader: Arc::default(), now: Instant::now(), last: Next::Turn }
    }

    pub fn submit(&self, request: Request) -> ResponseStream {
        self.try_submit(request).unwrap()
    }

    pub fn try_submit(&self, request: Request) -> Result<ResponseStream, SubmitError> {
        self.shared.submit_all(vec![request]).map(|mut streams| streams.remove(0))
    }

    pub fn load(&self, name: &str, source: AdapterSource, replace: bool) -> Result<(), crate::AdapterError> {
        let options = LoadOptions { replace, ..LoadOptions::default() };
        let adapter = self.loader.load(&source)?;
        self.shared.registry.publish(name, source, adapter, &options).map(drop)
    }

    /// One turn, with the reloads that are due.
    pub fn turn(&mut self) -> Next {
        while let Some(generation) = self.shared.registry.try_next_reload() {
            let result = self.loader.load(&generation.source);
            self.shared.registry.finish_reload(&generation, result);
        }
        let mail = self.shared.mailbox.poll(self.core.load());
        self.last = self.core.turn(mail, self.now);
        self.now += Duration::from_millis(1);
        assert_eq!(self.control.violation(), None);
        for sequence in self.core.scheduler().sequences() {
            let (held, own) = (sequence.blocks.len(), blocks_for(sequence.tokens.len()));
            assert!(held <= own, "{held} blocks for {} tokens", sequence.tokens.len());
        }
        let limit_bytes = self.shared.config.max_adapters_device_bytes;
        assert!(limit_bytes.is_none_or(|limit| self.stats().bound_bytes <= limit), "{:?}", self.stats());
        self.last
    }

    /// Turns until there is nothing to do without mail.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.turn() != Next::Turn {
                return;
            }
        }
        panic!("the engine never comes to rest");
    }

    /// Answers one request while nothing else runs.
    pub fn ask(&mut self, request: Request) -> Completion {
        let stream = self.submit(request);
        self.settle();
        finished(stream).0
    }

    pub fn stats(&self) -> EngineStats {
        self.shared.stats.lock().unwrap().clone()
    }

    /// Nothing is held by anybody.
    pub fn assert_at_rest(&self) {
        let stats = self.stats();
        assert_eq!(stats.running_sequences, 0);
        assert_eq!(stats.waiting_sequences, 0);
        assert_eq!(stats.open_requests, 0);
        assert_eq!(stats.used_blocks, 0);
        assert_eq!(stats.leased_slots, 0);
        assert!(stats.running_adapters.is_empty() && stats.waiting_adapters.is_empty());
        assert_eq!(self.core.owners.len(), 0);
        assert_eq!(self.core.scheduler().kv().num_available(), stats.total_blocks);
        assert_eq!(self.shared.registry.num_leases_and_hidden(), (0, 0));
    }
}

/// Reads a stream that has ended; also gives how many terminal updates each choice had.
pub(super) fn finished(mut stream: ResponseStream) -> (Completion, Vec<usize>) {
    let mut completion = Completion::default();
    let mut terminals = Vec::new();
    let mut summaries = 0;
    while let Some(event) = stream.try_next() {
        note(&event, &mut terminals, &mut summaries);
        completion.apply(event);
    }
    assert_eq!(summaries, 1, "the stream has not ended");
    (completion, terminals)
}

/// Counts the ends of choices, and checks that nothing follows the summary.
pub(super) fn note(event: &Event, terminals: &mut Vec<usize>, summaries: &mut usize) {
    assert_eq!(*summaries, 0, "an event after the summary");
    match event {
        Event::Update(update) => {
            if terminals.len() <= update.choice {
                terminals.resize(update.choice + 1, 0);
            }
            assert_eq!(terminals[update.choice], 0, "an update after the end of its choice");
            terminals[update.choice] += usize::from(update.finish.is_some());
        }
        Event::Summary(_) => *summaries += 1,
        Event::PromptLogprobs(_) => {}
    }
}

pub(super) fn tokens(ids: impl IntoIterator<Item = u32>) -> Vec<TokenId> {
    ids.into_iter().map(TokenId).collect()
}

/// What two runs of a request must agree on.
pub(super) fn answer(
    completion: &Completion,
) -> (&[crate::Choice], &Option<Vec<Option<crate::TokenLogprobs>>>) {
    (&completion.choices, &completion.prompt_logprobs)
}

pub(super) fn source(path: &str) -> AdapterSource {
    AdapterSource::Path(path.into())
}

pub(super) fn adapter(content: u64) -> SimAdapter {
    SimAdapter::new(content)
}
