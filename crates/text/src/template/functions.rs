//! The functions, filters and methods that chat templates use beyond Jinja's own.

use super::json;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::error::Error as _;
use std::fmt;

/// Adds them to an environment. No JSON text may be longer than `max_bytes`.
pub(super) fn install(environment: &mut Environment<'static>, max_bytes: usize) {
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        let text = "the template raised an exception";
        Err(Error::new(ErrorKind::InvalidOperation, text).with_source(Raised(message)))
    });
    environment.add_filter("tojson", move |value: &Value, indent: Option<Value>, options: Kwargs| {
        tojson(value, indent, &options, max_bytes)
    });
    environment.set_unknown_method_callback(python_method);
}

/// The message that a template raised.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The message of a `raise_exception` that is the cause of an error.
pub(super) fn raised(error: &Error) -> Option<String> {
    let mut cause = error.source();
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return Some(message.clone());
        }
        cause = current.source();
    }
    None
}

fn tojson(value: &Value, indent: Option<Value>, options: &Kwargs, max_bytes: usize) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    let layout = json::Layout {
        indent: match indent.filter(|indent| !indent.is_none() && !indent.is_undefined()) {
            None => None,
            Some(indent) => match indent.as_str() {
                Some(text) => Some(text.to_owned()),
                None => Some(" ".repeat(usize::try_from(indent)?.min(json::MAX_INDENT))),
            },
        },
        separators: options.get("separators")?,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        max_bytes,
    };
    options.assert_all_used()?;
    json::to_json(value, layout).map(Value::from)
}

/// Methods of Python's strings, lists and dicts.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if value.kind() == ValueKind::String
        && let Some(text) = value.as_str()
        && let Some(result) = string_method(text, method, args)
    {
        return result;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// The methods of strings that `minijinja-contrib` lacks.
fn string_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    fn one(args: &[Value]) -> Result<&str, Error> {
        from_args::<(&str,)>(args).map(|(argument,)| argument)
    }
    let result = match method {
        "removeprefix" => one(args).map(|prefix| text.strip_prefix(prefix).unwrap_or(text).into()),
        "removesuffix" => one(args).map(|suffix| text.strip_suffix(suffix).unwrap_or(text).into()),
        "partition" => one(args).map(|separator| match text.split_once(separator) {
            Some((before, after)) => strings([before, separator, after]),
            None => strings([text, "", ""]),
        }),
        "rpartition" => one(args).map(|separator| match text.rsplit_once(separator) {
            Some((before, after)) => strings([before, separator, after]),
            None => strings(["", "", text]),
        }),
        "rsplit" => from_args::<(Option<&str>, Option<i64>)>(args).map(|(separator, most)| {
            let most = most.and_then(|most| usize::try_from(most).ok());
            strings(rsplit(text, separator, most.map_or(usize::MAX, |most| most.saturating_add(1))))
        }),
        _ => return None,
    };
    Some(result)
}

fn strings<'t>(list: impl IntoIterator<Item = &'t str>) -> Value {
    list.into_iter().map(Value::from).collect::<Vec<_>>().into()
}

fn rsplit<'t>(text: &'t str, separator: Option<&str>, parts: usize) -> Vec<&'t str> {
    let mut list: Vec<&str> = match separator {
        Some(separator) => text.rsplitn(parts, separator).collect(),
        None => {
            let mut list = Vec::new();
            let mut rest = text.trim();
            while !rest.is_empty() {
                match rest.rfind(char::is_whitespace).filter(|_| list.len() + 1 < parts) {
                    Some(at) => {
                        list.push(rest[at..].trim_start());
                        rest = rest[..at].trim_end();
                    }
                    None => {
                        list.push(rest);
                        break;
                    }
                }
            }
            list
        }
    };
    list.reverse();
    list
}
