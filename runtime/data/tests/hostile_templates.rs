//! Templates that come from anywhere: whatever they hold, there is a text or an error, soon, in bounded memory.

use std::time::{Duration, Instant};

use serde_json::Value;
use zerofold_data::{ChatTemplate, Conversation, Message, Role, SpecialTokens};

fn conversation() -> Conversation {
    vec![Message::new(Role::User, "What is 2+2?"), Message::new(Role::Assistant, "<think>hm</think>Four: 4.")].into()
}

fn render(source: &str) -> Result<String, String> {
    let special = SpecialTokens::new([("bos_token", "<s>"), ("eos_token", "</s>")]);
    let template = ChatTemplate::from_source(source, special).map_err(|error| error.to_string())?;
    template.render(&conversation(), true).map_err(|error| error.to_string())
}

/// Pseudo-random numbers (splitmix64), the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}

/// What damage is made of: signs of the language, large and small numbers, and what is no character of a template.
const PIECES: [&str; 32] = [
    "{%",
    "%}",
    "{{",
    "}}",
    "{#",
    "#}",
    "-",
    "(",
    ")",
    "[",
    "]",
    "::-1",
    "[5:0:-1]",
    "-9223372036854775808",
    "99999999999",
    " | tojson",
    " | length",
    " | trim",
    ".split('')",
    ".count('')",
    " ~ ",
    " + ",
    " * 3",
    "messages",
    "loop",
    "none",
    "endfor",
    "endif",
    "generation",
    "\u{FDD0}",
    "\0",
    "🙂",
];

fn damaged(source: &str, random: &mut Random) -> String {
    let mut characters: Vec<char> = source.chars().collect();
    for _ in 0..=random.below(6) {
        let at = random.below(characters.len() + 1);
        let until = (at + random.below(12)).min(characters.len());
        match random.below(4) {
            0 => drop(characters.drain(at..until)),
            1 => characters.truncate(at.max(8)),
            2 => {
                let copy: Vec<char> = characters[at..until].to_vec();
                let to = random.below(characters.len() + 1);
                characters.splice(to..to, copy);
            }
            _ => drop(characters.splice(at..at, PIECES[random.below(PIECES.len())].chars())),
        }
    }
    characters.into_iter().collect()
}

#[test]
fn damaged_templates_are_errors_or_texts() {
    let file: Value = serde_json::from_str(include_str!("chat_templates.json")).unwrap();
    let sources: Vec<&str> =
        file["cases"].as_array().unwrap().iter().filter_map(|case| case["template"].as_str()).collect();
    let mut random = Random(8);
    let (mut errors, began) = (0, Instant::now());
    for number in 0..400 {
        let template = damaged(sources[number % sources.len()], &mut random);
        let one = Instant::now();
        if let Err(error) = render(&template) {
            errors += 1;
            assert!(error.len() < 4000, "{error}");
        }
        assert!(one.elapsed() < Duration::from_secs(5), "{template}");
    }
    assert!((100..400).contains(&errors), "{errors} of 400 were errors: the damage is too little or too much");
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn bombs_are_errors_with_the_line_of_the_template() {
    let loops = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
    let printing = "x{% set ns = namespace(t='') %}\n{% for a in range(90000) %}{{ ns.t ~ messages[0].content * 4000 }}{% endfor %}";
    let capturing = format!(
        "{{% set ns = namespace(t='{}') %}}\n{{% for a in range(60) %}}{{% set t %}}{{{{ ns.t }}}}{{{{ ns.t }}}}{{% endset %}}\
         {{% set ns.t = t %}}{{% endfor %}}",
        "x".repeat(100)
    );
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let cases: [(&str, &str, &str); 9] = [
        ("loops", loops, "does not come to an end (line 1"),
        ("printing", printing, "it writes more than 256 MiB (line 2"),
        ("capturing", &capturing, "it writes more than 256 MiB (line 2"),
        ("a range", "\n{{ range(10 ** 9) | list }}", "range has too many elements (line 2"),
        ("a repeated text", "\n\n{{ 'x' * 10 ** 9 }}", "repeated string is too large (line 3"),
        ("a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}\n{{ f() }}", "recursion limit exceeded"),
        ("deep nesting", &format!("{{{{ {deep} }}}}"), "exceeds maximum recursion limits"),
        ("deep blocks", &"{% if true %}".repeat(100_000), "exceeds maximum recursion limits"),
        ("a slice out of range", "{{ messages[0:5:-1] }}", ""),
    ];
    for (name, template, expected) in cases {
        let began = Instant::now();
        let found = render(template);
        if !expected.is_empty() {
            let error = found.expect_err(name);
            assert!(error.contains(expected), "{name}: {error}");
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{name}: {:?}", began.elapsed());
    }
}
