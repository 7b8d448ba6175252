//! Where templates come from, their marks and their faults. What they render is compared with transformers in
//! tests/chat_templates.rs.

use std::fs;

use super::*;
use crate::message::{Message, Role};
use crate::testing;

fn conversation() -> Conversation {
    vec![Message::new(Role::User, "hi"), Message::new(Role::Assistant, "hé 🙂"), Message::new(Role::User, "bye")].into()
}

#[test]
fn marks_give_the_bytes_of_the_answers() {
    let template = testing::template(testing::MARKED);
    assert!(template.has_generation_marks());
    let rendered = template.render_with_spans(&conversation(), true).unwrap();
    assert!(!generation::contains_mark(&rendered.text));
    let marked: Vec<&str> = rendered.spans.iter().map(|span| &rendered.text[span.clone()]).collect();
    assert_eq!(marked, ["hé 🙂<|im_end|>"]);
    assert!(!testing::template(testing::CHATML).has_generation_marks());
}

#[test]
fn white_space_signs_of_marks_keep_their_meaning() {
    for (source, expected) in [
        ("a {% generation %}\n b {% endgeneration %}\n c", "a  b  c"),
        ("a {%- generation -%}\n b {%- endgeneration -%}\n c", "abc"),
        ("a\n  {% generation %}b\n  {% endgeneration %}\n c", "a\nb\n c"),
        ("a\n  {%+ generation +%}\nb{%+ endgeneration +%}\n c", "a\n  \nb\n c"),
        ("a{%generation%}b{%  endgeneration\n%}c", "abc"),
        ("a\r\nb{% if true %}\r\nc{% endif %}\rd\re", "a\nbcd\ne"),
        ("{# {% generation %} #}a{% generation %}{% endgeneration %}", "a"),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
    ] {
        assert_eq!(testing::template(source).render(&conversation(), false).unwrap(), expected, "{source}");
    }
}

#[test]
fn marks_that_do_not_pair_are_refused_with_their_line() {
    for (source, expected) in [
        ("a {%} b %}", "chat template: "),
        ("a\n{% generation %}{% generation %}", "`generation` inside `generation` (line 2"),
        ("\n\n{% endgeneration %}", "`endgeneration` without `generation` (line 3"),
        ("{% generation %}", "`generation` without `endgeneration`"),
        ("{% if true %}{% generation %}{% endif %}{% endgeneration %}", "chat template: "),
    ] {
        let error = ChatTemplate::from_source(source, SpecialTokens::default()).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_message_cannot_forge_a_mark() {
    let messages = Conversation::from(vec![Message::new(Role::User, "\u{FDD0}mine\u{FDD1}")]);
    let error = testing::template(testing::MARKED).render(&messages, false).unwrap_err().to_string();
    assert!(error.contains("U+FDD0"), "{error}");
    assert!(testing::template(testing::CHATML).render(&messages, false).unwrap().contains("\u{FDD0}mine"));
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let source = "{% macro f(n) %}{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}{% endmacro %}\
                  {{ f(1) }}";
    let error = testing::template(source).render(&conversation(), false).unwrap_err().to_string();
    assert!(error.contains("does not come to an end"), "{error}");
}

#[test]
fn exceptions_of_the_template_come_with_its_line() {
    let source = "{% if messages[0].role == 'user' %}\n{{ raise_exception('no users here') }}\n{% endif %}";
    let error = testing::template(source).render(&conversation(), false).unwrap_err().to_string();
    assert_eq!(error, "chat template: no users here (line 2 of the template)");
    let error = ChatTemplate::from_source("a\n{% if %}", SpecialTokens::default()).err().unwrap().to_string();
    assert!(error.contains("(line 2 of the template)\nhint: "), "{error}");
}

#[test]
fn templates_are_found_where_transformers_finds_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let text = || ChatTemplate::load(folder.path()).and_then(|template| template.render(&conversation(), false));
    let error = text().unwrap_err().to_string();
    assert!(error.contains("this model has no chat template\nhint: "), "{error}");
    let list = r#"[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "list{{ eos_token }}"}]"#;
    write("tokenizer_config.json", &format!(r#"{{"chat_template": {list}, "eos_token": "</s>"}}"#));
    assert_eq!(text().unwrap(), "list</s>");
    write("tokenizer_config.json", r#"{"chat_template": "string{{ eos_token }}", "eos_token": {"content": "!"}}"#);
    assert_eq!(text().unwrap(), "string!");
    write("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(text().unwrap(), "json");
    write("chat_template.jinja", "jinja{{ eos_token }}\n");
    assert_eq!(text().unwrap(), "jinja!");
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    write("chat_template.json", r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#);
    assert!(text().unwrap_err().to_string().contains("has no default template"));
}
