//! What a job computes on.

use super::{TRAINING, on_machine, says};
use crate::{Backend, DeviceKind, Offload, Resolved};

fn on(devices: u32, text: &str, flags: &[(&str, &str)]) -> Result<Resolved, String> {
    on_machine(devices, &format!("{text}{TRAINING}"), flags, &[])
}

fn job(devices: u32, text: &str, flags: &[(&str, &str)]) -> Resolved {
    on(devices, text, flags).unwrap_or_else(|error| panic!("{text}{error}"))
}

const MULTI_GPU: &str = "distributed_type: MULTI_GPU\nuse_cpu: false\n";

#[test]
fn gpus_are_used_where_there_are_some() {
    let four = job(4, MULTI_GPU, &[]);
    assert_eq!((four.device, four.backend, four.num_processes), (DeviceKind::Cuda, Backend::Nccl, 4));
    let two = job(4, &format!("{MULTI_GPU}num_processes: 2\n"), &[]);
    assert_eq!((two.device, two.backend, two.num_processes), (DeviceKind::Cuda, Backend::Nccl, 2));
    let one = job(1, "", &[]);
    assert_eq!((one.device, one.backend, one.num_processes), (DeviceKind::Cuda, Backend::Single, 1));
}

#[test]
fn the_cpu_is_used_when_that_is_asked_for() {
    for (text, flags, place) in [
        ("distributed_type: MULTI_CPU\nnum_processes: 2\n", vec![], "job.yaml:1"),
        ("distributed_type: FSDP\nuse_cpu: true\nnum_processes: 2\n", vec![], "job.yaml:2"),
        ("distributed_type: FSDP\nnum_processes: 2\n", vec![("use_cpu", "true")], "flag --use_cpu"),
        ("distributed_type: FSDP\nnum_processes: 2\n", vec![("no_cuda", "true")], "flag --no_cuda"),
    ] {
        let job = job(8, text, &flags);
        assert_eq!((job.device, job.backend, job.num_processes), (DeviceKind::Cpu, Backend::Shm, 2), "{text}");
        assert_eq!(job.provenance["device"], place);
    }
}

#[test]
fn without_a_gpu_the_job_runs_on_the_cpu_and_says_so() {
    let absent = job(0, &format!("{MULTI_GPU}num_processes: 2\ngpu_ids: 0,1\n"), &[]);
    assert_eq!((absent.device, absent.backend, absent.gpu_ids), (DeviceKind::Cpu, Backend::Shm, None));
    assert_eq!(absent.notes, ["gpu_ids: 0,1 (job.yaml:4): this machine has no GPU, so the job runs on the CPU"]);
    assert!(job(0, "distributed_type: FSDP\nnum_processes: 2\n", &[]).notes.is_empty());
}

#[test]
fn gpu_ids_choose_the_gpus() {
    let chosen = job(8, &format!("{MULTI_GPU}gpu_ids: '2, 5'\n"), &[]);
    assert_eq!((chosen.gpu_ids, chosen.num_processes), (Some(vec![2, 5]), 2));
    assert_eq!(job(8, &format!("{MULTI_GPU}gpu_ids: all\n"), &[]).gpu_ids, None);
    assert_eq!(job(8, &format!("{MULTI_GPU}gpu_ids: 3\n"), &[]).gpu_ids, Some(vec![3]));
    for wrong in ["0,0", "0;1", "first"] {
        let message = on(8, &format!("{MULTI_GPU}gpu_ids: '{wrong}'\n"), &[]).unwrap_err();
        says(&message, &["gpu_ids", "job.yaml:3", "gpu_ids: 0,2"]);
    }
}

#[test]
fn backends_belong_to_their_devices() {
    let two = "distributed_type: FSDP\nnum_processes: 2\n";
    assert_eq!(job(2, two, &[("ddp_backend", "nccl")]).backend, Backend::Nccl);
    let message = on(0, two, &[("backend", "nccl")]).unwrap_err();
    says(&message, &["nccl is for GPUs, and this machine has none", "flag --backend", "shm"]);
    let message = on(2, two, &[("backend", "nccl"), ("use_cpu", "true")]).unwrap_err();
    says(&message, &["nccl is for GPUs, and this job runs on the CPU (flag --use_cpu)"]);
    says(&on(2, two, &[("backend", "gloo")]).unwrap_err(), &["gloo is for the CPU", "--use_cpu true"]);
    assert_eq!(job(0, two, &[("backend", "gloo")]).backend, Backend::Gloo);
    says(&on(2, two, &[("backend", "shm")]).unwrap_err(), &["shm is for the CPU", "--use_cpu true"]);
    says(&on(2, two, &[("backend", "single")]).unwrap_err(), &["single is for one process", "use nccl"]);
}

#[test]
fn optimizer_state_goes_to_host_memory_beside_a_gpu() {
    let zero =
        |entries: &str| format!("distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {{{entries}}}\n");
    let cpu = "offload_optimizer_device: cpu";
    assert_eq!(job(2, &zero(&format!("zero_stage: 2, {cpu}")), &[]).offload_optimizer, Offload::HostMemory);
    let both = zero(&format!("zero_stage: 3, {cpu}, offload_param_device: cpu"));
    assert_eq!(job(2, &both, &[]).offload_optimizer, Offload::HostMemory);
    let parameters = on(2, &zero("zero_stage: 3, offload_param_device: cpu"), &[]).unwrap_err();
    says(&parameters, &["is not built yet", "set offload_optimizer_device: cpu too"]);
    says(&on(2, &zero(&format!("zero_stage: 0, {cpu}")), &[]).unwrap_err(), &["only optimizer state that is sharded"]);
    let fsdp = "distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_offload_params: true}\n";
    assert_eq!(job(2, fsdp, &[]).offload_optimizer, Offload::HostMemory);
    let on_cpu = job(0, fsdp, &[]);
    assert_eq!(on_cpu.offload_optimizer, Offload::No);
    says(&on_cpu.notes[0], &["fsdp_offload_params: true (job.yaml:3) has no effect: it is in host memory already"]);
}

#[test]
fn tf32_counts_on_gpus() {
    assert!(job(1, "", &[("tf32", "true")]).tf32);
    assert!(!job(1, "", &[]).tf32);
    let on_cpu = job(0, "", &[("tf32", "true"), ("share_gpus", "true")]);
    assert!(!on_cpu.tf32);
    says(
        &on_cpu.notes.join("; "),
        &["tf32: true (flag --tf32) has no effect: the job runs on the CPU", "share_gpus: true"],
    );
}
