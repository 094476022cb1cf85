//! Chat templates against Python's jinja2, as Hugging Face's libraries run it.
//!
//! `WARDROBE_PYTHON`: a Python with jinja2. `WARDROBE_TEMPLATE_DIR`: a folder of further `*.jinja` files, for example those
//! of models, to compare as well. Without the first the test says that it was skipped.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};
use support::{gguf_vocab, variable};
use wardrobe_text::{ChatInput, ChatTemplate, Message, TemplateError, TemplateLimits};

const NOW: i64 = 1_732_233_600;

/// Own templates with the constructs that models' templates use.
const TEMPLATES: &[(&str, &str)] = &[
    (
        "plain loop",
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] ~ eos_token }}\n{% endfor %}\n{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    (
        "white space control",
        "{{- bos_token }}\n  {%- for m in messages -%}\n  {% if not loop.first %}\n    , {% endif %}\n  {{ m.role }}\n   {# note #}\n {%- endfor +%}\nend\n",
    ),
    (
        "slices, tests and filters",
        "{% set rest = messages[1:] if messages[0]['role'] == 'system' else messages %}{{ rest|length }}|{{ rest[-1].content[:3] }}|{{ rest[0]['content']|trim|upper }}|{{ rest|map(attribute='role')|join(',') }}|{{ messages|selectattr('role','equalto','user')|list|length }}|{{ rest[::-1][0].role }}|{{ missing is defined }}|{{ tools is none }}|{{ messages is iterable and messages is not string }}|{{ messages[0] is mapping }}|{{ 'b' in ['a','b'] }}|{{ 7 // 2 }}|{{ 7 % 4 }}|{{ 2 ** 5 }}|{{ '%s-%d' % ('a', 3) if false else 'x' }}",
    ),
    (
        "namespace and loop controls",
        "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{% if loop.last %}{% set ns.found = true %}{% break %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.n }}",
    ),
    (
        "macro",
        "{% macro turn(role, text, end='<e>') -%}\n[{{ role }}] {{ text }}{{ end }}{{ bos_token }}\n{%- endmacro %}{% for m in messages %}{{ turn(m.role, m.content) }}{{ turn('x', 'y', end='') }}{% endfor %}",
    ),
    (
        "python methods",
        "{% for m in messages %}{{ m.content.strip().split(' ')[0] }}|{{ m.content.startswith('H') }}|{{ m['role'].title() }}|{{ m.get('name', 'none') }}|{{ m.content.replace('e', '3') }}|{{ m.content.rstrip('.!?').lstrip() }}|{% for k, v in m.items() %}{{ k }};{% endfor %}|{{ 'a,b,c'.rsplit(',', 1) }}|{{ m.content.find('o') }}|{{ m.keys()|list }}{% endfor %}",
    ),
    (
        "tojson",
        "{% if tools %}{{ tools | tojson }}\n{{ tools[0] | tojson(indent=4) }}\n{% for t in tools %}{{ t.function.parameters.properties.keys() | list | tojson }}{{ t.function.description | tojson }}{% endfor %}{% endif %}{{ messages | tojson(indent=2) }}",
    ),
    (
        "values",
        "{{ true }} {{ none }} {{ 1.0 }} {{ [1, 'a', \"it's\", none, {'k': 2.5}] }} {{ (1, 2) }} {{ {} }} {{ 'a\\nb' }} {{ messages[0] }}",
    ),
    (
        "raise",
        "{% if (messages|length) > 3 %}{{ raise_exception('Too many: ' ~ messages|length) }}{% else %}ok{% endif %}",
    ),
    (
        "generation",
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}\n  {{ m.content }}\n{%- endgeneration %}|{% else %}{{ m.content }}{% endif %}{% endfor %}",
    ),
    ("date", "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y, %A') }}{% endif %}"),
    (
        "defaults and inline conditions",
        "{{ unknown | default('d') }}{{ messages[0].name | default('n', true) }}{{ 'x' if unknown }}{{ unknown or 'o' }}{{ (unknown | default(none)) is none }}{% if unknown is not defined or unknown %}u{% endif %}{{ bos_token ~ 1 ~ none }}",
    ),
    (
        "set block, filter block, nested loops",
        "{% set body %}{% for a in [1,2] %}{% for b in ['x', 'y'] %}{{ loop.index }}{{ loop.length }}{{ a }}{{ b }} {% endfor %}{% endfor %}{% endset %}{{ body | trim | length }}{% filter upper %}abc{% endfilter %}{{ loop is defined }}{% for x in [] %}{% else %}empty{% endfor %}",
    ),
    (
        "tool calls",
        "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}){% endfor %}{% elif m.role == 'tool' %}{{ m.tool_call_id }}={{ m.content }}{% elif m.content is string %}{{ m.content }}{% else %}{% for p in m.content or [] %}{{ p.text }}{% endfor %}{% endif %}{% if loop.previtem is defined and loop.previtem.role == 'user' %}<{% endif %}{% if loop.nextitem is defined %}>{% endif %}{% endfor %}",
    ),
    (
        "dictsort, sort, unique, reject, rejectattr, batch",
        "{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}{{ [3,1,2]|sort }}{{ [3,1,2]|sort(reverse=true)|first }}{{ ['a','A','b']|unique|list }}{{ [1,2,3]|reject('equalto', 2)|list }}{{ messages|rejectattr('role','in',['system'])|list|length }}{{ [1,2,3,4]|sum }}{{ [[1,2],[3]]|last }}{{ 'abc'|list }}{{ 3.7|int }}{{ '5'|int + 1 }}{{ ['x','y']|join(' and ') }}{{ 'hello world'|capitalize }}{{ 'a b'|replace(' ', '_') }}{{ 'abc'|reverse }}",
    ),
    ("undefined attribute", "{{ unknown.attribute }}"),
    ("undefined sum", "{{ 'a' + unknown }}"),
    ("string plus number", "{{ 'a' + 1 }}"),
    ("kwargs", "{{ enable_thinking is defined and enable_thinking is false }}{{ custom.deep[1] }}"),
];

fn conversations() -> Vec<Value> {
    let tools = json!([{"type": "function", "function": {"name": "weather", "description": "Gets the <weather> & 'more' – für é",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1.5}}, "required": ["city"]}}}]);
    vec![
        json!({"messages": [{"role": "user", "content": "Hello there."}], "add_generation_prompt": true}),
        json!({"messages": [{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": "Hi\n"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHey!"}, {"role": "user", "content": "Où est l'été ? 東京"}],
            "add_generation_prompt": true, "enable_thinking": false, "custom": {"deep": [1, "two"]}}),
        json!({"messages": [{"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "call00001", "type": "function",
                "function": {"name": "weather", "arguments": {"city": "Ulm", "days": 2}}}]},
            {"role": "tool", "content": "{\"t\": 20}", "name": "weather", "tool_call_id": "call00001"},
            {"role": "assistant", "content": "20 degrees."}], "tools": tools, "add_generation_prompt": false}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "part one "}, {"type": "text", "text": "two"}]}],
            "add_generation_prompt": true}),
    ]
}

fn render(source: &str, case: &Value) -> Result<String, TemplateError> {
    let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
    let mut kwargs = case.as_object().unwrap().clone();
    for known in ["messages", "tools", "add_generation_prompt"] {
        kwargs.remove(known);
    }
    ChatTemplate::new(source, TemplateLimits::default())?.render(&ChatInput {
        messages: &messages,
        tools: case.get("tools"),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        bos_token: Some("<s>"),
        eos_token: Some("</s>"),
        kwargs: Some(&kwargs),
        now_unix_s: Some(NOW),
        ..ChatInput::default()
    })
}

fn references(python: &str, script: &str, cases: &[Value]) -> Vec<Value> {
    let script = format!("{}/tests/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut child =
        Command::new(python).arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(cases).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script} failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn templates_render_as_in_jinja2() {
    let test = "templates_render_as_in_jinja2";
    let Some(python) = variable(test, "WARDROBE_PYTHON") else { return };
    let mut templates: Vec<(String, String)> =
        TEMPLATES.iter().map(|(name, source)| ((*name).into(), (*source).into())).collect();
    if let Ok(path) = std::env::var("WARDROBE_SMOLLM2") {
        templates.extend(gguf_vocab(&path).1.map(|source| ("SmolLM2".to_owned(), source)));
    }
    if let Ok(folder) = std::env::var("WARDROBE_TEMPLATE_DIR") {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "jinja") {
                templates.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut cases = Vec::new();
    let mut names = Vec::new();
    for (name, source) in &templates {
        for (number, conversation) in conversations().into_iter().enumerate() {
            let mut context = conversation.clone();
            for (key, value) in [
                ("bos_token", json!("<s>")),
                ("eos_token", json!("</s>")),
                ("tools", Value::Null),
                ("documents", Value::Null),
            ] {
                context.as_object_mut().unwrap().entry(key).or_insert(value);
            }
            cases.push(json!({"source": source, "context": context, "now": NOW, "ours": conversation}));
            names.push(format!("{name} / conversation {number}"));
        }
    }
    let mut wrong = Vec::new();
    for ((name, case), theirs) in
        names.iter().zip(&cases).zip(references(&python, "independent_templates.py", &cases))
    {
        let ours = render(case["source"].as_str().unwrap(), &case["ours"]);
        let equal = match (&ours, theirs["text"].as_str()) {
            (Ok(ours), Some(theirs)) => ours == theirs,
            // Both refuse; the words of a raised message are the template's and must be the same.
            (Err(TemplateError::Raised { message }), None) => {
                theirs["error"].as_str().unwrap() == format!("TemplateError: {message}")
            }
            (Err(_), None) => !theirs["error"].as_str().unwrap().starts_with("TemplateError:"),
            _ => false,
        };
        if !equal {
            wrong.push(format!("{name}\n  ours   {ours:?}\n  theirs {theirs}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Two templates that know tools, each in its way.
const DEFAULT: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if tools %} of {{ tools | length }}{% endif %}\n{% endfor %}";
const TOOL_USE: &str = "{{ bos_token }}{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

fn with_tools() -> ChatTemplate {
    template(DEFAULT, TemplateLimits::default()).with_tool_use(TOOL_USE).unwrap()
}

#[test]
fn conversations_with_tools_are_rendered_as_in_transformers() {
    let test = "conversations_with_tools_are_rendered_as_in_transformers";
    let Some(python) = variable(test, "WARDROBE_PYTHON") else { return };
    let mut cases = Vec::new();
    for conversation in conversations().iter().take(3) {
        for tools in [Value::Null, json!([]), conversations()[2]["tools"].clone()] {
            for templates in
                [json!({"default": DEFAULT, "tool_use": TOOL_USE, "rag": "rag"}), json!({"default": DEFAULT})]
            {
                cases.push(
                    json!({"templates": templates, "messages": conversation["messages"], "tools": tools}),
                );
            }
        }
    }
    let theirs = references(&python, "independent_named_templates.py", &cases);
    for (case, theirs) in cases.iter().zip(theirs) {
        let template = match case["templates"]["tool_use"] {
            Value::Null => template(DEFAULT, TemplateLimits::default()),
            _ => with_tools(),
        };
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let ours = template.render(&ChatInput {
            messages: &messages,
            tools: Some(&case["tools"]).filter(|tools| !tools.is_null()),
            add_generation_prompt: true,
            bos_token: Some("<s>"),
            eos_token: Some("</s>"),
            ..ChatInput::default()
        });
        assert_eq!(ours.unwrap(), theirs.as_str().unwrap(), "{case}");
    }
}

#[test]
fn a_template_for_tools_has_its_own_source_and_errors() {
    let both = with_tools();
    assert_eq!((both.source(), both.tool_use_source()), (DEFAULT, Some(TOOL_USE)));
    assert_eq!(template(DEFAULT, TemplateLimits::default()).tool_use_source(), None);
    assert!(matches!(both.with_tool_use("{% for"), Err(TemplateError::Syntax { .. })));
}

fn template(source: &str, limits: TemplateLimits) -> ChatTemplate {
    ChatTemplate::new(source, limits).unwrap()
}

#[test]
fn raised_messages_are_the_callers_errors() {
    let error =
        render("{{ raise_exception('Roles must ' ~ 'alternate') }}", &conversations()[0]).unwrap_err();
    assert!(matches!(&error, TemplateError::Raised { message } if message == "Roles must alternate"));
    // From inside a macro and a loop as well.
    let source = "{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{% for m in messages %}{{ f() }}{% endfor %}";
    assert!(
        matches!(render(source, &conversations()[0]), Err(TemplateError::Raised { message }) if message == "deep")
    );
}

#[test]
fn syntax_errors_come_at_load() {
    for source in ["{% for %}", "{{ a", "{% unknown_tag %}", "{% endfor %}", "{{ 'a }}"] {
        let error = ChatTemplate::new(source, TemplateLimits::default()).unwrap_err();
        assert!(matches!(error, TemplateError::Syntax { .. }), "{source}: {error}");
    }
    let limits = TemplateLimits { max_source_bytes: 3, ..TemplateLimits::default() };
    assert!(matches!(
        ChatTemplate::new("abcd", limits),
        Err(TemplateError::SourceTooLong { actual_bytes: 4, limit_bytes: 3 })
    ));
}

#[test]
fn endless_templates_end() {
    let input = ChatInput::default();
    let run = |source: &str| {
        let start = std::time::Instant::now();
        let result = template(source, TemplateLimits::default()).render(&input);
        assert!(start.elapsed().as_secs() < 20, "{source}: {:?}", start.elapsed());
        result
    };
    let nested = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    assert!(matches!(run(nested), Err(TemplateError::OutOfFuel { .. })));
    let long = "{% for a in range(10000) %}{% for b in range(10000) %}0123456789012345678901234567890123456789{% endfor %}{% endfor %}";
    assert!(matches!(run(long), Err(TemplateError::OutputTooLong { .. })));
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'chat_template' %}",
        "{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}",
        "{{ 'a' * 1000000000000 }}",
    ] {
        assert!(run(source).is_err(), "{source}");
    }
    assert!(matches!(run("{% include '/etc/passwd' %}"), Err(TemplateError::Render { .. })));
}

#[test]
fn continuing_the_last_message() {
    let template = template(
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        TemplateLimits::default(),
    );
    let messages = [Message::text("user", "Go on"), Message::text("assistant", " Once upon ")];
    let input = ChatInput { messages: &messages, continue_final_message: true, ..ChatInput::default() };
    assert_eq!(template.render(&input).unwrap(), "<user>Go on</end><assistant>Once upon");
    let both = ChatInput { add_generation_prompt: true, ..input };
    assert!(matches!(template.render(&both), Err(TemplateError::ContinueFinalMessage { .. })));
    let none = ChatInput { messages: &[], ..input };
    assert!(matches!(template.render(&none), Err(TemplateError::ContinueFinalMessage { .. })));
}

#[test]
fn messages_keep_fields_and_their_order() {
    let value = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"arguments": "{\"b\": 1, \"a\": [2]}"}},
        {"function": {"arguments": "not json"}}], "reasoning_content": "r", "z": 1, "a": 2});
    let mut message: Message = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(serde_json::to_string(&message).unwrap(), value.to_string());
    message.parse_tool_arguments();
    let calls = message.tool_calls.unwrap();
    assert_eq!(calls[0]["function"]["arguments"].to_string(), r#"{"b":1,"a":[2]}"#);
    assert_eq!(calls[1]["function"]["arguments"], "not json");

    let mut parts: Message = serde_json::from_value(
        json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
    )
    .unwrap();
    parts.join_text_parts().unwrap();
    assert_eq!(parts, Message::text("user", "ab"));
    let mut image: Message =
        serde_json::from_value(json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}))
            .unwrap();
    assert_eq!(image.join_text_parts(), Err("image_url".to_owned()));
    let absent: Message = serde_json::from_value(json!({"role": "assistant"})).unwrap();
    assert_eq!(serde_json::to_string(&absent).unwrap(), r#"{"role":"assistant"}"#);
}

#[test]
fn request_variables_do_not_replace_the_conversation() {
    let kwargs = json!({"messages": [], "bos_token": "x", "extra": 1});
    let messages = [Message::text("user", "hi")];
    let template = template("{{ bos_token }}{{ messages[0].content }}{{ extra }}", TemplateLimits::default());
    let text = template.render(&ChatInput {
        messages: &messages,
        bos_token: Some("<s>"),
        kwargs: kwargs.as_object(),
        ..ChatInput::default()
    });
    assert_eq!(text.unwrap(), "<s>hi1");
}
