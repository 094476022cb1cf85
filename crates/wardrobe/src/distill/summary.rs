//! What a run has done, counted line by line.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use wardrobe_batch::answers::{Tally, Told};
use wardrobe_generator::{FINISH_LENGTH, Usage};

use super::line::DistillLine;
use super::{Ended, ErrorCounts, Price};

/// What became of the records that are done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DistillSummary {
    /// Records that became data.
    pub num_conversations: u64,
    /// Records that did not.
    pub num_errors: u64,
    /// The errors by type.
    pub errors: ErrorCounts,
    /// Answers, those of records that became errors too.
    pub num_answers: u64,
    /// Answers whose tokens ran out.
    pub num_cut: u64,
    /// Their tokens, whenever they were asked.
    pub usage: Usage,
}

/// What a run has done.
#[derive(Debug, Clone)]
pub struct DistillReport {
    /// How it ended.
    pub ended: Ended,
    /// Records of the input.
    pub num_records: u64,
    /// Records that earlier runs had done.
    pub num_before: u64,
    /// Records of this run.
    pub num_written: u64,
    /// What this run took.
    pub elapsed: Duration,
    /// What became of all records that are done.
    pub summary: DistillSummary,
    /// Where the answers of this run came from.
    pub tally: Tally,
    /// What tokens cost.
    pub price: Option<Price>,
    /// Conversations that the format has no way to write; they are among the errors of the output.
    pub unwritable: ErrorCounts,
}

impl DistillSummary {
    /// Records that are done.
    pub fn num_records(&self) -> u64 {
        self.num_conversations + self.num_errors
    }

    /// Counts a line.
    pub fn add(&mut self, line: &DistillLine) {
        for given in &line.answers {
            self.num_answers += 1;
            self.num_cut += u64::from(given.finish_reason == FINISH_LENGTH);
            self.usage += given.usage;
        }
        match &line.error {
            Some(error) => {
                self.num_errors += 1;
                self.errors.add(error);
            }
            None => self.num_conversations += 1,
        }
    }
}

impl DistillReport {
    /// What the output holds and what it cost, for people.
    pub fn to_text(&self) -> String {
        let summary = &self.summary;
        // Writing to a String cannot fail.
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{} of {} records: {} conversations, {} errors; {} answers",
            summary.num_records(),
            self.num_records,
            summary.num_conversations,
            summary.num_errors,
            summary.num_answers
        );
        out.push_str(&summary.errors.to_text());
        out.push_str(&self.unwritable.to_text());
        let all = Told { num: summary.num_answers, usage: summary.usage };
        for (what, told) in
            [("in all", all), ("asked now", self.tally.asked), ("kept from before", self.tally.kept)]
        {
            let _ = writeln!(out, "{what}: {}", self.tokens(&told));
        }
        out
    }

    fn tokens(&self, told: &Told) -> String {
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = told.usage;
        let mut text = format!(
            "{} answers, {prompt_tokens} prompt tokens ({cached_tokens} cached), {completion_tokens} generated",
            told.num
        );
        if let Some(price) = &self.price {
            let _ = write!(text, ", cost {:.4}", price.of(&told.usage));
        }
        text
    }
}
