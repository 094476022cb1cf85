//! `chat`: a conversation in the terminal, in process, with adapters that can be loaded and switched on the way.

use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::time::Duration;

use anyhow::Context as _;
use wardrobe::{
    AdapterSource, Engine, EngineOptions, Event, Finish, LoadOptions, Message, Model, Request,
    SamplingParams, Summary, Update,
};

use super::failure::{UsageError, with_hint};
use super::open::{self, ModelArgs};
use super::output::{self, Style};
use super::signals::Interrupts;
use super::values::AdapterSpec;
use super::{log, run};

/// How often an answer looks whether it is to stop.
const POLL: Duration = Duration::from_millis(50);
/// The longest line taken.
const MAX_LINE_BYTES: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ChatArgs {
    /// A short name, a hub repository, a folder or a .gguf file
    #[arg(value_name = "MODEL")]
    model: String,
    /// Adapter to load at start; repeatable. The last one answers first
    #[arg(long, value_name = "NAME=PATH", value_delimiter = ',')]
    adapter: Vec<AdapterSpec>,
    /// Text of the system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// 0 takes the likeliest token; higher is more varied
    #[arg(long, value_name = "T", default_value_t = 0.7, allow_negative_numbers = true)]
    temperature: f32,
    /// Same seed, same answers
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[command(flatten)]
    compute: ModelArgs,
}

const EXAMPLES: &str = "\
Ctrl-C stops an answer, Ctrl-D leaves. Type /help for the commands inside.

Example:
  wardrobe chat smollm2-135m --adapter mine=./my-adapter";

const HELP: &str = "\
/adapter NAME    answer with this adapter; none for the base model
/load NAME PATH  load an adapter, or replace the one of that name
/unload NAME     take an adapter away
/adapters        what is loaded
/system TEXT     set the system message (none: take it away) and start anew
/reset           forget the conversation
/stats           tokens and speed of the last answer, and memory in use
/help            this
/quit            leave (Ctrl-D too); Ctrl-C stops an answer";

/// Talks until the input ends.
pub fn run(args: &ChatArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    args.compute.check()?;
    for spec in &args.adapter {
        open::check_adapter(&spec.path)?;
    }
    let found = open::find(&args.model)?;
    let model = open::open(&found, &args.compute.model_options())?;
    if model.chat_template().is_none() {
        let error = anyhow::anyhow!("{} has no chat template", found.name);
        return Err(with_hint(error, "wardrobe run MODEL PROMPT --raw continues a text"));
    }
    let options = model.settled(&args.compute.engine_options());
    let engine = open::engine(&model, &options)?;
    let mut chat = Chat {
        args,
        model,
        engine,
        options,
        style: Style::stdout(),
        adapter: None,
        system: args.system.clone(),
        turns: Vec::new(),
        last: None,
    };
    for spec in &args.adapter {
        chat.load(&spec.name, spec.path.clone())?;
        chat.adapter = Some(spec.name.clone());
    }
    let interrupts = Interrupts::watch().context("cannot handle Ctrl-C")?;
    if std::io::stdin().is_terminal() {
        let line =
            format!("{} on {}; /help for commands, Ctrl-D to leave", found.name, chat.model.device().name());
        output::line(&chat.style.dim(&line))?;
    }
    chat.talk(&interrupts)
}

struct Chat<'a> {
    args: &'a ChatArgs,
    model: Model,
    engine: Engine,
    options: EngineOptions,
    style: Style,
    /// The adapter that answers.
    adapter: Option<String>,
    system: Option<String>,
    turns: Vec<Message>,
    last: Option<(Summary, Option<Finish>)>,
}

enum Next {
    GoOn,
    Leave,
}

impl Chat<'_> {
    fn talk(&mut self, interrupts: &Interrupts) -> anyhow::Result<()> {
        let mut input = std::io::stdin().lock();
        let prompts = input.is_terminal();
        loop {
            if prompts {
                let who = self.adapter.as_deref().unwrap_or("base");
                output::write_stdout(format!("{} ", self.style.name(&format!("{who}>"))).as_bytes())?;
            }
            let mut bytes = Vec::new();
            let read = input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes);
            if read.context("cannot read a line")? == 0 {
                return if prompts { output::line("") } else { Ok(()) };
            }
            let Ok(line) = std::str::from_utf8(&bytes) else {
                super::failure::report(
                    &UsageError("this line is not UTF-8; it was left out".to_owned()).into(),
                );
                continue;
            };
            let line = line.trim();
            let result = match line.strip_prefix('/') {
                _ if line.is_empty() => continue,
                Some(command) => self.command(command),
                None => self.answer(line, interrupts).map(|()| Next::GoOn),
            };
            match result {
                Ok(Next::GoOn) => {}
                Ok(Next::Leave) => return Ok(()),
                Err(error) if error.is::<output::ClosedStdout>() => return Err(error),
                // A refusal ends the turn and not the conversation.
                Err(error) => {
                    super::failure::report(&error);
                }
            }
        }
    }

    fn command(&mut self, command: &str) -> anyhow::Result<Next> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match name {
            "quit" | "exit" | "q" => return Ok(Next::Leave),
            "help" | "?" => output::line(HELP)?,
            "adapters" => self.list()?,
            "adapter" if rest.is_empty() => output::line(self.adapter.as_deref().unwrap_or("none"))?,
            "adapter" => self.switch(rest)?,
            "load" => match rest.split_once(char::is_whitespace) {
                Some((name, path)) => self.load(name, path.trim().to_owned().into())?,
                None => output::line("/load NAME PATH")?,
            },
            "unload" => {
                self.engine.unload_adapter(rest, None)?;
                if self.adapter.as_deref() == Some(rest) {
                    self.adapter = None;
                }
                output::line(&format!("{rest} is gone"))?;
            }
            "system" => {
                self.system = (!rest.is_empty() && rest != "none").then(|| rest.to_owned());
                self.turns.clear();
                output::line(if self.system.is_some() {
                    "set; starting anew"
                } else {
                    "taken away; starting anew"
                })?;
            }
            "reset" => {
                self.turns.clear();
                output::line("forgotten")?;
            }
            "stats" => self.stats()?,
            _ => output::line(&format!("no command /{name}; /help lists them"))?,
        }
        Ok(Next::GoOn)
    }

    fn switch(&mut self, name: &str) -> anyhow::Result<()> {
        if name == "none" || name == "base" {
            self.adapter = None;
            return output::line("the base model answers");
        }
        let adapters = self.engine.adapters();
        if adapters.iter().any(|adapter| adapter.name == name) {
            self.adapter = Some(name.to_owned());
            return output::line(&format!("{name} answers"));
        }
        let names: Vec<String> = adapters.into_iter().map(|adapter| adapter.name).collect();
        let error = anyhow::anyhow!("no adapter {name} is loaded (there is: {})", names.join(", "));
        Err(with_hint(error, "/load NAME PATH loads one"))
    }

    fn load(&mut self, name: &str, path: std::path::PathBuf) -> anyhow::Result<()> {
        open::check_adapter(&path)?;
        let started = std::time::Instant::now();
        let options = LoadOptions { replace: true, ..LoadOptions::default() };
        let info = self.engine.load_adapter(name, AdapterSource::Path(path), options)?;
        let (size, time) = (output::mib(info.host_bytes), output::duration(started.elapsed()));
        output::line(&self.style.dim(&format!("{name}: rank {}, {size}, loaded in {time}", info.rank)))
    }

    fn list(&self) -> anyhow::Result<()> {
        let adapters = self.engine.adapters();
        if adapters.is_empty() {
            return output::line("none is loaded");
        }
        let row = |adapter: &wardrobe::AdapterInfo| {
            let mark = if self.adapter.as_ref() == Some(&adapter.name) { "*" } else { "" };
            let rank = format!("rank {}", adapter.rank);
            vec![
                mark.to_owned(),
                adapter.name.clone(),
                rank,
                output::mib(adapter.host_bytes),
                adapter.source.to_string(),
            ]
        };
        output::write_stdout(output::table(&adapters.iter().map(row).collect::<Vec<_>>()).as_bytes())
    }

    fn stats(&self) -> anyhow::Result<()> {
        let stats = self.engine.stats();
        let adapters: u64 = self.engine.adapters().iter().map(|adapter| adapter.host_bytes).sum();
        let plan = self.model.memory_plan(&self.options);
        match &self.last {
            Some((summary, finish)) => output::line(&run::stats(summary, finish.as_ref()))?,
            None => output::line("no whole answer yet")?,
        }
        output::line(&format!(
            "so far {} prompt and {} answer tokens · keys and values {} of {} blocks cached, {} · weights {} · adapters {}",
            stats.prompt_tokens,
            stats.generation_tokens,
            stats.cached_blocks + stats.used_blocks,
            stats.total_blocks,
            output::mib(plan.kv_bytes),
            output::mib(plan.weight_bytes),
            output::mib(adapters),
        ))
    }

    fn answer(&mut self, text: &str, interrupts: &Interrupts) -> anyhow::Result<()> {
        let system = self.system.iter().map(|text| Message::text("system", text));
        let mut messages: Vec<Message> = system.chain(self.turns.iter().cloned()).collect();
        messages.push(Message::text("user", text));
        let request = Request {
            prompt_token_ids: self.model.chat_prompt(&messages)?.into(),
            adapter: self.adapter.clone(),
            sampling: SamplingParams {
                temperature: self.args.temperature,
                top_p: 0.95,
                seed: self.args.seed,
                ..SamplingParams::default()
            },
            max_tokens: None,
            ..Request::default()
        };
        let room = self.engine.max_context_tokens().saturating_sub(request.prompt_token_ids.len());
        if room == 0 {
            let error = anyhow::anyhow!("the conversation fills the model's context");
            return Err(with_hint(error, "/reset forgets it"));
        }
        let request = request.with_max_tokens(self.args.max_tokens.min(room));
        interrupts.begin();
        let result = self.stream(request, interrupts);
        interrupts.end();
        let (answer, finish) = result?;
        if let Some(Finish::Error { message }) = &finish {
            anyhow::bail!("the answer was cut off: {message}");
        }
        self.turns.push(Message::text("user", text));
        self.turns.push(Message::text("assistant", answer));
        Ok(())
    }

    /// Prints an answer as it comes. Dropping the stream, on Ctrl-C, cancels it in the engine.
    fn stream(
        &mut self,
        request: Request,
        interrupts: &Interrupts,
    ) -> anyhow::Result<(String, Option<Finish>)> {
        let mut stream = self.engine.submit(request)?;
        let mut answer = String::new();
        let mut finish = None;
        loop {
            if interrupts.stopped() {
                output::line(&self.style.dim(" (stopped)"))?;
                let reason = "Ctrl-C".to_owned();
                return Ok((answer, Some(Finish::Cancelled { reason })));
            }
            match stream.next_timeout(POLL) {
                Some(Event::Update(Update { text, finish: end, .. })) => {
                    output::write_stdout(text.as_bytes())?;
                    answer.push_str(&text);
                    finish = end.or(finish);
                }
                Some(Event::Summary(summary)) => {
                    output::line("")?;
                    self.last = Some((*summary, finish.clone()));
                    return Ok((answer, finish));
                }
                Some(Event::PromptLogprobs(_)) | None => {}
            }
        }
    }
}
