//! Which files of a data set's repository are meant by a configuration and a split: as its README.md says, else as the names of
//! folders and files say. The rules are those of `datasets`.

use std::collections::BTreeSet;

use glob::{MatchOptions, Pattern};
use zerofold_data::Format;

use super::dataset_card::{CardConfig, DatasetCard};

/// The configuration of a data set that names none.
pub(super) const DEFAULT: &str = "default";
/// Splits, and the words by which folders and files are told to be theirs.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// Files that describe data and are none.
const NO_DATA: [&str; 6] =
    ["README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json"];
/// Data that `datasets` reads and that are not read here.
const FOREIGN: [&str; 10] = ["csv", "tsv", "arrow", "tar", "zip", "xml", "h5", "hdf5", "xz", "bz2"];
/// The hub's own copy of most data sets.
const CONVERTED: &str = "refs/convert/parquet";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// The configuration, if one is named.
    pub(super) config: Option<&'a str>,
    /// The split.
    pub(super) split: &'a str,
    /// The keys that say it.
    pub(super) keys: DataKeys,
}

/// How the keys are called by which a part of a data set is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataKeys {
    /// The data set.
    pub(crate) name: &'static str,
    /// The configuration.
    pub(crate) config: &'static str,
    /// The split.
    pub(crate) split: &'static str,
    /// The split where none is named.
    pub(crate) default_split: &'static str,
}

/// What is meant: files of one format, in the order in which they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// The configuration.
    pub(super) config: String,
    /// The files.
    pub(super) files: Vec<String>,
    /// How many files of the split are left out, because they are of other formats.
    pub(super) left_out: usize,
}

/// Why nothing can be meant: what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String, pub(super) String);

/// A split's name, with its files.
type Split<'a> = (String, Vec<&'a str>);

/// Chooses among the files of the repository `id`.
pub(super) fn choose(id: &str, files: &[String], card: &DatasetCard, part: &Part<'_>) -> Result<Choice, Refusal> {
    let mut files: Vec<&str> = files.iter().map(String::as_str).collect();
    files.sort_unstable();
    let (config, splits) = match (card.configs(), by_folders(&files)) {
        ([], Some(configs)) => {
            let names: Vec<_> = configs.iter().map(|(name, _)| (name.clone(), false)).collect();
            configs[index_of(&names, part)?].clone()
        }
        ([], None) => {
            index_of(&[(DEFAULT.to_owned(), false)], part)?;
            (DEFAULT.to_owned(), by_names(&files, ""))
        }
        (configs, _) => {
            let names: Vec<_> = configs.iter().map(|config| (config.name(), config.default)).collect();
            let config = &configs[index_of(&names, part)?];
            (config.name(), of_config(config, &files)?)
        }
    };
    if splits.is_empty() {
        return Err(without_data(id, &files));
    }
    let Some((_, found)) = splits.iter().find(|(name, _)| name == part.split) else {
        return Err(without_split(&config, &splits, part));
    };
    of_one_format(id, found, part).map(|(files, left_out)| Choice { config, files, left_out })
}

/// Which configuration is meant, of these names and whether each is marked as the default.
fn index_of(configs: &[(String, bool)], part: &Part<'_>) -> Result<usize, Refusal> {
    let all = configs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let key = part.keys.config;
    if let Some(asked) = part.config {
        return configs.iter().position(|(name, _)| name == asked).ok_or_else(|| match configs {
            [(only, _)] => {
                Refusal(format!("it has no configuration {asked}: its only one is {only}"), format!("leave {key} out"))
            }
            _ => Refusal(format!("it has no configuration {asked}: it has {all}"), format!("set {key} to one of them")),
        });
    }
    let is_default = |(name, marked): &&(String, bool)| configs.len() == 1 || name == DEFAULT || *marked;
    let defaults: Vec<&str> = configs.iter().filter(is_default).map(|(name, _)| name.as_str()).collect();
    match defaults[..] {
        [default] => Ok(configs.iter().position(|(name, _)| name == default).unwrap_or_default()),
        [] => Err(Refusal(
            format!("it has several configurations, and none is named: {all}"),
            format!("set {key} to one of them"),
        )),
        _ => Err(Refusal(
            format!("several of its configurations are marked as the default: {}", defaults.join(", ")),
            format!("set {key} to one of them"),
        )),
    }
}

/// The splits of a configuration that README.md names.
fn of_config<'a>(config: &CardConfig, files: &[&'a str]) -> Result<Vec<Split<'a>>, Refusal> {
    let folder = config.data_dir.as_deref().unwrap_or_default();
    let folder = folder.trim_start_matches("./").trim_matches('/');
    let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let Some(splits) = config.splits() else { return Ok(by_names(files, &folder)) };
    let mut found: Vec<Split<'a>> = Vec::new();
    for (split, patterns) in splits {
        let mut matching = Vec::new();
        for pattern in &patterns {
            for file in matches(files, &folder, pattern)? {
                if !matching.contains(&file) {
                    matching.push(file);
                }
            }
        }
        match found.iter_mut().find(|(name, _)| *name == split) {
            Some((_, all)) => {
                let new: Vec<&str> = matching.into_iter().filter(|file| !all.contains(file)).collect();
                all.extend(new);
            }
            None => found.push((split, matching)),
        }
    }
    Ok(found)
}

/// The files in a folder that a pattern of README.md matches. `*` stays within a folder; what is hidden has to be asked for.
fn matches<'a>(files: &[&'a str], folder: &str, pattern: &str) -> Result<Vec<&'a str>, Refusal> {
    let pattern = pattern.trim_start_matches("./");
    let own_name = pattern.rsplit('/').next().unwrap_or(pattern);
    let compiled = Pattern::new(pattern).map_err(|error| {
        let message = format!("its README.md has `{}`, which is no pattern: {error}", pattern.escape_default());
        Refusal(message, "its owner has to mend that; download its files and name them".to_owned())
    })?;
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
    let fits = |file: &&str| {
        let Some(rest) = file.strip_prefix(folder) else { return false };
        let name = rest.rsplit('/').next().unwrap_or(rest);
        let described = NO_DATA.contains(&name) && name != own_name;
        !described && veiled(rest) == veiled(pattern) && (rest == pattern || compiled.matches_with(rest, options))
    };
    Ok(files.iter().copied().filter(fits).collect())
}

/// Parts of a path that are hidden, or folders of programs.
fn veiled(path: &str) -> usize {
    let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
    let hidden = path.split('/').filter(|part| part.starts_with('.'));
    hidden.count() + folders.split('/').filter(|part| part.starts_with("__")).count()
}

/// The splits of the data files below a folder, by the names of folders and files.
fn by_names<'a>(files: &[&'a str], folder: &str) -> Vec<Split<'a>> {
    let below = files.iter().filter_map(|file| Some((*file, file.strip_prefix(folder)?)));
    let data: Vec<(&str, &str)> = below.filter(|(_, rest)| is_data(rest) && veiled(rest) == 0).collect();
    let of = |fits: &dyn Fn(&str) -> bool| -> Vec<&'a str> {
        data.iter().filter(|(_, rest)| fits(rest)).map(|(file, _)| *file).collect()
    };
    let sharded: BTreeSet<&str> = data.iter().filter_map(|(_, rest)| sharded(rest)).collect();
    if !sharded.is_empty() {
        let files = |split: &str| of(&|rest| self::sharded(rest) == Some(split));
        return sharded.into_iter().map(|split| (split.to_owned(), files(split))).collect();
    }
    let in_folder = |rest: &str, word: &str| {
        let mut folders = rest.rsplit_once('/').map_or("", |(folders, _)| folders).split('/');
        folders.any(|folder| has_word(folder, word, true))
    };
    let in_name = |rest: &str, word: &str| has_word(rest.rsplit('/').next().unwrap_or(rest), word, false);
    for fits in [&in_folder as &dyn Fn(&str, &str) -> bool, &in_name] {
        let files = |words: &[&str]| of(&|rest| words.iter().any(|word| fits(rest, word)));
        let splits = KEYWORDS.iter().map(|(split, words)| ((*split).to_owned(), files(words)));
        let splits: Vec<Split<'a>> = splits.filter(|(_, files)| !files.is_empty()).collect();
        if !splits.is_empty() {
            return splits;
        }
    }
    let all = of(&|_| true);
    if all.is_empty() { Vec::new() } else { vec![("train".to_owned(), all)] }
}

/// The split of a file as `push_to_hub` names it: `data/SPLIT-00000-of-00001….parquet`.
fn sharded(name: &str) -> Option<&str> {
    let name = name.strip_prefix("data/").filter(|name| !name.contains('/'))?;
    let (split, rest) = name.split_at(name.rfind("-of-")?);
    let (split, number) = split.rsplit_once('-')?;
    let of = rest.strip_prefix("-of-")?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(number) && of.get(..5).is_some_and(digits) && of.contains('.') && !split.is_empty()).then_some(split)
}

/// Whether a word stands in a name by itself: beside `-`, `.`, `_`, a space or a digit, or at the name's beginning; and at its
/// end, where `to_end`.
fn has_word(name: &str, word: &str, to_end: bool) -> bool {
    let apart = |letter: char| letter.is_ascii_digit() || "-._ ".contains(letter);
    name.match_indices(word).any(|(place, _)| {
        let before = name[..place].chars().next_back().is_none_or(apart);
        let after = name[place + word.len()..].chars().next().map_or(to_end, apart);
        before && after
    })
}

/// The configurations of the hub's own copy of a data set, which has no README.md: `CONFIG/SPLIT/0000.parquet`.
fn by_folders<'a>(files: &[&'a str]) -> Option<Vec<(String, Vec<Split<'a>>)>> {
    if files.contains(&"README.md") {
        return None;
    }
    let mut configs: Vec<(String, Vec<Split<'a>>)> = Vec::new();
    for file in files.iter().filter(|file| is_data(file) && veiled(file) == 0) {
        let (folders, name) = file.rsplit_once('/')?;
        let (config, split) = folders.split_once('/').filter(|(_, split)| !split.contains('/'))?;
        let number = name.strip_suffix(".parquet")?;
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // Files are sorted, so those of a configuration and of a split come one after another.
        if configs.last().is_none_or(|(name, _)| name != config) {
            configs.push((config.to_owned(), Vec::new()));
        }
        let splits = &mut configs.last_mut()?.1;
        match splits.last_mut().filter(|(name, _)| name == split) {
            Some((_, files)) => files.push(*file),
            None => splits.push((split.to_owned(), vec![*file])),
        }
    }
    (!configs.is_empty()).then_some(configs)
}

/// Whether a file is data by its name, of this or another program.
fn is_data(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    !NO_DATA.contains(&name) && (Format::of_name(name).is_some() || foreign(name).is_some())
}

/// The ending of a file of data that are not read.
fn foreign(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let mut endings = name.split('.').skip(1);
    endings.find_map(|ending| FOREIGN.into_iter().find(|known| *known == ending))
}

/// The files of the format that most of them have, and how many others there are; of equally many, Parquet goes before JSONL,
/// that before JSON, and that before what is not read.
fn of_one_format(id: &str, files: &[&str], part: &Part<'_>) -> Result<(Vec<String>, usize), Refusal> {
    let order = [Format::Parquet, Format::Lines, Format::Json];
    let of = |format: Format| files.iter().filter(move |file| Format::of_name(file) == Some(format));
    let most = order.into_iter().rev().max_by_key(|format| of(*format).count());
    let chosen: Vec<String> = most.into_iter().flat_map(of).map(|file| (*file).to_owned()).collect();
    let others = files.iter().filter_map(|file| Format::of_name(file).map_or_else(|| foreign(file), |_| None));
    let others: Vec<&str> = others.collect();
    if chosen.is_empty() || others.len() > chosen.len() {
        let of = match others.first() {
            Some(ending) => format!("is of .{ending} files, which are not read here"),
            None => "has no file that is read here".to_owned(),
        };
        return Err(Refusal(format!("its split {} {of}", part.split), elsewhere(id)));
    }
    let left_out = files.len() - chosen.len();
    Ok((chosen, left_out))
}

fn without_split(config: &str, splits: &[Split<'_>], part: &Part<'_>) -> Refusal {
    let (split, key) = (part.split, part.keys.split);
    let names: Vec<&str> = splits.iter().map(|(name, _)| name.as_str()).collect();
    let message = format!("its configuration {config} has no split {split}: it has {}", names.join(", "));
    let hint = match split.contains(['[', '+']) {
        true => format!("{key} takes one whole split: max_steps and num_train_epochs shorten a training"),
        false => format!("set {key} to one of them, or {} to other data", part.keys.name),
    };
    Refusal(message, hint)
}

fn without_data(id: &str, files: &[&str]) -> Refusal {
    let name = id.rsplit('/').next().unwrap_or(id);
    let program = format!("{name}.py");
    let message = match files.contains(&program.as_str()) {
        true => format!("it has no data files: its rows come from a program ({program}), and no program is ever run"),
        false => "it has no data files that are read here".to_owned(),
    };
    Refusal(message, elsewhere(id))
}

/// What can be done where the files themselves are of no use.
fn elsewhere(id: &str) -> String {
    format!(
        "JSONL, JSON and Parquet are read. The hub has its own copy of most data sets as Parquet: {id}@{CONVERTED}; else load it \
         with datasets and name what its to_json or to_parquet writes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const KEYS: DataKeys =
        DataKeys { name: "dataset", config: "dataset_config", split: "dataset_train_split", default_split: "train" };

    fn chosen(files: &[&str], readme: &str, config: Option<&str>, split: &str) -> Result<Choice, Refusal> {
        let files: Vec<String> = files.iter().map(|name| (*name).to_owned()).collect();
        choose("owner/name", &files, &DatasetCard::parse(readme).unwrap(), &Part { config, split, keys: KEYS })
    }

    fn words(value: &Value) -> Vec<&str> {
        value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
    }

    #[test]
    fn files_are_chosen_as_datasets_chooses_them() {
        // Made by scripts/fixtures/data_splits.py.
        let fixture: Value = serde_json::from_str(include_str!("../../../tests/fixtures/data_splits.json")).unwrap();
        let cases = fixture["cases"].as_array().unwrap();
        assert!(cases.len() > 40);
        for case in cases {
            let (mut files, readme) = (words(&case["files"]), case["readme"].as_str());
            files.extend(readme.map(|_| "README.md"));
            let chosen = |split| chosen(&files, readme.unwrap_or_default(), case["config"].as_str(), split);
            let Some(splits) = case["chosen"]["splits"].as_object() else {
                let Refusal(message, _) = chosen("train").unwrap_err();
                assert!(message.contains("configuration"), "{case}: {message}");
                continue;
            };
            for (split, expected) in splits {
                let choice = chosen(split).unwrap();
                assert_eq!(
                    (choice.files, &*choice.config),
                    (
                        words(expected).iter().map(|it| (*it).to_owned()).collect(),
                        case["chosen"]["config"].as_str().unwrap()
                    ),
                    "{case}"
                );
            }
            let Refusal(message, hint) = chosen("nothing").unwrap_err();
            assert!(message.contains("has no split nothing: it has "), "{message}");
            assert!(splits.keys().all(|split| message.contains(split.as_str())), "{case}: {message}");
            assert_eq!(hint, "set dataset_train_split to one of them, or dataset to other data");
        }
    }

    #[test]
    fn the_hubs_own_copy_has_configurations_as_folders() {
        let files = [
            "en/train/0000.parquet",
            "en/train/0001.parquet",
            "en/test/0000.parquet",
            "de/partial-train/0000.parquet",
            ".gitattributes",
        ];
        let choice = chosen(&files, "", Some("en"), "train").unwrap();
        assert_eq!(choice.files, ["en/train/0000.parquet", "en/train/0001.parquet"]);
        let Refusal(message, _) = chosen(&files, "", None, "train").unwrap_err();
        assert_eq!(message, "it has several configurations, and none is named: de, en");
        let Refusal(message, _) = chosen(&files, "", Some("de"), "train").unwrap_err();
        assert_eq!(message, "its configuration de has no split train: it has partial-train");
        let one = ["default/train/0000.parquet", "default/test/0000.parquet"];
        assert_eq!(chosen(&one, "", None, "test").unwrap().files, ["default/test/0000.parquet"]);
        // With a README.md the names tell.
        let files = ["README.md", "en/train/0000.parquet", "de/train/0000.parquet"];
        assert_eq!(
            chosen(&files, "", None, "train").unwrap().files,
            ["de/train/0000.parquet", "en/train/0000.parquet"]
        );
    }

    #[test]
    fn what_cannot_be_read_is_told_with_what_can_be_done() {
        let refused = |files: &[&str], parts: &[&str]| {
            let Refusal(message, hint) = chosen(files, "", None, "train").unwrap_err();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
            assert!(hint.contains("owner/name@refs/convert/parquet"), "{hint}");
        };
        refused(&["train.csv", "test.csv"], &["its split train is of .csv files"]);
        refused(&["train.csv.gz"], &["is of .csv files"]);
        refused(&["a.tar", "b.tar", "meta.json"], &["is of .tar files"]);
        refused(&["name.py", "README.md"], &["its rows come from a program (name.py)"]);
        refused(&["other.py", "LICENSE"], &["it has no data files"]);
        refused(&[], &["it has no data files"]);
        // As many are read as are not.
        let choice = chosen(&["train.csv", "train.jsonl"], "", None, "train").unwrap();
        assert_eq!((choice.files, choice.left_out), (vec!["train.jsonl".to_owned()], 1));
        let Refusal(_, hint) = chosen(&["train.jsonl"], "", None, "train[:10%]").unwrap_err();
        assert!(hint.contains("dataset_train_split takes one whole split"), "{hint}");
        let readme = "---\nconfigs:\n- config_name: a\n  data_files: 'x/**y'\n---\n";
        let Refusal(message, _) = chosen(&["x/y.jsonl", "README.md"], readme, None, "train").unwrap_err();
        assert!(message.contains("`x/**y`, which is no pattern"), "{message}");
        let readme = "---\nconfigs:\n- config_name: a\n  data_files: gone/*\n---\n";
        let Refusal(message, _) = chosen(&["x/y.jsonl", "README.md"], readme, None, "train").unwrap_err();
        assert_eq!(message, "its split train has no file that is read here");
    }
}
