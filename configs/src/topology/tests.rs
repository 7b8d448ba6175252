//! From flags, a file and an environment to a topology, as tables.

use crate::{Inputs, Joined, StartedBy, Topology, resolve, resolve_job};
use std::collections::BTreeMap;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn owned(pairs: Pairs<'_>) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What a file with these lines, flags and environment mean on a machine without GPUs.
fn topology(file: &str, flags: Pairs<'_>, environment: Pairs<'_>) -> Result<Topology, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.yaml");
    let training = "training:\n  model_name_or_path: m\n  dataset: d.jsonl\n  output_dir: out\n";
    std::fs::write(&path, format!("{file}{training}")).unwrap();
    let nproc = flags.iter().find(|(name, _)| *name == "nproc").map(|(_, value)| value.parse().unwrap());
    let inputs = Inputs {
        config: Some(path.display().to_string()),
        flags: owned(flags).into_iter().filter(|(name, _)| name != "nproc").collect(),
        nproc,
        environment: owned(environment).into_iter().collect::<BTreeMap<_, _>>(),
        ..Inputs::default()
    };
    let told = resolve_job(&inputs).map(|(_, topology)| topology).map_err(|error| error.to_string());
    told.map_err(|text| text.replace(&format!("{}/", folder.path().display()), ""))
}

/// `MIN:MAX node local/local_ranks ranks endpoint run`.
fn shown(topology: &Topology) -> String {
    let Topology { nodes, node_rank, ranks, local_rank, local_ranks, .. } = topology;
    let endpoint = topology.endpoint.as_ref().map_or("-".to_owned(), ToString::to_string);
    let run = &topology.run_id;
    format!("{}:{} {node_rank} {local_rank}/{local_ranks} {ranks} {endpoint} {run}", nodes.min, nodes.max)
}

const ACCELERATE: &str = "distributed_type: MULTI_CPU\nnum_machines: 2\nmachine_rank: 0\nnum_processes: 4\nmain_process_ip: \
                          10.0.0.1\nmain_process_port: 29500\nsame_network: true\nrdzv_backend: static\n";
const ONE_MACHINE: &str = "distributed_type: MULTI_CPU\nnum_machines: 1\nmachine_rank: 0\nnum_processes: 2\n";

const STEP: [(&str, &str); 9] = [
    ("SLURM_JOB_ID", "77"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_STEP_NUM_NODES", "2"),
    ("SLURM_STEP_NUM_TASKS", "2"),
    ("SLURM_PROCID", "1"),
    ("SLURM_NODEID", "1"),
    ("SLURM_LOCALID", "0"),
    ("SLURM_STEP_TASKS_PER_NODE", "1(x2)"),
    ("SLURM_STEP_NODELIST", "n[4-5]"),
];

/// The step above with other values.
fn step<'a>(changes: Pairs<'a>) -> Vec<(&'a str, &'a str)> {
    let kept = STEP.into_iter().filter(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
    kept.chain(changes.iter().copied()).collect()
}

#[test]
fn hosts_follow_from_flags_file_and_environment() {
    let pet = [
        ("PET_NNODES", "2:4"),
        ("PET_NODE_RANK", "3"),
        ("PET_RDZV_ENDPOINT", "a"),
        ("PET_RDZV_ID", "job"),
        ("PET_NPROC_PER_NODE", "2"),
        ("PET_RDZV_BACKEND", "c10d"),
    ];
    let static_rendezvous =
        [("PET_NNODES", "2"), ("PET_NODE_RANK", "1"), ("PET_MASTER_ADDR", "h"), ("PET_MASTER_PORT", "5")];
    let table: [(&str, Pairs<'_>, Pairs<'_>, &str); 11] = [
        ("", &[], &[], "1:1 0 0/1 1 - default"),
        ("", &[("nproc", "3")], &[], "1:1 0 0/3 3 - default"),
        (ONE_MACHINE, &[], &[], "1:1 0 0/2 2 - default"),
        (ACCELERATE, &[], &[], "2:2 0 0/2 2 10.0.0.1:29500 default"),
        (ACCELERATE, &[("machine_rank", "1"), ("nproc", "3")], &[], "2:2 1 0/3 3 10.0.0.1:29500 default"),
        (
            "",
            &[("nnodes", "2"), ("node-rank", "1"), ("rdzv-endpoint", "a:1"), ("nproc", "2")],
            &[],
            "2:2 1 0/2 2 a:1 default",
        ),
        (
            "",
            &[("nnodes", "1:4"), ("node_rank", "0"), ("master_addr", "a"), ("rdzv_id", "x")],
            &[],
            "1:4 0 0/1 1 a:29400 x",
        ),
        ("", &[], &pet, "2:4 3 0/2 2 a:29400 job"),
        ("", &[], &static_rendezvous, "2:2 1 0/1 1 h:5 default"),
        // The environment goes before the file, flags before the environment.
        (ACCELERATE, &[], &[("PET_NODE_RANK", "1")], "2:2 1 0/2 2 10.0.0.1:29500 default"),
        (ACCELERATE, &[("node_rank", "0")], &[("PET_NODE_RANK", "1")], "2:2 0 0/2 2 10.0.0.1:29500 default"),
    ];
    for (file, flags, environment, expected) in table {
        let topology = topology(file, flags, environment).unwrap_or_else(|error| panic!("{flags:?}: {error}"));
        assert_eq!(shown(&topology), expected, "{file}{flags:?}{environment:?}");
    }
}

#[test]
fn slurm_and_kubernetes_say_it_themselves() {
    let two_tasks = step(&[("SLURM_STEP_NUM_NODES", "1"), ("SLURM_STEP_TASKS_PER_NODE", "2"), ("SLURM_LOCALID", "1")]);
    let four_tasks = step(&[
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("SLURM_PROCID", "3"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
    ]);
    let one_task = step(&[("SLURM_STEP_NUM_NODES", "1"), ("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")]);
    let index = [("JOB_COMPLETION_INDEX", "2")];
    let in_kubernetes = [("nnodes", "3"), ("rdzv_endpoint", "job-0.job:29400")];
    let port = 20_000 + 77 * 16;
    let table: [(&str, Pairs<'_>, Pairs<'_>, String); 9] = [
        ("", &[("nproc", "2")], &STEP, format!("2:2 1 0/2 2 n4:{port} 77")),
        ("", &[("nnodes", "1:2"), ("nproc", "2")], &STEP, format!("1:2 1 0/2 2 n4:{port} 77")),
        (ONE_MACHINE, &[], &STEP, format!("2:2 1 0/1 1 n4:{port} 77")),
        ("", &[("rdzv_endpoint", "x:1"), ("rdzv_id", "y")], &STEP, "2:2 1 0/1 1 x:1 y".to_owned()),
        ("", &[], &two_tasks, format!("2:2 1 1/2 1 127.0.0.1:{port} 77")),
        ("", &[], &four_tasks, format!("4:4 3 1/2 1 n4:{port} 77")),
        ("", &[("nproc", "2")], &one_task, "1:1 0 0/2 2 - default".to_owned()),
        ("", &in_kubernetes, &index, "3:3 2 0/1 1 job-0.job:29400 default".to_owned()),
        ("", &[("nproc", "2")], &index, "1:1 0 0/2 2 - default".to_owned()),
    ];
    for (file, flags, environment, expected) in table {
        let topology = topology(file, flags, environment).unwrap_or_else(|error| panic!("{flags:?}: {error}"));
        assert_eq!(shown(&topology), expected, "{flags:?}{environment:?}");
    }
    let told = |flags, environment: Pairs<'_>| topology("", flags, environment).unwrap().started_by;
    assert_eq!(told(&[], &STEP), StartedBy::Slurm);
    assert_eq!(told(&in_kubernetes, &index), StartedBy::Kubernetes);
    assert_eq!(told(&[], &[]), StartedBy::Hand);
}

#[test]
fn what_disagrees_or_lacks_is_named_with_its_places() {
    let two = [("nnodes", "2"), ("node_rank", "0"), ("rdzv_endpoint", "a")];
    let with = |more: (&'static str, &'static str)| [two[0], two[1], two[2], more];
    let tasks = step(&[("SLURM_STEP_NUM_NODES", "1"), ("SLURM_STEP_TASKS_PER_NODE", "2")]);
    let table: [(&str, Pairs<'_>, Pairs<'_>, &[&str]); 19] = [
        ("", &two[..2], &[], &["not set: rdzv_endpoint", "--rdzv-endpoint HOST:PORT"]),
        ("", &[two[0], two[2]], &[], &["not set: node_rank", "from 0 to 1"]),
        (
            "",
            &[("node_rank", "1")],
            &[],
            &["flag --node_rank: node_rank is 1", "below the number of hosts, 1", "--nnodes N"],
        ),
        ("", &[two[0], ("node_rank", "2"), two[2]], &[], &["node_rank is 2", "from 0 to 1"]),
        ("", &with(("num_machines", "3")), &[], &["flag --nnodes", "flag --num_machines", "disagree"]),
        ("", &with(("machine_rank", "1")), &[], &["flag --node_rank", "flag --machine_rank", "disagree"]),
        ("", &with(("master_addr", "b")), &[], &["rdzv_endpoint: a", "master_addr: b", "disagree"]),
        ("", &[("nnodes", "0")], &[], &["nnodes is 0", "MIN:MAX"]),
        ("", &[("nnodes", "3:2")], &[], &["nnodes is 3:2", "MIN:MAX"]),
        ("", &with(("rdzv_conf", "join_timeot=3")), &[], &["rdzv_conf", "did you mean join_timeout?"]),
        ("", &with(("rdzv_conf", "join_timeout=soon")), &[], &["rdzv_conf", "in seconds"]),
        ("", &[two[0], two[1], ("rdzv_endpoint", "a:b:c")], &[], &["rdzv_endpoint is a:b:c", "HOST:PORT"]),
        (
            "distributed_type: MULTI_CPU\nnum_processes: 3\n",
            &two,
            &[],
            &["job.yaml:2: num_processes is 3", "all 2 hosts together"],
        ),
        ("", &two, &[("JOB_COMPLETION_INDEX", "x")], &["JOB_COMPLETION_INDEX in the environment: node_rank is x"]),
        ("", &[], &[("PET_NPROC_PER_NODE", "many")], &["PET_NPROC_PER_NODE in the environment", "many"]),
        (
            ACCELERATE,
            &[],
            &step(&[("SLURM_STEP_NUM_NODES", "3"), ("SLURM_STEP_NUM_TASKS", "3")]),
            &["job.yaml:2", "SLURM_STEP_NUM_NODES: 3", "disagree"],
        ),
        ("", &[("node_rank", "0")], &STEP, &["flag --node_rank", "SLURM_PROCID: 1", "disagree"]),
        (
            "",
            &[("nproc", "2")],
            &tasks,
            &["nproc: 2 (flag --nproc)", "SLURM_STEP_TASKS_PER_NODE: 2", "--ntasks-per-node=1"],
        ),
        (
            ACCELERATE,
            &[("nnodes", "1:2")],
            &step(&[("SLURM_STEP_NUM_TASKS", "4")]),
            &["flag --nnodes", "one task per node"],
        ),
    ];
    for (file, flags, environment, parts) in table {
        let error = topology(file, flags, environment).expect_err(&format!("{flags:?}{environment:?}"));
        parts.iter().for_each(|part| assert!(error.contains(part), "{part:?} is not in {error}"));
    }
}

#[test]
fn hosts_that_joined_decide_how_many_processes_there_are() {
    let flags = owned(&[
        ("model_name_or_path", "m"),
        ("dataset", "d"),
        ("output_dir", "o"),
        ("fsdp_sharding_strategy", "HYBRID_SHARD"),
        ("nnodes", "1:3"),
        ("node_rank", "0"),
        ("rdzv_endpoint", "a"),
    ]);
    let inputs = Inputs { flags, nproc: Some(2), ..Inputs::default() };
    let all = resolve(&inputs).unwrap();
    assert_eq!((all.num_processes, all.sharding.replicas), (6, 3), "a hybrid keeps a copy on each host");
    assert_eq!(all.provenance["num_processes"], "flag --nproc on each of 3 hosts");
    let fewer = Inputs { joined: Some(Joined { hosts: 2, ranks: 4 }), ..inputs.clone() };
    let fewer = resolve(&fewer).unwrap();
    assert_eq!((fewer.num_processes, fewer.sharding.replicas), (4, 2));
    let one = resolve(&Inputs { joined: Some(Joined { hosts: 1, ranks: 1 }), ..inputs }).unwrap();
    assert_eq!((one.num_processes, one.backend), (1, crate::Backend::Single));
}
