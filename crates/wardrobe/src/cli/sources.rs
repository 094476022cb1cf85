//! Where options come from beside the command line: the environment for every option of every command, and the settings
//! file for those of the commands that take more than a name.
//!
//! `serve`'s own options say their variables themselves and are read from the file by [`super::settings`]. The options of
//! other commands get theirs here, by rule, so that none can be forgotten:
//!
//! - `--max-tokens` of `run` is `WARDROBE_RUN_MAX_TOKENS`, and `max_tokens` of the file's table `[run]`;
//! - what all of a command's commands share is that command's: `--url` of `jobs list` is `WARDROBE_JOBS_URL`;
//! - how and where to compute (`--threads`) is shared: `WARDROBE_THREADS`, and `threads` at the head of the file.
//!
//! The command line wins over the environment, that over the file. A variable that is empty is one that is not set.

use std::path::Path;

use anyhow::Context as _;
use clap::builder::{BoolishValueParser, Resettable};
use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use super::failure::UsageError;
use super::open;

/// Names the file for commands without `--config`.
const FILE_ENV: &str = "WARDROBE_CONFIG";
/// A settings file is a page of text.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Commands that have a table in the file.
pub const TABLES: [&str; 10] =
    ["run", "chat", "train", "eval", "label", "distill", "merge", "bench", "quickstart", "pull"];
/// `serve` reads the file by itself.
const SERVE: &str = "serve";

/// Reads a settings file.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    open::read_text(path, MAX_FILE_BYTES).context("the settings file")
}

/// What a settings file says.
pub fn parse(path: &Path, text: &str) -> anyhow::Result<Table> {
    toml::from_str(text).map_err(|error| wrong(path, &error))
}

/// A settings file that cannot be used.
pub fn wrong(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    UsageError(format!("settings file {}: {}", path.display(), error.to_string().trim_end())).into()
}

/// The command line with the environment and the file of `WARDROBE_CONFIG` behind it.
pub fn with_sources(command: Command) -> anyhow::Result<Command> {
    let path = std::env::var_os(FILE_ENV).filter(|path| !path.is_empty());
    let Some(path) = path else { return Ok(with_environment(command)) };
    let path = Path::new(&path);
    let is_for_us = std::env::args_os().nth(1).is_some_and(|name| TABLES.iter().any(|table| name == *table));
    match read_text(path).and_then(|text| parse(path, &text)) {
        Ok(file) => with_file(with_environment(command), &file).map_err(|error| wrong(path, &error)),
        Err(error) if is_for_us => Err(error),
        // `serve` reads it again and tells; the rest need none.
        Err(_) => Ok(with_environment(command)),
    }
}

/// Gives every option of every command its variable.
pub fn with_environment(command: Command) -> Command {
    command.mut_subcommands(|command| of_command(command, "WARDROBE"))
}

fn of_command(command: Command, prefix: &str) -> Command {
    let prefix = format!("{prefix}_{}", variable(command.get_name()));
    command.mut_args(|arg| of_arg(arg, &prefix)).mut_subcommands(|command| of_command(command, &prefix))
}

fn variable(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

fn of_arg(arg: Arg, prefix: &str) -> Arg {
    let arg = match arg.get_long().map(variable) {
        Some(long) if arg.get_env().is_none() && is_option(&arg) => {
            let arg = match arg.get_action() {
                ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
                _ => arg,
            };
            arg.env(format!("{prefix}_{long}")).hide_env(true)
        }
        _ => arg,
    };
    let is_empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    if is_empty { arg.env(Resettable::Reset) } else { arg }
}

/// Whether an argument sets something, as `--help` does not.
fn is_option(arg: &Arg) -> bool {
    !matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    )
}

/// Puts the file's values where the defaults are.
fn with_file(command: Command, file: &Table) -> Result<Command, String> {
    for table in TABLES {
        let Some(value) = file.get(table) else { continue };
        let keys = value.as_table().ok_or_else(|| format!("`{table}` is no table"))?;
        let known = command.find_subcommand(table);
        let is_known = |key: &str| known.is_some_and(|c| c.get_arguments().any(|arg| has_key(arg, key)));
        if let Some((key, _)) = keys.iter().find(|(key, value)| !is_known(key) || texts(value).is_none()) {
            return Err(format!("`{key}` of [{table}] is no option of this command, or no value of one"));
        }
    }
    Ok(command.mut_subcommands(|command| {
        let table = match command.get_name() {
            SERVE => return command,
            name => file.get(name).and_then(Value::as_table),
        };
        command.mut_args(|arg| {
            let Some(key) = arg.get_long().map(key_of) else { return arg };
            let shared = || file.get(&key).filter(|_| is_shared(&arg));
            match table.and_then(|table| table.get(&key)).or_else(shared).and_then(texts) {
                Some(texts) => arg.default_values(texts),
                None => arg,
            }
        })
    }))
}

fn key_of(long: &str) -> String {
    long.replace('-', "_")
}

fn has_key(arg: &Arg, key: &str) -> bool {
    is_option(arg) && arg.get_long().is_some_and(|long| key_of(long) == key)
}

/// Whether an option means the same in every command: then its variable has no command in its name.
fn is_shared(arg: &Arg) -> bool {
    let own = arg.get_long().map(|long| format!("WARDROBE_{}", variable(long)));
    arg.get_env().and_then(|name| name.to_str()) == own.as_deref()
}

/// A value as the command line has it.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Float(number) => Some(vec![number.to_string()]),
        Value::Boolean(choice) => Some(vec![choice.to_string()]),
        Value::Array(values) => {
            let texts: Option<Vec<Vec<String>>> =
                values.iter().map(|value| texts(value).filter(|texts| texts.len() == 1)).collect();
            texts.map(|texts| texts.concat())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _};

    use super::*;
    use crate::cli::Cli;
    use crate::cli::settings::Settings;

    /// Every command with its path, such as `ADAPTER_INSPECT`.
    fn commands(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
        for command in command.get_subcommands() {
            let path = format!("{path}_{}", variable(command.get_name()));
            commands(command, &path, found);
            found.push((path, command.clone()));
        }
    }

    #[test]
    fn every_option_is_a_variable_and_serves_a_key_too() {
        let (mut found, mut num_options) = (Vec::new(), 0);
        commands(&with_environment(Cli::command()), "", &mut found);
        let keys = serde_json::to_value(Settings::default()).unwrap();
        for (path, command) in &found {
            for arg in command.get_arguments().filter(|arg| is_option(arg)) {
                let Some(long) = arg.get_long() else { continue };
                let name = arg.get_env().unwrap_or_else(|| panic!("{path} --{long} has no variable"));
                let (shared, own) =
                    (format!("WARDROBE_{}", variable(long)), format!("WARDROBE{path}_{}", variable(long)));
                let group = path.split('_').nth(1).unwrap_or_default();
                let of_group = format!("WARDROBE_{group}_{}", variable(long));
                let allowed = [shared, own, of_group];
                assert!(allowed.iter().any(|allowed| name == allowed.as_str()), "{path} --{long}: {name:?}");
                num_options += 1;
                if path == "_SERVE" && !matches!(long, "config" | "show-settings") {
                    assert!(keys.get(key_of(long)).is_some(), "--{long} is no key of the settings file");
                }
            }
        }
        assert!(num_options > 60, "{num_options}");
    }

    #[test]
    fn variables_of_one_name_mean_one_thing() {
        let mut found = Vec::new();
        commands(&with_environment(Cli::command()), "", &mut found);
        let mut seen = std::collections::BTreeMap::new();
        for (path, command) in found {
            for arg in command.get_arguments() {
                let (Some(name), Some(long)) = (arg.get_env(), arg.get_long()) else { continue };
                let values: Vec<_> = arg.get_value_names().unwrap_or_default().to_vec();
                let other = seen.insert(name.to_owned(), (long.to_owned(), values.clone()));
                assert!(
                    other.as_ref().is_none_or(|other| *other == (long.to_owned(), values)),
                    "{path} {name:?}: {other:?}"
                );
            }
        }
    }

    fn parse(file: &str, args: &[&str]) -> Cli {
        let command = with_file(with_environment(Cli::command()), &toml::from_str(file).unwrap()).unwrap();
        Cli::from_arg_matches(&command.try_get_matches_from(args).unwrap()).unwrap()
    }

    #[test]
    fn the_files_values_are_defaults() {
        let file = "threads = 3\nkv_memory = \"64MiB\"\n[run]\nmax_tokens = 7\ntemperature = 0.5\nquiet = true\n\
                    [chat]\nadapter = [\"a=x\", \"b=y\"]\n[bench]\nconcurrency = [1, 2]\n";
        let shown = |args: &[&str]| format!("{:?}", parse(file, args).command);
        let run = shown(&["wardrobe", "run", "m", "p", "--temperature", "0.25"]);
        for expected in ["max_tokens: 7", "temperature: 0.25", "quiet: true", "threads: Some(3)", "67108864"]
        {
            assert!(run.contains(expected), "{expected}: {run}");
        }
        let chat = shown(&["wardrobe", "chat", "m"]);
        assert!(chat.contains("name: \"a\"") && chat.contains("name: \"b\""), "{chat}");
        let bench = shown(&["wardrobe", "bench", "m"]);
        assert!(bench.contains("concurrency: [1, 2]"), "{bench}");
    }

    #[test]
    fn keys_that_no_option_has_are_named() {
        for (file, named) in
            [("[run]\nmax_token = 7", "max_token"), ("run = 1", "run"), ("[chat]\nseed = {}", "seed")]
        {
            let error =
                with_file(with_environment(Cli::command()), &toml::from_str(file).unwrap()).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
