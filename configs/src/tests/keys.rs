//! The tables of keys, beside what other programs' files have and beside the page that lists them.

use crate::deepspeed::keys;
use crate::known::{Known, Role, TABLES, ZERO, lookup};
use crate::known_training::{FORMER, former};
use crate::registry::Section;
use crate::training::KEYS;

/// The names in the sources of accelerate, transformers and TRL; made by scripts/fixtures/configuration_keys.py.
const NAMES: &str = include_str!("../../../tests/fixtures/configuration_keys.json");

#[test]
fn every_key_of_accelerate_transformers_and_trl_is_known() {
    let names: serde_json::Value = serde_json::from_str(NAMES).unwrap();
    let sections = Section::ALL.map(|section| (if section == Section::Top { "top" } else { section.name() }, section));
    for (name, section) in sections {
        let keys = names[name].as_array().unwrap();
        assert!(keys.len() > 8, "{name} has {}", keys.len());
        for key in keys.iter().map(|key| key.as_str().unwrap()) {
            let is_section = section == Section::Top && Section::ALL.iter().any(|section| section.name() == key);
            let old = section == Section::Training && former(key).is_some();
            assert!(is_section || old || lookup(section, key).is_some(), "{name}.{key} is unknown");
        }
    }
}

#[test]
fn a_former_name_has_a_right_one_and_is_no_key() {
    for (old, new) in FORMER {
        assert!(lookup(Section::Training, old).is_none(), "{old} is a key itself");
        assert!(lookup(Section::Training, new).is_some(), "{new} is no key");
    }
}

fn list(names: impl IntoIterator<Item = String>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "—".to_owned() } else { names.join(", ") }
}

/// One table: what becomes of the keys.
fn table(title: &str, used: Vec<String>, known: &[(&str, &Known)]) -> String {
    let of = |wanted: fn(Role) -> bool| {
        let names = known.iter().filter(move |(_, known)| wanted(known.role));
        names.map(|(prefix, known)| format!("{prefix}{}", known.name)).collect::<Vec<_>>()
    };
    let used = used.into_iter().chain(of(|role| matches!(role, Role::Used)));
    let (idle, refused) = (of(|role| matches!(role, Role::NoEffect(_))), of(|role| matches!(role, Role::NotBuilt(_))));
    format!(
        "### {title}\n\n| | |\n| --- | --- |\n| used | {} |\n| no effect | {} |\n| refused | {} |\n",
        list(used),
        list(idle),
        list(refused)
    )
}

/// The tables of docs/configuration.md.
fn tables() -> String {
    let mut tables = Vec::new();
    for section in [Section::Top, Section::DeepSpeed, Section::Fsdp, Section::Parallelism, Section::Training] {
        let title = if section == Section::Top { "Top level".to_owned() } else { format!("`{}`", section.name()) };
        let used = KEYS.iter().filter(|key| key.section == section).map(|key| key.name.to_owned()).collect();
        let known = TABLES.iter().filter(|(of, _)| *of == section).flat_map(|(_, table)| table.iter());
        let known: Vec<(&str, &Known)> = known.map(|known| ("", known)).collect();
        tables.push(table(&title, used, &known));
    }
    let zero = ZERO.iter().map(|known| ("zero_optimization.", known));
    let known: Vec<(&str, &Known)> = keys::KEYS.iter().map(|known| ("", known)).chain(zero).collect();
    tables.push(table("DeepSpeed JSON", Vec::new(), &known));
    let names = FORMER.iter().map(|(old, new)| format!("| `{old}` | `{new}` |\n")).collect::<String>();
    tables.push(format!("### Former names\n\n| read with a note | as |\n| --- | --- |\n{names}"));
    tables.join("\n")
}

#[test]
fn the_page_lists_every_key() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md")).unwrap();
    let (_, rest) = page.split_once("<!-- keys -->\n").expect("the page has a mark where the tables begin");
    let (found, _) = rest.split_once("<!-- /keys -->").expect("the page has a mark where they end");
    let expected = format!("\n{}\n", tables());
    assert!(found == expected, "docs/configuration.md should have, between its marks:\n{expected}");
}
