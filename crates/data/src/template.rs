//! How a record becomes a prompt: by the model's own chat template, by a usual one, or by words of one's own.

use std::str::FromStr;

use serde_json::{Map, Value};

use crate::error::Fault;
use crate::record::type_name;

/// The template of prompts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PromptTemplate {
    /// The model's chat template if it has one, else [`Plain`](Self::Plain).
    #[default]
    Auto,
    /// The model's chat template, which it must have.
    Chat,
    /// Prompt and completion as they are, one after the other.
    Plain,
    /// Stanford Alpaca: `### Instruction:`, `### Input:`, `### Response:`.
    Alpaca,
    /// ChatML: `<|im_start|>user` to `<|im_end|>`.
    ChatMl,
    /// Llama 2: `[INST]` to `[/INST]`.
    Llama2Inst,
    /// Zephyr: `<|user|>`, `<|assistant|>`.
    Zephyr,
    /// Vicuna 1.1: `USER:`, `ASSISTANT:`.
    Vicuna,
    /// The columns of a record in words of one's own.
    Custom(CustomTemplate),
}

/// Templates by name.
const NAMES: [(&str, PromptTemplate); 8] = [
    ("auto", PromptTemplate::Auto),
    ("chat", PromptTemplate::Chat),
    ("plain", PromptTemplate::Plain),
    ("alpaca", PromptTemplate::Alpaca),
    ("chatml", PromptTemplate::ChatMl),
    ("llama2-inst", PromptTemplate::Llama2Inst),
    ("zephyr", PromptTemplate::Zephyr),
    ("vicuna", PromptTemplate::Vicuna),
];

impl FromStr for PromptTemplate {
    type Err = String;

    /// A name, or a text with `{column}` in it.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, template)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(template.clone());
        }
        if text.contains('{') {
            return CustomTemplate::parse(text).map(Self::Custom);
        }
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        Err(format!("{text:?} is no template: {}, or a text with {{column}} in it", names.join(", ")))
    }
}

impl PromptTemplate {
    /// The Jinja source of a usual template, so that serving can render the same; `None` for the model's own and for
    /// those that are no chat templates.
    pub fn chat_template_source(&self) -> Option<&'static str> {
        match self {
            Self::Alpaca => Some(ALPACA),
            Self::ChatMl => Some(CHATML),
            Self::Llama2Inst => Some(LLAMA2_INST),
            Self::Zephyr => Some(ZEPHYR),
            Self::Vicuna => Some(VICUNA),
            Self::Auto | Self::Chat | Self::Plain | Self::Custom(_) => None,
        }
    }
}

/// A system message replaces the first sentence.
const ALPACA: &str = "\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set ns.system = message.content -%}
{%- elif message.role == 'user' -%}
{%- if not loop.first and loop.previtem.role == 'assistant' -%}
{{ '\\n\\n' }}
{%- elif ns.system -%}
{{ ns.system + '\\n\\n' }}
{%- elif message.input -%}
{{ 'Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.\\n\\n' }}
{%- else -%}
{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\\n\\n' }}
{%- endif -%}
{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- if message.input -%}
{{ '### Input:\\n' + message.input + '\\n\\n' }}
{%- endif -%}
{%- elif message.role == 'assistant' -%}
{{ '### Response:\\n' + message.content + eos_token }}
{%- else -%}
{{ raise_exception('alpaca has no messages of tools') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '### Response:\\n' }}
{%- endif -%}";

const CHATML: &str = "\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}";

const LLAMA2_INST: &str = "\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set ns.system = '<<SYS>>\\n' + message.content.strip() + '\\n<</SYS>>\\n\\n' -%}
{%- elif message.role == 'user' -%}
{{ bos_token }}{{ '[INST] ' + ns.system + message.content.strip() + ' [/INST]' }}
{%- set ns.system = '' -%}
{%- elif message.role == 'assistant' -%}
{{ ' ' + message.content.strip() + ' ' + eos_token }}
{%- else -%}
{{ raise_exception('llama2-inst has no messages of tools') }}
{%- endif -%}
{%- endfor -%}";

const ZEPHYR: &str = "\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|assistant|>\\n' }}
{%- endif -%}";

const VICUNA: &str = "\
{%- if not messages or messages[0].role != 'system' -%}
{{ bos_token }}{{ \"A chat between a curious user and an artificial intelligence assistant. \
The assistant gives helpful, detailed, and polite answers to the user's questions. \" }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ bos_token }}{{ message.content + ' ' }}
{%- elif message.role == 'user' -%}
{{ 'USER: ' + message.content.strip() + ' ' }}
{%- elif message.role == 'assistant' -%}
{{ 'ASSISTANT: ' + message.content.strip() + eos_token }}
{%- else -%}
{{ raise_exception('vicuna has no messages of tools') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ 'ASSISTANT:' }}
{%- endif -%}";

/// A prompt in words of one's own: text with `{column}` in it. `{{` and `}}` are braces; `\n`, `\t` and `\\` are what they
/// are in most languages, since shells pass them on as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomTemplate {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
}

impl CustomTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// A brace without its other half, a column without a name, or no column at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' => match characters.next() {
                    Some('n') => plain.push('\n'),
                    Some('t') => plain.push('\t'),
                    Some('\\') => plain.push('\\'),
                    Some(other) => plain.extend(['\\', other]),
                    None => plain.push('\\'),
                },
                '{' | '}' if characters.peek() == Some(&character) => {
                    characters.next();
                    plain.push(character);
                }
                '{' => {
                    let mut name = String::new();
                    loop {
                        match characters.next() {
                            Some('}') => break,
                            Some(character) if character != '{' => name.push(character),
                            _ => {
                                return Err(format!(
                                    "template {text:?}: a {{ is not closed (write {{{{ for a brace)"
                                ));
                            }
                        }
                    }
                    if name.trim().is_empty() {
                        return Err(format!("template {text:?}: {{}} names no column"));
                    }
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(Part::Column(name.trim().to_owned()));
                }
                '}' => return Err(format!("template {text:?}: a }} is not opened (write }}}} for a brace)")),
                other => plain.push(other),
            }
        }
        if !parts.iter().any(|part| matches!(part, Part::Column(_))) {
            return Err(format!("template {text:?} names no {{column}}"));
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { parts })
    }

    /// The columns that it names.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The prompt of a row.
    pub(crate) fn fill(&self, columns: &Map<String, Value>) -> Result<String, Fault> {
        let mut prompt = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => prompt.push_str(text),
                Part::Column(name) => match columns.get(name) {
                    Some(Value::String(text)) => prompt.push_str(text),
                    Some(value @ (Value::Number(_) | Value::Bool(_))) => prompt.push_str(&value.to_string()),
                    None => return Err(Fault::key(name, "is missing, and the prompt's template names it")),
                    Some(other) => {
                        return Err(Fault::key(name, format!("is {}, not text", type_name(other))));
                    }
                },
            }
        }
        Ok(prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str, columns: Value) -> Result<String, String> {
        let Value::Object(columns) = columns else { panic!("an object") };
        CustomTemplate::parse(template)?.fill(&columns).map_err(|fault| fault.message)
    }

    #[test]
    fn own_words() {
        let columns = serde_json::json!({"question": "2+2?", "n": 7, "list": []});
        assert_eq!(fill(r"### Q: {question}\n### A:", columns.clone()).unwrap(), "### Q: 2+2?\n### A:");
        assert_eq!(fill(r"{{{n}}}\\n\q{ n }", columns.clone()).unwrap(), "{7}\\n\\q7");
        for wrong in ["{", "{a{b}}", "}", "{}", "{ }", "no column"] {
            assert!(CustomTemplate::parse(wrong).is_err(), "{wrong}");
        }
        assert!(fill("{answer}", columns.clone()).unwrap_err().contains("\"answer\" is missing"));
        assert!(fill("{list}", columns).unwrap_err().contains("is a list"));
    }

    #[test]
    fn names_and_texts() {
        assert_eq!("alpaca".parse(), Ok(PromptTemplate::Alpaca));
        assert!(matches!("Q: {q}".parse(), Ok(PromptTemplate::Custom(_))));
        assert!("alpacca".parse::<PromptTemplate>().unwrap_err().contains("llama2-inst"));
    }
}
