//! The answer in words and tables.

use zerofold_configs::PriceRange;
use zerofold_plan::{PlannedDevice, plan_all_stages};

use super::estimate::Estimate;
use crate::columns::{aligned, left_aligned};
use crate::format;
use crate::plan::{Capacity, Situation, advice_lines};

/// Assumptions that only `--break-even` needs.
const OF_REQUESTS: [&str; 7] = [
    "preparation_cost",
    "tuned_tokens",
    "answer_tokens",
    "prompted_input_price",
    "prompted_output_price",
    "tuned_input_price",
    "tuned_output_price",
];

/// What is asked, of one number of GPUs or of many.
pub(super) fn head(estimate: &Estimate, many: bool) -> Vec<String> {
    let (inputs, data) = (estimate.inputs(), &estimate.data);
    let mut lines: Vec<String> = estimate.notes.iter().map(|note| format!("note: {note}")).collect();
    lines.extend(estimate.question.words());
    let (file, date) = (&estimate.hardware.file, &estimate.hardware.date);
    let (number, on_host) = match many {
        true => ("8 to 4,096".to_owned(), inputs.gpus_per_host),
        false => (format::count(inputs.job.world_size as u64), inputs.gpus_per_host.min(inputs.job.world_size)),
    };
    lines.push(format!("gpus   {number} x {}, {on_host} to a host; {file} of {date}", estimate.gpu.name));
    if many {
        return lines;
    }
    lines.push(format!(
        "data   {} of {} tokens, {}: {} tokens",
        format::plural(data.examples, "example"),
        format::figure(data.tokens_per_example),
        data.max_steps.map_or_else(|| epochs(data.epochs), |steps| format!("max_steps {steps}")),
        format::figure(estimate.run.tokens),
    ));
    lines
}

fn epochs(epochs: f64) -> String {
    if epochs == 1.0 { "1 epoch".to_owned() } else { format!("{epochs} epochs") }
}

/// What is assumed and predicted.
pub(super) fn run(estimate: &Estimate) -> Vec<String> {
    let mut lines = vec![String::new()];
    lines.extend(assumptions(estimate, false));
    lines.push(String::new());
    lines.extend(step(estimate));
    lines.push(String::new());
    lines.extend(sums(estimate));
    lines.extend(memory(estimate));
    lines
}

/// The assumptions, those about requests or the others.
pub(super) fn assumptions(estimate: &Estimate, of_requests: bool) -> Vec<String> {
    let head = ["assumption", "value", "unit", "from", "what it is"].map(str::to_owned).to_vec();
    let listed = estimate.assumed.list().into_iter().filter(|it| OF_REQUESTS.contains(&it.name) == of_requests);
    let rows = listed.map(|it| {
        [it.name, &value(it.value), it.unit, &estimate.source(it.name), it.about].map(str::to_owned).to_vec()
    });
    left_aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// As short as it can be written without losing a digit.
fn value(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        far if far.abs() >= 1e5 || far.abs() < 1e-2 => format!("{far:e}"),
        near => near.to_string(),
    }
}

/// A step by part.
fn step(estimate: &Estimate) -> Vec<String> {
    let step = &estimate.prediction.step;
    let sent = step.gather + step.reduce + step.replicate;
    let parts = [
        ("matrix products", step.compute.products),
        ("attention", step.compute.attention),
        ("memory passes", step.compute.passes),
        ("starts of kernels", step.compute.starts),
        ("optimizer", step.optimizer),
        ("offloading", step.offload),
        ("communication that is waited for", step.exposed),
    ];
    let line = |name: &str, seconds: f64| {
        let share = format!("{:.1} %", 100.0 * seconds / step.seconds);
        vec![name.to_owned(), time(seconds), share]
    };
    let mut rows = vec![["a step of a GPU", "time", "share"].map(str::to_owned).to_vec()];
    rows.extend(parts.iter().filter(|(_, seconds)| *seconds > 0.0).map(|(name, seconds)| line(name, *seconds)));
    rows.push(line("all", step.seconds));
    let mut lines = aligned(&rows);
    if sent.seconds > 0.0 {
        lines.push(format!(
            "communication takes {} a step, of which {} hide behind computing: gathers {}, reductions {}{}; links inside \
             a host are busy for {}, the network between hosts for {}",
            time(sent.seconds),
            time((sent.seconds - step.exposed).max(0.0)),
            time(step.gather.seconds),
            time(step.reduce.seconds),
            if step.replicate.seconds > 0.0 { format!(", across copies {}", time(step.replicate.seconds)) } else { String::new() },
            time(sent.inside_hosts),
            time(sent.across_hosts),
        ));
    }
    lines
}

/// Rates, hours and money.
fn sums(estimate: &Estimate) -> Vec<String> {
    let (prediction, run) = (&estimate.prediction, &estimate.run);
    vec![
        format!(
            "speed  {} tokens/s, {} a GPU; {:.1} % of the peak by the model's operations",
            format::figure(prediction.tokens_per_second),
            format::figure(prediction.tokens_per_second_per_gpu),
            100.0 * prediction.model_flops_utilization,
        ),
        format!("time   {} for {}", hours(run.hours()), format::plural(run.steps as u64, "step"),),
        format!("gpus   {} GPU-hours", format::figure(run.gpu_hours)),
        match (run.money, estimate.price) {
            (Some(money), Some(price)) => {
                format!("money  {} at {} a GPU-hour", dollars(money), dollars(price))
            }
            _ => "money  no price is known".to_owned(),
        },
    ]
}

/// Whether it fits, and what to change where it does not.
fn memory(estimate: &Estimate) -> Vec<String> {
    let (plan, verdict) = (&estimate.plan, if estimate.fits() { "fits" } else { "does not fit" });
    let mut lines = vec![format!(
        "memory {} a GPU at stage {}: {verdict} into {}, 90 % of its {}",
        format::bytes(plan.total),
        plan.stage,
        format::bytes(estimate.usable()),
        format::bytes(estimate.assumed.memory as u64),
    )];
    if estimate.fits() {
        return lines;
    }
    let inputs = estimate.question.inputs();
    let capacity = Capacity { bytes: estimate.assumed.memory as u64, device: PlannedDevice::Gpu };
    if let Ok(plans) = plan_all_stages(&inputs) {
        let situation = Situation { config: &estimate.question.config, inputs: &inputs, plans: &plans, capacity };
        lines.extend(advice_lines(&estimate.advice, &situation));
    }
    lines
}

/// `0.42 ms`, `12 ms`, `3.1 s`.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        0.0 => "0 s".to_owned(),
        less if less < 1.0 => format!("{} ms", format::figure(1e3 * less)),
        more => format!("{more:.2} s"),
    }
}

/// `16 min`, `3.4 h`.
pub(super) fn hours(hours: f64) -> String {
    if hours < 1.0 { format!("{:.0} min", 60.0 * hours) } else { format!("{hours:.1} h") }
}

/// `$3.00`, `$5.11 to $11.92`, `$12,345 to $20,000`.
pub(super) fn dollars(PriceRange { low, high }: PriceRange) -> String {
    match low == high {
        true => dollar(low),
        false => format!("{} to {}", dollar(low), dollar(high)),
    }
}

/// `$3.00`, `$12,345`.
pub(super) fn dollar(amount: f64) -> String {
    if amount < 1000.0 { format!("${amount:.2}") } else { format!("${}", format::count(amount.round() as u64)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        let [far, near, small, none] = [value(9.89e14), value(0.801), value(5e-6), value(0.0)];
        assert_eq!([far.as_str(), &near, &small, &none], ["9.89e14", "0.801", "5e-6", "0"]);
        assert_eq!([time(0.00042), time(0.012), time(3.139)], ["0.42 ms", "12 ms", "3.14 s"]);
        assert_eq!([hours(0.2666), hours(3.44)], ["16 min", "3.4 h"]);
        let range = |low, high| dollars(PriceRange { low, high });
        assert_eq!([range(3.0, 3.0), range(5.111, 11.9)], ["$3.00", "$5.11 to $11.90"]);
        assert_eq!(range(999.0, 12_345.4), "$999.00 to $12,345");
    }
}
