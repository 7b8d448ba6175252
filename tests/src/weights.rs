//! Weights of model folders, changed in place.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use zerofold_checkpoint::{Dtype, SafetensorsReader};

/// Changes elements, in row-major order, of a float32 tensor of a model with one file.
pub fn change_weights(folder: &Path, tensor: &str, elements: Range<usize>, change: impl Fn(f32) -> f32) {
    let path = folder.join("model.safetensors");
    let reader = SafetensorsReader::open(&path).expect("the model can be read");
    let entry = reader.entry(tensor).expect("the model has the tensor");
    assert_eq!(entry.dtype, Dtype::F32, "{tensor}");
    let mut values = vec![0.0; elements.len()];
    reader.read_f32(tensor, elements.clone(), &mut values).expect("the tensor has the elements");
    let bytes: Vec<u8> = values.into_iter().flat_map(|value| change(value).to_le_bytes()).collect();
    let file = File::options().write(true).open(&path).expect("the scene can be written");
    file.write_all_at(&bytes, entry.begin + 4 * elements.start as u64).expect("the scene can be written");
}
