//! What a key is: the form of the registry that flags, `--help` and the reading of values are all made from.

use crate::data::{ColumnMapping, Dataset};
use crate::freezing::{Freeze, GroupRules};
use crate::known::{Role, TABLES};
use crate::known_training::{FORMER, RENAMED};
use crate::profile::ProfileSteps;
use crate::schedule::SchedulerKwargs;
use crate::store_url::StoreUrl;
use crate::training::KEYS;

/// The section of the YAML file that a key stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Section {
    /// The top level, which is Accelerate's.
    Top,
    /// `deepspeed_config:`
    DeepSpeed,
    /// `fsdp_config:`
    Fsdp,
    /// `parallelism_config:`
    Parallelism,
    /// `training:`, ours.
    Training,
}

impl Section {
    /// Every section.
    pub const ALL: [Section; 5] =
        [Section::Top, Section::DeepSpeed, Section::Fsdp, Section::Parallelism, Section::Training];

    /// The section's key in the file; empty for the top level.
    pub fn name(self) -> &'static str {
        match self {
            Section::Top => "",
            Section::DeepSpeed => "deepspeed_config",
            Section::Fsdp => "fsdp_config",
            Section::Parallelism => "parallelism_config",
            Section::Training => "training",
        }
    }

    /// `key` with its section, as in `training.learning_rate`.
    pub fn path(self, key: &str) -> String {
        match self {
            Section::Top => key.to_owned(),
            _ => format!("{}.{key}", self.name()),
        }
    }
}

/// What kind of value a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A path, relative to the working directory.
    Path,
    /// Paths and patterns of data, relative to the working directory.
    Data,
    /// Names of columns for names of columns.
    Mapping,
    /// Names of parameters and their values.
    Parameters,
    /// Patterns of parameters that are not trained.
    Freeze,
    /// Groups of parameters.
    Groups,
    /// Words.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// true or false.
    Switch,
    /// A range of optimizer steps.
    Steps,
    /// A store of checkpoints.
    Store,
    /// One of these names.
    Choice(&'static [&'static str]),
}

impl Kind {
    /// What stands for the value in a usage line: `PATH`, `HERE=THERE,…`, `{NAME: VALUE}`, `PATTERN,…`, `[{PATTERN: …}]`, `TEXT`, `N`, `X`, `BOOL`, `FIRST..LAST`, `URL`, or the names.
    pub fn placeholder(self) -> String {
        match self {
            Kind::Path | Kind::Data => "PATH".to_owned(),
            Kind::Mapping => "HERE=THERE,…".to_owned(),
            Kind::Parameters => "{NAME: VALUE}".to_owned(),
            Kind::Freeze => "PATTERN,…".to_owned(),
            Kind::Groups => "[{pattern: …}]".to_owned(),
            Kind::Text => "TEXT".to_owned(),
            Kind::Integer => "N".to_owned(),
            Kind::Number => "X".to_owned(),
            Kind::Switch => "BOOL".to_owned(),
            Kind::Steps => "FIRST..LAST".to_owned(),
            Kind::Store => "URL".to_owned(),
            Kind::Choice(names) => names.join("|"),
        }
    }
}

/// The range that a number must lie in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Allowed {
    /// Any value of the kind.
    Any,
    /// This or more.
    AtLeast(f64),
    /// More than this.
    Above(f64),
    /// From the first, up to but not including the second.
    HalfOpen(f64, f64),
    /// From the first to the second, both included.
    Between(f64, f64),
    /// −1 for "not set", or this or more.
    MinusOneOrAtLeast(f64),
}

impl Allowed {
    /// Whether `number` lies in the range.
    pub fn admits(self, number: f64) -> bool {
        match self {
            Allowed::Any => true,
            Allowed::AtLeast(low) => number >= low,
            Allowed::Above(low) => number > low,
            Allowed::HalfOpen(low, high) => number >= low && number < high,
            Allowed::Between(low, high) => number >= low && number <= high,
            Allowed::MinusOneOrAtLeast(low) => number == -1.0 || number >= low,
        }
    }

    /// The range in words, to follow the kind; empty for any.
    pub fn words(self) -> String {
        match self {
            Allowed::Any => String::new(),
            Allowed::AtLeast(low) => format!(", {low} or more"),
            Allowed::Above(low) => format!(", more than {low}"),
            Allowed::HalfOpen(low, high) => format!(", from {low} up to but not including {high}"),
            Allowed::Between(low, high) => format!(", from {low} to {high}"),
            Allowed::MinusOneOrAtLeast(low) => format!(", {low} or more, or -1 for not set"),
        }
    }
}

/// What a key is when nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultValue {
    /// It must be set.
    Required,
    /// Nothing.
    Unset,
    /// This, in its written form.
    Text(&'static str),
    /// Whatever this other key is.
    SameAs(&'static str),
    /// It depends; these words say on what.
    Computed(&'static str),
}

impl std::fmt::Display for DefaultValue {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DefaultValue::Required => formatter.write_str("required"),
            DefaultValue::Unset => formatter.write_str("not set"),
            DefaultValue::Text(text) | DefaultValue::Computed(text) => formatter.write_str(text),
            DefaultValue::SameAs(key) => write!(formatter, "the value of {key}"),
        }
    }
}

/// What a key is about: the headings of `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// What to train, on what, and where the result goes.
    Files,
    /// Processes, sharding and precision.
    Job,
    /// Several hosts.
    Hosts,
    /// Batches and length of the training.
    Batches,
    /// The optimizer and its schedule.
    Optimizer,
    /// The data: order, lengths, loss mask.
    Data,
    /// Logging, evaluation and saving.
    Reports,
}

impl Group {
    /// Every group, in the order of `--help`.
    pub const ALL: [Group; 7] =
        [Group::Files, Group::Job, Group::Hosts, Group::Batches, Group::Optimizer, Group::Data, Group::Reports];

    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Files => "Model, data and output",
            Group::Job => "Processes, sharding and precision",
            Group::Hosts => "Several hosts",
            Group::Batches => "Batches and length",
            Group::Optimizer => "Optimizer and schedule",
            Group::Data => "Data",
            Group::Reports => "Logging, evaluation and saving",
        }
    }
}

/// One key that can be set in the file, by `--set`, and by a flag of its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// The name, in snake case. As a flag it is accepted with `_` and with `-`.
    pub name: &'static str,
    /// Where it stands in the file.
    pub section: Section,
    /// What kind of value it takes.
    pub kind: Kind,
    /// What it is when nobody sets it.
    pub default: DefaultValue,
    /// The range of its values.
    pub allowed: Allowed,
    /// The heading it belongs under.
    pub group: Group,
    /// One line of help.
    pub help: &'static str,
}

impl Key {
    /// The values it takes, in words.
    pub fn allowed_words(&self) -> String {
        let kind = match self.kind {
            Kind::Path => "a path".to_owned(),
            Kind::Data => Dataset::WORDS.to_owned(),
            Kind::Mapping => ColumnMapping::WORDS.to_owned(),
            Kind::Parameters => SchedulerKwargs::WORDS.to_owned(),
            Kind::Freeze => Freeze::WORDS.to_owned(),
            Kind::Groups => GroupRules::WORDS.to_owned(),
            Kind::Text => "words".to_owned(),
            Kind::Integer => "a whole number".to_owned(),
            Kind::Number => "a number".to_owned(),
            Kind::Switch => "true or false".to_owned(),
            Kind::Steps => ProfileSteps::WORDS.to_owned(),
            Kind::Store => StoreUrl::WORDS.to_owned(),
            Kind::Choice(names) => names.join(", "),
        };
        let one_of = if matches!(self.kind, Kind::Choice(_)) { "one of " } else { "" };
        format!("it must be {one_of}{kind}{}", self.allowed.words())
    }
}

/// The key of this name in [`KEYS`]; `-` counts as `_`.
pub fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| same_name(key.name, name))
}

/// Whether two names are the same when `-` counts as `_`.
pub(crate) fn same_name(known: &str, written: &str) -> bool {
    known.len() == written.len()
        && known
            .bytes()
            .zip(written.bytes())
            .all(|(known, written)| known == written || (known == b'_' && written == b'-'))
}

/// Every name that is accepted as a flag: those of [`KEYS`], and every other key of Accelerate and of the Hugging Face
/// trainers that is known. The latter deserve no line in `--help`, yet a user's command line may carry them.
pub fn flag_names() -> Vec<&'static str> {
    let mut names: Vec<&'static str> = KEYS.iter().map(|key| key.name).collect();
    for (_, table) in TABLES {
        names.extend(table.iter().filter(|known| !known.is_section()).map(|known| known.name));
    }
    // Old and foreign names too: the answer is the right one. `model` belongs to another command.
    names.extend(FORMER.iter().map(|(old, _)| *old));
    names.extend(RENAMED.iter().map(|(old, _)| *old).filter(|old| *old != "model"));
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(*name));
    names
}

/// How far a written name is from a known one; of equally far ones, that with the longer common beginning is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Difference {
    /// Letters to change, leave out, put in or swap.
    pub letters: usize,
    common: std::cmp::Reverse<usize>,
}

/// Names whose lengths differ by more than this are never near, and comparing them takes time.
const FAR: usize = 64;

/// The difference of two names in small letters.
pub(crate) fn difference(written: &str, known: &str) -> Difference {
    let common = written.chars().zip(known.chars()).take_while(|(left, right)| left == right).count();
    let letters = match written.len().abs_diff(known.len()) {
        apart if apart > FAR => apart,
        _ => strsim::damerau_levenshtein(written, known),
    };
    Difference { letters, common: std::cmp::Reverse(common) }
}

/// The keys that are read as Accelerate and the trainers have them, beside [`KEYS`]: by their right names, without
/// whole sections.
pub fn other_keys() -> Vec<&'static str> {
    let tables = TABLES.iter().flat_map(|(_, table)| table.iter());
    let mut names: Vec<&'static str> =
        tables.filter(|known| matches!(known.role, Role::Used)).map(|known| known.name).collect();
    names.retain(|name| !KEYS.iter().any(|key| key.name == *name));
    names
}

/// The candidate that `name` is most likely meant to be, if any is near: at most a third of its letters differ.
///
/// Capitals and `-` for `_` do not count; of equally near candidates, the one with the longest common beginning wins.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let normal = |text: &str| text.trim().to_lowercase().replace('-', "_");
    let name = normal(name);
    let limit = (name.chars().count() / 3).max(1);
    let candidates = candidates.into_iter().map(|candidate| (difference(&name, &normal(candidate)), candidate));
    let near = candidates.filter(|(difference, _)| difference.letters <= limit);
    near.min_by_key(|(difference, _)| *difference).map(|(_, candidate)| candidate)
}
