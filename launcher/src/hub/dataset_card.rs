//! The head of a data set's README.md: the configurations that its owner names.

use serde::Deserialize;

/// So much of a README.md is read at most.
pub(super) const MOST_BYTES: u64 = 8 << 20;

/// What the head says.
#[derive(Debug, Default, Deserialize)]
pub(super) struct DatasetCard {
    /// The configurations, in their order.
    #[serde(default)]
    configs: Option<Vec<CardConfig>>,
}

/// A configuration: a part of a data set that has columns and splits of its own.
#[derive(Debug, Deserialize)]
pub(super) struct CardConfig {
    /// Its name.
    #[serde(rename = "config_name")]
    name: Word,
    /// The folder that patterns and names count from; the repository's without one.
    #[serde(default)]
    pub(super) data_dir: Option<String>,
    #[serde(default)]
    data_files: Option<DataFiles>,
    /// Whether it is meant where none is named.
    #[serde(default)]
    pub(super) default: bool,
}

/// YAML reads some names as numbers and switches.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Word {
    Text(String),
    Number(serde_yaml::Number),
    Switch(bool),
}

impl Word {
    fn text(&self) -> String {
        match self {
            Word::Text(text) => text.clone(),
            Word::Number(number) => number.to_string(),
            Word::Switch(switch) => switch.to_string(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum DataFiles {
    Patterns(OneOrMore),
    Splits(Vec<SplitFiles>),
}

#[derive(Debug, Deserialize)]
struct SplitFiles {
    split: Word,
    path: OneOrMore,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn all(&self) -> Vec<String> {
        match self {
            OneOrMore::One(name) => vec![name.clone()],
            OneOrMore::More(names) => names.clone(),
        }
    }
}

impl DatasetCard {
    /// Reads the head of a README.md. One without a head says nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(readme: &str) -> Result<DatasetCard, String> {
        let Some(head) = head(readme) else { return Ok(DatasetCard::default()) };
        let card: Option<DatasetCard> = serde_yaml::from_str(head).map_err(|error| error.to_string())?;
        Ok(card.unwrap_or_default())
    }

    /// The configurations; none where the files' names alone tell what is what.
    pub(super) fn configs(&self) -> &[CardConfig] {
        self.configs.as_deref().unwrap_or_default()
    }
}

impl CardConfig {
    /// Its name.
    pub(super) fn name(&self) -> String {
        self.name.text()
    }

    /// The patterns of each split; none where the files' names tell them.
    pub(super) fn splits(&self) -> Option<Vec<(String, Vec<String>)>> {
        Some(match self.data_files.as_ref()? {
            DataFiles::Patterns(patterns) => vec![("train".to_owned(), patterns.all())],
            DataFiles::Splits(splits) => splits.iter().map(|it| (it.split.text(), it.path.all())).collect(),
        })
    }
}

/// What stands between two lines of `---` at the beginning.
fn head(readme: &str) -> Option<&str> {
    let text = readme.trim_start_matches('\u{feff}').trim_start();
    let text = text.strip_prefix("---")?;
    let (rest, text) = text.split_once('\n')?;
    if !rest.trim().is_empty() {
        return None;
    }
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&text[..end]);
        }
        end += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splits(data_files: &str) -> Vec<(String, Vec<String>)> {
        let readme =
            format!("---\nlicense: mit\nconfigs:\n- config_name: a\n  data_files: {data_files}\n---\n# A\n---\n");
        DatasetCard::parse(&readme).unwrap().configs()[0].splits().unwrap()
    }

    #[test]
    fn data_files_are_written_in_four_ways() {
        let named = |split: &str, files: &[&str]| (split.to_owned(), files.iter().map(|it| (*it).to_owned()).collect());
        assert_eq!(splits("a.jsonl"), [named("train", &["a.jsonl"])]);
        assert_eq!(splits("[a/*, b]"), [named("train", &["a/*", "b"])]);
        let one = "[{split: train, path: a-*}, {split: test_sft, path: [b, c]}, {split: 2024, path: d}]";
        assert_eq!(splits(one), [named("train", &["a-*"]), named("test_sft", &["b", "c"]), named("2024", &["d"])]);
    }

    #[test]
    fn a_head_that_says_nothing_of_configurations_is_none() {
        for readme in [
            "",
            "# A\n",
            "---\n---\n",
            "---\nlicense: mit\n---\n",
            "---\nconfigs:\n---\n",
            "---\nconfigs: []\n",
            "--- a\n---\n",
        ] {
            assert!(DatasetCard::parse(readme).unwrap().configs().is_empty(), "{readme:?}");
        }
        let card = DatasetCard::parse("\u{feff}---\r\nconfigs:\r\n- config_name: 7\r\n  default: true\r\n---\r\ntext")
            .unwrap();
        let config = &card.configs()[0];
        assert_eq!((config.name().as_str(), config.default, config.splits()), ("7", true, None));
        for readme in ["---\nconfigs: a\n---\n", "---\na: [\n---\n", "---\nconfigs:\n- data_files: a\n---\n"] {
            assert!(DatasetCard::parse(readme).is_err(), "{readme:?}");
        }
    }
}
