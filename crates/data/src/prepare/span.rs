//! Ranges of lengths and counts, as a person writes them.

use std::fmt;
use std::str::FromStr;

/// Whole numbers from one to another, both of them in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The smallest.
    pub min: usize,
    /// The greatest.
    pub max: usize,
}

impl Span {
    /// Whether a number is in it.
    pub fn holds(self, number: usize) -> bool {
        (self.min..=self.max).contains(&number)
    }
}

/// `500-2000`, `500-` for at least so many, `-2000` for at most so many, `500` for that number alone.
impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| -> Result<usize, String> {
            text.trim().parse().map_err(|_| format!("{text:?} is no whole number"))
        };
        let span = match text.trim().split_once('-') {
            None => {
                let only = number(text)?;
                Self { min: only, max: only }
            }
            Some(("", "")) => return Err("`-` has no number; write it like 500-2000".to_owned()),
            Some((min, max)) => Self {
                min: if min.is_empty() { 0 } else { number(min)? },
                max: if max.is_empty() { usize::MAX } else { number(max)? },
            },
        };
        if span.min > span.max {
            return Err(format!("{text:?} is empty: {} is over {}", span.min, span.max));
        }
        Ok(span)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.min, self.max) {
            (min, max) if min == max => write!(f, "{min}"),
            (0, max) => write!(f, "-{max}"),
            (min, usize::MAX) => write!(f, "{min}-"),
            (min, max) => write!(f, "{min}-{max}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_shown() {
        let span = |min, max| Ok(Span { min, max });
        assert_eq!("500-2000".parse(), span(500, 2000));
        assert_eq!("500-".parse(), span(500, usize::MAX));
        assert_eq!("-20".parse(), span(0, 20));
        assert_eq!("7".parse(), span(7, 7));
        for text in ["500-2000", "500-", "-20", "7"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["", "-", "a-b", "5-3", "1.5-2", "1-2-3", "99999999999999999999-"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        let span = Span { min: 2, max: 3 };
        assert!(span.holds(2) && span.holds(3) && !span.holds(1) && !span.holds(4));
    }
}
