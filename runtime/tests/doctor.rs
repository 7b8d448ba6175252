//! `worker doctor` on a machine with eight GPUs, which the stand-in for the driver and NCCL pretends to be.

#[path = "common/stand_in.rs"]
mod stand_in;

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;
use zerofold_configs::{Answer, GpuFacts, WorkerFacts};

/// Made once: a test that makes it anew would take it away from another's worker.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(stand_in::folder);

fn doctor(settings: &[(&str, &str)]) -> WorkerFacts {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
    command.arg("doctor").env("LD_LIBRARY_PATH", &*FOLDER).envs(settings.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn devices(facts: &WorkerFacts) -> &[GpuFacts] {
    match &facts.driver {
        Answer::Value(driver) => &driver.devices,
        Answer::Error(error) => panic!("{error}"),
    }
}

#[test]
fn every_device_its_peers_and_nccl_are_told() {
    let facts = doctor(&[]);
    let devices = devices(&facts);
    assert_eq!(devices.len(), 8);
    for (index, device) in devices.iter().enumerate() {
        assert_eq!((device.index, device.capability.as_str()), (index, "9.0"));
        let others: Vec<usize> = (0..8).filter(|&other| other != index).collect();
        assert_eq!(device.peers, others);
        assert_eq!((device.total_memory, &device.free_memory), (16 << 30, &Answer::Value(16 << 30)));
        assert_eq!((&device.without_bfloat16, &device.unusable), (&None, &None));
    }
    let Answer::Value(nccl) = facts.nccl else { panic!("{:?}", facts.nccl) };
    assert_eq!((nccl.version.as_str(), nccl.without_id, nccl.without_communicator), ("2.29.7", None, None));
}

#[test]
fn what_a_card_lacks_is_told_with_what_to_do() {
    let facts = doctor(&[("ZEROFOLD_STAND_IN_CAPABILITY", "7.0"), ("ZEROFOLD_STAND_IN_DEVICES", "1")]);
    let [device] = devices(&facts) else { panic!("{facts:?}") };
    let text = |lack: &Option<String>| lack.clone().unwrap_or_default();
    let (without_bfloat16, unusable) = (text(&device.without_bfloat16), text(&device.unusable));
    assert!(
        without_bfloat16.contains("needs compute capability 8.0") && without_bfloat16.contains("fp16"),
        "{facts:?}"
    );
    assert!(unusable.contains("needs compute capability 7.5") && unusable.contains("\nhint: "), "{facts:?}");
}

#[test]
fn failures_are_told_and_end_nothing() {
    let facts = doctor(&[("ZEROFOLD_STAND_IN_FAIL", "init")]);
    let Answer::Value(nccl) = &facts.nccl else { panic!("{facts:?}") };
    let error = nccl.without_communicator.as_deref().unwrap_or_default();
    assert!(error.contains("ncclCommInitRank failed") && error.contains("\nhint: "), "{facts:?}");
    assert_eq!(nccl.without_id, None);

    let facts = doctor(&[("ZEROFOLD_STAND_IN_FAIL", "no-device")]);
    let Answer::Error(error) = &facts.driver else { panic!("{facts:?}") };
    assert!(error.contains("finds no GPU"), "{error}");
    assert!(matches!(facts.nccl, Answer::Value(_)), "{facts:?}");
}
