//! Which tensors a model's files must hold, and what else they may call them.

use crate::error::{CheckpointError, Result};
use crate::model_files::ModelFiles;

/// The parameters of a model, and how its files may differ from that.
#[derive(Clone, Debug, Default)]
pub struct Naming {
    /// The names of all parameters.
    pub parameters: Vec<String>,
    /// What files of the bare model leave out at the beginning of names, such as `transformer.` of GPT-2.
    pub prefix: String,
    /// Ends of names, and what they are in files of old, such as `LayerNorm.weight` and `LayerNorm.gamma` of BERT.
    pub old_ends: &'static [(&'static str, &'static str)],
    /// Ends of names that hold no parameters: constants, a tied head.
    pub ignored: Vec<String>,
}

impl Naming {
    /// What files may call a parameter in place of its name.
    fn other_names(&self, name: &str) -> Vec<String> {
        let old = |name: &str| {
            let of_end = |(new, old): &(&str, &str)| name.strip_suffix(new).map(|begin| format!("{begin}{old}"));
            self.old_ends.iter().find_map(of_end)
        };
        let bare = name.strip_prefix(&self.prefix).filter(|bare| !bare.is_empty());
        let bare_and_old = bare.map(|bare| [Some(bare.to_owned()), old(bare)]);
        bare_and_old.into_iter().flatten().chain([old(name)]).flatten().collect()
    }
}

/// Strange tensors that are named in an error.
const NAMED: usize = 4;

impl ModelFiles {
    /// The same with each parameter under the name that the model has for it. One that is not there is told when it is asked for.
    #[must_use]
    pub fn renamed(mut self, naming: &Naming) -> Self {
        for name in &naming.parameters {
            if self.tensors.contains_key(name) {
                continue;
            }
            let other_names = naming.other_names(name);
            if let Some((other, file)) = other_names.iter().find_map(|other| self.tensors.remove_entry(other)) {
                let _new = self.tensors.insert(name.clone(), file);
                let _new = self.in_files.insert(name.clone(), other);
            }
        }
        self
    }

    /// As [`ModelFiles::renamed`], where there is nothing else.
    ///
    /// # Errors
    /// [`CheckpointError::StrangeTensors`] for tensors that are none of the parameters, and the first parameter that is missing beside them.
    pub fn named(self, naming: &Naming) -> Result<Self> {
        let files = self.renamed(naming);
        let known: std::collections::HashSet<&str> = naming.parameters.iter().map(String::as_str).collect();
        let ignored = |name: &str| naming.ignored.iter().any(|end| name.ends_with(end.as_str()));
        let strange: Vec<&str> = files.names().filter(|name| !known.contains(name) && !ignored(name)).collect();
        if strange.is_empty() {
            return Ok(files);
        }
        // One that is called otherwise is missing too, and what is near it is told.
        if let Some(missing) = naming.parameters.iter().find(|name| !files.contains(name)) {
            let _missing = files.entry(missing)?;
        }
        let mut tensors = strange.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        if strange.len() > NAMED {
            tensors = format!("{tensors} and {} more", strange.len() - NAMED);
        }
        Err(CheckpointError::StrangeTensors { path: files.directory, tensors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::header::TensorEntry;
    use crate::model_files::SINGLE_FILE;
    use crate::writer::SafetensorsWriter;
    use std::collections::BTreeMap;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<_> = names.iter().map(|name| TensorEntry::new(*name, Dtype::F32, [1])).collect();
        let path = folder.path().join(SINGLE_FILE);
        let mut writer = SafetensorsWriter::create(&path, &entries, &BTreeMap::new()).unwrap();
        for (index, name) in names.iter().enumerate() {
            writer.write_f32(name, 0, &[index as f32]).unwrap();
        }
        writer.finish().unwrap();
        folder
    }

    const NAMES: [&str; 2] = ["transformer.wte.weight", "transformer.h.0.ln_1.weight"];

    fn naming() -> Naming {
        Naming {
            parameters: NAMES.map(str::to_owned).to_vec(),
            prefix: "transformer.".to_owned(),
            old_ends: &[("ln_1.weight", "ln_1.gamma")],
            ignored: vec!["attn.bias".to_owned(), "lm_head.weight".to_owned()],
        }
    }

    #[test]
    fn names_of_the_bare_model_are_found_and_constants_left_out() {
        let bare = folder(&["h.0.attn.bias", "h.0.ln_1.weight", "lm_head.weight", "wte.weight"]);
        let files = ModelFiles::open(bare.path()).unwrap().named(&naming()).unwrap();
        let value = |name: &str| {
            let mut value = [-1.0];
            files.read_f32(name, 0..1, &mut value).unwrap();
            value[0]
        };
        assert_eq!(NAMES.map(value), [3.0, 1.0]);
        assert_eq!(files.entry(NAMES[0]).unwrap().dtype, Dtype::F32);
        assert!(ModelFiles::open(folder(&NAMES).path()).unwrap().named(&naming()).is_ok());
        // Of old, with the prefix and without.
        for names in [["transformer.h.0.ln_1.gamma", "transformer.wte.weight"], ["h.0.ln_1.gamma", "wte.weight"]] {
            let files = ModelFiles::open(folder(&names).path()).unwrap().named(&naming()).unwrap();
            assert!(NAMES.iter().all(|name| files.entry(name).is_ok()), "{names:?}");
        }
    }

    #[test]
    fn tensors_that_the_model_does_not_have_are_told() {
        let names = ["a.bias", "b.bias", "c.bias", "d.bias", "e.bias", NAMES[0], NAMES[1]];
        let error = ModelFiles::open(folder(&names).path()).unwrap().named(&naming()).unwrap_err().to_string();
        assert!(error.contains("does not have: a.bias, b.bias, c.bias, d.bias and 1 more\n"), "{error}");
        // One that is missing is told by who asks for it.
        let files = ModelFiles::open(folder(&NAMES[..1]).path()).unwrap().named(&naming()).unwrap();
        assert!(files.entry(NAMES[1]).is_err());
    }
}
