//! What a checkpoint consists of: every rank's [`Part`], and the [`Manifest`] that they make together.
//!
//! Invariants of a manifest that was assembled or read:
//! 1. its file names are plain, stand once, and each belongs to this generation and world size;
//! 2. the ranges of every whole that its files hold pieces of cover that whole from end to end;
//! 3. its units' parameters do not touch each other, and each state of each unit is such a whole, of the unit's length.

use crate::disk::is_plain_name;
use crate::dtype::Dtype;
use crate::error::{CheckpointError, Result};
use crate::units::{FISHER, STATES, SavedUnit, check_units, digest_units};
use crate::writer::FileDigest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The version of the manifest's form that is written, and the newest that is read.
pub const FORMAT_VERSION: u32 = 2;

/// No run has more steps, so that nothing that is counted from a step overflows.
const MAX_STEP: u64 = 1 << 53;

/// A piece of something larger, stored as one tensor of a file: a rank's shard of a unit's masters, say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRange {
    /// The tensor's name in the file.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// What it is a piece of, the same on every rank, such as `layer 3/master`.
    pub whole: String,
    /// Elements of the whole (with its padding).
    pub length: u64,
    /// The first element of the whole that is here.
    pub begin: u64,
    /// One past the last element of the whole that is here.
    pub end: u64,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name in the step's folder.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The BLAKE3 hash of all its bytes, 64 hexadecimal digits.
    pub blake3: String,
    /// What lies in it.
    pub tensors: Vec<TensorRange>,
}

impl FileEntry {
    /// A file as its writer finished it.
    pub fn new(name: impl Into<String>, digest: FileDigest, tensors: Vec<TensorRange>) -> Self {
        FileEntry { name: name.into(), bytes: digest.bytes, blake3: digest.blake3, tensors }
    }
}

/// What one rank wrote for a step, told to the launcher as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The rank, from 0.
    pub rank: u32,
    /// Ranks of the job.
    pub world_size: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// The membership of the job that wrote it.
    pub generation: u64,
    /// The ZeRO stage.
    pub stage: u8,
    /// The digest of the units ([`digest_units`]), on which ranks must agree.
    pub layout: String,
    /// The units; from rank 0 alone, since they are the same on every rank.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<SavedUnit>,
    /// What else makes a resumed run go on as if nothing had been: data cursor, schedule, seed. The same on every rank.
    /// Numbers that are not finite cannot be kept in JSON.
    pub state: serde_json::Value,
    /// Its files; none if others hold everything.
    pub files: Vec<FileEntry>,
}

/// A whole checkpoint. Its presence in a step's folder makes the files there a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] when it was written.
    pub format_version: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// The membership of the job that wrote it.
    pub generation: u64,
    /// Ranks of the job that wrote it.
    pub world_size: u32,
    /// The ZeRO stage.
    pub stage: u8,
    /// Where parameters lie in the wholes of the files.
    pub units: Vec<SavedUnit>,
    /// What the ranks agreed on (see [`Part::state`]).
    pub state: serde_json::Value,
    /// What `launch` knows of the job; a checkpoint of an earlier version does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobRecord>,
    /// All files, by rank.
    pub files: Vec<FileEntry>,
    /// The hash of all the rest (see [`Manifest::sealed`]), so that a manifest that was changed is known for it; none before it
    /// is published, and in checkpoints of before there were seals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
}

/// What `launch` knows of the job that saves, so that a checkpoint tells it wherever it is copied to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The resolved configuration, as in `config.resolved.yaml`.
    pub configuration: serde_json::Value,
    /// The BLAKE3 hash of the model's chat template, 64 hexadecimal digits; none if the model has no template.
    pub chat_template: Option<String>,
    /// The BLAKE3 hash of the tokenised rows that are trained on, 64 hexadecimal digits.
    pub data: Option<String>,
}

/// The name of a rank's shard file: `rank-00001-of-00002.g1.safetensors` for rank 1 (of 0 and 1) in generation 1.
pub fn shard_file_name(rank: u32, world_size: u32, generation: u64) -> String {
    format!("rank-{rank:05}-of-{world_size:05}.g{generation}.safetensors")
}

impl Manifest {
    /// Makes one checkpoint of the ranks' parts, given in any order.
    ///
    /// # Errors
    /// If a rank is missing or came twice, two disagree on anything but their files, or the files leave a gap in a whole.
    pub fn assemble(mut parts: Vec<Part>) -> Result<Manifest> {
        parts.sort_by_key(|part| part.rank);
        let Some(first) = parts.first() else {
            return Err(bad("there are none".to_string()));
        };
        let mut manifest = Manifest {
            format_version: FORMAT_VERSION,
            step: first.step,
            generation: first.generation,
            world_size: first.world_size,
            stage: first.stage,
            units: first.units.clone(),
            state: first.state.clone(),
            job: None,
            files: Vec::new(),
            seal: None,
        };
        for (expected, part) in (0..).zip(&parts) {
            if part.rank != expected {
                let fault = if part.rank < expected { "came twice" } else { "is missing" };
                return Err(bad(format!("rank {} of {} {fault}", part.rank.min(expected), manifest.world_size)));
            }
            manifest.check_agrees(first, part)?;
        }
        if parts.len() as u64 != u64::from(manifest.world_size) {
            return Err(bad(format!("{} of {} ranks are there", parts.len(), manifest.world_size)));
        }
        if digest_units(&first.units) != first.layout {
            return Err(bad(format!("the units of rank {} are not those of its layout {}", first.rank, first.layout)));
        }
        manifest.files = parts.into_iter().flat_map(|part| part.files).collect();
        manifest.check().map_err(bad)?;
        Ok(manifest)
    }

    /// The file of a rank of the job that wrote this, if that rank wrote one.
    pub fn file_of_rank(&self, rank: u32) -> Option<&FileEntry> {
        let name = shard_file_name(rank, self.world_size, self.generation);
        self.files.iter().find(|file| file.name == name)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }

    /// Whether it has the Fisher information too.
    pub fn has_fisher(&self) -> bool {
        let is_fisher = |whole: &str| whole.strip_suffix(FISHER).is_some_and(|unit| unit.ends_with('/'));
        self.files.iter().flat_map(|file| &file.tensors).any(|range| is_fisher(&range.whole))
    }

    /// Elements of all parameters. A manifest that was made up may tell of more than there can be.
    pub fn elements(&self) -> u64 {
        self.units.iter().map(SavedUnit::elements).fold(0, u64::saturating_add)
    }

    fn check_agrees(&self, first: &Part, part: &Part) -> Result<()> {
        let differs = |what: &str, ours: &dyn std::fmt::Display, theirs: &dyn std::fmt::Display| {
            Err(bad(format!("rank {} has {what} {ours}, rank {} has {theirs}", first.rank, part.rank)))
        };
        if self.step != part.step {
            return differs("step", &self.step, &part.step);
        }
        if self.generation != part.generation {
            return differs("generation", &self.generation, &part.generation);
        }
        if self.world_size != part.world_size {
            return differs("world size", &self.world_size, &part.world_size);
        }
        if self.stage != part.stage {
            return differs("stage", &self.stage, &part.stage);
        }
        if first.layout != part.layout {
            return differs("layout", &first.layout, &part.layout);
        }
        if self.state != part.state {
            return differs("state", &self.state, &part.state);
        }
        Ok(())
    }

    /// Checks the invariants; the error is the first that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.step > MAX_STEP {
            return Err(format!("it is of step {}, and no run has more than {MAX_STEP}", self.step));
        }
        let own = format!("-of-{:05}.g{}.safetensors", self.world_size, self.generation);
        let mut names = BTreeSet::new();
        for file in &self.files {
            let name = &file.name;
            if !is_plain_name(name) || !name.ends_with(&own) {
                return Err(format!("the file name {name:?} is not of the form rank-NNNNN{own}"));
            }
            if !names.insert(name) {
                return Err(format!("the file {name} is given twice"));
            }
            if file.blake3.len() != 64 || !file.blake3.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(format!("the hash {:?} of {name} is no BLAKE3 hash", file.blake3));
            }
        }
        let wholes = self.check_covers()?;
        check_units(&self.units)?;
        let states: Vec<&str> = STATES.into_iter().chain(self.has_fisher().then_some(FISHER)).collect();
        for (unit, state) in self.units.iter().flat_map(|unit| states.iter().map(move |state| (unit, state))) {
            let whole = unit.whole(state);
            match wholes.get(whole.as_str()) {
                Some(&length) if length == unit.length => {}
                Some(length) => return Err(format!("{whole} has {length} elements, and its unit {}", unit.length)),
                None => return Err(format!("no file holds {whole}")),
            }
        }
        Ok(())
    }

    /// The ranges of every whole lie in it and leave no gap. Gives the wholes' lengths.
    fn check_covers(&self) -> Result<BTreeMap<&str, u64>, String> {
        let mut wholes: BTreeMap<&str, Vec<&TensorRange>> = BTreeMap::new();
        for file in &self.files {
            for range in &file.tensors {
                let TensorRange { whole, length, begin, end, .. } = range;
                if begin > end || end > length {
                    return Err(format!(
                        "{} holds elements {begin} to {end} of {whole}, which has {length}",
                        file.name
                    ));
                }
                wholes.entry(whole).or_default().push(range);
            }
        }
        let mut lengths = BTreeMap::new();
        for (whole, mut ranges) in wholes {
            ranges.sort_by_key(|range| (range.begin, range.end));
            let length = ranges[0].length;
            let mut covered = 0;
            for range in ranges {
                if range.length != length {
                    return Err(format!("{whole} has {length} elements in one file and {} in another", range.length));
                }
                if range.begin > covered {
                    break;
                }
                covered = covered.max(range.end);
            }
            if covered < length {
                return Err(format!("no file holds element {covered} of {whole}, which has {length}"));
            }
            lengths.insert(whole, length);
        }
        Ok(lengths)
    }
}

fn bad(reason: String) -> CheckpointError {
    CheckpointError::BadParts { reason }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::units::tests::{parameter, unit};
    use serde_json::json;

    /// A unit with a parameter across the border of its first two ranks.
    fn units(world_size: u32) -> Vec<SavedUnit> {
        let parameters = vec![parameter("bias", &[1], 0), parameter("weight", &[2, 3], 1)];
        vec![unit("layer 0", 4 * u64::from(world_size), if world_size > 1 { parameters } else { Vec::new() })]
    }

    pub(crate) fn part(rank: u32, world_size: u32) -> Part {
        let tensor = |state| TensorRange {
            name: format!("layer 0/{state}"),
            dtype: Dtype::F32,
            whole: format!("layer 0/{state}"),
            length: 4 * u64::from(world_size),
            begin: 4 * u64::from(rank),
            end: 4 * u64::from(rank) + 4,
        };
        let digest = FileDigest { bytes: 100, blake3: "0".repeat(64) };
        Part {
            rank,
            world_size,
            step: 20,
            generation: 1,
            stage: 3,
            layout: digest_units(&units(world_size)),
            units: if rank == 0 { units(world_size) } else { Vec::new() },
            state: json!({"row": 480, "learning_rate": 0.1 + 0.2}),
            files: vec![FileEntry::new(shard_file_name(rank, world_size, 1), digest, STATES.map(tensor).to_vec())],
        }
    }

    fn error(parts: Vec<Part>) -> String {
        Manifest::assemble(parts).unwrap_err().to_string()
    }

    #[test]
    fn parts_in_any_order_make_a_manifest() {
        let manifest = Manifest::assemble(vec![part(2, 3), part(0, 3), part(1, 3)]).unwrap();
        let names: Vec<_> = manifest.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names[1], "rank-00001-of-00003.g1.safetensors");
        assert_eq!(manifest.bytes(), 300);
        assert_eq!(manifest.file_of_rank(2).unwrap().tensors[0].begin, 8);
        assert_eq!(manifest.file_of_rank(3), None);
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
    }

    #[test]
    fn ranks_come_each_once() {
        assert!(error(vec![]).contains("there are none"));
        assert!(error(vec![part(0, 2)]).contains("1 of 2 ranks"));
        assert!(error(vec![part(1, 2)]).contains("rank 0 of 2 is missing"));
        assert!(error(vec![part(0, 3), part(2, 3)]).contains("rank 1 of 3 is missing"));
        assert!(error(vec![part(0, 2), part(0, 2)]).contains("rank 0 of 2 came twice"));
        assert!(error(vec![part(0, 1), part(1, 1)]).contains("2 of 1 ranks"));
    }

    #[test]
    fn ranks_agree_on_everything_but_their_files() {
        type Change = fn(&mut Part);
        let changes: [(&str, Change); 6] = [
            ("step 20, rank 1 has 21", |part| part.step = 21),
            ("generation 1, rank 1 has 2", |part| part.generation = 2),
            ("world size 2, rank 1 has 3", |part| part.world_size = 3),
            ("stage 3, rank 1 has 2", |part| part.stage = 2),
            (", rank 1 has other", |part| part.layout = "other".into()),
            ("state {", |part| part.state["row"] = json!(481)),
        ];
        for (expected, change) in changes {
            let mut other = part(1, 2);
            change(&mut other);
            let told = error(vec![part(0, 2), other]);
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn files_cover_every_whole_and_keep_to_their_folder() {
        type Change = fn(&mut FileEntry);
        let changes: [(&str, Change); 7] = [
            ("no file holds element 4 of layer 0/master", |file| file.tensors[0].begin = 5),
            ("no file holds element 7 of layer 0/master", |file| file.tensors[0].end = 7),
            ("holds elements 4 to 9 of layer 0/master, which has 8", |file| file.tensors[0].end = 9),
            ("8 elements in one file and 9", |file| file.tensors[0].length = 9),
            ("is given twice", |file| file.name = shard_file_name(0, 2, 1)),
            ("is not of the form", |file| file.name = "../rank-00001-of-00002.g1.safetensors".into()),
            ("is no BLAKE3 hash", |file| file.blake3 = "x".repeat(64)),
        ];
        for (expected, change) in changes {
            let mut other = part(1, 2);
            change(&mut other.files[0]);
            let told = error(vec![part(0, 2), other]);
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn every_state_of_every_unit_is_there() {
        let parts = |change: fn(&mut Part)| {
            let mut parts = vec![part(0, 2), part(1, 2)];
            parts.iter_mut().for_each(change);
            parts[0].layout = digest_units(&parts[0].units);
            parts[1].layout = parts[0].layout.clone();
            parts
        };
        let missing = parts(|part| part.files[0].tensors.truncate(2));
        assert!(error(missing).contains("no file holds layer 0/exp_avg_sq"));
        let with_fisher = |tensors: &mut Vec<TensorRange>| {
            let name = "layer 0/fisher".to_owned();
            tensors.push(TensorRange { whole: name.clone(), name, ..tensors[0].clone() });
        };
        let mut all = vec![part(0, 2), part(1, 2)];
        all.iter_mut().for_each(|part| with_fisher(&mut part.files[0].tensors));
        assert!(Manifest::assemble(all.clone()).unwrap().has_fisher());
        assert!(!Manifest::assemble(vec![part(0, 2), part(1, 2)]).unwrap().has_fisher());
        all[1].files[0].tensors.pop();
        assert!(error(all).contains("no file holds element 4 of layer 0/fisher"));
        let longer = parts(|part| part.units.iter_mut().for_each(|unit| unit.length = 9));
        assert!(error(longer).contains("layer 0/master has 8 elements, and its unit 9"));
        let mut others = vec![part(0, 2), part(1, 2)];
        others[0].units[0].name = "other".into();
        assert!(error(others).contains("the units of rank 0 are not those of its layout"));
    }
}
