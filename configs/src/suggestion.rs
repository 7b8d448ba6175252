//! What to say of a key that nobody knows: the right name, where one is near enough to be meant.

use crate::known::{lookup, prefix, suggestible};
use crate::known_training::RENAMED;
use crate::registry::{Section, difference, nearest, same_name};

/// The sections in the order in which a name is looked for: where users set most comes first.
const ORDER: [Section; 5] = [Section::Training, Section::Top, Section::DeepSpeed, Section::Fsdp, Section::Parallelism];

/// The hint for a key that `section` does not know; `None` for a name from the command line, and `flag` when it was a
/// flag there.
pub(crate) fn suggestion(section: Option<Section>, key: &str, flag: bool) -> String {
    let short = key.rsplit('.').next().unwrap_or(key);
    if let Some((_, new)) = RENAMED.iter().find(|(old, _)| same_name(old, short)) {
        return format!("it is called {new} here");
    }
    if section == Some(Section::Top) && crate::deepspeed::keys::is_known(key) {
        return format!("{key} is a key of a DeepSpeed JSON: give that by --config FILE.json or deepspeed_config_file");
    }
    if let Some(hint) = key.split_once('.').and_then(|(outer, inner)| misspelt_section(outer, inner)) {
        return hint;
    }
    if let Some(section) = section {
        if let Some(other) = ORDER.into_iter().find(|other| lookup(*other, key).is_some()) {
            return match other {
                Section::Top => format!("{key} belongs at the top level of the file"),
                _ => format!("{key} belongs in the section {}:", other.name()),
            };
        }
        let sections = section_names().filter(|_| section == Section::Top);
        if let Some(name) = nearest(key, sections).or_else(|| near(section, key).map(|near| near.name)) {
            return format!("did you mean {name}?");
        }
    }
    let found = ORDER.into_iter().filter_map(|section| Some((section, near(section, short)?)));
    match found.min_by_key(|(_, near)| near.difference) {
        Some((_, near)) if flag => format!("did you mean --{}?", near.name),
        Some((section, near)) => format!("did you mean {}?", section.path(near.name)),
        None => "launch train --help lists every key".to_owned(),
    }
}

fn section_names() -> impl Iterator<Item = &'static str> {
    ORDER.into_iter().filter(|section| *section != Section::Top).map(Section::name)
}

/// The hint for `outer.inner` whose `outer` is nearly a section's name.
fn misspelt_section(outer: &str, inner: &str) -> Option<String> {
    let name = nearest(outer, section_names())?;
    let section = ORDER.into_iter().find(|section| section.name() == name)?;
    Some(match lookup(section, inner) {
        Some(key) => format!("did you mean {}?", section.path(key)),
        None => format!("did you mean the section {name}?"),
    })
}

/// A right name, and how many letters of the wrong one differ from it.
struct Near {
    name: &'static str,
    difference: usize,
}

/// The name in `section` that `key` is most likely meant to be. A section's prefix is long and the same in all of its
/// names, so it does not count for how much may differ: a third of the letters without it.
fn near(section: Section, key: &str) -> Option<Near> {
    let prefix = prefix(section);
    let bare = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
    let written = bare(&key.to_lowercase().replace('-', "_"));
    let candidates = suggestible(section).filter_map(|name| {
        let limit = (written.chars().count().min(bare(name).chars().count()) / 3).max(1);
        let difference = difference(&written, &bare(name)).min(difference(&written, name));
        (difference.letters <= limit).then_some((difference, name))
    });
    let (difference, name) = candidates.min_by_key(|(difference, _)| *difference)?;
    Some(Near { name, difference: difference.letters })
}
