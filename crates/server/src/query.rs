//! Query strings: names and values, percent-decoded.

use crate::error::{ApiError, Result};

const MAX_PAIRS: usize = 64;

/// The pairs of a query, in their order.
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads a query as HTML forms write it: `+` is a blank.
    pub fn parse(text: Option<&str>) -> Result<Self> {
        let parts = text.unwrap_or("").split('&').filter(|part| !part.is_empty());
        let mut pairs = Vec::new();
        for part in parts {
            if pairs.len() >= MAX_PAIRS {
                return Err(ApiError::bad_request("the query has too many parameters"));
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let decoded = decode(name).zip(decode(value));
            pairs.push(decoded.ok_or_else(|| ApiError::bad_request("the query is not valid UTF-8"))?);
        }
        Ok(Self { pairs })
    }

    /// The last value of a name that is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut found = self.pairs.iter().rev().filter(|(key, value)| key == name && !value.is_empty());
        found.next().map(|(_, value)| value.as_str())
    }

    /// A whole number in a range.
    pub fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text.parse::<u64>().ok().filter(|number| (least..=most).contains(number));
        let shown: String = text.chars().take(40).collect();
        let refused =
            || ApiError::invalid(name, format!("is {shown:?}, not a whole number in {least} to {most}"));
        number.map(Some).ok_or_else(refused)
    }

    /// A page's length.
    pub fn limit(&self, default: usize, most: usize) -> Result<usize> {
        let limit = self.number("limit", 1, most as u64)?;
        Ok(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(default))
    }

    /// Pairs that are written `name[key]=value`.
    pub fn map(&self, name: &str) -> Vec<(String, String)> {
        let of = |(key, value): &(String, String)| {
            let key = key.strip_prefix(name)?.strip_prefix('[')?.strip_suffix(']')?;
            Some((key.to_owned(), value.clone()))
        };
        self.pairs.iter().filter_map(of).collect()
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        // As Python's urllib.parse.urlencode writes them.
        let query =
            Query::parse(Some("after=a%2Fb+c&limit=5&metadata%5Bkey%5D=v%C3%A4&after=&flag")).unwrap();
        assert_eq!(query.get("after"), Some("a/b c"));
        assert_eq!(query.limit(20, 100).unwrap(), 5);
        assert_eq!(query.map("metadata"), [("key".to_owned(), "vä".to_owned())]);
        assert_eq!(query.get("flag"), None);
        assert_eq!(Query::parse(None).unwrap().limit(20, 100).unwrap(), 20);
    }

    #[test]
    fn wrong_ones_are_refused() {
        for text in ["a=%", "a=%4", "a=%zz", "a=%ff"] {
            assert!(Query::parse(Some(text)).is_err(), "{text}");
        }
        for text in ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=1.5", "limit=99999999999999999999"]
        {
            let error = Query::parse(Some(text)).unwrap().limit(20, 100).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("limit"), "{text}");
        }
        assert!(Query::parse(Some(&"a&".repeat(65))).is_err());
    }
}
