//! The file of a job's metrics: one line of CSV a step.

use std::fmt::Write as _;

use serde_json::Value;

/// Name of column and of metric.
const COLUMNS: [(&str, &str); 5] = [
    ("step", "step"),
    ("train_loss", "train_loss"),
    ("train_accuracy", "train_mean_token_accuracy"),
    ("valid_loss", "valid_loss"),
    ("valid_mean_token_accuracy", "valid_mean_token_accuracy"),
];

/// Steps as CSV; what is not known of a step stays empty.
pub(crate) fn csv(steps: &[(i64, Value)]) -> String {
    let mut text = COLUMNS.map(|(column, _)| column).join(",");
    text.push('\n');
    for (_, step) in steps {
        for (idx, (_, metric)) in COLUMNS.iter().enumerate() {
            if idx > 0 {
                text.push(',');
            }
            if let Some(number) = step.get(*metric).filter(|value| value.is_number()) {
                let _ = write!(text, "{number}");
            }
        }
        text.push('\n');
    }
    text
}
