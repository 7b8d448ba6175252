//! GPUs and their prices, out of a small file with a date: `configs/hardware.yaml`, which ships inside the program, or
//! another of its form.

use crate::document::{Entry, Node, Spot};
use crate::error::ConfigError;
use crate::registry::nearest;
use crate::value::{text, written};
use serde::Serialize;
use std::path::Path;

/// The file that ships inside the program.
const SHIPPED: &str = include_str!("../hardware.yaml");
/// What it is called in messages.
const SHIPPED_NAME: &str = "hardware.yaml";

/// What a GPU can do, and what it costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gpu {
    /// Its name in the file.
    pub name: String,
    /// Bytes of its memory.
    pub memory: f64,
    /// Bytes a second that its memory gives or takes.
    pub memory_bandwidth: f64,
    /// Operations a second in bfloat16 and float16, dense.
    pub bf16_flops: f64,
    /// Operations a second in float32, dense.
    pub float32_flops: f64,
    /// The share of them that large matrix products reach.
    pub product_efficiency: f64,
    /// The share of them that fused attention reaches.
    pub attention_efficiency: f64,
    /// Bytes a second to and from the other GPUs of its host, in one direction.
    pub link_bandwidth: f64,
    /// Bytes a second of a whole host to and from other hosts, in one direction.
    pub host_bandwidth: f64,
    /// Dollars an hour, from and to; none where the file has no price.
    pub price: Option<PriceRange>,
}

/// What a GPU costs an hour, in dollars.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PriceRange {
    /// At least.
    pub low: f64,
    /// At most.
    pub high: f64,
}

/// What a file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Hardware {
    /// The file.
    pub file: String,
    /// The date of its figures, as it stands there.
    pub date: String,
    /// In the order of the file.
    pub gpus: Vec<Gpu>,
}

/// The keys of a GPU, and whether it can be left out.
const GPU_KEYS: [(&str, bool); 10] = [
    ("memory", false),
    ("memory_bandwidth", false),
    ("bf16_flops", false),
    ("float32_flops", false),
    ("product_efficiency", false),
    ("attention_efficiency", false),
    ("link_bandwidth", false),
    ("host_bandwidth", false),
    ("price_low", true),
    ("price_high", true),
];

impl Hardware {
    /// What ships inside the program.
    ///
    /// # Errors
    /// None that a test would not have seen.
    pub fn shipped() -> Result<Hardware, ConfigError> {
        Hardware::parse(SHIPPED_NAME, SHIPPED)
    }

    /// Reads a file of this form.
    ///
    /// # Errors
    /// It cannot be read; an unknown, missing or repeated key; a value that cannot be.
    pub fn read(path: &Path) -> Result<Hardware, ConfigError> {
        Hardware::parse(&path.display().to_string(), &crate::source::read_text(path)?)
    }

    /// The GPU of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn gpu(&self, name: &str) -> Result<&Gpu, ConfigError> {
        self.gpus.iter().find(|gpu| gpu.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
            let alike: Vec<&str> = names.iter().copied().filter(|other| other.starts_with(name)).collect();
            let meant = match alike.as_slice() {
                [] => nearest(name, names.iter().copied()).map(str::to_owned),
                alike => Some(alike.join(" or ")),
            };
            let meant = meant.map(|meant| format!("did you mean {meant}? ")).unwrap_or_default();
            ConfigError::NoSuchGpu {
                name: name.to_owned(),
                file: self.file.clone(),
                hint: format!("{meant}there are {}; --hardware FILE describes others", names.join(", ")),
            }
        })
    }

    fn parse(file: &str, text: &str) -> Result<Hardware, ConfigError> {
        let document = Node::read(file, text)?;
        let reader = Reader { file };
        let top = reader.entries(&document, "the file")?;
        let known = ["date", "gpus"];
        let found = reader.known(&top, &known, "")?;
        reader.complete(&found, &known, document.at, "")?;
        let mut hardware = Hardware { file: file.to_owned(), date: String::new(), gpus: Vec::new() };
        for (key, entry) in found {
            if key == "date" {
                hardware.date = reader.date(entry)?;
                continue;
            }
            for gpu in reader.entries(&entry.node, "gpus")? {
                hardware.gpus.push(reader.gpu(&gpu)?);
            }
            if hardware.gpus.is_empty() {
                return Err(reader.invalid("gpus", entry, "it must describe a GPU at least"));
            }
        }
        Ok(hardware)
    }
}

/// Reads with the places of what it reads.
struct Reader<'a> {
    file: &'a str,
}

impl Reader<'_> {
    fn place(&self, at: Spot) -> String {
        format!("{}:{}:{}", self.file, at.line, at.column)
    }

    fn invalid(&self, key: &str, entry: &Entry, allowed: &str) -> ConfigError {
        ConfigError::InvalidValue {
            key: key.to_owned(),
            value: written(&entry.node.value()),
            place: self.place(entry.node.at),
            allowed: allowed.to_owned(),
            hint: String::new(),
        }
    }

    fn entries(&self, node: &Node, what: &str) -> Result<Vec<Entry>, ConfigError> {
        node.entries().ok_or_else(|| ConfigError::Syntax {
            file: self.place(node.at),
            message: format!("{what} is {}, expected indented `key: value` lines", written(&node.value())),
        })
    }

    /// The entries by their keys, all of which must be among `known`.
    fn known<'e>(
        &self,
        entries: &'e [Entry],
        known: &[&'static str],
        section: &str,
    ) -> Result<Vec<(&'static str, &'e Entry)>, ConfigError> {
        let find = |entry: &'e Entry| {
            let key = written(&entry.key);
            let found = known.iter().find(|name| **name == key).map(|name| (*name, entry));
            found.ok_or_else(|| ConfigError::UnknownKey {
                place: self.place(entry.at),
                section: section.to_owned(),
                hint: match nearest(&key, known.iter().copied()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("the keys here are {}", known.join(", ")),
                },
                key,
            })
        };
        entries.iter().map(find).collect()
    }

    /// Whether every one of these keys is there.
    fn complete(
        &self,
        found: &[(&'static str, &Entry)],
        required: &[&'static str],
        at: Spot,
        section: &str,
    ) -> Result<(), ConfigError> {
        let missing: Vec<&str> =
            required.iter().copied().filter(|name| !found.iter().any(|(key, _)| key == name)).collect();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(ConfigError::Missing {
                keys: format!("{}{section} ({})", missing.join(", "), self.place(at)),
                hint: "every GPU has all keys but price_low and price_high; configs/hardware.yaml tells what they are"
                    .to_owned(),
            }),
        }
    }

    fn date(&self, entry: &Entry) -> Result<String, ConfigError> {
        let date = text(&entry.node.value()).unwrap_or_default();
        let shape: String = date.chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect();
        match shape == "0000-00-00" {
            true => Ok(date),
            false => Err(self.invalid("date", entry, "it must be a day, as in 2026-11-30")),
        }
    }

    fn gpu(&self, entry: &Entry) -> Result<Gpu, ConfigError> {
        let name = text(&entry.key).unwrap_or_default();
        let section = format!(" in gpus.{name}");
        let entries = self.entries(&entry.node, &format!("gpus.{name}"))?;
        let found = self.known(&entries, &GPU_KEYS.map(|(key, _)| key), &section)?;
        let required: Vec<&str> = GPU_KEYS.iter().filter(|(_, free)| !free).map(|(key, _)| *key).collect();
        self.complete(&found, &required, entry.at, &section)?;
        let entry_of = |wanted: &str| found.iter().find(|(key, _)| *key == wanted).map(|(_, entry)| *entry);
        let number = |key: &str| entry_of(key).map(|entry| self.number(key, entry)).transpose();
        let required = |key: &str| Ok::<f64, ConfigError>(number(key)?.unwrap_or_default());
        Ok(Gpu {
            memory: required("memory")?,
            memory_bandwidth: required("memory_bandwidth")?,
            bf16_flops: required("bf16_flops")?,
            float32_flops: required("float32_flops")?,
            product_efficiency: required("product_efficiency")?,
            attention_efficiency: required("attention_efficiency")?,
            link_bandwidth: required("link_bandwidth")?,
            host_bandwidth: required("host_bandwidth")?,
            price: match (number("price_low")?, number("price_high")?) {
                (None, None) => None,
                (Some(low), Some(high)) if low <= high => Some(PriceRange { low, high }),
                (Some(one), None) | (None, Some(one)) => Some(PriceRange { low: one, high: one }),
                (Some(_), Some(high)) => {
                    let allowed = format!("it must be at most price_high, {high}");
                    return Err(match entry_of("price_low") {
                        Some(entry) => self.invalid("price_low", entry, &allowed),
                        None => self.invalid("gpus", entry, &allowed),
                    });
                }
            },
            name,
        })
    }

    fn number(&self, key: &str, entry: &Entry) -> Result<f64, ConfigError> {
        let number = entry.node.value().as_f64().filter(|number| number.is_finite() && *number > 0.0);
        let most = if key.ends_with("_efficiency") { 1.0 } else { f64::MAX };
        number.filter(|number| *number <= most).ok_or_else(|| {
            let share = if most == 1.0 { ", at most 1" } else { "" };
            self.invalid(key, entry, &format!("it must be a number above 0{share}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "date: 2026-01-02\ngpus:\n  mine:\n    memory: 24e9\n    memory_bandwidth: 1e12\n    bf16_flops: 165e12\n    \
        float32_flops: 82e12\n    product_efficiency: 0.8\n    attention_efficiency: 0.5\n    link_bandwidth: 16e9\n    \
        host_bandwidth: 12.5e9\n";

    fn told(text: &str) -> String {
        Hardware::parse("mine.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_shipped_file_has_the_guides_prices() {
        let hardware = Hardware::shipped().unwrap();
        assert_eq!(hardware.date, "2026-11-30");
        for (name, memory, price) in [
            ("a100-40gb", 40e9, Some((1.5, 3.5))),
            ("a100-80gb", 80e9, Some((1.5, 3.5))),
            ("h100", 80e9, Some((3.0, 5.0))),
            ("h100-500w", 96e9, None),
            ("h200", 141e9, None),
        ] {
            let gpu = hardware.gpu(name).unwrap();
            assert_eq!((gpu.memory, gpu.price.map(|price| (price.low, price.high))), (memory, price), "{name}");
        }
        let error = |name: &str| hardware.gpu(name).unwrap_err().to_string();
        assert!(error("a100").contains("hint: did you mean a100-40gb or a100-80gb? there are a100-40gb, "));
        assert!(error("h20").contains("did you mean h200?"), "{}", error("h20"));
        assert!(error("tpu").contains("hint: there are a100-40gb, a100-80gb, h100, h100-500w, h200; --hardware FILE"));
    }

    #[test]
    fn a_file_of_ones_own_is_read_as_it_stands() {
        let gpu = &Hardware::parse("mine.yaml", ONE).unwrap().gpus[0];
        assert_eq!((gpu.name.as_str(), gpu.memory, gpu.host_bandwidth, gpu.price), ("mine", 24e9, 12.5e9, None));
        let priced = format!("{ONE}    price_high: 2\n");
        let price = Hardware::parse("mine.yaml", &priced).unwrap().gpus[0].price;
        assert_eq!(price, Some(PriceRange { low: 2.0, high: 2.0 }));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, expected) in [
            (
                ONE.replace("memory_bandwidth", "memory_bandwith"),
                "mine.yaml:5:5: unknown key memory_bandwith in gpus.mine\nhint: did you mean memory_bandwidth?",
            ),
            (ONE.replace("gpus:", "gpu:"), "mine.yaml:2:1: unknown key gpu\nhint: did you mean gpus?"),
            (ONE.replace("    memory: 24e9\n", ""), "not set: memory in gpus.mine (mine.yaml:3:3)\nhint: every GPU"),
            (ONE.replace("date: 2026-01-02\n", ""), "not set: date ("),
            (
                ONE.replace("2026-01-02", "last week"),
                "date is last week, which is not allowed: it must be a day, as in 2026-11-30",
            ),
            (
                ONE.replace("24e9", "-1"),
                "mine.yaml:4:13: memory is -1, which is not allowed: it must be a number above 0",
            ),
            (ONE.replace("24e9", "plenty"), "it must be a number above 0"),
            (
                ONE.replace(": 0.8", ": 80"),
                "product_efficiency is 80, which is not allowed: it must be a number above 0, at most 1",
            ),
            (
                format!("{ONE}    price_low: 3\n    price_high: 2\n"),
                "price_low is 3, which is not allowed: it must be at most price_high, 2",
            ),
            (format!("{ONE}    memory: 2\n"), "memory is set a second time; the first is in line 4"),
            ("date: 2026-01-02\ngpus: {}\n".to_owned(), "it must describe a GPU at least"),
            ("date: 2026-01-02\ngpus: 5\n".to_owned(), "gpus is 5, expected indented"),
            ("- 1\n".to_owned(), "the file is"),
        ] {
            let message = told(&text);
            assert!(message.contains(expected), "{expected}:\n{message}");
        }
    }
}
