//! What tokens cost.

use std::str::FromStr;

use wardrobe_generator::Usage;

/// Prices of a million tokens, in whatever money.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    /// Of prompts.
    pub input: f64,
    /// Of answers.
    pub output: f64,
    /// Of prompts that the teacher had computed before.
    pub cached: f64,
}

impl Price {
    /// What these tokens cost.
    pub fn of(&self, usage: &Usage) -> f64 {
        let cached = usage.cached_tokens.min(usage.prompt_tokens);
        let fresh = usage.prompt_tokens - cached;
        let parts = [(fresh, self.input), (cached, self.cached), (usage.completion_tokens, self.output)];
        parts.into_iter().map(|(tokens, price)| tokens as f64 * price / 1e6).sum()
    }
}

impl FromStr for Price {
    type Err = String;

    /// `IN/OUT` or `IN/OUT/CACHED`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Result<Vec<f64>, _> = text.split('/').map(|part| part.trim().parse::<f64>()).collect();
        let parts = parts.unwrap_or_default();
        if parts.iter().any(|price| !price.is_finite() || *price < 0.0) {
            return Err(format!("{text:?} has a price that is none"));
        }
        match parts.as_slice() {
            [input, output] => Ok(Self { input: *input, output: *output, cached: *input }),
            [input, output, cached] => Ok(Self { input: *input, output: *output, cached: *cached }),
            _ => Err(format!("{text:?} is not IN/OUT or IN/OUT/CACHED, prices of a million tokens")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_and_applied() {
        let usage = Usage { prompt_tokens: 3_000_000, cached_tokens: 1_000_000, completion_tokens: 500_000 };
        assert_eq!("2/8".parse::<Price>().unwrap().of(&usage), 10.0);
        assert_eq!("2/8/0.5".parse::<Price>().unwrap().of(&usage), 8.5);
        // An endpoint may count more cached tokens than the prompt has.
        let odd = Usage { prompt_tokens: 10, cached_tokens: 20, completion_tokens: 0 };
        assert!((("1/1/1".parse::<Price>().unwrap().of(&odd)) - 1e-5).abs() < 1e-12);
        for text in ["", "1", "1/2/3/4", "a/b", "-1/2", "1/inf", "nan/1"] {
            assert!(text.parse::<Price>().is_err(), "{text}");
        }
    }
}
