//! Input files of batches: read line by line within limits, and checked before the first request is asked.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::endpoint::BatchRequest;
use super::{BatchProblem, BatchRoute, BatchSettings};
use crate::records::InputError;

/// Problems of one file that are told.
const MAX_PROBLEMS: usize = 100;
/// How much of a client's text stands in a message.
const MAX_SHOWN_CHARS: usize = 64;

/// A file that may be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Its requests.
    pub total: u64,
    /// The model that all of them name, if they name one.
    pub model: Option<String>,
}

/// What is wrong with a line, without its number.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LineProblem {
    code: &'static str,
    message: String,
    param: Option<&'static str>,
}

impl LineProblem {
    fn new(code: &'static str, param: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param }
    }

    /// For people.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn at(self, line: u64) -> BatchProblem {
        let param = self.param.map(str::to_owned);
        BatchProblem { code: self.code.to_owned(), line: Some(line), message: self.message, param }
    }
}

/// A problem of a whole file.
pub(crate) fn file_problem(code: &str, message: impl Into<String>) -> BatchProblem {
    BatchProblem { code: code.to_owned(), line: None, message: message.into(), param: None }
}

/// Reads the next line into `line`, without its end. Gives its length with the end, 0 where there is none. Of a line that
/// is longer than `limit_bytes` that many and one byte are kept.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>, limit_bytes: usize) -> io::Result<u64> {
    line.clear();
    let mut read = 0;
    loop {
        let piece = match input.fill_buf() {
            Ok(piece) => piece,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if piece.is_empty() {
            return Ok(read);
        }
        let end = piece.iter().position(|byte| *byte == b'\n');
        let text = piece.get(..end.unwrap_or(piece.len())).unwrap_or_default();
        let room = limit_bytes.saturating_add(1).saturating_sub(line.len());
        line.extend(text.iter().take(room));
        let used = text.len() + usize::from(end.is_some());
        input.consume(used);
        read += used as u64;
        if end.is_some() {
            return Ok(read);
        }
    }
}

/// Where a request stands in its file. Those that wait take no more memory than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    offset: u64,
    len_bytes: usize,
}

impl Span {
    /// The request's line.
    pub fn read(self, path: &Path) -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut line = vec![0; self.len_bytes];
        file.read_exact(&mut line)?;
        Ok(line)
    }
}

/// The requests of a file that was checked.
pub(crate) struct Spans {
    input: BufReader<File>,
    line: Vec<u8>,
    offset: u64,
    max_line_bytes: usize,
}

impl Spans {
    pub fn open(path: &Path, max_line_bytes: usize) -> io::Result<Self> {
        Ok(Self { input: BufReader::new(File::open(path)?), line: Vec::new(), offset: 0, max_line_bytes })
    }
}

impl Iterator for Spans {
    type Item = Result<Span, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let offset = self.offset;
            match next_line(&mut self.input, &mut self.line, self.max_line_bytes) {
                Ok(0) => return None,
                Ok(read) => self.offset += read,
                Err(error) => return Some(Err(error.into())),
            }
            if !self.line.trim_ascii().is_empty() {
                return Some(Ok(Span { offset, len_bytes: self.line.len() }));
            }
        }
    }
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}

/// A text field of a line.
fn text(fields: &mut Map<String, Value>, name: &'static str) -> Result<String, LineProblem> {
    match fields.remove(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        None | Some(Value::Null | Value::String(_)) => {
            Err(LineProblem::new("missing_required_parameter", Some(name), format!("`{name}` is missing")))
        }
        Some(_) => Err(LineProblem::new("invalid_type", Some(name), format!("`{name}` is not a text"))),
    }
}

/// Reads a line as a request to a route.
pub(crate) fn parse(line: &[u8], route: BatchRoute) -> Result<BatchRequest, LineProblem> {
    let invalid = |why: String| LineProblem::new("invalid_json_line", None, why);
    let value =
        serde_json::from_slice(line).map_err(|error| invalid(format!("the line is no JSON: {error}")))?;
    let Value::Object(mut fields) = value else {
        return Err(invalid("the line is no JSON object".to_owned()));
    };
    let custom_id = text(&mut fields, "custom_id")?;
    let method = text(&mut fields, "method")?;
    if method != "POST" {
        let why = format!("`method` is {:?}; batches have `POST` alone", shown(&method));
        return Err(LineProblem::new("invalid_method", Some("method"), why));
    }
    let url = text(&mut fields, "url")?;
    if url != route.path() {
        let why = format!("`url` is {:?}, but the batch was made for {:?}", shown(&url), route.path());
        return Err(LineProblem::new("url_mismatch", Some("url"), why));
    }
    let body = match fields.remove("body") {
        Some(Value::Object(body)) => body,
        None | Some(Value::Null) => {
            return Err(LineProblem::new("missing_required_parameter", Some("body"), "`body` is missing"));
        }
        Some(_) => return Err(LineProblem::new("invalid_type", Some("body"), "`body` is not an object")),
    };
    match body.get("stream") {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(_) => {
            let why = "`body.stream` is set; the answers of a batch are whole";
            return Err(LineProblem::new("invalid_value", Some("body.stream"), why));
        }
    }
    Ok(BatchRequest { custom_id, route, body })
}

/// What all lines of a file have to agree on, and what was seen of them.
struct Seen {
    /// Digests of names: as large for long ones as for short ones.
    ids: HashSet<[u8; 32]>,
    /// Names of models that answer.
    models: HashSet<String>,
    /// Set once a line named another one, or none.
    mixed: bool,
}

impl Seen {
    fn check(&mut self, request: &BatchRequest, has_model: &dyn Fn(&str) -> bool) -> Result<(), LineProblem> {
        if !self.ids.insert(Sha256::digest(request.custom_id.as_bytes()).into()) {
            let why = format!("`custom_id` {:?} is that of an earlier line too", shown(&request.custom_id));
            return Err(LineProblem::new("duplicate_custom_id", Some("custom_id"), why));
        }
        let param = Some("body.model");
        match request.body.get("model") {
            // The endpoint takes it for the base model.
            None | Some(Value::Null) => self.mixed = true,
            Some(Value::String(name)) if name.is_empty() => self.mixed = true,
            Some(Value::String(name)) => {
                if !self.models.contains(name) {
                    if !has_model(name) {
                        let why = format!("the model `{}` does not exist", shown(name));
                        return Err(LineProblem::new("model_not_found", param, why));
                    }
                    self.models.insert(name.clone());
                }
            }
            Some(_) => {
                return Err(LineProblem::new("invalid_type", param, "`body.model` is not a text"));
            }
        }
        Ok(())
    }
}

/// Why a check gave no result.
pub(crate) enum Unchecked {
    /// The file is at fault.
    Refused(Vec<BatchProblem>),
    /// It cannot be read.
    Io(io::Error),
    /// It was interrupted.
    Interrupted,
}

/// Checks every line of a file. Blank lines are none.
pub(crate) fn check(
    mut input: impl BufRead,
    route: BatchRoute,
    settings: &BatchSettings,
    has_model: &dyn Fn(&str) -> bool,
    interrupt: &dyn Fn() -> bool,
) -> Result<Checked, Unchecked> {
    let mut seen = Seen { ids: HashSet::new(), models: HashSet::new(), mixed: false };
    let (mut line, mut number, mut total, mut problems) = (Vec::new(), 0, 0, Vec::new());
    while next_line(&mut input, &mut line, settings.max_line_bytes).map_err(Unchecked::Io)? > 0 {
        number += 1;
        if interrupt() {
            return Err(Unchecked::Interrupted);
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        total += 1;
        if total > settings.max_requests {
            let why = format!("the file has more than {} requests", settings.max_requests);
            problems.push(LineProblem::new("too_many_tasks", None, why).at(number));
            break;
        }
        let checked = match line.len() > settings.max_line_bytes {
            true => {
                let why = format!("the line is longer than {} bytes", settings.max_line_bytes);
                Err(LineProblem::new("line_too_long", None, why))
            }
            false => parse(&line, route).and_then(|request| seen.check(&request, has_model)),
        };
        if let Err(problem) = checked {
            problems.push(problem.at(number));
            if problems.len() >= MAX_PROBLEMS {
                break;
            }
        }
    }
    if total == 0 {
        problems.push(file_problem("empty_file", "the file has no requests"));
    }
    if !problems.is_empty() {
        return Err(Unchecked::Refused(problems));
    }
    let one = !seen.mixed && seen.models.len() == 1;
    Ok(Checked { total, model: seen.models.into_iter().next().filter(|_| one) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> BatchSettings {
        BatchSettings { max_requests: 4, max_line_bytes: 200, ..BatchSettings::default() }
    }

    fn check_text(text: &str) -> Result<Checked, Vec<BatchProblem>> {
        let known = |name: &str| ["base", "other"].contains(&name);
        match check(text.as_bytes(), BatchRoute::Completions, &settings(), &known, &|| false) {
            Ok(checked) => Ok(checked),
            Err(Unchecked::Refused(problems)) => Err(problems),
            Err(_) => panic!("interrupted"),
        }
    }

    fn line(id: &str, model: &str) -> String {
        format!(
            "{{\"custom_id\": \"{id}\", \"method\": \"POST\", \"url\": \"/v1/completions\", \
             \"body\": {{\"model\": \"{model}\", \"prompt\": \"a\"}}}}\n"
        )
    }

    #[test]
    fn good_files_are_counted_and_their_model_is_known() {
        let same = check_text(&format!("{}\n \r\n{}", line("a", "base"), line("b", "base").trim_end()));
        assert_eq!(same, Ok(Checked { total: 2, model: Some("base".to_owned()) }));
        let mixed = check_text(&(line("a", "base") + &line("b", "other")));
        assert_eq!(mixed, Ok(Checked { total: 2, model: None }));
        let unnamed = line("b", "base").replace("\"model\": \"base\", ", "");
        assert_eq!(check_text(&(line("a", "base") + &unnamed)), Ok(Checked { total: 2, model: None }));
    }

    #[test]
    fn every_problem_is_told_with_its_line() {
        let good = line("a", "base");
        for (bad, code, param) in [
            ("{".to_owned(), "invalid_json_line", None),
            ("[]".to_owned(), "invalid_json_line", None),
            ("\u{0}".to_owned(), "invalid_json_line", None),
            ("[".repeat(190), "invalid_json_line", None),
            (
                line("b", "base").replace("\"custom_id\": \"b\", ", ""),
                "missing_required_parameter",
                Some("custom_id"),
            ),
            (line("", "base"), "missing_required_parameter", Some("custom_id")),
            (line("b", "base").replace("\"b\"", "7"), "invalid_type", Some("custom_id")),
            (line("a", "base"), "duplicate_custom_id", Some("custom_id")),
            (line("b", "base").replace("POST", "GET"), "invalid_method", Some("method")),
            (line("b", "base").replace("completions", "chat/completions"), "url_mismatch", Some("url")),
            (line("b", "base").replace("body", "bodies"), "missing_required_parameter", Some("body")),
            (
                line("b", "base").replace("{\"model\": \"base\", \"prompt\": \"a\"}", "[]"),
                "invalid_type",
                Some("body"),
            ),
            (
                line("b", "base").replace("\"prompt\"", "\"stream\": true, \"prompt\""),
                "invalid_value",
                Some("body.stream"),
            ),
            (line("b", "none"), "model_not_found", Some("body.model")),
            (line("b", "base").replace("\"base\"", "{}"), "invalid_type", Some("body.model")),
            (line(&"b".repeat(200), "base"), "line_too_long", None),
        ] {
            let problems =
                check_text(&format!("{good}{}\n{}", bad.trim_end(), line("c", "base"))).unwrap_err();
            let found: Vec<_> =
                problems.iter().map(|p| (p.code.as_str(), p.line, p.param.as_deref())).collect();
            assert_eq!(found, [(code, Some(2), param)], "{bad}");
        }
        let many: String = (0..6).map(|idx| line(&idx.to_string(), "base")).collect();
        let problems = check_text(&many).unwrap_err();
        assert_eq!((problems[0].code.as_str(), problems[0].line), ("too_many_tasks", Some(5)));
        for empty in ["", "\n \n"] {
            let problems = check_text(empty).unwrap_err();
            assert_eq!((problems[0].code.as_str(), problems[0].line), ("empty_file", None));
        }
    }

    #[test]
    fn problems_and_long_lines_are_bounded() {
        let settings = BatchSettings { max_line_bytes: 10, ..BatchSettings::default() };
        let text = "x".repeat(1 << 20) + "\n" + &"{\n".repeat(1000);
        let checked = check(text.as_bytes(), BatchRoute::Completions, &settings, &|_| true, &|| false);
        let Err(Unchecked::Refused(problems)) = checked else { panic!("it was taken") };
        assert_eq!((problems.len(), problems[0].code.as_str()), (MAX_PROBLEMS, "line_too_long"));
        let mut line = Vec::new();
        assert_eq!(next_line(&mut text.as_bytes(), &mut line, 10).unwrap(), (1 << 20) + 1);
        assert_eq!(line.len(), 11);
    }

    #[test]
    fn spans_are_those_of_the_requests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("input");
        let text = format!("{}\n \n{}", line("a", "base"), line("b", "base").trim_end());
        std::fs::write(&path, text).unwrap();
        let spans: Vec<_> = Spans::open(&path, 200).unwrap().map(Result::unwrap).collect();
        let names = spans.iter().map(|span| parse(&span.read(&path).unwrap(), BatchRoute::Completions));
        let names: Vec<_> = names.map(|request| request.unwrap().custom_id).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
