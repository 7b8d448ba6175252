//! What Slurm tells a task of a step. Pure: the environment comes in as a map.

use super::hostlist;
use std::collections::BTreeMap;

/// Ids from here on are not steps of `srun`: the batch script, an interactive shell, the external step.
const SPECIAL_STEPS: u64 = 0xffff_fff0;
/// Ports of jobs lie in a range of this many from [`FIRST_PORT`] on, below those that systems hand out to clients.
const PORTS: u64 = 10_000;
const FIRST_PORT: u64 = 20_000;

/// A task of a step, as Slurm told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slurm {
    /// Tasks of the step.
    pub tasks: u32,
    /// Nodes of the step.
    pub nodes: u32,
    /// This task among all.
    pub task: u32,
    /// This task on its node.
    pub local_task: u32,
    /// Tasks on this node.
    pub local_tasks: u32,
    /// The host of task 0.
    pub first_host: String,
    /// The job's id.
    pub job: String,
    /// A port that no other step of this cluster is likely to take.
    pub port: u16,
}

impl Slurm {
    /// Whether each node has exactly one task, which then owns the node.
    pub(super) fn one_task_per_node(&self) -> bool {
        self.tasks == self.nodes
    }

    /// The task that the environment tells of; none outside of a step.
    ///
    /// # Errors
    /// The variable that makes no sense, its value, and what it must be.
    pub(super) fn read(environment: &BTreeMap<String, String>) -> Result<Option<Slurm>, (String, String, String)> {
        let value = |names: &[&str]| {
            let found = names.iter().find_map(|name| Some(((*name).to_owned(), environment.get(*name)?.trim())));
            found.filter(|(_, value)| !value.is_empty())
        };
        let number = |names: &[&str]| -> Result<u64, (String, String, String)> {
            let (name, value) = value(names).ok_or_else(|| {
                (names[0].to_owned(), "not set".to_owned(), "Slurm sets it for each task of a step".to_owned())
            })?;
            value.parse().map_err(|_| (name, value.to_owned(), "it must be a whole number".to_owned()))
        };
        let step = match value(&["SLURM_STEP_ID", "SLURM_STEPID"]) {
            Some(_) => number(&["SLURM_STEP_ID", "SLURM_STEPID"])?,
            None => return Ok(None),
        };
        if step >= SPECIAL_STEPS || value(&["SLURM_PROCID"]).is_none() {
            return Ok(None);
        }
        let small = |names: &[&str]| number(names).map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        let nodes = small(&["SLURM_STEP_NUM_NODES", "SLURM_NNODES"])?;
        let tasks = small(&["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"])?;
        let (task, local_task) = (small(&["SLURM_PROCID"])?, small(&["SLURM_LOCALID"])?);
        if task >= tasks {
            let problem = format!("it must be below the number of tasks, {tasks}");
            return Err(("SLURM_PROCID".to_owned(), task.to_string(), problem));
        }
        let names = ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"];
        let node = if nodes > 1 { small(&["SLURM_NODEID"])? } else { 0 };
        let local_tasks = match value(&names) {
            Some((name, counts)) => {
                let read = tasks_of_node(counts, node).map_err(|problem| (name.clone(), counts.to_owned(), problem))?;
                read.ok_or_else(|| (name, counts.to_owned(), format!("it says nothing of node {node}")))?
            }
            None => tasks.div_ceil(nodes.max(1)),
        };
        let first_host = match value(&["SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"]) {
            Some((name, list)) => {
                let hosts = hostlist::expand(list).map_err(|problem| (name, list.to_owned(), problem))?;
                hosts.into_iter().next().unwrap_or_default()
            }
            None => String::new(),
        };
        let (_, job) = value(&["SLURM_JOB_ID", "SLURM_JOBID"]).unwrap_or_default();
        let seed = job.parse::<u64>().unwrap_or_default().wrapping_mul(16).wrapping_add(step);
        Ok(Some(Slurm {
            tasks,
            nodes,
            task,
            local_task,
            local_tasks,
            first_host,
            job: job.to_owned(),
            port: (FIRST_PORT + seed % PORTS) as u16,
        }))
    }
}

/// How many tasks node `node` has by `2(x3),1`.
fn tasks_of_node(counts: &str, node: u32) -> Result<Option<u32>, String> {
    let mut before = 0u64;
    for part in counts.split(',') {
        let problem = || "it must be counts of tasks such as 2(x3),1".to_owned();
        let (count, times) = match part.trim().split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')').ok_or_else(problem)?),
            None => (part.trim(), "1"),
        };
        let (count, times): (u32, u64) = (count.parse().map_err(|_| problem())?, times.parse().map_err(|_| problem())?);
        before = before.saturating_add(times);
        if u64::from(node) < before {
            return Ok(Some(count));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const STEP: [(&str, &str); 8] = [
        ("SLURM_STEP_ID", "3"),
        ("SLURM_STEP_NUM_NODES", "4"),
        ("SLURM_STEP_NUM_TASKS", "7"),
        ("SLURM_PROCID", "6"),
        ("SLURM_NODEID", "3"),
        ("SLURM_LOCALID", "0"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"),
        ("SLURM_STEP_NODELIST", "gpu[07-09,12]"),
    ];

    #[test]
    fn a_task_of_a_step_is_read() {
        let mut pairs = STEP.to_vec();
        pairs.push(("SLURM_JOB_ID", "1234"));
        let slurm = Slurm::read(&environment(&pairs)).unwrap().unwrap();
        let expected = Slurm {
            tasks: 7,
            nodes: 4,
            task: 6,
            local_task: 0,
            local_tasks: 1,
            first_host: "gpu07".into(),
            job: "1234".into(),
            port: (20_000 + (1234 * 16 + 3) % 10_000) as u16,
        };
        assert_eq!(slurm, expected);
        assert!(!slurm.one_task_per_node());
        pairs.extend([("SLURM_NODEID", "1"), ("SLURM_PROCID", "2")]);
        assert_eq!(Slurm::read(&environment(&pairs)).unwrap().unwrap().local_tasks, 2);
    }

    #[test]
    fn a_batch_script_or_a_shell_is_no_step() {
        assert_eq!(Slurm::read(&environment(&[])).unwrap(), None);
        // sbatch's script, salloc's shell.
        for step in ["4294967291", "4294967290"] {
            let mut pairs = STEP.to_vec();
            pairs.push(("SLURM_STEP_ID", step));
            assert_eq!(Slurm::read(&environment(&pairs)).unwrap(), None);
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let table = [
            ("SLURM_PROCID", "7", "SLURM_PROCID", "below the number of tasks, 7"),
            ("SLURM_STEP_NUM_TASKS", "x", "SLURM_STEP_NUM_TASKS", "whole number"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x", "SLURM_STEP_TASKS_PER_NODE", "2(x3),1"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x3)", "SLURM_STEP_TASKS_PER_NODE", "nothing of node 3"),
            ("SLURM_STEP_NODELIST", "n[1", "SLURM_STEP_NODELIST", "not closed"),
        ];
        for (name, value, told, problem) in table {
            let mut pairs = STEP.to_vec();
            pairs.push((name, value));
            let error = Slurm::read(&environment(&pairs)).unwrap_err();
            assert!(error.0 == told && error.2.contains(problem), "{error:?}");
        }
    }
}
