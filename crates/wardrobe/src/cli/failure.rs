//! Errors as a person reads them: what failed, because of what, and what helps.

use std::process::ExitCode;

use super::output::{self, ClosedStdout, Style};

/// An error with what a person can do about it, which is printed last.
#[derive(Debug)]
pub struct Hint {
    error: anyhow::Error,
    hint: String,
}

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Hint {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.error.as_ref())
    }
}

/// Adds what helps to an error.
pub fn with_hint(error: impl Into<anyhow::Error>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Hint { error: error.into(), hint: hint.into() })
}

/// A value on the command line, in the environment or in a settings file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Prints `error` with its causes, and gives the exit code: 2 for a usage error, as clap has it, else 1.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<ClosedStdout>()) {
        // Whoever read our output has gone: not worth a word.
        return ExitCode::SUCCESS;
    }
    let style = Style::stderr();
    let message = messages(error);
    for (idx, text) in message.iter().enumerate() {
        match idx {
            0 => output::note(&format!("{} {text}", style.bad("error:"))),
            _ => output::note(&format!("  caused by: {text}")),
        }
    }
    for hint in error.chain().filter_map(|cause| cause.downcast_ref::<Hint>()) {
        output::note(&format!("{} {}", style.note("hint:"), hint.hint));
    }
    ExitCode::from(exit_code(error))
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<UsageError>()) { 2 } else { 1 }
}

/// The error's words and its causes', each once: transparent errors repeat those of their cause, and some quote them.
fn messages(error: &anyhow::Error) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if all.last().is_none_or(|last| !last.contains(&text)) {
            all.push(text);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_and_usage_errors_are_found_below_context() {
        let error = with_hint(UsageError("bad value".to_owned()), "do this").context("while trying");
        assert!(error.chain().any(|cause| cause.downcast_ref::<Hint>().is_some_and(|h| h.hint == "do this")));
        assert_eq!(exit_code(&error), 2);
        assert_eq!(messages(&error), ["while trying", "bad value"]);
    }

    #[test]
    fn other_errors_are_failures() {
        let error = anyhow::Error::from(std::io::Error::other("disk")).context("cannot read x: disk");
        assert_eq!(exit_code(&error), 1);
        assert_eq!(messages(&error), ["cannot read x: disk"]);
    }
}
