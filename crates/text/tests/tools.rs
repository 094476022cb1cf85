//! Notations of calls: found in templates of the families' kinds, written for models without one, and read back.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use wardrobe_text::{
    ChatInput, ChatTemplate, Message, NotationPart, TemplateLimits, ToolCallParser, ToolEvent, ToolNotation,
    ToolStyle,
};

/// JSON objects between tags, as Qwen and Hermes have them.
const TAGGED: &str = r#"{%- if tools %}<|im_start|>system
{% for t in tools %}{{ t | tojson }}
{% endfor %}<|im_end|>
{% endif %}{%- for m in messages %}{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.tool_calls %}<|im_start|>assistant{{ '\n' + m.content if m.content }}{% for c in m.tool_calls %}{{ '\n<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}{{ c.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"#;

/// One bare object, as Llama 3 has it.
const BARE: &str = r#"{%- for m in messages %}{%- if m.role == 'user' and tools and loop.first %}<|start|>user<|end|>
Functions: {{ tools | tojson }}
{{ m.content }}<|eot|>{% elif m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call alone') }}{% endif %}<|start|>assistant<|end|>
{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|eot|>{% else %}<|start|>{{ m.role }}<|end|>
{{ m.content }}<|eot|>{% endif %}{%- endfor %}{%- if add_generation_prompt %}<|start|>assistant<|end|>
{% endif %}"#;

/// A list after a mark, with ids that are looked at, as Mistral has it.
const LISTED: &str = r#"{{ bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{%- endfor %}"#;

/// No JSON around the arguments, and tools as a list of names.
const FUNCTIONS: &str = r#"{% for t in tools or [] %}{{ t.function.name }}: {{ t.function.description }}
{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}<function={{ c.function.name }}>{{ c.function.arguments | tojson }}</function>{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"#;

const WITHOUT: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// It knows tools, but writes arguments as a text within a text.
const ESCAPED: &str = r#"{{ (tools or []) | tojson }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson | tojson }}{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"#;

fn style(source: &str) -> ToolStyle {
    ToolStyle::of(&ChatTemplate::new(source, TemplateLimits::default()).unwrap(), Some("<s>"), Some("</s>"))
}

#[test]
fn a_template_for_tools_alone_is_asked_for_the_notation() {
    let plain = ChatTemplate::new(WITHOUT, TemplateLimits::default()).unwrap();
    let both = plain.with_tool_use(TAGGED).unwrap();
    assert_eq!(ToolStyle::of(&both, Some("<s>"), Some("</s>")), style(TAGGED));
    assert_ne!(style(WITHOUT), style(TAGGED));
    // The other way round the default one's notation is not used.
    let tagged = ChatTemplate::new(TAGGED, TemplateLimits::default()).unwrap();
    assert!(!ToolStyle::of(&tagged.with_tool_use(WITHOUT).unwrap(), None, None).is_by_template());
}

fn text(text: &str) -> NotationPart {
    NotationPart::Text(text.to_owned())
}

#[test]
fn notations_are_those_of_the_templates() {
    let tagged = style(TAGGED);
    assert!(tagged.is_by_template());
    let notation = tagged.notation();
    assert_eq!(notation.first, [text("<tool_call>\n{\"name\": \"")]);
    assert_eq!(notation.middle, [text("\", \"arguments\": ")]);
    assert_eq!(notation.next, Some(vec![text("}\n</tool_call>\n<tool_call>\n{\"name\": \"")]));
    assert_eq!(notation.last, [text("}\n</tool_call>")]);
    assert_eq!((notation.has_mark(), notation.mark()), (true, "<tool_call>"));

    let bare = style(BARE);
    assert!(bare.is_by_template());
    let notation = bare.notation();
    assert_eq!(notation.first, [text("{\"name\": \"")]);
    assert_eq!(notation.middle, [text("\", \"parameters\": ")]);
    assert_eq!((&notation.next, notation.last.as_slice()), (&None, [text("}")].as_slice()));
    assert_eq!((notation.has_mark(), notation.mark()), (false, "{\"name\": \""));

    let listed = style(LISTED);
    assert!(listed.is_by_template());
    let notation = listed.notation();
    assert_eq!(notation.first, [text("[TOOL_CALLS] [{\"name\": \"")]);
    assert_eq!(notation.last, [text(", \"id\": \""), NotationPart::Id, text("\"}]")]);
    let next = vec![text(", \"id\": \""), NotationPart::Id, text("\"}, {\"name\": \"")];
    assert_eq!((&notation.next, notation.mark()), (&Some(next), "[TOOL_CALLS]"));

    let functions = style(FUNCTIONS);
    assert!(functions.is_by_template());
    let notation = functions.notation();
    assert_eq!(
        (notation.first.as_slice(), notation.middle.as_slice()),
        ([text("<function=")].as_slice(), [text(">")].as_slice())
    );
    assert_eq!((&notation.next, notation.mark()), (&Some(vec![text("</function><function=")]), "<function="));
    assert_eq!(notation.last, [text("</function>")]);
}

#[test]
fn who_knows_no_tools_is_told_in_text() {
    for source in [WITHOUT, ESCAPED] {
        let style = style(source);
        assert!(!style.is_by_template());
        assert_eq!(style.notation().mark(), "<tool_call>");
        let call = json!([{"id": "a", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": [1, 2]}}},
            {"id": "b", "type": "function", "function": {"name": "time", "arguments": "{}"}}]);
        let result = |text: &str| Message { role: "tool".into(), ..Message::text("tool", text) };
        let mut messages = vec![
            Message::text("system", "Be brief."),
            Message::text("user", "Well?"),
            Message { tool_calls: Some(call), ..Message::text("assistant", "") },
            result("sunny"),
            result("noon"),
        ];
        let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {}}}]);
        assert_eq!(style.prepare(&mut messages, Some(tools)), None);
        let template = ChatTemplate::new(source, TemplateLimits::default()).unwrap();
        let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
        let rendered = template.render(&input).unwrap();
        for part in [
            "Be brief.\n\nYou can call functions.",
            "{\"name\":\"weather\",\"parameters\":{}}",
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\", \"days\": [1, 2]}}\n</tool_call>\n<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>",
            "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon\n</tool_response>",
        ] {
            assert!(rendered.contains(part), "{part} in {rendered}");
        }
        assert_eq!(messages.len(), 4);
    }
    // Who has no system message gets one.
    let mut messages = vec![Message::text("user", "Well?")];
    style(WITHOUT).prepare(&mut messages, Some(json!([])));
    assert_eq!((messages.len(), messages[0].role.as_str()), (2, "system"));
}

/// A call as it is told apart: id, name, arguments.
type Call = (Option<String>, String, String);

/// All of a text, in pieces of these many characters.
fn read(notation: &ToolNotation, answer: &str, pieces: &[usize]) -> (String, Vec<Call>) {
    let mut parser = ToolCallParser::new(Arc::new(notation.clone()));
    let mut events = Vec::new();
    let mut chars = answer.chars().peekable();
    let mut sizes = pieces.iter().copied().cycle();
    while chars.peek().is_some() {
        let piece: String = chars.by_ref().take(sizes.next().unwrap_or(1).max(1)).collect();
        parser.push(&piece, &mut events);
    }
    parser.finish(&mut events);
    let (mut beside, mut calls) = (String::new(), Vec::<Call>::new());
    for event in events {
        match event {
            ToolEvent::Text(text) => beside.push_str(&text),
            ToolEvent::Call { index, id, name } => {
                assert_eq!(index, calls.len());
                calls.push((id, name, String::new()));
            }
            ToolEvent::Arguments { index, text } => calls[index].2.push_str(&text),
        }
    }
    assert_eq!(parser.num_calls(), calls.len());
    (beside, calls)
}

fn written(parts: &[NotationPart]) -> String {
    parts
        .iter()
        .map(|part| match part {
            NotationPart::Text(text) => text.as_str(),
            NotationPart::Id => "aB3dE6gH9",
        })
        .collect()
}

fn write(notation: &ToolNotation, before: &str, calls: &[(String, String)]) -> String {
    let mut answer = before.to_owned();
    for (idx, (name, arguments)) in calls.iter().enumerate() {
        let lead = if idx == 0 { &notation.first } else { notation.next.as_ref().unwrap() };
        answer += &format!("{}{name}{}{arguments}", written(lead), written(&notation.middle));
    }
    if !calls.is_empty() {
        answer += &written(&notation.last);
    }
    answer
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z{}\"\\\\<\\[\\]/ é\n]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z{}\"]{0,5}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_arguments() -> impl Strategy<Value = String> {
    prop::collection::btree_map("[a-z]{1,4}", any_json(), 0..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()).to_string())
}

proptest! {
    #[test]
    fn what_was_called_is_read_back(
        which in 0..4_usize,
        before in "[a-z<{\\[T_ \n]{0,20}",
        calls in prop::collection::vec(("[a-zA-Z0-9_-]{1,12}", any_arguments()), 0..4),
        pieces in prop::collection::vec(1..9_usize, 1..5),
    ) {
        let style = style([TAGGED, BARE, LISTED, FUNCTIONS][which]);
        let notation = style.notation();
        let mut calls = calls;
        if notation.next.is_none() {
            calls.truncate(1);
        }
        // Text and calls exclude each other where calls have no mark.
        let before = if notation.has_mark() || calls.is_empty() { before } else { String::new() };
        prop_assume!(!before.contains(notation.mark()));
        let (beside, read) = read(notation, &write(notation, &before, &calls), &pieces);
        let expected = if calls.is_empty() { before.as_str() } else { before.trim_end() };
        prop_assert_eq!(beside, expected);
        let read: Vec<(String, String)> = read.into_iter().map(|(_, name, arguments)| (name, arguments)).collect();
        prop_assert_eq!(read, calls);
    }

    #[test]
    fn any_text_is_read_to_its_end(answer in "[<>a-z_{}\"\\[\\]:, \n]{0,60}", which in 0..4_usize) {
        let style = style([TAGGED, BARE, LISTED, FUNCTIONS][which]);
        let (beside, calls) = read(style.notation(), &answer, &[1]);
        if calls.is_empty() && !answer.contains(style.notation().mark()) {
            prop_assert_eq!(beside, answer);
        }
    }
}
