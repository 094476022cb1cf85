//! A model that computes nothing, behind the real engine: for tests of the endpoint and for `examples/fake.rs`.
//!
//! Its next-token distribution depends on the last token and the adapter alone. The likeliest token after a lower-case
//! letter is the next letter, after `z` a full stop, after that the end; an answer starts with the letter of its
//! adapter. Log-probabilities are those of a real softmax, so that they can be checked.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use wardrobe_batch::simulation::SimulatedFineTuner;
use wardrobe_engine::{
    AdapterError, AdapterLoader, AdapterSource, BLOCK_SIZE_TOKENS, ChunkOutput, Detokenizer, Digest, Engine,
    EngineConfig, Executor, ExecutorError, ExecutorLimits, LoadOptions, PreparedAdapter, Resolved, SampleAt,
    SampleSpec, Sampled, SlotIdx, Speculation, StepOutput, StepPlan, TextCodec, TokenId,
};
use wardrobe_grammar::{Compiler, Limits, Spec, Template, Whitespace};
use wardrobe_server::ServedModel;
use wardrobe_text::{
    ChatTemplate, DetokenizeOptions, DetokenizeStream, GgufVocab, TemplateLimits, Tokenizer,
};

/// ChatML, with what the tests look at.
pub const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
                            (message['content'] or '') + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
                            {{ '<|im_start|>assistant\n' }}{% endif %}";

/// The byte that a byte-level vocabulary writes as this character, and back.
fn byte_spelling(byte: u8) -> char {
    match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            let rank = (0..byte).filter(|b| !matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)).count();
            char::from_u32(0x100 + rank as u32).unwrap()
        }
    }
}

/// One token a byte (its id is the byte), then `ab`, then three special ones.
pub fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_spelling(byte).to_string()).collect();
    let mut token_types = vec![1; 257];
    tokens.push("QQ".to_owned());
    for special in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] {
        tokens.push(special.to_owned());
        token_types.push(3);
    }
    Tokenizer::from_gguf(GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens,
        token_types,
        merges: vec!["Q Q".to_owned()],
        bos_id: Some(258),
        eos_id: Some(EOS.0),
        add_bos: Some(false),
        ..GgufVocab::default()
    })
    .unwrap()
}

/// `<|im_end|>`.
pub const EOS: TokenId = TokenId(259);
pub const VOCAB_SIZE: usize = 260;

/// An adapter: the letter with which answers begin.
pub struct FakeAdapter {
    letter: u8,
    template: Option<Arc<Template>>,
}

impl PreparedAdapter for FakeAdapter {
    fn host_bytes(&self) -> u64 {
        1000
    }
    fn device_bytes(&self) -> u64 {
        1000
    }
    fn digest(&self) -> Digest {
        [self.letter; 32]
    }
    fn rank(&self) -> usize {
        8
    }
    fn num_modules(&self) -> usize {
        1
    }
    fn template(&self) -> Option<Arc<Template>> {
        self.template.clone()
    }
}

/// The compiler of the fake model's vocabulary.
pub fn compiler() -> Arc<Compiler> {
    Arc::new(Compiler::of_tokenizer(tokenizer(), &[EOS], Limits::default()))
}

/// Reads a folder with a file `letter`, and a `schema.json` if there is one.
pub struct FakeLoader;

impl AdapterLoader for FakeLoader {
    fn load(&self, source: &AdapterSource) -> Result<Arc<dyn PreparedAdapter>, AdapterError> {
        let AdapterSource::Path(path) = source else {
            return Err(AdapterError::Refused { reason: "not a path".to_owned() });
        };
        let text = std::fs::read_to_string(path.join("letter"))
            .map_err(|error| AdapterError::Refused { reason: format!("letter: {error}") })?;
        let schema = std::fs::read(path.join("schema.json")).ok();
        let template = schema.map(|schema| {
            let schema = serde_json::from_slice(&schema).unwrap();
            compiler().compile(&Spec::JsonSchema { schema, strict: true }, Whitespace::Spaced).unwrap()
        });
        match text.trim().as_bytes() {
            [letter @ b'a'..=b'y'] => Ok(Arc::new(FakeAdapter { letter: *letter, template })),
            _ => Err(AdapterError::Refused { reason: format!("letter: {text:?} is not one of a to y") }),
        }
    }
}

/// Writes an adapter's folder.
pub fn write_adapter(root: &std::path::Path, name: &str, letter: char) {
    std::fs::create_dir_all(root.join(name)).unwrap();
    std::fs::write(root.join(name).join("letter"), letter.to_string()).unwrap();
}

/// The tokenizer as the engine wants it.
pub struct Codec(pub Tokenizer);

struct Detok(DetokenizeStream);

impl Detokenizer for Detok {
    fn push(&mut self, token: TokenId) -> String {
        self.0.push(token).to_owned()
    }
    fn finish(&mut self) -> String {
        self.0.flush().to_owned()
    }
}

impl TextCodec for Codec {
    fn detokenizer(&self, prompt: &[TokenId], skip_special_tokens: bool) -> Box<dyn Detokenizer> {
        let options =
            DetokenizeOptions { skip_special: skip_special_tokens, at_text_start: prompt.is_empty() };
        Box::new(Detok(DetokenizeStream::new(self.0.clone(), options)))
    }
    fn token_bytes(&self, token: TokenId) -> Vec<u8> {
        self.0.token_bytes(token).unwrap_or(&[]).to_vec()
    }
}

/// How the executor behaves.
#[derive(Clone, Copy)]
pub struct Behaviour {
    /// How long a step takes.
    pub step: Duration,
    pub num_blocks: usize,
    pub max_context_tokens: usize,
    /// A sequence fails once it has produced this many tokens.
    pub fail_at: Option<u64>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { step: Duration::ZERO, num_blocks: 256, max_context_tokens: 1024, fail_at: None }
    }
}

/// Computes the distribution that the module describes.
pub struct FakeExecutor {
    behaviour: Behaviour,
    slots: [Option<u8>; 8],
}

impl FakeExecutor {
    pub fn new(behaviour: Behaviour) -> Self {
        Self { behaviour, slots: [None; 8] }
    }

    /// Log-probabilities of what follows `last`.
    fn log_probs(last: TokenId, letter: u8) -> Vec<f32> {
        let favourite = match last.0 {
            c @ 0x61..=0x79 => c + 1,
            0x7a => u32::from(b'.'),
            0x2e => EOS.0,
            _ => u32::from(letter),
        };
        let logit = |id: u32| {
            let noise = (id.wrapping_mul(2_654_435_761) ^ last.0.wrapping_mul(40_503)) % 1000;
            f64::from(noise) / 500.0 + if id == favourite { 8.0 } else { 0.0 }
        };
        let logits: Vec<f64> = (0..VOCAB_SIZE as u32).map(logit).collect();
        let log_sum = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        logits.into_iter().map(|logit| (logit - log_sum) as f32).collect()
    }

    fn row(log_probs: &[f32], token: TokenId, top: Option<u32>, extra: &[TokenId]) -> Sampled {
        let Some(top) = top else { return Sampled { token, ..Sampled::default() } };
        let mut order: Vec<usize> = (0..log_probs.len()).collect();
        order.sort_by(|a, b| log_probs[*b].total_cmp(&log_probs[*a]).then(a.cmp(b)));
        let rank = order.iter().position(|id| *id == token.index()).unwrap() as u32 + 1;
        let ids = order.iter().take(top as usize).map(|id| TokenId(*id as u32)).chain(extra.iter().copied());
        let top = ids.map(|id| (id, log_probs[id.index()])).collect();
        Sampled { token, logprob: log_probs[token.index()], rank, top }
    }

    fn sample(spec: &SampleSpec, log_probs: &[f32]) -> TokenId {
        let mut scores = log_probs.to_vec();
        for (id, bias) in spec.logit_bias.iter() {
            scores[id.index()] += bias;
        }
        for id in &spec.banned {
            scores[id.index()] = f32::NEG_INFINITY;
        }
        let patience = std::time::Instant::now() + Duration::from_secs(10);
        if let Resolved::These(allowed) = spec.allowed.resolve(patience) {
            for (id, score) in scores.iter_mut().enumerate() {
                if allowed[id / 32] >> (id % 32) & 1 == 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        if spec.temperature > 0.0 {
            // Noise from the seed instead of a draw: enough to make choices differ.
            for (id, score) in scores.iter_mut().enumerate() {
                let mut key = spec.seed ^ (u64::from(spec.choice) << 32) ^ (spec.position << 16) ^ id as u64;
                key = (key ^ (key >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                *score += ((key >> 40) as f32 / (1 << 24) as f32 * 10.0 - 5.0) * spec.temperature;
            }
        }
        let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a)));
        TokenId(best.unwrap() as u32)
    }
}

impl Executor for FakeExecutor {
    fn limits(&self) -> ExecutorLimits {
        ExecutorLimits {
            num_blocks: self.behaviour.num_blocks,
            block_size_tokens: BLOCK_SIZE_TOKENS,
            vocab_size: VOCAB_SIZE,
            max_context_tokens: self.behaviour.max_context_tokens,
            num_slots: self.slots.len(),
            model_digest: [0xab; 32],
        }
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        std::thread::sleep(self.behaviour.step);
        let mut chunks = Vec::new();
        for chunk in &plan.chunks {
            let letter = chunk.slot.map_or(b'a', |slot| self.slots[slot.0 as usize].unwrap());
            let mut output = ChunkOutput::default();
            if let Some(asked) = &chunk.prompt_logprobs {
                let rows = chunk.token_ids[asked.first_row..].iter().zip(&asked.targets);
                output.prompt_logprobs = rows
                    .map(|(last, target)| {
                        Self::row(&Self::log_probs(*last, letter), *target, Some(asked.top), &[])
                    })
                    .collect();
            }
            for SampleAt { row, spec } in &chunk.samples {
                if self.behaviour.fail_at.is_some_and(|at| spec.position >= at) {
                    if !output.sampled.is_empty() {
                        break;
                    }
                    let reason = "the fake model fails here".to_owned();
                    return Err(ExecutorError::Sequence { sequence: chunk.sequence, reason });
                }
                let log_probs = Self::log_probs(chunk.token_ids[*row], letter);
                let token = Self::sample(spec, &log_probs);
                let row = Self::row(&log_probs, token, spec.top_logprobs, &spec.logprob_token_ids);
                output.sampled.push(row);
            }
            chunks.push(output);
        }
        Ok(StepOutput { chunks })
    }

    fn bind_slot(&mut self, slot: SlotIdx, adapter: &Arc<dyn PreparedAdapter>) -> Result<(), ExecutorError> {
        let adapter: &dyn std::any::Any = &**adapter;
        self.slots[slot.0 as usize] = Some(adapter.downcast_ref::<FakeAdapter>().unwrap().letter);
        Ok(())
    }

    fn clear_slot(&mut self, slot: SlotIdx) {
        self.slots[slot.0 as usize] = None;
    }
}

/// An engine over the fake model.
pub fn engine(behaviour: Behaviour, change: impl FnOnce(&mut EngineConfig)) -> Engine {
    // Drafts would be right always, and what is meant to last would end at once.
    let speculation = Speculation::Off;
    let mut config = EngineConfig { eos_token_ids: vec![EOS], speculation, ..EngineConfig::default() };
    change(&mut config);
    let executor = Box::new(FakeExecutor::new(behaviour));
    Engine::start(executor, Arc::new(FakeLoader), Arc::new(Codec(tokenizer())), config).unwrap()
}

/// The fake model with its names.
pub fn served(engine: Engine) -> ServedModel {
    ServedModel {
        engine,
        tokenizer: tokenizer(),
        compiler: compiler(),
        chat_template: Some(Arc::new(ChatTemplate::new(TEMPLATE, TemplateLimits::default()).unwrap())),
        model_id: "fake".to_owned(),
        aliases: vec!["org/fake-alias".to_owned()],
        root: None,
        created: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        fine_tuning: None,
    }
}

/// A trainer that computes nothing, whose adapters the engine serves.
pub fn fine_tuner(engine: &Engine, step_time: Duration) -> SimulatedFineTuner {
    let (publishing, retracting) = (engine.clone(), engine.clone());
    SimulatedFineTuner {
        publish: Box::new(move |job, dir| {
            let source = AdapterSource::Path(dir.to_owned());
            let loaded = publishing.load_adapter(&job.name, source, LoadOptions::default());
            loaded.map(drop).map_err(|error| error.to_string())
        }),
        retract: Box::new(move |job| match retracting.unload_adapter(&job.name, None) {
            Ok(_) | Err(AdapterError::NotLoaded { .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        }),
        ..SimulatedFineTuner::new("fake", step_time)
    }
}
