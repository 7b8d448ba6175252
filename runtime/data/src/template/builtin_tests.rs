//! The built-in templates: their masks, with marks and without, and whom they fit.

use serde_json::json;

use super::*;
use crate::mask;
use crate::message::{Conversation, Message, Role};
use crate::template::{ChatTemplate, TemplateSource};
use crate::testing;

fn special() -> SpecialTokens {
    SpecialTokens::new([("bos_token", "<s>"), ("eos_token", "</s>")])
}

fn compiled(text: &str) -> ChatTemplate {
    ChatTemplate::from_source(text, special()).unwrap()
}

/// The same template without its marks.
fn without_marks(text: &str) -> String {
    let mut plain = text.to_string();
    for tag in ["{%- generation %}", "{%- endgeneration %}"] {
        assert!(plain.contains(tag), "{text}");
        plain = plain.replace(tag, "");
    }
    plain
}

/// Conversations of all lengths, some after a system message, with texts that look like markup.
fn conversations() -> Vec<Conversation> {
    let texts =
        ["Hi", "hé 🙂", " spaces ", "two\nlines\n", "{% raw %}", "[INST]", "### Response:", "user", "x", "</think>"];
    let mut all = Vec::new();
    for length in 1..=texts.len() {
        for system in [false, true] {
            let mut messages = Vec::new();
            if system {
                messages.push(Message::new(Role::System, "Be kind."));
            }
            for (index, text) in texts[..length].iter().enumerate() {
                let role = if index % 2 == 0 { Role::User } else { Role::Assistant };
                messages.push(Message::new(role, *text));
            }
            all.push(Conversation::from(messages));
        }
    }
    all
}

#[test]
fn turn_by_turn_the_answers_are_those_that_the_marks_enclose() {
    let markers: Vec<String> =
        ["<s>", "</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"].map(str::to_string).to_vec();
    for builtin in &BUILTIN {
        let (marked, plain) = (compiled(builtin.text), compiled(&without_marks(builtin.text)));
        assert!(marked.has_generation_marks() && !plain.has_generation_marks());
        for conversation in conversations() {
            let full = marked.render_with_spans(&conversation, false).unwrap();
            assert_eq!(plain.render(&conversation, false).unwrap(), full.text, "{}", builtin.name);
            let found = mask::assistant_spans(&plain, &markers, &conversation, &full).unwrap();
            assert_eq!(found, full.spans, "{} on {:?}", builtin.name, full.text);
            let answers = conversation.messages.iter().filter(|message| message.is_assistant());
            assert_eq!(full.spans.len(), answers.clone().count(), "{}", builtin.name);
            for (span, message) in full.spans.iter().zip(answers) {
                let text = &full.text[span.clone()];
                assert!(text.contains(message.content().trim()), "{text:?}");
                assert!(mask::marker_at_end(text, &markers).is_some(), "{text:?} ends no turn");
            }
        }
    }
}

#[test]
fn tools_and_other_roles_are_refused() {
    for builtin in &BUILTIN {
        let template = compiled(builtin.text);
        let tool = vec![Message::new(Role::User, "a"), Message::new(Role::Tool, "b")];
        let error = template.render(&tool.into(), false).unwrap_err().to_string();
        assert!(error.contains(builtin.name), "{error}");
        let mut offered = Conversation::from(vec![Message::new(Role::User, "a")]);
        offered.tools = vec![json!({"name": "f"})];
        let error = template.render(&offered, false).unwrap_err().to_string();
        assert!(error.contains("does not read `tools`"), "{error}");
    }
}

#[test]
fn a_template_whose_tokens_the_tokenizer_lacks_is_refused_with_those_that_fit() {
    let tokenizer = testing::tokenizer();
    let fits = |name: &str, special: &SpecialTokens| find(name).unwrap().check(&tokenizer, special);
    for name in ["chatml", "llama3", "zephyr", "alpaca"] {
        fits(name, &special()).unwrap();
    }
    let error = fits("gemma", &special()).unwrap_err().to_string();
    assert!(error.contains("has no <start_of_turn>, no <end_of_turn>"), "{error}");
    assert!(error.contains("hint: choose another one that fits (chatml, llama3, zephyr, alpaca)"), "{error}");
    let error = fits("alpaca", &SpecialTokens::default()).unwrap_err().to_string();
    assert!(error.contains("has no eos_token"), "{error}");
}

#[test]
fn the_chosen_end_of_turn_counts_as_the_tokenizers() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), testing::tokenizer_json()).unwrap();
    let named = |name: &str, eos_token| TemplateSource::named(Path::new(name), folder.path(), eos_token);
    let told = named("zephyr", None).unwrap_err().to_string();
    assert!(told.contains("has no eos_token\nhint: choose another one that fits (chatml"), "{told}");
    assert_eq!(named("zephyr", Some("</s>")).unwrap().text, find("zephyr").unwrap().text);
    named("chatml", Some("<|im_end|>")).unwrap();
    let told = named("chatml", Some("<end>")).unwrap_err().to_string();
    assert!(told.contains("eos_token is \"<end>\", which is no token of this tokenizer"), "{told}");
}
