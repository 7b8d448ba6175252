//! A job's status as lines for a person.

use std::time::Duration;

use zerofold_proto::v1::{JobStatus, RankStatus, StatusReply};

use crate::columns::aligned;
use crate::format;

/// The job, and a table of its ranks.
pub(super) fn lines(status: &StatusReply) -> Vec<String> {
    let mut lines = status.job.as_ref().map(job).unwrap_or_default();
    if !status.ranks.is_empty() {
        lines.push(String::new());
        lines.extend(ranks(&status.ranks));
    }
    lines
}

fn job(job: &JobStatus) -> Vec<String> {
    let mut lines = vec![format!("run    {}", job.run)];
    let total = if job.total_steps > 0 { format!(" of {}", format::count(job.total_steps)) } else { String::new() };
    let epoch = job.last_step.as_ref().map(|step| format!(" (epoch {:.2})", step.epoch)).unwrap_or_default();
    let restarts = match job.restarts {
        0 => "not restarted".to_owned(),
        count => format!("{}, the last one: {}", format::plural(count, "restart"), job.last_restart()),
    };
    let step = format!("step {}{total}{epoch}", format::count(job.step));
    let state = match &job.waiting_for {
        Some(what) => format!("{} for {what}", job.state),
        None => job.state.clone(),
    };
    lines.push(format!("job    {state}, {step}, generation {}, {restarts}", job.generation));
    if let Some(step) = &job.last_step {
        let mut line = format!(
            "loss   {:.4}, gradient norm {:.3}, learning rate {:.2e}",
            step.loss, step.grad_norm, step.learning_rate
        );
        if let Some(evaluation) = &job.last_evaluation {
            line.push_str(&format!("; held-out {:.4}", evaluation.eval_loss));
            for (name, value) in evaluation.eval_figures.iter().filter(|(name, _)| *name != "mean_token_accuracy") {
                line.push_str(&format!(", {name} {value:.4}"));
            }
            line.push_str(&format!(" after step {}", evaluation.step));
        }
        lines.push(line);
        let waited = 100.0 * step.communication_seconds / step.step_seconds;
        lines.push(format!(
            "speed  {} tokens/s, {:.2} s a step, {waited:.1} % of it waiting in collectives",
            format::figure(step.tokens_per_second),
            step.step_seconds
        ));
    }
    let left = job.remaining_seconds.map(|left| format!(", about {} left", time(left))).unwrap_or_default();
    lines.push(format!("time   {} since the start{left}", time(job.elapsed_seconds)));
    lines.push(match &job.last_checkpoint {
        Some(saved) => format!("saved  step {}, {} ago: {}", saved.step, time(saved.age_seconds), saved.directory),
        None => "saved  nothing so far".to_owned(),
    });
    if job.failed_checkpoints > 0 {
        lines.push(format!("       {} failed", format::plural(job.failed_checkpoints, "save")));
    }
    lines.extend(job.verdict.iter().map(|verdict| format!("HANG   {verdict}")));
    lines
}

fn ranks(ranks: &[RankStatus]) -> Vec<String> {
    let head = ["rank", "host", "pid", "step", "phase", "since", "collective", "memory", "peak", "heard"];
    let row = |rank: &RankStatus| {
        let joined = rank.pid > 0;
        let shown = |text: String| if joined { text } else { "-".to_owned() };
        let collective = match rank.collective_name.as_str() {
            "" => format!("#{}", rank.collective),
            name => format!("#{} {name}", rank.collective),
        };
        vec![
            rank.rank.to_string(),
            rank.host.clone(),
            shown(rank.pid.to_string()),
            shown(rank.step.to_string()),
            rank.phase.clone(),
            rank.phase_seconds.map_or_else(|| "-".to_owned(), time),
            shown(collective),
            shown(format::bytes(rank.memory_bytes)),
            shown(format::bytes(rank.peak_memory_bytes)),
            rank.heard_seconds.map_or_else(|| "-".to_owned(), |heard| format!("{} ago", time(heard))),
        ]
    };
    let head = head.map(str::to_owned).to_vec();
    aligned(&std::iter::once(head).chain(ranks.iter().map(row)).collect::<Vec<_>>())
}

fn time(seconds: f64) -> String {
    format::duration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_proto::v1::{CheckpointStatus, EvaluationStatus, StepStatus};

    #[test]
    fn a_job_reads_well() {
        let step = StepStatus {
            step: 17,
            epoch: 0.425,
            loss: 1.23456,
            grad_norm: 0.75,
            learning_rate: 2e-5,
            tokens_per_second: 281.4,
            step_seconds: 3.0,
            communication_seconds: 0.15,
            ..StepStatus::default()
        };
        let job = JobStatus {
            run: "runs/zero3".to_owned(),
            state: "training".to_owned(),
            generation: 2,
            restarts: 1,
            last_restart: Some("rank 1 was killed by SIGKILL".to_owned()),
            verdict: Some("rank 1 has not entered all_gather #1812".to_owned()),
            step: 17,
            total_steps: 1000,
            elapsed_seconds: 65.0,
            remaining_seconds: Some(80.0),
            last_step: Some(step),
            last_evaluation: Some(EvaluationStatus {
                step: 10,
                eval_loss: 1.5,
                eval_seconds: 2.0,
                ..Default::default()
            }),
            last_checkpoint: Some(CheckpointStatus {
                step: 10,
                directory: "runs/zero3/checkpoints/step-00000010".to_owned(),
                age_seconds: 32.0,
                time: 0.0,
            }),
            failed_checkpoints: 1,
            ..JobStatus::default()
        };
        let rank = RankStatus {
            rank: 0,
            host: "node".to_owned(),
            pid: 123,
            phase: "forward".to_owned(),
            phase_seconds: Some(0.31),
            step: 17,
            collective: 1812,
            collective_name: "all_gather".to_owned(),
            memory_bytes: 3 << 29,
            peak_memory_bytes: 2 << 30,
            heard_seconds: Some(0.2),
        };
        let gone =
            RankStatus { rank: 1, host: "node".to_owned(), phase: "not joined".to_owned(), ..Default::default() };
        let text = lines(&StatusReply { job: Some(job), ranks: vec![rank, gone] }).join("\n");
        assert_eq!(
            text,
            "run    runs/zero3\n\
             job    training, step 17 of 1,000 (epoch 0.42), generation 2, 1 restart, the last one: rank 1 was killed by \
             SIGKILL\n\
             loss   1.2346, gradient norm 0.750, learning rate 2.00e-5; held-out 1.5000 after step 10\n\
             speed  281 tokens/s, 3.00 s a step, 5.0 % of it waiting in collectives\n\
             time   1 min 05 s since the start, about 1 min 20 s left\n\
             saved  step 10, 32 s ago: runs/zero3/checkpoints/step-00000010\n       1 save failed\n\
             HANG   rank 1 has not entered all_gather #1812\n\
             \n\
             rank  host  pid  step       phase  since        collective    memory      peak      heard\n\
             0     node  123    17     forward  0.3 s  #1812 all_gather  1.50 GiB  2.00 GiB  0.2 s ago\n\
             1     node    -     -  not joined      -                 -         -         -          -"
        );
    }

    #[test]
    fn a_job_that_waits_says_for_what() {
        let job = JobStatus {
            state: "waiting".to_owned(),
            waiting_for: Some("hosts, 1 of 2 are here".to_owned()),
            ..JobStatus::default()
        };
        let text = lines(&StatusReply { job: Some(job), ranks: Vec::new() }).join("\n");
        assert!(text.contains("\njob    waiting for hosts, 1 of 2 are here, step 0, generation 0"), "{text}");
    }

    #[test]
    fn a_job_that_has_just_begun_says_so() {
        let job = JobStatus { run: "r".to_owned(), state: "starting".to_owned(), ..JobStatus::default() };
        let text = lines(&StatusReply { job: Some(job), ranks: Vec::new() }).join("\n");
        assert_eq!(
            text,
            "run    r\njob    starting, step 0, generation 0, not restarted\ntime   0.0 s since the start\nsaved  nothing \
             so far"
        );
    }
}
