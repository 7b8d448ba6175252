//! A JSON Schema of the configuration file, for editors: JSON Schema draft 2020-12, made from the registry of keys.
//!
//! It is as strict as reading is about names and ranges. What only reading can tell (two keys that disagree, a key that is
//! missing because a flag gives it) it leaves to `launch config check`.

use crate::known::{Known, Role, TABLES, prefix};
use crate::registry::{Allowed, DefaultValue, Key, Kind, Section, key};
use crate::schedule::PARAMETERS;
use crate::training::KEYS;
use crate::types::FsdpStrategy;
use serde_json::{Map, Value, json};

const NUMERIC: &str = r"^\s*[-+]?[0-9._]+([eE][-+]?[0-9]+)?\s*$";
const DISTRIBUTED: &[&str] = &["NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED", "FSDP"];
/// Keys whose names have numbers too, from 1 on.
const NUMBERED: [&str; 3] = ["fsdp_sharding_strategy", "fsdp_backward_prefetch", "fsdp_state_dict_type"];

/// The schema of a file that `--config` takes, as JSON.
pub fn schema() -> Value {
    let mut properties = section_properties(Section::Top);
    for section in Section::ALL.into_iter().filter(|section| *section != Section::Top) {
        let inside = json!({
            "type": ["object", "null"],
            "description": about(section),
            "properties": section_properties(section),
            "additionalProperties": false,
        });
        properties.insert(section.name().to_owned(), inside);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Zerofold configuration",
        "description": "A file for launch --config: Accelerate's form with a section training:",
        "type": ["object", "null"],
        "properties": properties,
        "additionalProperties": false,
    })
}

fn about(section: Section) -> &'static str {
    match section {
        Section::Top => "Processes, precision and hosts",
        Section::DeepSpeed => "What is sharded, in DeepSpeed's words; read with distributed_type: DEEPSPEED",
        Section::Fsdp => "What is sharded, in FSDP's words; read with distributed_type: FSDP",
        Section::Parallelism => "Copies of everything sharded, and the processes of each",
        Section::Training => "What is trained, by the names of TrainingArguments and SFTConfig",
    }
}

fn section_properties(section: Section) -> Map<String, Value> {
    let registry = KEYS.iter().filter(|key| key.section == section).map(|key| (key.name, of_key(key)));
    let table = TABLES.iter().filter(|(of, _)| *of == section).flat_map(|(_, table)| table.iter());
    let mut properties = Map::new();
    for (name, mut schema) in registry.chain(table.map(|known| (known.name, of_known(known)))) {
        if section == Section::DeepSpeed {
            allow(&mut schema, json!({"const": "auto"}));
        }
        // The prefix of a section may be left out.
        if let Some(bare) = name.strip_prefix(prefix(section)).filter(|bare| *bare != name) {
            properties.insert(bare.to_owned(), schema.clone());
        }
        properties.insert(name.to_owned(), schema);
    }
    properties
}

/// Lets a schema of alternatives take one more.
fn allow(schema: &mut Value, alternative: Value) {
    if let Some(Value::Array(alternatives)) = schema.get_mut("anyOf") {
        alternatives.push(alternative);
    }
}

fn of_key(known: &Key) -> Value {
    let default = match known.default {
        DefaultValue::Unset => String::new(),
        DefaultValue::Required => " [required, here or as a flag]".to_owned(),
        default => format!(" [default: {default}]"),
    };
    let mut schema = json!({"description": format!("{}{default}", known.help), "anyOf": alternatives(known)});
    if let (DefaultValue::Text(text), Some(schema)) = (known.default, schema.as_object_mut()) {
        let typed = serde_yaml::from_str::<Value>(text).unwrap_or_else(|_| Value::from(text));
        schema.insert("default".to_owned(), typed);
    }
    schema
}

/// The forms that a value of a key may have. A key that must be set may be null all the same: a flag then gives it.
fn alternatives(known: &Key) -> Vec<Value> {
    let mut forms = of_kind(known.kind, known.allowed);
    if NUMBERED.contains(&known.name)
        && let Kind::Choice(names) = known.kind
    {
        forms.push(json!({"type": "integer", "minimum": 1, "maximum": names.len()}));
    }
    match known.name {
        "fsdp_reshard_after_forward" => {
            forms.push(json!({"type": "integer", "minimum": 2}));
            forms.extend(named(FsdpStrategy::NAMES));
        }
        "report_to" => forms.push(json!({"type": "array", "items": {"anyOf": of_kind(known.kind, Allowed::Any)}})),
        _ => {}
    }
    if known.name != "max_length" {
        forms.push(json!({"type": "null"}));
    }
    forms
}

fn of_kind(kind: Kind, allowed: Allowed) -> Vec<Value> {
    let spelt = || json!({"type": "string", "pattern": NUMERIC});
    match kind {
        Kind::Path | Kind::Text => vec![json!({"type": ["string", "number", "boolean"]})],
        Kind::Data => {
            names().into_iter().chain([json!({"type": "array", "minItems": 1, "items": source_of_data()})]).collect()
        }
        Kind::Mapping => mapping(),
        Kind::Parameters => parameters(),
        Kind::Freeze => name_patterns(),
        Kind::Groups => groups(),
        Kind::Integer => ranges("integer", allowed).into_iter().chain([spelt()]).collect(),
        Kind::Number => ranges("number", allowed).into_iter().chain([spelt()]).collect(),
        Kind::Switch => switch(),
        Kind::Steps => vec![json!({"type": "string", "pattern": r"^\s*(steps )?\s*[0-9]+\s*\.\.\s*[0-9]+\s*$"})],
        Kind::Store => vec![json!({"type": "string", "pattern": r"^\s*s3://"})],
        Kind::Choice(names) => named(names),
    }
}

/// Paths and patterns of data.
fn names() -> Vec<Value> {
    vec![
        json!({"type": ["string", "number"]}),
        json!({"type": "array", "minItems": 1, "items": {"type": ["string", "number"]}}),
    ]
}

fn mapping() -> Vec<Value> {
    vec![
        json!({"type": "string", "pattern": "="}),
        json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}),
    ]
}

/// Parameters of a schedule; which of them it takes, only reading tells.
fn parameters() -> Vec<Value> {
    let of = |known: &Key| {
        let mut forms = of_kind(known.kind, known.allowed);
        forms.push(json!({"type": "null"}));
        (known.name.to_owned(), json!({"description": known.help, "anyOf": forms}))
    };
    let properties: Map<String, Value> = PARAMETERS.iter().map(of).collect();
    vec![
        json!({"type": "string", "pattern": r"^\s*\{"}),
        json!({"type": "object", "properties": properties, "additionalProperties": false}),
    ]
}

/// Patterns of parameter names.
fn name_patterns() -> Vec<Value> {
    vec![
        json!({"type": "string", "minLength": 1}),
        json!({"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}),
    ]
}

/// Groups of parameters.
fn groups() -> Vec<Value> {
    let number = |help: &str| {
        let spelt = json!({"type": "string", "pattern": NUMERIC});
        let forms = ranges("number", Allowed::AtLeast(0.0)).into_iter().chain([spelt, json!({"type": "null"})]);
        json!({"description": help, "anyOf": forms.collect::<Vec<_>>()})
    };
    let patterns = |help: &str| json!({"description": help, "anyOf": name_patterns()});
    let group = json!({
        "type": "object",
        "properties": {
            "pattern": patterns("A pattern of parameter names, or a list of them"),
            "patterns": patterns("The same as pattern"),
            "learning_rate": number("The highest learning rate, in place of the job's"),
            "learning_rate_factor": number("What the learning rate is multiplied by"),
            "weight_decay": number("The weight decay, of biases and norm weights too"),
            "freeze": {"description": "Do not train them", "anyOf": switch()},
        },
        "additionalProperties": false,
    });
    vec![json!({"type": "string", "pattern": r"^\s*\["}), json!({"type": "array", "minItems": 1, "items": group})]
}

/// One of several sources of rows.
fn source_of_data() -> Value {
    let weight =
        ranges("number", Allowed::Above(0.0)).into_iter().chain([json!({"type": "string", "pattern": NUMERIC})]);
    json!({
        "type": "object",
        "properties": {
            "path": {"description": "A path or a pattern, or a list of them", "anyOf": names()},
            "name": {"description": "Of data of the hub: the configuration", "type": ["string", "number", "boolean", "null"]},
            "split": {"description": "Of data of the hub: the split", "type": ["string", "number", "boolean", "null"]},
            "label": {"description": "What it is called in metrics", "type": ["string", "number", "boolean", "null"]},
            "weight": {
                "description": "How much of it there is to be, beside the weights of the others",
                "anyOf": weight.chain([json!({"type": "null"})]).collect::<Vec<_>>(),
            },
            "column_mapping": {
                "description": "Its columns, where they are called otherwise",
                "anyOf": mapping().into_iter().chain([json!({"type": "null"})]).collect::<Vec<_>>(),
            },
        },
        "required": ["path"],
        "additionalProperties": false,
    })
}

fn switch() -> Vec<Value> {
    let words = ["true", "false", "yes", "no", "on", "off", "1", "0"];
    vec![
        json!({"type": "boolean"}),
        json!({"enum": [0, 1]}),
        json!({"type": "string", "pattern": any_capitals(&words)}),
    ]
}

/// Names, which an editor offers, in any capitals. YAML 1.1 makes `false` of a bare `no`.
fn named(names: &[&str]) -> Vec<Value> {
    let mut forms = vec![json!({"enum": names}), json!({"type": "string", "pattern": any_capitals(names)})];
    if names.iter().any(|name| name.eq_ignore_ascii_case("no")) {
        forms.push(json!({"const": false}));
    }
    forms
}

/// A pattern of these words; patterns of JSON Schema have no switch for capitals.
fn any_capitals(words: &[&str]) -> String {
    let letter = |letter: char| match letter.is_ascii_alphabetic() {
        true => format!("[{}{}]", letter.to_ascii_uppercase(), letter.to_ascii_lowercase()),
        false => letter.to_string(),
    };
    let words: Vec<String> = words.iter().map(|word| word.chars().map(letter).collect()).collect();
    format!(r"^\s*({})\s*$", words.join("|"))
}

fn ranges(kind: &str, allowed: Allowed) -> Vec<Value> {
    match allowed {
        Allowed::Any => vec![json!({"type": kind})],
        Allowed::AtLeast(low) => vec![json!({"type": kind, "minimum": low})],
        Allowed::Above(low) => vec![json!({"type": kind, "exclusiveMinimum": low})],
        Allowed::HalfOpen(low, high) => vec![json!({"type": kind, "minimum": low, "exclusiveMaximum": high})],
        Allowed::Between(low, high) => vec![json!({"type": kind, "minimum": low, "maximum": high})],
        Allowed::MinusOneOrAtLeast(low) => vec![json!({"const": -1}), json!({"type": kind, "minimum": low})],
    }
}

/// A key that is not in the registry: what is known of its values.
fn of_known(known: &Known) -> Value {
    if let Some(schema) = used(known.name) {
        return schema;
    }
    match known.role {
        Role::Used => json!({"description": "read as Accelerate and the trainers have it"}),
        Role::NoEffect("") => json!({"description": "taken, without effect here"}),
        Role::NoEffect(reason) => json!({"description": format!("without effect here: {reason}")}),
        Role::NotBuilt(hint) => {
            let description = format!("not built: {hint}");
            match known.is_section() || known.neutral.contains(&"*") {
                true => json!({"description": description}),
                false => json!({"description": description, "anyOf": neutral(known.neutral)}),
            }
        }
    }
}

/// Keys beside the registry whose values are those of a key in it, or choices.
fn used(name: &str) -> Option<Value> {
    let forms = match name {
        "distributed_type" => named(DISTRIBUTED),
        "gradient_accumulation_steps" | "gradient_clipping" | "ddp_backend" | "offload_param_device" => {
            let same = match name {
                "gradient_clipping" => "max_grad_norm",
                "ddp_backend" => "backend",
                "offload_param_device" => "offload_optimizer_device",
                same => same,
            };
            alternatives(key(same)?)
        }
        "fp16" | "use_cpu" | "no_cuda" | "group_by_length" | "fsdp_activation_checkpointing" | "fsdp_cpu_offload" => {
            switch()
        }
        "fsdp_version" => vec![json!({"enum": [1, 2, "1", "2"]})],
        "num_machines" => of_kind(Kind::Integer, Allowed::AtLeast(1.0)),
        "machine_rank" => of_kind(Kind::Integer, Allowed::AtLeast(0.0)),
        _ => return None,
    };
    let forms = [forms, vec![json!({"type": "null"})]].concat();
    Some(json!({"description": "read as Accelerate and the trainers have it", "anyOf": forms}))
}

/// The values that mean what happens anyway.
fn neutral(words: &[&str]) -> Vec<Value> {
    let mut forms = vec![json!({"type": "null"}), json!({"type": "array", "maxItems": 0})];
    forms.push(json!({"type": "string", "pattern": any_capitals(words)}));
    for word in words {
        match serde_yaml::from_str::<Value>(word) {
            Ok(value @ (Value::Bool(_) | Value::Number(_))) => forms.push(json!({"const": value})),
            _ if *word == "no" => forms.push(json!({"const": false})),
            _ => {}
        }
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_stands_in_its_section() {
        let schema = schema();
        for known in KEYS {
            let at = match known.section {
                Section::Top => format!("/properties/{}", known.name),
                section => format!("/properties/{}/properties/{}", section.name(), known.name),
            };
            let found = schema.pointer(&at).unwrap_or_else(|| panic!("{at}"));
            assert!(found["description"].as_str().unwrap().starts_with(known.help), "{at}");
        }
        assert_eq!(schema.pointer("/properties/training/additionalProperties"), Some(&json!(false)));
        assert_eq!(schema.pointer("/properties/training/properties/max_length/default"), Some(&json!(1024)));
        assert_eq!(schema.pointer("/properties/training/properties/lr"), None, "an old name is an error");
        assert!(schema.pointer("/properties/fsdp_config/properties/version").is_some());
    }
}
