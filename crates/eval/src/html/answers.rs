//! Every item with its right answers, and what each target answered: as many as a page holds.

use std::fmt::Write as _;

use super::{color, escape, excerpt};
use crate::mistakes::Mistake;
use crate::report::{Answer, ItemShown, Outcome, Report, shortened};
use crate::tasks::Score;

/// More items are not on the page.
const MAX_ITEMS: usize = 1000;
/// Items beyond so many bytes are not on the page.
const MAX_BYTES: usize = 8 << 20;
/// Characters of a question, of a right answer, of an answer.
const MAX_QUESTION_CHARS: usize = 2000;
const MAX_GOLD_CHARS: usize = 1000;
const MAX_ANSWER_CHARS: usize = 1500;
/// Right answers and choices of an item.
const MAX_GOLDS: usize = 12;

pub(super) fn write(report: &Report, out: &mut String) {
    out.push_str("<h2>Answers</h2>\n");
    filters(report, out);
    let start = out.len();
    let mut num_shown = 0;
    for (at, item) in report.items.iter().enumerate().take(MAX_ITEMS) {
        let before = out.len();
        write_item(report, at, item, out);
        if out.len() - start > MAX_BYTES {
            out.truncate(before);
            break;
        }
        num_shown += 1;
    }
    let left_out = report.items.len() - num_shown;
    if left_out > 0 {
        let _ = writeln!(
            out,
            "<p class=\"dim\">{left_out} more items are left out of this page; the JSON report has all of them.</p>"
        );
    }
    out.push_str("<p class=\"dim\">Of long texts the beginning and the end are shown.</p>\n");
}

fn filters(report: &Report, out: &mut String) {
    let less = if report.is_less_better(&report.main_measure) { " data-less=\"1\"" } else { "" };
    let _ = write!(out, "<form{less}><label>model<select name=\"target\"><option value=\"\">all</option>");
    for (target, result) in report.results.iter().enumerate() {
        let _ = write!(out, "<option value=\"{target}\">{}</option>", escape(&result.name));
    }
    let measure = escape(&report.main_measure);
    let _ = write!(
        out,
        "</select></label><label>{measure} from<input type=\"number\" name=\"least\" step=\"any\"></label>\
         <label>to<input type=\"number\" name=\"most\" step=\"any\"></label>"
    );
    if report.results.len() > 1 {
        let _ = write!(
            out,
            "<label>against {}<select name=\"differ\"><option value=\"\">all</option><option value=\"any\">other score\
             </option><option value=\"better\">better</option><option value=\"worse\">worse</option></select></label>",
            escape(&excerpt(&report.results.first().map(|base| base.name.clone()).unwrap_or_default(), 24))
        );
    }
    if report.results.iter().any(|result| !result.mistakes.is_empty()) {
        out.push_str("<label>mistake<select name=\"mistake\"><option value=\"\">all</option>");
        for mistake in Mistake::ALL {
            let _ = write!(out, "<option value=\"{}\">{}</option>", key(mistake), mistake.name());
        }
        out.push_str("</select></label>");
    }
    out.push_str(
        "<label>text<input type=\"search\" name=\"text\"></label><output name=\"count\"></output></form>\n",
    );
}

fn key(mistake: Mistake) -> String {
    mistake.name().replace(' ', "-")
}

fn write_item(report: &Report, at: usize, item: &ItemShown, out: &mut String) {
    let numbers: String = item.numbers.iter().map(|(name, value)| format!(" · {name} {value}")).collect();
    let _ = writeln!(
        out,
        "<article class=\"item\"><details><summary><span class=\"dim\">line {}{}</span> {}</summary><p>{}</p></details>",
        item.line,
        escape(&numbers),
        escape(&heading(&item.question)),
        escape(&shortened(item.question.clone(), MAX_QUESTION_CHARS)),
    );
    let right = |text: &String| escape(&shortened(text.clone(), MAX_GOLD_CHARS));
    let golds: Vec<String> = item.golds.iter().take(MAX_GOLDS).map(right).collect();
    if !golds.is_empty() {
        let more = item.golds.len() - golds.len();
        let more = if more > 0 { format!("\n(and {more} more)") } else { String::new() };
        let _ = writeln!(
            out,
            "<div class=\"gold\"><span class=\"name dim\">right</span><span></span><p>{}{more}</p></div>",
            golds.join("\nor ")
        );
    }
    if !item.choices.is_empty() {
        let choices: Vec<String> = item.choices.iter().take(MAX_GOLDS).map(right).collect();
        let _ = writeln!(
            out,
            "<div class=\"gold\"><span class=\"name dim\">choices</span><span></span><p>{}</p></div>",
            choices.join("\n")
        );
    }
    for (target, result) in report.results.iter().enumerate() {
        let (name, class) = (escape(&result.name), color(target));
        let _ = match result.outcomes.get(at) {
            Some(Outcome::Answered(answer)) => write_answer(report, answer, target, &name, out),
            Some(Outcome::Failed { message }) => writeln!(
                out,
                "<div class=\"answer\" data-t=\"{target}\"><span class=\"name key {class}\"><span>{name}</span></span>\
                 <span class=\"value\">-</span><p class=\"bad\">{}</p></div>",
                escape(&shortened(message.clone(), MAX_GOLD_CHARS))
            ),
            None => Ok(()),
        };
    }
    out.push_str("</article>\n");
}

/// A line of a question: of a long one its end, since there it says more often what is asked.
fn heading(question: &str) -> String {
    let num = question.chars().count();
    match num.checked_sub(90) {
        Some(skipped) if num > 300 => format!("…{}", question.chars().skip(skipped).collect::<String>()),
        _ => excerpt(question, 90),
    }
}

fn write_answer(
    report: &Report,
    answer: &Answer,
    target: usize,
    name: &str,
    out: &mut String,
) -> std::fmt::Result {
    let main = answer.score.get(&report.main_measure);
    let score = main.map(|value| format!(" data-s=\"{value}\"")).unwrap_or_default();
    let mistakes: Vec<String> = answer.mistakes.iter().map(|mistake| key(*mistake)).collect();
    let text = match answer.text.is_empty() {
        true => String::new(),
        false => format!("<p>{}</p>", escape(&shortened(answer.text.clone(), MAX_ANSWER_CHARS))),
    };
    let tags: String = answer
        .mistakes
        .iter()
        .map(|mistake| format!("<span class=\"tag\">{}</span>", mistake.name()))
        .collect();
    writeln!(
        out,
        "<div class=\"answer\" data-t=\"{target}\" data-m=\"{}\"{score}><span class=\"name key {}\"><span>{name}</span></span>\
         <span class=\"value\">{}</span>{text}<span class=\"more\">{tags}{}{}</span></div>",
        mistakes.join(" "),
        color(target),
        main.map_or_else(|| "-".to_owned(), short),
        escape(&scores(&answer.score)),
        // A task with mistakes has said so.
        if answer.is_cut && answer.mistakes.is_empty() { " · cut off" } else { "" },
    )
}

fn scores(score: &Score) -> String {
    let parts: Vec<String> =
        score.0.iter().map(|(name, value)| format!("{name} {}", short(*value))).collect();
    parts.join(" · ")
}

fn short(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        format!("{value:.0}")
    } else {
        crate::report::rounded(value)
    }
}
