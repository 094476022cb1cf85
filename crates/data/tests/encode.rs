//! Records as tokens: the border of prompt and answer, the ends of turns, weights, templates, truncation.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../text/tests/support/mod.rs"]
mod support;

use wardrobe_data::{
    CustomTemplate, DataError, DataOptions, Dataset, DropReason, Encoded, Encoder, Example, LossOn,
    PromptTemplate, Record, Truncation,
};
use wardrobe_text::{ChatInput, ChatTemplate, Message, TemplateLimits, TokenId, Tokenizer};

/// As ChatML, with the marks of the small vocabulary; the white space after the end is part of no answer.
const TURNS: &str = "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}";
/// Leaves out all answers but the last.
const FORGETFUL: &str = "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}";
/// Ends answers with words alone.
const ENDLESS: &str = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(support::byte_level_vocab()).unwrap()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, TemplateLimits::default()).unwrap()
}

fn encode_with(source: Option<&str>, record: &Record, options: &DataOptions) -> Result<Encoded, String> {
    let (tokenizer, template) = (tokenizer(), source.map(template));
    let encoder = Encoder::new(&tokenizer, template.as_ref(), options).unwrap();
    encoder.encode(record)
}

#[track_caller]
fn example(source: Option<&str>, record: &Record, options: &DataOptions) -> Example {
    match encode_with(source, record, options).unwrap() {
        Encoded::Example(example) => example,
        dropped => panic!("{dropped:?}"),
    }
}

/// The text of an example, with what is learnt in brackets.
fn marked(example: &Example) -> String {
    let tokenizer = tokenizer();
    let mut text = String::new();
    let mut is_open = false;
    for (id, learnt) in example.token_ids.iter().zip(&example.loss) {
        match (is_open, *learnt) {
            (false, true) => text.push('['),
            (true, false) => text.push(']'),
            _ => {}
        }
        is_open = *learnt;
        text.push_str(&tokenizer.decode(&[*id], false).unwrap());
    }
    if is_open { text + "]" } else { text }
}

fn custom(text: &str) -> PromptTemplate {
    PromptTemplate::Custom(CustomTemplate::parse(text).unwrap())
}

#[test]
fn prompts_are_those_of_serving_and_answers_end_once() {
    let tokenizer = tokenizer();
    let chat_template = template(TURNS);
    let conversations: [&[(&str, &str)]; 4] = [
        &[("user", "the hello"), ("assistant", "and the")],
        &[("system", "in"), ("user", "the <|end|> hello"), ("assistant", " the")],
        // A merge of \n and what follows must not happen over the border.
        &[("user", "12"), ("assistant", "12"), ("user", " the"), ("assistant", "hello")],
        &[("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d"), ("user", "unanswered")],
    ];
    for messages in conversations {
        let example = example(Some(TURNS), &Record::chat(messages.iter().copied()), &DataOptions::default());
        for (idx, (_, answer)) in messages.iter().enumerate().filter(|(_, (role, _))| *role == "assistant") {
            let before: Vec<Message> =
                messages[..idx].iter().map(|(role, text)| Message::text(*role, *text)).collect();
            let input = ChatInput { messages: &before, add_generation_prompt: true, ..ChatInput::default() };
            let prompt = tokenizer.encode(&chat_template.render(&input).unwrap(), false).unwrap();
            let mut answer = tokenizer.encode(answer, false).unwrap();
            answer.push(TokenId(1));
            let (start, end) = (prompt.len(), prompt.len() + answer.len());
            assert_eq!(example.token_ids[..start], prompt, "{messages:?}");
            assert_eq!(example.token_ids[start..end], answer, "{messages:?}");
            assert!(example.loss[start..end].iter().all(|learnt| *learnt), "{messages:?}");
            assert!(!example.loss[start - 1]);
        }
        assert_eq!(example.token_ids.last(), Some(&TokenId(1)), "nothing follows the last answer");
        assert!(example.loss.ends_with(&[true]));
    }
}

#[test]
fn no_token_lies_across_the_border() {
    // "hello" is one token, "hell" and "o" are two.
    let record = Record::Formatted { prompt: "hell".into(), completion: "o".into() };
    let example = example(None, &record, &DataOptions { template: custom("{x}"), ..DataOptions::default() });
    assert_eq!(marked(&example), "hell[o<|end|>]");
    let tokenizer = tokenizer();
    let (prompt, all) = (tokenizer.encode("hell", true).unwrap(), tokenizer.encode("hello", true).unwrap());
    assert!(!all.starts_with(&prompt), "the vocabulary would join them");
    assert!(example.token_ids.starts_with(&prompt));
}

#[test]
fn weights_and_parts() {
    let options = DataOptions::default();
    let everything = DataOptions { loss: LossOn::Everything, ..DataOptions::default() };
    let mut record = Record::chat([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    let all = "<|start|>user\na<|end|>\n<|start|>assistant\n[b<|end|>]\n<|start|>user\nc<|end|>\n<|start|>assistant\n[d<|end|>]";
    assert_eq!(marked(&example(Some(TURNS), &record, &options)), all);
    assert_eq!(
        marked(&example(Some(TURNS), &record, &everything)),
        "<|start|>[user\na<|end|>\n<|start|>assistant\nb<|end|>\n<|start|>user\nc<|end|>\n<|start|>assistant\nd<|end|>\n]"
    );
    let Record::Chat(chat) = &mut record else { panic!() };
    chat.messages[1].is_learnt = false;
    assert_eq!(marked(&example(Some(TURNS), &record, &options)), all.replacen("[b<|end|>]", "b<|end|>", 1));
    assert_eq!(
        marked(&example(Some(TURNS), &record, &everything)),
        "<|start|>[user\na<|end|>\n<|start|>assistant\n]b<|end|>[\n<|start|>user\nc<|end|>\n<|start|>assistant\nd<|end|>\n]"
    );
    let Record::Chat(chat) = &mut record else { panic!() };
    chat.messages[3].is_learnt = false;
    let dropped = encode_with(Some(TURNS), &record, &options).unwrap();
    assert_eq!(dropped, Encoded::Dropped(DropReason::NothingLearnt));
}

#[test]
fn an_end_that_was_written_out_is_not_doubled() {
    for completion in ["and", "and<|end|>", "and<|end|>\n", "and<|end|><|end|>"] {
        let chat = example(Some(TURNS), &Record::pair("a", completion), &DataOptions::default());
        assert!(marked(&chat).ends_with("\n[and<|end|>]"), "{}", marked(&chat));
        let plain = DataOptions { template: PromptTemplate::Plain, ..DataOptions::default() };
        let plain = example(None, &Record::pair("a", completion), &plain);
        assert_eq!(marked(&plain), "a[and<|end|>]");
        let text = example(None, &Record::Text(completion.into()), &DataOptions::default());
        assert!(marked(&text).ends_with("<|end|>]") && text.num_supervised_tokens() == text.loss.len() - 1);
        assert_eq!(text.token_ids.iter().filter(|id| **id == TokenId(1)).count(), 1);
    }
}

#[test]
fn templates_that_do_not_build_up_are_refused_by_name() {
    let two = Record::chat([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    let error = encode_with(Some(FORGETFUL), &two, &DataOptions::default()).unwrap_err();
    assert!(error.contains("messages[3]") && error.contains("differently"), "{error}");
    let mut last = two.clone();
    let Record::Chat(chat) = &mut last else { panic!() };
    chat.messages[1].is_learnt = false;
    let example_ = example(Some(FORGETFUL), &last, &DataOptions::default());
    assert!(marked(&example_).ends_with("\n[d<|end|>]"));
    let everything = DataOptions { loss: LossOn::Everything, ..DataOptions::default() };
    assert!(!marked(&example(Some(FORGETFUL), &two, &everything)).contains('b'));

    let error = encode_with(Some(ENDLESS), &two, &DataOptions::default()).unwrap_err();
    assert!(error.contains("messages[1]") && error.contains("no special token"), "{error}");
    let one = example(Some(ENDLESS), &Record::pair("a", "b"), &DataOptions::default());
    assert_eq!(marked(&one), "user: a\nassistant: [b\n<|end|>]");
    let error = encode_with(None, &two, &DataOptions::default()).unwrap_err();
    assert!(error.contains("need a chat template"), "{error}");
}

#[test]
fn usual_templates() {
    let record: Record = Record::Pair(wardrobe_data::Pair {
        system: None,
        prompt: "Q".into(),
        input: Some("I".into()),
        completion: "A".into(),
    });
    let marked_as = |template: PromptTemplate, record: &Record| {
        marked(&example(None, record, &DataOptions { template, ..DataOptions::default() }))
    };
    // The texts are those that the projects behind these formats publish.
    assert_eq!(
        marked_as(PromptTemplate::Alpaca, &record),
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\nQ\n\n### Input:\nI\n\n### Response:\n[A<|end|>]"
    );
    assert_eq!(
        marked_as(PromptTemplate::Alpaca, &Record::pair("Q", "A")),
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\nQ\n\n### Response:\n[A<|end|>]"
    );
    assert_eq!(
        marked_as(PromptTemplate::Zephyr, &record),
        "<|user|>\nQ\n\nI<|end|>\n<|assistant|>\n[A<|end|>]"
    );
    assert_eq!(marked_as(PromptTemplate::Plain, &record), "Q\n\nI[A<|end|>]");
    let turns =
        Record::chat([("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B")]);
    assert_eq!(
        marked_as(PromptTemplate::Llama2Inst, &turns),
        "<|start|>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST][ A <|end|>]<|start|>[INST] R [/INST][ B <|end|>]"
    );
    assert_eq!(
        marked_as(PromptTemplate::Vicuna, &turns),
        "<|start|>S USER: Q ASSISTANT:[ A<|end|>]USER: R ASSISTANT:[ B<|end|>]"
    );
    // Its end is no token of this vocabulary, so that only one answer can be learnt.
    assert!(
        marked_as(PromptTemplate::ChatMl, &record).ends_with("<|im_start|>assistant\n[A<|im_end|>\n<|end|>]")
    );
}

#[test]
fn sentencepiece_answers_begin_as_the_model_would_write_them() {
    let tokenizer = Tokenizer::from_gguf(support::sentencepiece_vocab()).unwrap();
    let options = DataOptions { template: PromptTemplate::Llama2Inst, ..DataOptions::default() };
    let encoder = Encoder::new(&tokenizer, None, &options).unwrap();
    let Encoded::Example(example) = encoder.encode(&Record::pair("he", "the hello")).unwrap() else {
        panic!()
    };
    let learnt = example.token_ids.iter().zip(&example.loss).filter(|(_, learnt)| **learnt);
    let pieces: Vec<_> = learnt.map(|(id, _)| tokenizer.token_str(*id).unwrap().into_owned()).collect();
    // One space before the first word, not two; the vocabulary joins it to "the".
    assert_eq!(pieces.first().map(String::as_str), Some(" the"));
    assert_eq!(pieces.last().map(String::as_str), Some("</s>"));
    let plain = DataOptions { template: PromptTemplate::Plain, ..DataOptions::default() };
    let encoder = Encoder::new(&tokenizer, None, &plain).unwrap();
    let Encoded::Example(example) = encoder.encode(&Record::pair("he", "llo")).unwrap() else { panic!() };
    let text = tokenizer.decode(&example.token_ids, true).unwrap();
    assert_eq!(text, "hello");
    assert_eq!(example.token_ids[0], TokenId(1), "serving begins prompts of this kind so");
}

#[test]
fn truncation_and_the_mask() {
    let record = Record::Formatted { prompt: "xyz".into(), completion: "abc".into() };
    let with = |truncation, max_tokens| {
        let options = DataOptions {
            truncation,
            max_tokens: Some(max_tokens),
            template: custom("{x}"),
            ..DataOptions::default()
        };
        encode_with(None, &record, &options)
    };
    let shown = |truncation, max_tokens| match with(truncation, max_tokens).unwrap() {
        Encoded::Example(example) => marked(&example),
        Encoded::Dropped(reason) => reason.to_string(),
    };
    assert_eq!(shown(Truncation::Drop, 7), "xyz[abc<|end|>]");
    assert_eq!(shown(Truncation::Drop, 6), "too long");
    assert_eq!(shown(Truncation::Left, 6), "yz[abc<|end|>]");
    assert_eq!(shown(Truncation::Left, 4), "a[bc<|end|>]");
    assert_eq!(shown(Truncation::Right, 5), "xyz[ab]");
    assert_eq!(shown(Truncation::Right, 3), "all that is learnt was cut off");
    assert!(with(Truncation::Error, 6).unwrap_err().contains("7 tokens"));
}

#[test]
fn data_sets_count_and_have_a_digest() {
    let tokenizer = tokenizer();
    let records =
        || vec![Record::pair("a", "bc"), Record::pair("a", "the and in the"), Record::pair("in", "d")];
    let options =
        DataOptions { template: PromptTemplate::Plain, max_tokens: Some(4), ..DataOptions::default() };
    let set = Dataset::from_records(records(), &tokenizer, None, &options).unwrap();
    let counts = set.counts();
    assert_eq!((counts.records, counts.examples, counts.num_dropped()), (3, 2, 1));
    assert_eq!((counts.tokens, counts.supervised_tokens, counts.longest_tokens), (7, 5, 4));
    assert_eq!(counts.dropped[&DropReason::TooLong], 1);
    assert_eq!(counts.to_string(), "3 records, 2 examples, 1 left out (too long)");
    let same = Dataset::from_examples(set.examples().to_vec()).unwrap();
    assert_eq!(set.digest(), same.digest());
    let mut others = vec![set.examples().to_vec(); 3];
    others[0].reverse();
    others[1][0].loss[1] = !others[1][0].loss[1];
    others[2][1].token_ids[0] = TokenId(9);
    for other in others {
        assert_ne!(Dataset::from_examples(other).unwrap().digest(), set.digest());
    }
    let short = DataOptions { max_tokens: Some(2), ..options };
    let error = Dataset::from_records(records(), &tokenizer, None, &short).unwrap_err();
    assert!(error.to_string().contains("3 left out (too long)"), "{error}");
    let error =
        Dataset::from_records([Record::chat([("user", "a"), ("assistant", "b")])], &tokenizer, None, &short);
    assert!(matches!(error.unwrap_err(), DataError::InProcess { number: 1, .. }));
}

#[test]
fn examples_that_cannot_be_learnt_are_refused() {
    let ids = |len: u32| (0..len).map(TokenId).collect::<Vec<_>>();
    for (token_ids, loss) in [
        (ids(3), vec![false, true]),
        (ids(2), vec![true, true]),
        (ids(2), vec![false, false]),
        (ids(0), vec![]),
    ] {
        let error = Dataset::from_examples(vec![
            Example { token_ids: ids(2), loss: vec![false, true] },
            Example { token_ids, loss },
        ]);
        assert!(matches!(error, Err(DataError::Example { idx: 1, .. })));
    }
    assert!(matches!(Dataset::from_examples(Vec::new()), Err(DataError::NoExamples(_))));
}

#[test]
fn parts_of_a_data_set_share_no_example() {
    let example = |id: u32| Example { token_ids: vec![TokenId(0), TokenId(id)], loss: vec![false, true] };
    // Every example three times.
    let set = Dataset::from_examples((0..30).map(|id| example(id % 10)).collect()).unwrap();
    let (train, test) = set.clone().split(10, 1).unwrap();
    assert_eq!((train.len(), test.len()), (21, 9));
    assert!(test.examples().iter().all(|example| !train.examples().contains(example)));
    let (_, again) = set.clone().split(10, 1).unwrap();
    assert_eq!(again.digest(), test.digest());
    assert!((2..9).any(|seed| set.clone().split(10, seed).unwrap().1.digest() != test.digest()));
    assert!(set.split(2, 1).is_err(), "two are less than the smallest set of equal ones");
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let tokenizer = tokenizer();
    let new = |options: &DataOptions| Encoder::new(&tokenizer, None, options).map(drop);
    let chat = DataOptions { template: PromptTemplate::Chat, ..DataOptions::default() };
    assert!(new(&chat).unwrap_err().to_string().contains("no chat template"));
    assert!(new(&DataOptions { max_tokens: Some(1), ..DataOptions::default() }).is_err());
    let nothing = support::byte_level_vocab();
    let endless = Tokenizer::from_gguf(wardrobe_text::GgufVocab { eos_id: None, ..nothing });
    if let Ok(endless) = endless
        && endless.eos().is_none()
    {
        assert!(Encoder::new(&endless, None, &DataOptions::default()).is_err());
    }
}
