//! Jobs and events as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::super::output::{Style, duration, one_line, table};

/// A field of text; empty if there is none. What a server sends is not what a terminal shall obey.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

fn number(value: &Value, field: &str) -> Option<u64> {
    value.get(field).and_then(Value::as_u64)
}

fn clean(value: &Value, field: &str) -> String {
    one_line(text(value, field), 200)
}

/// How long ago something was.
fn ago(at_s: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(at_s);
    let since = SystemTime::now().duration_since(at).unwrap_or_default();
    match since.as_secs() {
        s if s < 90 => format!("{s} s ago"),
        s if s < 90 * 60 => format!("{} min ago", s / 60),
        s if s < 48 * 3600 => format!("{} h ago", s / 3600),
        s => format!("{} days ago", s / 86400),
    }
}

fn status(job: &Value, style: Style) -> String {
    let status = clean(job, "status");
    match status.as_str() {
        "succeeded" => style.good(&status),
        "failed" => style.bad(&status),
        "cancelled" => style.note(&status),
        _ => status,
    }
}

/// How far a job is, in one line.
pub fn progress(job: &Value) -> String {
    let steps = number(job, "steps_completed").unwrap_or(0);
    let mut line = match text(job, "status") {
        "queued" => match number(job, "queue_position") {
            Some(0) | None => "queued, next in turn".to_owned(),
            Some(before) => format!("queued behind {before} others"),
        },
        "running" if job.get("cancel_requested") == Some(&Value::Bool(true)) => "about to stop".to_owned(),
        _ => match number(job, "total_steps") {
            Some(total) => format!("step {steps} of {total}"),
            None => "running".to_owned(),
        },
    };
    if let Some(finish) = number(job, "estimated_finish") {
        let left = (UNIX_EPOCH + Duration::from_secs(finish)).duration_since(SystemTime::now());
        line.push_str(&format!(", {} left", duration(left.unwrap_or_default())));
    }
    line
}

/// A page of jobs as a table.
pub fn list(page: &Value, style: Style) -> String {
    let jobs = page.get("data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let rows: Vec<_> = jobs
        .iter()
        .map(|job| {
            let how_far = match text(job, "status") {
                "queued" | "running" => progress(job),
                _ => number(job, "finished_at").map(ago).unwrap_or_default(),
            };
            // Colours would count as characters of the column.
            vec![clean(job, "id"), clean(job, "status"), clean(job, "output_name"), how_far]
        })
        .collect();
    let mut shown = table(&rows);
    if page.get("has_more") == Some(&Value::Bool(true)) {
        shown.push_str(&style.dim("and more: --limit shows them"));
        shown.push('\n');
    }
    shown
}

/// One job.
pub fn job(job: &Value, style: Style) -> String {
    let mut rows = Vec::new();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    add("job", clean(job, "id"));
    add("status", status(job, style));
    if matches!(text(job, "status"), "queued" | "running") {
        add("progress", progress(job));
    }
    add("adapter", style.name(&clean(job, "output_name")));
    add("base", clean(job, "model"));
    add("training file", clean(job, "training_file"));
    add("validation file", clean(job, "validation_file"));
    if let Some(settings) = job.get("hyperparameters").and_then(Value::as_object) {
        let settings: Vec<_> = settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        add("settings", one_line(&settings.join(", "), 200));
    }
    add("seed", number(job, "seed").map(|seed| seed.to_string()).unwrap_or_default());
    add("made", number(job, "created_at").map(ago).unwrap_or_default());
    add("ended", number(job, "finished_at").map(ago).unwrap_or_default());
    add("trained tokens", number(job, "trained_tokens").map(|n| n.to_string()).unwrap_or_default());
    if let Some(error) = job.get("error").filter(|error| error.is_object()) {
        add("error", style.bad(&clean(error, "message")));
    }
    table(&rows)
}

/// One event.
pub fn event(event: &Value, style: Style) -> String {
    let seconds = number(event, "created_at").unwrap_or(0) % 86_400;
    let time = format!("{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let message = clean(event, "message");
    let message = match text(event, "level") {
        "error" => style.bad(&message),
        "warn" => style.note(&message),
        _ => message,
    };
    format!("{}  {message}", style.dim(&time))
}
