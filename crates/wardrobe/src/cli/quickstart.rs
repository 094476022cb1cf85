//! `quickstart`: everything in a few minutes. A small model is served, two adapters are loaded while it runs, all three answer
//! in one batch, and one is replaced under that load; then another is trained beside the server and swapped in. What it
//! prints was measured and checked just then.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use wardrobe::{Engine, EngineOptions};
use wardrobe_hub::Cache;
use wardrobe_server::{Server, ServerConfig};

use super::http::{Answer, Client};
use super::open::ModelArgs;
use super::output::{self, Style};
use super::serve::{self, Banner};
use super::shipped::{self, BIOGRAPHY_JSON, Item, LAST_WORDS, ShippedAdapter};
use super::{log, open, signals, tuning};

const MODEL: &str = "smollm2-135m";
/// Where the shipped adapters are written, in the cache.
const ADAPTER_FOLDER: &str = "quickstart-adapters";
/// Requests to each of the three in the mixed batch.
const REQUESTS_EACH: usize = 4;
/// The base model likes to talk; an adapter's answer is shorter.
const MAX_TOKENS: usize = 64;
/// Memory for keys and values, unless other was asked for.
const KV_BYTES: usize = 256 << 20;
/// Width of the answers that are shown.
const SHOWN_CHARS: usize = 100;
/// The first passage that is asked for its last words: one where the adapter counts right.
const FIRST_PASSAGE: usize = 4;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "It needs about 150 MB of disk and 1.5 GB of memory, and the network only the first time."
)]
pub struct QuickstartArgs {
    /// Keep serving afterwards, until Ctrl-C
    #[arg(long)]
    serve: bool,
    /// Leave the training out
    #[arg(long)]
    no_train: bool,
    /// Port to listen on; 0 takes a free one [default: 8000 with --serve, else 0]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    #[command(flatten)]
    compute: ModelArgs,
}

/// Shows it all.
pub fn run(args: &QuickstartArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    args.compute.check()?;
    let style = Style::stdout();
    let started = Instant::now();
    let port = args.port.unwrap_or(if args.serve { 8000 } else { 0 });
    drop(serve::bind("127.0.0.1", port)?);
    output::line(&style.bold("One base model, a wardrobe of adapters, swapped while it serves."))?;

    let root = Cache::open_default()?.root().join(ADAPTER_FOLDER);
    for adapter in [&BIOGRAPHY_JSON, &LAST_WORDS] {
        adapter.write(&root)?;
    }
    let found = open::find(MODEL)?;
    let opening = Instant::now();
    let model = open::open(&found, &args.compute.model_options())?;
    let mut options =
        EngineOptions { kv_bytes: args.compute.kv_bytes(Some(KV_BYTES)), ..EngineOptions::default() };
    options.config.speculation = args.compute.speculation.unwrap_or_default().0;
    let engine = open::engine(&model, &options)?;
    let names = [MODEL.to_owned()];
    let served = serve::served_model(&model, &engine, &names, &found.path)?;
    let server = Server::new(served, server_config(&root))?;
    let listener = serve::bind("127.0.0.1", port)?;
    let address = listener.local_addr()?;
    output::line(&format!(
        "{} is open after {} and serves on http://{address}/v1 ({})\n",
        style.name(MODEL),
        output::duration(opening.elapsed()),
        model.device().name(),
    ))?;

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = thread::Builder::new().name("wardrobe-server".to_owned()).spawn(move || {
        let shutdown = async {
            // An error means that the other side is gone, which is a reason to stop too.
            let _ = stopped.await;
        };
        serve::serve(server, listener, shutdown)
    })?;
    let tour = Tour { client: Client::new(address), engine: engine.clone(), style };
    let shown = tour.show().and_then(|()| match args.no_train {
        true => Ok(()),
        false => tuning::show(&model, &engine, MODEL, style),
    });
    if shown.is_ok() {
        let took = output::duration(started.elapsed());
        output::line(&style.good(&format!("Nothing failed. {took} in all.")))?;
        if args.serve {
            keep_serving(&Banner {
                model: &model,
                engine: &engine,
                options: &options,
                names: &names,
                address,
                secured: false,
            })?;
        } else {
            output::line(&style.dim(
                "wardrobe quickstart --serve keeps it running; wardrobe chat smollm2-135m talks to it.",
            ))?;
        }
    }
    // The server may have ended by itself; then its own error says why.
    let _ = stop.send(());
    let served = thread.join().map_err(|_| anyhow::anyhow!("the server's thread panicked"));
    shown?;
    served?
}

fn server_config(root: &Path) -> ServerConfig {
    let drain_limit = Duration::from_secs(10);
    ServerConfig { adapter_root: Some(root.to_owned()), drain_limit, ..ServerConfig::default() }
}

fn keep_serving(banner: &Banner<'_>) -> anyhow::Result<()> {
    output::line("\nIt goes on serving until Ctrl-C. Try:")?;
    for command in banner.curl_lines() {
        output::line(&command)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(signals::stop_requested());
    Ok(())
}

/// One request of the mixed batch, and what came of it.
struct Request<'a> {
    model: &'a str,
    item: &'a Item,
}

struct Tour {
    client: Client,
    engine: Engine,
    style: Style,
}

impl Tour {
    fn show(&self) -> anyhow::Result<()> {
        let biographies = shipped::biography_items()?;
        let words: Vec<Item> = shipped::last_words_items()?.into_iter().skip(FIRST_PASSAGE).collect();
        let (Some(biography), Some(passage)) = (biographies.first(), words.first()) else {
            anyhow::bail!("the binary carries no questions");
        };
        self.question(&biography.prompt)?;
        let base_alone = self.ask(MODEL, biography)?;
        self.load(&BIOGRAPHY_JSON)?;
        let json_alone = self.ask(BIOGRAPHY_JSON.name, biography)?;
        output::line(&format!("  {}", self.style.note("+ both held to the record's JSON schema")))?;
        for model in [MODEL, BIOGRAPHY_JSON.name] {
            self.ask_held(model, biography)?;
        }
        output::line("")?;
        self.question(&passage.prompt)?;
        self.ask(MODEL, passage)?;
        self.load(&LAST_WORDS)?;
        let words_alone = self.ask(LAST_WORDS.name, passage)?;
        output::line("")?;
        let alone = [(MODEL, base_alone), (BIOGRAPHY_JSON.name, json_alone), (LAST_WORDS.name, words_alone)];
        self.mixed(&biographies, &words, &alone)
    }

    fn question(&self, prompt: &str) -> anyhow::Result<()> {
        // What is asked stands at one end of these prompts and a long text at the other.
        let (head, tail) = prompt.split_once("\n\n").unwrap_or((prompt, ""));
        let (text, ask) = if head.len() > tail.len() { (head, tail) } else { (tail, head) };
        output::line(&format!("  {} {}", self.style.bold("Q"), output::one_line(ask, SHOWN_CHARS + 12)))?;
        output::line(&self.style.dim(&format!("    {}", output::both_ends(text, SHOWN_CHARS + 12))))
    }

    fn ask(&self, model: &str, item: &Item) -> anyhow::Result<Answer> {
        let answer = self.client.chat(model, &item.prompt, MAX_TOKENS, || {})?;
        self.show_answer(model, item, &answer)?;
        Ok(answer)
    }

    /// Asks for a record that its schema allows, which every model has to give.
    fn ask_held(&self, model: &str, item: &Item) -> anyhow::Result<()> {
        let schema = shipped::biography_schema()?;
        let answer = self.client.chat_held(model, &item.prompt, MAX_TOKENS, &schema, || {})?;
        self.show_answer(model, item, &answer)?;
        let record: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&answer.text)
            .with_context(|| format!("{model}, held to a schema, gave no record: {:?}", answer.text))?;
        let names = schema.get("properties").and_then(serde_json::Value::as_object);
        anyhow::ensure!(
            names.is_some_and(|names| names.keys().eq(record.keys())),
            "{model}, held to a schema, gave another record: {:?}",
            answer.text
        );
        Ok(())
    }

    fn show_answer(&self, model: &str, item: &Item, answer: &Answer) -> anyhow::Result<()> {
        let decode = answer.total.saturating_sub(answer.first);
        let speed = output::rate(answer.tokens.saturating_sub(1), decode);
        let name = self.style.name(&format!("{model:>14}"));
        output::line(&format!("{name}  {}", output::one_line(&answer.text, SHOWN_CHARS)))?;
        let timing = format!("first token after {}, then {speed}", output::duration(answer.first));
        let verdict = if answer.text.trim() == item.expected { "as expected, " } else { "" };
        output::line(&format!("{:16}{}{}", "", self.style.good(verdict), self.style.dim(&timing)))
    }

    fn load(&self, adapter: &ShippedAdapter) -> anyhow::Result<()> {
        let started = Instant::now();
        let generation = self.client.load_adapter(adapter.name, adapter.name, false)?;
        let (size, time) = (output::size(adapter.size_bytes()), output::duration(started.elapsed()));
        let what = format!("+ hot-loaded {} ({size}) in {time}: generation {generation}", adapter.name);
        output::line(&format!("  {}", self.style.note(&what)))
    }

    /// Asks all three at once, and replaces one adapter's weights by the other's while all answer.
    fn mixed(&self, biographies: &[Item], words: &[Item], alone: &[(&str, Answer); 3]) -> anyhow::Result<()> {
        let mut requests = Vec::new();
        for (biography, passage) in biographies.iter().zip(words).take(REQUESTS_EACH) {
            requests.push(Request { model: MODEL, item: biography });
            requests.push(Request { model: BIOGRAPHY_JSON.name, item: biography });
            requests.push(Request { model: LAST_WORDS.name, item: passage });
        }
        let newcomer = words.get(REQUESTS_EACH).context("too few questions")?;
        let started = Instant::now();
        let (answers, swap) = thread::scope(|scope| {
            let (begun, first_texts) = mpsc::channel();
            let ask = |request: &Request<'_>| {
                let begun = begun.clone();
                let watched = request.model == BIOGRAPHY_JSON.name;
                let (client, model, prompt) =
                    (&self.client, request.model.to_owned(), request.item.prompt.clone());
                let on_first = move || {
                    if watched {
                        // The receiver may be gone; then nobody waits for this.
                        let _ = begun.send(());
                    }
                };
                scope.spawn(move || client.chat(&model, &prompt, MAX_TOKENS, on_first))
            };
            let running: Vec<_> = requests.iter().map(ask).collect();
            drop(begun);
            let swap = self.swap(&first_texts, newcomer);
            let answers = running.into_iter().map(|thread| match thread.join() {
                Ok(answer) => answer,
                Err(_) => Err(anyhow::anyhow!("a client thread panicked")),
            });
            Ok::<_, anyhow::Error>((answers.collect::<anyhow::Result<Vec<Answer>>>()?, swap?))
        })?;
        let took = started.elapsed();
        self.report(&requests, &answers, &swap, took)?;
        self.check(&requests, &answers, &swap, alone)
    }

    /// Once all answers of the adapter have begun: puts other weights under its name, asks for them, and puts the first
    /// ones back.
    fn swap(&self, first_texts: &mpsc::Receiver<()>, newcomer: &Item) -> anyhow::Result<Swap> {
        for _ in 0..REQUESTS_EACH {
            first_texts.recv().context("an answer ended before it began")?;
        }
        let replace = |source: &ShippedAdapter| -> anyhow::Result<(Instant, Duration, u64)> {
            let started = Instant::now();
            let generation = self.client.load_adapter(BIOGRAPHY_JSON.name, source.name, true)?;
            Ok((Instant::now(), started.elapsed(), generation))
        };
        let (replaced_at, there, generation) = replace(&LAST_WORDS)?;
        let answer = self.client.chat(BIOGRAPHY_JSON.name, &newcomer.prompt, MAX_TOKENS, || {})?;
        let (_, back, back_generation) = replace(&BIOGRAPHY_JSON)?;
        // The same weights under their own name: what the new request had to get.
        let expected = self.client.chat(LAST_WORDS.name, &newcomer.prompt, MAX_TOKENS, || {})?;
        Ok(Swap { replaced_at, there, back, generation, back_generation, newcomer: answer, expected })
    }

    fn report(
        &self,
        requests: &[Request<'_>],
        answers: &[Answer],
        swap: &Swap,
        took: Duration,
    ) -> anyhow::Result<()> {
        let all = || answers.iter().chain([&swap.newcomer, &swap.expected]);
        let tokens: usize = all().map(|answer| answer.tokens).sum();
        let prompt_tokens: usize = all().map(|answer| answer.prompt_tokens).sum();
        let slowest = all().map(|answer| answer.first).max().unwrap_or_default();
        let title = format!(
            "{} requests at once, {REQUESTS_EACH} for each of the three, in one batch:",
            requests.len()
        );
        output::line(&format!("  {}", self.style.bold(&title)))?;
        for name in [MODEL, BIOGRAPHY_JSON.name, LAST_WORDS.name] {
            let mut of_model = requests.iter().zip(answers).filter(|(request, _)| request.model == name);
            if let Some((_, answer)) = of_model.nth(1) {
                let shown = output::one_line(&answer.text, SHOWN_CHARS);
                output::line(&format!("{}  {shown}", self.style.name(&format!("{name:>14}"))))?;
            }
        }
        let times = format!(
            "~ meanwhile {} got last-words' weights in {} (generation {}), and its own back in {} ({})",
            BIOGRAPHY_JSON.name,
            output::duration(swap.there),
            swap.generation,
            output::duration(swap.back),
            swap.back_generation,
        );
        output::line(&format!("  {}", self.style.note(&times)))?;
        let late = requests.iter().zip(answers);
        let late = late.filter(|(r, a)| r.model == BIOGRAPHY_JSON.name && a.ended > swap.replaced_at).count();
        output::line(&format!(
            "    {late} of its {REQUESTS_EACH} running answers ended after that, all on the weights they began with;"
        ))?;
        let shown = output::one_line(&swap.newcomer.text, SHOWN_CHARS - 40);
        output::line(&format!("    a new request got the new ones: {}", self.style.name(&shown)))?;
        output::line(&format!(
            "    {prompt_tokens} prompt and {tokens} answer tokens in {}: {}; first token after {} at most\n",
            output::duration(took),
            self.style.bold(&output::rate(prompt_tokens + tokens, took)),
            output::duration(slowest),
        ))
    }

    /// What was claimed must hold.
    fn check(
        &self,
        requests: &[Request<'_>],
        answers: &[Answer],
        swap: &Swap,
        alone: &[(&str, Answer); 3],
    ) -> anyhow::Result<()> {
        for (model, expected) in alone {
            let same = requests.iter().zip(answers).find(|(request, _)| request.model == *model);
            let (_, answer) = same.context("a request is missing")?;
            anyhow::ensure!(
                answer.text == expected.text,
                "{model} answered otherwise in the batch than alone: {:?} and {:?}",
                answer.text,
                expected.text
            );
        }
        for (request, answer) in requests.iter().zip(answers).filter(|(r, _)| r.model == BIOGRAPHY_JSON.name)
        {
            let record = serde_json::from_str::<serde_json::Value>(answer.text.trim());
            let question = output::one_line(&request.item.prompt, 40);
            record.with_context(|| format!("{question}: not a JSON record, but {:?}", answer.text))?;
        }
        anyhow::ensure!(
            swap.newcomer.text == swap.expected.text,
            "the new weights answered {:?} under one name and {:?} under the other",
            swap.newcomer.text,
            swap.expected.text
        );
        anyhow::ensure!(swap.back_generation > swap.generation, "generations went backwards");
        let stats = self.engine.stats();
        anyhow::ensure!(stats.finished_error == 0, "{} sequences ended by an error", stats.finished_error);
        Ok(())
    }
}

/// One adapter's weights replaced under load.
struct Swap {
    replaced_at: Instant,
    there: Duration,
    back: Duration,
    generation: u64,
    back_generation: u64,
    newcomer: Answer,
    /// The answer of the same weights under their own name.
    expected: Answer,
}
