//! Each finding of a row's text, with the row beside it of which it is not told.

use super::*;
use crate::message::{Conversation, Role};

/// What is found in a row: names and reasons.
fn told(row: &Row) -> Vec<(&'static str, String)> {
    findings(row, &Words::of(row), "messages").into_iter().map(|(kind, reason)| (kind.name(), reason)).collect()
}

fn names(row: &Row) -> Vec<&'static str> {
    told(row).into_iter().map(|(name, _)| name).collect()
}

fn reason(row: &Row, kind: FindingKind) -> Option<String> {
    told(row).into_iter().find(|(name, _)| *name == kind.name()).map(|(_, reason)| reason)
}

fn completion(prompt: &str, completion: &str) -> Row {
    Row::Completion { prompt: prompt.into(), completion: completion.into() }
}

fn conversation(messages: &[(Role, &str)]) -> Row {
    let messages: Vec<Message> = messages.iter().map(|(role, text)| Message::new(*role, *text)).collect();
    Row::Conversation(messages.into())
}

/// As a file has them.
fn of_json(messages: serde_json::Value) -> Row {
    let messages = crate::message::parse_messages(messages).unwrap();
    Row::Conversation(Conversation::from(messages))
}

const NINETEEN: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen \
                        seventeen eighteen nineteen";

#[test]
fn answers_under_twenty_words_are_short() {
    let short = completion("Count from one, please.", NINETEEN);
    assert_eq!(told(&short), [("short", "19 words".to_owned())]);
    let long = completion("Count from one, please.", &format!("{NINETEEN}, twenty!"));
    assert_eq!(names(&long), Vec::<&str>::new());
    assert_eq!(reason(&completion("Say one.", "One."), FindingKind::Short).as_deref(), Some("1 word"));
    // The answers of a conversation count together: a word of thanks at its end is no short answer.
    let turns = [(Role::User, "Count from one."), (Role::Assistant, NINETEEN), (Role::User, "Thanks!")];
    assert_eq!(names(&conversation(&[&turns[..], &[(Role::Assistant, "Welcome.")]].concat())), Vec::<&str>::new());
    // Scripts without blanks between words: each ideograph is one.
    let chinese = "今天天气很好我们去公园散步看花吃饭然后回家吧";
    assert_eq!(names(&completion("今天做什么？", chinese)), Vec::<&str>::new());
    // An answer of no words at all is one, and short.
    assert_eq!(reason(&completion("Smile!", "🙂"), FindingKind::Short).as_deref(), Some("0 words"));
}

#[test]
fn answers_that_share_no_word_with_what_is_asked_are_unrelated() {
    let asked = "Which colour has the sky?";
    assert_eq!(names(&completion(asked, "Bananas grow quickly.")), ["short", "unrelated"]);
    // Neither case nor punctuation matter.
    assert_eq!(names(&completion(asked, "BLUE: \"Sky\".")), ["short"]);
    let turns = [(Role::System, "Bananas!"), (Role::User, asked), (Role::Assistant, "Bananas grow quickly.")];
    assert_eq!(names(&conversation(&turns)), ["short", "unrelated"], "what the system says is not asked");
    let row = Row::Instruction {
        system: None,
        instruction: "Translate.".into(),
        input: Some("Das Haus".into()),
        response: "The Haus".into(),
    };
    assert_eq!(names(&row), ["short"], "the input is asked too");
}

#[test]
fn calls_of_tools_are_not_judged_by_their_words() {
    let call = serde_json::json!({"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}});
    let row = of_json(serde_json::json!([
        {"role": "user", "content": "Will it rain in Oslo?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "Yes."},
    ]));
    assert_eq!(told(&row), []);
}

#[test]
fn an_empty_list_of_calls_is_no_call() {
    let row = of_json(serde_json::json!([
        {"role": "user", "content": "Will it rain?"},
        {"role": "assistant", "content": "", "tool_calls": []},
    ]));
    assert_eq!(told(&row), [("empty", "messages[1], the assistant's, is empty".to_owned())]);
}

#[test]
fn a_message_is_named_by_its_own_column() {
    let blank = vec![Message::new(Role::User, "x"), Message::new(Role::Assistant, " ")];
    let conversation = Row::Conversation(blank.clone().into());
    assert_eq!(empty(&conversation, "conversations").as_deref(), Some("conversations[1], the assistant's, is empty"));
    let prompt = Conversation::from(vec![Message::new(Role::System, "x"), Message::new(Role::User, "x")]);
    let row = Row::Exchange { prompt, completion: blank };
    assert_eq!(empty(&row, "prompt").as_deref(), Some("completion[1], the assistant's, is empty"));
    let expected = "prompt[1] and completion[0] are both the user's";
    assert_eq!(reason(&row, FindingKind::RoleOrder).as_deref(), Some(expected));
}

#[test]
fn empty_texts_are_named() {
    let found = |row: &Row| reason(row, FindingKind::Empty);
    assert_eq!(found(&completion(" ", "x")).as_deref(), Some("the prompt is empty"));
    assert_eq!(told(&completion("x", "\n")), [("empty", "the completion is empty".to_owned())]);
    assert_eq!(found(&Row::Text("  ".into())).as_deref(), Some("the text is empty"));
    let instruction = |instruction: &str, input: Option<&str>, response: &str| Row::Instruction {
        system: None,
        instruction: instruction.into(),
        input: input.map(str::to_owned),
        response: response.into(),
    };
    assert_eq!(found(&instruction("", None, "x")).as_deref(), Some("the instruction is empty"));
    assert_eq!(found(&instruction("", Some("x"), "x")), None);
    assert_eq!(found(&instruction("x", None, "")).as_deref(), Some("the response is empty"));
    let row = conversation(&[(Role::User, "x"), (Role::Assistant, " ")]);
    assert_eq!(told(&row), [("empty", "messages[1], the assistant's, is empty".to_owned())]);
}

#[test]
fn roles_stand_in_turns() {
    use Role::{Assistant, System, Tool, User};
    let order = |roles: &[Role]| {
        let messages: Vec<(Role, &str)> = roles.iter().map(|&role| (role, "x")).collect();
        reason(&conversation(&messages), FindingKind::RoleOrder)
    };
    for roles in [
        &[User, Assistant][..],
        &[System, User, Assistant],
        &[User, Assistant, User, Assistant],
        &[User, Assistant, Tool, Tool, Assistant],
    ] {
        assert_eq!(order(roles), None, "{roles:?}");
    }
    for (roles, expected) in [
        (&[Assistant][..], "messages[0] is the assistant's, before the user spoke"),
        (&[System, Assistant], "messages[1] is the assistant's, before the user spoke"),
        (&[User, System, Assistant], "messages[1] is the system's, after others"),
        (&[User, User, Assistant], "messages[0] and messages[1] are both the user's"),
        (&[User, Assistant, Assistant], "messages[1] and messages[2] are both the assistant's"),
        (&[User, Tool, Assistant], "messages[1] is a tool's, and no call stands before it"),
        (&[User, Assistant, User], "it ends with the user's message, which nothing answers"),
        (&[System], "it ends with the system's message, which nothing answers"),
    ] {
        assert_eq!(order(roles).as_deref(), Some(expected), "{roles:?}");
    }
    let row = of_json(serde_json::json!([{"role": "critic", "content": "x"}]));
    let expected = "messages[0]: the role \"critic\" is not system, user, assistant or tool";
    assert_eq!(reason(&row, FindingKind::RoleOrder).as_deref(), Some(expected));
}
