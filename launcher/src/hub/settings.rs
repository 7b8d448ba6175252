//! Where the hub is, who asks, and where its files lie on this machine: the variables of huggingface_hub, with its
//! meanings.

use std::path::PathBuf;

use crate::environment as names;

const ENDPOINT: &str = "https://huggingface.co";
/// What keeps from the network.
const OFFLINE: [&str; 2] = [names::HF_HUB_OFFLINE, names::TRANSFORMERS_OFFLINE];
/// What keeps from it where data are wanted.
const DATA_OFFLINE: [&str; 3] = [names::HF_HUB_OFFLINE, names::HF_DATASETS_OFFLINE, names::TRANSFORMERS_OFFLINE];

/// What the environment says about the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// The hub's address, without a slash at its end.
    pub(super) endpoint: String,
    /// Who asks; nobody where there is none.
    pub(super) token: Option<String>,
    /// The folder that repositories are kept in.
    pub(super) cache: PathBuf,
    /// The variable by which the network must not be asked, if there is one.
    pub(super) offline: Option<&'static str>,
}

impl Settings {
    pub(super) fn from_environment() -> Settings {
        Settings::of(|name| std::env::var(name).ok(), &OFFLINE)
    }

    /// The same for data: `datasets` has a variable of its own.
    pub(super) fn for_data() -> Settings {
        Settings::of(|name| std::env::var(name).ok(), &DATA_OFFLINE)
    }

    /// Where the hub is, for messages: without the name and the password that a URL may have.
    pub(super) fn shown_endpoint(&self) -> String {
        let Some((scheme, rest)) = self.endpoint.split_once("://") else { return self.endpoint.clone() };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        format!("{scheme}://{host}{path}")
    }

    /// `variable` gives the value of a variable; an empty one counts as none. Any of `offline` keeps from the network.
    fn of(variable: impl Fn(&str) -> Option<String>, offline: &[&'static str]) -> Settings {
        let set = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let user = PathBuf::from(set("HOME").unwrap_or_else(|| "/".to_owned()));
        let path = |name: &str| {
            set(name).map(|text| match text.strip_prefix("~/") {
                Some(rest) => user.join(rest),
                None => PathBuf::from(text),
            })
        };
        let home = path(names::HF_HOME)
            .unwrap_or_else(|| path(names::XDG_CACHE_HOME).unwrap_or_else(|| user.join(".cache")).join("huggingface"));
        let cache = path(names::HF_HUB_CACHE)
            .or_else(|| path(names::HUGGINGFACE_HUB_CACHE))
            .unwrap_or_else(|| home.join("hub"));
        let token_file = path(names::HF_TOKEN_PATH).unwrap_or_else(|| home.join("token"));
        let kept = || {
            let text = std::fs::read_to_string(token_file).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let token = set(names::HF_TOKEN).or_else(|| set(names::HUGGING_FACE_HUB_TOKEN)).or_else(kept);
        let yes = |name: &str| {
            set(name).is_some_and(|text| ["1", "ON", "YES", "TRUE"].contains(&text.to_ascii_uppercase().as_str()))
        };
        let endpoint = set(names::HF_ENDPOINT).unwrap_or_else(|| ENDPOINT.to_owned());
        Settings {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            cache,
            offline: offline.iter().copied().find(|name| yes(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(pairs: &[(&str, &str)], name: &str) -> Option<String> {
        pairs.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
    }

    fn of(pairs: &[(&str, &str)]) -> Settings {
        Settings::of(|name| value(pairs, name), &OFFLINE)
    }

    #[test]
    fn variables_mean_what_they_mean_to_huggingface_hub() {
        let plain = of(&[("HOME", "/home/a")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!((plain.cache, plain.token), (PathBuf::from("/home/a/.cache/huggingface/hub"), None));
        assert_eq!(plain.offline, None);
        let cache = |pairs: &[(&str, &str)]| of(pairs).cache;
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]), PathBuf::from("/h/hub"));
        assert_eq!(cache(&[("HOME", "/home/a"), ("HF_HOME", "~/h")]), PathBuf::from("/home/a/h/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/o")]), PathBuf::from("/o"));
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/o"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
        assert_eq!(of(&[("HF_ENDPOINT", "http://127.0.0.1:1/")]).endpoint, "http://127.0.0.1:1");
        assert_eq!(of(&[("HF_ENDPOINT", "https://me:secret@hub/a@b")]).shown_endpoint(), "https://hub/a@b");
        assert_eq!(of(&[]).shown_endpoint(), "https://huggingface.co");
        for (value, offline) in [("1", true), ("true", true), ("Yes", true), ("0", false), ("", false)] {
            for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
                assert_eq!(of(&[(name, value)]).offline, offline.then_some(name), "{value}");
            }
            let data = Settings::of(|name| self::value(&[("HF_DATASETS_OFFLINE", value)], name), &DATA_OFFLINE);
            assert_eq!(data.offline, offline.then_some("HF_DATASETS_OFFLINE"), "{value}");
            assert_eq!(of(&[("HF_DATASETS_OFFLINE", value)]).offline, None, "{value}");
        }
    }

    #[test]
    fn the_token_is_that_of_the_variable_else_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_kept\n").unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(of(&[("HF_HOME", home)]).token.as_deref(), Some("hf_kept"));
        assert_eq!(of(&[("HF_HOME", home), ("HF_TOKEN", " hf_given ")]).token.as_deref(), Some("hf_given"));
        let elsewhere = folder.path().join("mine");
        std::fs::write(&elsewhere, "hf_mine").unwrap();
        let pairs = [("HF_HOME", home), ("HF_TOKEN_PATH", elsewhere.to_str().unwrap())];
        assert_eq!(of(&pairs).token.as_deref(), Some("hf_mine"));
    }
}
