//! What answers cost.

use serde::{Deserialize, Serialize};

use super::Report;

/// What tokens of a model cost, in any currency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// A million tokens of prompts.
    pub input_per_million: f64,
    /// A million tokens of answers.
    pub output_per_million: f64,
    /// A million tokens of prompts that had been computed already; without it they cost what others do.
    pub cached_input_per_million: Option<f64>,
}

impl Price {
    /// # Errors
    /// A price is negative or no number.
    pub fn check(&self) -> Result<(), String> {
        let all =
            [self.input_per_million, self.output_per_million, self.cached_input_per_million.unwrap_or(0.0)];
        match all.iter().find(|price| !(0.0..=1e12).contains(*price)) {
            Some(price) => Err(format!("{price} is no price")),
            None => Ok(()),
        }
    }
}

/// `NAME=INPUT/OUTPUT` or `NAME=INPUT/OUTPUT/CACHED`, each for a million tokens.
///
/// # Errors
/// It is something else.
pub fn parse_price(text: &str) -> Result<(String, Price), String> {
    let wrong =
        || "is not NAME=INPUT/OUTPUT or NAME=INPUT/OUTPUT/CACHED, each for a million tokens".to_owned();
    let (name, prices) = text.rsplit_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
    let numbers = prices.split('/').map(|number| number.trim().parse::<f64>());
    let price = match numbers.collect::<Result<Vec<_>, _>>().map_err(|_| wrong())?.as_slice() {
        [input, output] => {
            Price { input_per_million: *input, output_per_million: *output, cached_input_per_million: None }
        }
        [input, output, cached] => Price {
            input_per_million: *input,
            output_per_million: *output,
            cached_input_per_million: Some(*cached),
        },
        _ => return Err(wrong()),
    };
    price.check()?;
    Ok((name.to_owned(), price))
}

/// What a target's answers cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// The price of its tokens.
    pub price: Price,
    /// All questions that were answered.
    pub total: f64,
    /// A thousand such questions.
    pub per_1000_queries: f64,
}

impl Report {
    /// Notes what targets cost, each by the price of its name; where answers were held to a schema, of the name before that.
    pub fn set_prices(&mut self, prices: &[(String, Price)]) {
        for result in &mut self.results {
            let is_own = |name: &str| {
                result.name == name
                    || result.name.strip_prefix(name).is_some_and(|rest| rest.starts_with(", held to"))
            };
            let Some((_, price)) = prices.iter().find(|(name, _)| is_own(name)) else { continue };
            let cached = result.cached_tokens.min(result.prompt_tokens);
            let total = (result.prompt_tokens - cached) as f64 * price.input_per_million
                + cached as f64 * price.cached_input_per_million.unwrap_or(price.input_per_million)
                + result.completion_tokens as f64 * price.output_per_million;
            let total = total / 1e6;
            let per_1000_queries = 1000.0 * total / result.num_scored.max(1) as f64;
            result.cost = Some(Cost { price: *price, total, per_1000_queries });
        }
    }

    /// Prices that are no target's.
    pub fn unused_prices<'a>(&self, prices: &'a [(String, Price)]) -> Vec<&'a str> {
        let is_used = |name: &str| {
            self.results.iter().any(|result| {
                result.cost.is_some()
                    && (result.name == name || result.name.starts_with(&format!("{name}, held to")))
            })
        };
        prices.iter().map(|(name, _)| name.as_str()).filter(|name| !is_used(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read() {
        let (name, price) = parse_price("a=b=0.5/1.5/0.05").unwrap();
        assert_eq!((name.as_str(), price.input_per_million, price.output_per_million), ("a=b", 0.5, 1.5));
        assert_eq!(price.cached_input_per_million, Some(0.05));
        assert_eq!(parse_price("m=1/2").unwrap().1.cached_input_per_million, None);
        for bad in ["", "m", "=1/2", "m=1", "m=1/x", "m=1/2/3/4", "m=-1/2", "m=NaN/2", "m=inf/2"] {
            assert!(parse_price(bad).is_err(), "{bad}");
        }
    }
}
