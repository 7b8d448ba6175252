//! How many GPUs this machine has, without loading the driver: `launch` starts in milliseconds.

use std::path::Path;

/// The environment variable by which CUDA is told which GPUs a program sees.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// The NVIDIA GPUs that a worker will see: those with a device file, of which CUDA_VISIBLE_DEVICES may name fewer.
pub fn count() -> u32 {
    let files = device_files(Path::new("/dev"));
    visible(files, std::env::var(VISIBLE).ok().as_deref())
}

/// The files `nvidia0`, `nvidia1` and so on.
fn device_files(folder: &Path) -> u32 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let numbered = |name: &str| {
        let number = name.strip_prefix("nvidia");
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
    };
    entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(numbered)).count() as u32
}

/// Of so many GPUs those that the variable lets a program see: CUDA reads the list up to the first that does not exist.
fn visible(devices: u32, variable: Option<&str>) -> u32 {
    let Some(list) = variable else { return devices };
    let exists = |name: &&str| match name.trim().parse::<i64>() {
        Ok(index) => (0..i64::from(devices)).contains(&index),
        // A name such as GPU-8932f937: only the driver knows it.
        Err(_) => name.trim().starts_with("GPU-") || name.trim().starts_with("MIG-"),
    };
    (list.split(',').take_while(exists).count() as u32).min(devices.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_files_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(device_files(folder.path()), 3);
        assert_eq!(device_files(Path::new("/nowhere")), 0);
    }

    #[test]
    fn the_variable_hides_gpus() {
        for (variable, expected) in [
            (None, 4),
            (Some("0,2"), 2),
            (Some(""), 0),
            (Some("-1"), 0),
            (Some("1,7,2"), 1),
            (Some("GPU-8932f937,GPU-0a11ab32"), 2),
        ] {
            assert_eq!(visible(4, variable), expected, "{variable:?}");
        }
        assert_eq!(visible(0, Some("0")), 0);
    }
}
