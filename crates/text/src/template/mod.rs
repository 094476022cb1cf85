//! Templates: a conversation as the text that the model was trained on, and a record as a prompt.
//!
//! A template is a Jinja program that comes with a model, or with a request. It runs in `minijinja` with bounded source,
//! steps (fuel), recursion, JSON and output, without a loader, and sees nothing but its inputs and the clock that the
//! caller gives. What it cannot be held to is the size of values that it keeps to itself: a loop that joins a string to
//! itself doubles it with every step, within any fuel. Templates from strangers' requests should therefore be accepted
//! only where the operator allows it.
//!
//! Behaviour follows what Hugging Face's libraries do with Python's jinja2: `trim_blocks` and `lstrip_blocks`, Python's
//! methods of strings and dicts, Python's spelling of values, `tojson` without HTML escapes, `raise_exception`,
//! `strftime_now`, loop controls, and `{% generation %}` as a plain block.

mod functions;
mod input;
mod json;
mod record;
mod source;
mod strftime;

pub use input::{ChatInput, Message, MessageContent};
pub use record::RecordTemplate;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use std::error::Error as _;
use std::io::{self, Write};

/// Limits on what a template may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateLimits {
    /// The longest template, in bytes.
    pub max_source_bytes: usize,
    /// The most instructions that one rendering may execute.
    pub fuel_instructions: u64,
    /// The deepest nesting of calls (macros, recursive loops).
    pub max_recursion: usize,
    /// The longest text that one rendering, or one `tojson` in it, may give, in bytes.
    pub max_output_bytes: usize,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        Self {
            max_source_bytes: 1 << 20,
            fuel_instructions: 5_000_000,
            max_recursion: 100,
            max_output_bytes: 16 << 20,
        }
    }
}

/// What can go wrong with a template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid.
    #[error("template: {message}")]
    Syntax {
        /// What is wrong, and where.
        message: String,
    },
    /// The template is longer than allowed.
    #[error("template of {actual_bytes} bytes is over the limit of {limit_bytes} bytes")]
    SourceTooLong {
        /// Its length.
        actual_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The template refuses the conversation (`raise_exception`): the caller's mistake.
    #[error("{message}")]
    Raised {
        /// What the template says.
        message: String,
    },
    /// The template fails on the conversation, for example because a message lacks what it needs.
    #[error("template: {message}")]
    Render {
        /// What is wrong, and where.
        message: String,
    },
    /// The template runs for too long.
    #[error("template executes more than {limit_instructions} instructions")]
    OutOfFuel {
        /// The limit.
        limit_instructions: u64,
    },
    /// The template gives too much text.
    #[error("template gives more than {limit_bytes} bytes")]
    OutputTooLong {
        /// The limit.
        limit_bytes: usize,
    },
    /// A record lacks a field that the template names.
    #[error("the template names the field {field:?}, and there {}", there_are(known))]
    UnknownField {
        /// The field.
        field: String,
        /// Those that the record has.
        known: Vec<String>,
    },
    /// `continue_final_message` cannot be done.
    #[error("continue_final_message: {message}")]
    ContinueFinalMessage {
        /// Why.
        message: String,
    },
}

/// A compiled chat template: of a model, or of a request. It may have another one beside it for conversations with tools.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    limits: TemplateLimits,
    tool_use: Option<Box<ChatTemplate>>,
}

/// The only template of an environment.
const NAME: &str = "template";

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// The source is not valid or too long.
    pub fn new(source: &str, limits: TemplateLimits) -> Result<Self, TemplateError> {
        let environment = environment(source, limits, UndefinedBehavior::Lenient)?;
        Ok(Self { environment, source: source.to_owned(), limits, tool_use: None })
    }

    /// The template that models have under this name renders conversations whose input has tools.
    pub const TOOL_USE: &str = "tool_use";

    /// Has conversations whose input has tools rendered by another template, as transformers does with the one that is named
    /// [`ChatTemplate::TOOL_USE`].
    ///
    /// # Errors
    /// That one's source is not valid or too long.
    pub fn with_tool_use(mut self, source: &str) -> Result<Self, TemplateError> {
        self.tool_use = Some(Box::new(Self::new(source, self.limits)?));
        Ok(self)
    }

    /// The default template by itself.
    ///
    /// # Errors
    /// None that [`ChatTemplate::new`] did not have.
    pub fn without_tool_use(&self) -> Result<Self, TemplateError> {
        Self::new(&self.source, self.limits)
    }

    /// The source of the default template, as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The source of the template for conversations with tools, if that is another one.
    pub fn tool_use_source(&self) -> Option<&str> {
        self.tool_use.as_ref().map(|template| template.source())
    }

    /// The text of a conversation. Where the input has tools (be it none in a list), the template for those has it.
    ///
    /// # Errors
    /// The template refuses the conversation ([`TemplateError::Raised`]), fails on it, or exceeds a limit.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TemplateError> {
        if let Some(tool_use) = self.tool_use.as_ref().filter(|_| input.tools.is_some()) {
            return tool_use.render(input);
        }
        let continued = input.continued_text()?;
        let context = input.context(strftime::now_unix_s);
        let text = render(&self.environment, context, self.limits)?;
        match continued {
            None => Ok(text),
            Some(continued) => input::cut_after(text, &continued),
        }
    }
}

/// The environment of one template.
fn environment(
    source: &str,
    limits: TemplateLimits,
    undefined: UndefinedBehavior,
) -> Result<Environment<'static>, TemplateError> {
    if source.len() > limits.max_source_bytes {
        return Err(TemplateError::SourceTooLong {
            actual_bytes: source.len(),
            limit_bytes: limits.max_source_bytes,
        });
    }
    let mut environment = Environment::new();
    environment.set_syntax(source::syntax().map_err(syntax_error)?);
    environment.set_undefined_behavior(undefined);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(limits.fuel_instructions));
    environment.set_recursion_limit(limits.max_recursion);
    functions::install(&mut environment, limits.max_output_bytes);
    environment.add_template_owned(NAME, source::prepare(source)).map_err(syntax_error)?;
    Ok(environment)
}

/// The text that an environment's template gives.
fn render(
    environment: &Environment<'static>,
    context: minijinja::Value,
    limits: TemplateLimits,
) -> Result<String, TemplateError> {
    let failed = |error: Error| render_error(&error, limits);
    let template = environment.get_template(NAME).map_err(failed)?;
    let mut output = Limited { text: Vec::new(), limit_bytes: limits.max_output_bytes, exceeded: false };
    let result = template.render_captured_to(context, &mut output).map(|_| ());
    if output.exceeded {
        return Err(TemplateError::OutputTooLong { limit_bytes: limits.max_output_bytes });
    }
    result.map_err(failed)?;
    String::from_utf8(output.text).map_err(|error| TemplateError::Render { message: error.to_string() })
}

fn render_error(error: &Error, limits: TemplateLimits) -> TemplateError {
    if let Some(raised) = functions::raised(error) {
        return TemplateError::Raised { message: raised };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if current.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::OutOfFuel { limit_instructions: limits.fuel_instructions };
        }
        cause = current.source();
    }
    TemplateError::Render { message: describe(error) }
}

/// The body of a fuzz target: `bytes` are a template, and after a NUL byte a JSON list of messages. Whatever they are,
/// compiling and rendering end within small limits, and without a panic.
pub fn fuzz_chat_template(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let source = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let limits = TemplateLimits {
        max_source_bytes: 1 << 16,
        fuel_instructions: 20_000,
        max_recursion: 50,
        max_output_bytes: 1 << 16,
    };
    let messages = parts
        .next()
        .and_then(|json| serde_json::from_slice(json).ok())
        .unwrap_or_else(|| vec![Message::text("user", "Hello")]);
    if let Ok(template) = ChatTemplate::new(&source, limits) {
        // The text or the error: neither matters, only that there is one.
        let _ = template.render(&ChatInput { messages: &messages, ..ChatInput::default() });
    }
}

/// A few names of fields.
fn there_are(known: &[String]) -> String {
    const SHOWN: usize = 12;
    if known.is_empty() {
        return "are none".to_owned();
    }
    let names: Vec<String> = known.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    let more = if known.len() > SHOWN { ", …" } else { "" };
    format!("are {}{more}", names.join(", "))
}

fn syntax_error(error: Error) -> TemplateError {
    TemplateError::Syntax { message: describe(&error) }
}

/// The error with its causes, on one line.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text.push_str(": ");
        text.push_str(&current.to_string());
        cause = current.source();
    }
    text
}

/// Collects output up to a limit.
struct Limited {
    text: Vec<u8>,
    limit_bytes: usize,
    exceeded: bool,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit_bytes - self.text.len() {
            self.exceeded = true;
            return Err(io::Error::other("output limit"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
