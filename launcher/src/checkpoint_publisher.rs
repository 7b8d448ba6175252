//! Makes a manifest of every rank's part and publishes it: the commit of a checkpoint.

use std::path::Path;

use zerofold_checkpoint::publish::MANIFEST_FILE;
use zerofold_checkpoint::{Manifest, Part, publish};

/// Publishes the checkpoint in `directory` from the ranks' parts (JSON of [`Part`], by rank). Returns the manifest's path.
///
/// # Errors
/// A part that is not one, parts that disagree, files that are missing or of another size, a manifest that is there
/// already, a disk that is full; in words.
pub fn publish_parts(directory: &Path, parts: &[Vec<u8>]) -> Result<String, String> {
    let parse = |(rank, part): (usize, &Vec<u8>)| {
        serde_json::from_slice::<Part>(part)
            .map_err(|error| format!("rank {rank} sent no part of a checkpoint: {error}"))
    };
    let parts = parts.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
    let manifest = Manifest::assemble(parts).map_err(|error| error.to_string())?;
    publish(directory, &manifest).map_err(|error| error.to_string())?;
    Ok(directory.join(MANIFEST_FILE).display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn part(rank: u32, step: u64) -> Vec<u8> {
        let part = json!({"rank": rank, "world_size": 2, "step": step, "generation": 1, "stage": 0, "layout": "l",
            "state": {}, "files": []});
        part.to_string().into_bytes()
    }

    #[test]
    fn parts_that_agree_are_published_once() {
        let folder = tempfile::tempdir().unwrap();
        let step = zerofold_checkpoint::step_directory(folder.path(), 7);
        std::fs::create_dir(&step).unwrap();
        let manifest = publish_parts(&step, &[part(0, 7), part(1, 7)]).unwrap();
        assert!(Path::new(&manifest).is_file());
        assert!(publish_parts(&step, &[part(0, 7), part(1, 7)]).is_err());
    }

    #[test]
    fn parts_that_do_not_fit_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = publish_parts(folder.path(), &[part(0, 7), b"{}".to_vec()]).unwrap_err();
        assert!(error.contains("rank 1 sent no part"), "{error}");
        let error = publish_parts(folder.path(), &[part(0, 7), part(1, 8)]).unwrap_err();
        assert!(error.contains("rank 1 has 8"), "{error}");
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
    }
}
