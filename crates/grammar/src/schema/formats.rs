//! `format`: those that a grammar can hold a text to (JSON Schema 2020-12, validation, section 7.3).

use serde_json::{Value, json};

/// What is known of a format.
pub(super) enum Known {
    /// It says as much as these keywords.
    Keywords(Value),
    /// The grammar below has it.
    AsItIs,
    /// The standard has it, and no grammar here.
    Unsupported,
    /// The standard does not have it: a note to the reader, which no text can contradict.
    Note,
}

/// RFC 3339 without the leap second, which parsers do not take: `full-time`.
macro_rules! time {
    () => {
        r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
    };
}

/// RFC 3339: `full-date`, from the year 1 on: there is no year before it, and parsers refuse one. The last alternative is the
/// leap day, in years that have it.
macro_rules! date {
    () => {
        concat!(
            r"(([1-9][0-9]{3}|0([1-9][0-9]{2}|0([1-9][0-9]|0[1-9])))-",
            r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))",
            r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([2468][048]|0[48]|[13579][26])00)-02-29)"
        )
    };
}

/// RFC 3986, `relative-ref` with no colon in its first segment, or a scheme before it; no literal addresses.
const URI_REFERENCE: &str = concat!(
    r"^([a-zA-Z][a-zA-Z0-9+.-]*:)?(//([a-zA-Z0-9._~-]+@)?[a-zA-Z0-9.-]*(:[0-9]{1,5})?|",
    r"([a-zA-Z0-9._~!$&'()*+,;=@-]|%[0-9a-fA-F]{2})*)(/([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})+)*/?",
    r"(\?([a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})*)?(#([a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})*)?$"
);

pub(super) fn lookup(name: &str) -> Known {
    let pattern = match name {
        "time" => concat!("^", time!(), "$"),
        "date" => concat!("^", date!(), "$"),
        "date-time" => concat!("^", date!(), "[tT]", time!(), "$"),
        "uri-reference" => URI_REFERENCE,
        "json-pointer" => "^(/([^~/]|~[01])*)*$",
        "relative-json-pointer" => "^(0|[1-9][0-9]{0,8})(#|(/([^~/]|~[01])*)*)$",
        // OpenAPI's registry of formats.
        "int32" => return Known::Keywords(json!({"minimum": i32::MIN, "maximum": i32::MAX})),
        "duration" | "email" | "hostname" | "ipv4" | "ipv6" | "uuid" | "uri" => return Known::AsItIs,
        "idn-email" | "idn-hostname" | "iri" | "iri-reference" | "regex" | "uri-template" => {
            return Known::Unsupported;
        }
        _ => return Known::Note,
    };
    Known::Keywords(json!({"pattern": pattern}))
}
