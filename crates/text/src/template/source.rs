//! The syntax of templates, and the tags that minijinja does not know.

use minijinja::Error;
use minijinja::syntax::SyntaxConfig;

/// The white-space rules that Hugging Face's libraries set.
pub(super) fn syntax() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// The source as minijinja is to read it.
pub(super) fn prepare(source: &str) -> String {
    // jinja2 reads every line end as a line feed, inside quoted strings too.
    let lines = source.replace("\r\n", "\n").replace('\r', "\n");
    without_generation_tags(&lines)
}

/// Replaces `{% generation %}` and `{% endgeneration %}`, which mark the assistant's text for training, by a block that
/// always runs. Comments, expressions and raw blocks stay as they are.
fn without_generation_tags(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        output.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') if !raw => tag.find("#}").map(|at| at + 2),
            Some(b'{') if !raw => end_of_code(tag, "}}"),
            Some(b'%') if raw => tag.find("%}").map(|at| at + 2),
            Some(b'%') => end_of_code(tag, "%}"),
            _ => Some(1),
        };
        let (tag, after) = tag.split_at(end.unwrap_or(tag.len()));
        rest = after;
        let Some(code) = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")) else {
            output.push_str(tag);
            continue;
        };
        let marks: &[char] = &['-', '+'];
        let word = code.trim_matches(marks).trim();
        let replacement = match word {
            "raw" => {
                raw = true;
                None
            }
            "endraw" => {
                raw = false;
                None
            }
            "generation" if !raw => Some("if true"),
            "endgeneration" if !raw => Some("endif"),
            _ => None,
        };
        match replacement {
            None => output.push_str(tag),
            Some(replacement) => {
                let mark = |mark: Option<char>| match mark {
                    Some('-') => "-",
                    Some('+') => "+",
                    _ => "",
                };
                output.push_str("{%");
                output.push_str(mark(code.chars().next()));
                output.push(' ');
                output.push_str(replacement);
                output.push(' ');
                output.push_str(mark(code.chars().next_back()));
                output.push_str("%}");
            }
        }
    }
    output.push_str(rest);
    output
}

/// The end of a tag or expression, past quoted strings.
fn end_of_code(tag: &str, end: &str) -> Option<usize> {
    let bytes = tag.as_bytes();
    let mut quote = None;
    let mut at = 2;
    while let Some(&byte) = bytes.get(at) {
        match quote {
            Some(_) if byte == b'\\' => at += 1,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if bytes[at..].starts_with(end.as_bytes()) => return Some(at + end.len()),
            None if matches!(byte, b'\'' | b'"') => quote = Some(byte),
            None => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::without_generation_tags as convert;

    #[test]
    fn tags_become_plain_blocks() {
        assert_eq!(convert("a{% generation %}b{% endgeneration %}c"), "a{% if true %}b{% endif %}c");
        assert_eq!(convert("{%- generation -%}b{%- endgeneration +%}"), "{%- if true -%}b{%- endif +%}");
    }

    #[test]
    fn line_ends_become_line_feeds() {
        assert_eq!(super::prepare("a\r\n{{ '\r\n' }}\rb\n"), "a\n{{ '\n' }}\nb\n");
    }

    #[test]
    fn other_places_stay() {
        for text in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% if x == '%}' %}{% endif %}",
            "generation { } {% generation2 %} {{ \"\\\"{% generation %}\" }}",
            "unclosed {% generation",
            "é{",
        ] {
            assert_eq!(convert(text), text);
        }
    }
}
