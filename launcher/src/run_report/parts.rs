//! Where the time of a step goes, and what memory was planned and measured, as bars.

use std::collections::BTreeMap;

use super::run::Run;
use crate::format;
use crate::page::axis::{amount, axis, unit};
use crate::page::bars::{Bar, Chart, html, longest};

/// The phases in the order of a step, with the colour of each and what a person calls it.
const PHASES: [(&str, &str, &str); 9] = [
    ("data", "phase-data", "data"),
    ("forward", "phase-forward", "forward"),
    ("backward", "phase-backward", "backward"),
    ("optimizer", "phase-optimizer", "optimizer"),
    ("gather", "phase-gather", "waiting, gather"),
    ("reduce", "phase-reduce", "waiting, reduce"),
    ("exchange", "phase-exchange", "waiting, exchange"),
    ("evaluation", "phase-evaluation", "evaluation"),
    ("checkpoint", "phase-checkpoint", "checkpoint"),
];
const OTHER: (&str, &str) = ("phase-other", "the rest");
const TIME: &str = "Where the time of a step goes";
/// Less than this share of a step is part of the rest.
const SMALL: f64 = 0.001;

/// Mean seconds of a step by phase.
struct Times {
    parts: Vec<(&'static str, &'static str, f64)>,
    step: f64,
    waited: f64,
}

impl Times {
    /// Over all steps but the first, which is not like the others.
    fn of(run: &Run) -> Option<Times> {
        let steps = &run.history.steps;
        let steps = if steps.len() > 1 { &steps[1..] } else { steps };
        let steps: Vec<_> = steps.iter().filter(|step| step.seconds.is_finite()).collect();
        let count = steps.len() as f64;
        if steps.is_empty() {
            return None;
        }
        let mean = |sum: f64| sum / count;
        let step = mean(steps.iter().map(|step| step.seconds).sum());
        let waited = mean(steps.iter().map(|step| step.communication).filter(|time| time.is_finite()).sum());
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        for (phase, seconds) in steps.iter().flat_map(|step| &step.phases) {
            *sums.entry(phase).or_insert(0.0) += seconds;
        }
        let mut parts = Vec::new();
        if sums.is_empty() {
            parts.push(("measured", "computing", (step - waited).max(0.0)));
            parts.push(("exposed", "waiting in collectives", waited));
        } else {
            let whole = mean(sums.values().sum());
            let mut rest = whole;
            for (phase, class, words) in PHASES {
                let seconds = mean(sums.get(phase).copied().unwrap_or(0.0));
                if seconds > SMALL * whole {
                    parts.push((class, words, seconds));
                    rest -= seconds;
                }
            }
            if rest > SMALL * whole {
                parts.push((OTHER.0, OTHER.1, rest));
            }
        }
        Some(Times { parts, step, waited })
    }
}

/// Where the time of a step goes; nothing where no step was finished.
pub(super) fn time(runs: &[Run]) -> String {
    let times: Vec<(&Run, Times)> = runs.iter().filter_map(|run| Some((run, Times::of(run)?))).collect();
    if times.is_empty() {
        return String::new();
    }
    let chart = if let [(_, one)] = &times[..] { phases(one) } else { side_by_side(&times) };
    html(&chart)
}

/// Of one run, a bar for each phase.
fn phases(times: &Times) -> Chart {
    let whole: f64 = times.parts.iter().map(|(_, _, seconds)| seconds).sum();
    let bars: Vec<Bar> = times
        .parts
        .iter()
        .map(|(class, words, time)| Bar {
            label: capitalised(words),
            parts: vec![(*class, *time)],
            value: seconds(*time),
            more: percent(time / whole),
            ..Bar::default()
        })
        .collect();
    let about = format!(
        "Seconds of rank 0 from step to step, {} in all: the mean of all steps but the first. A step alone takes {}, of which \
         {} wait in collectives",
        seconds(whole),
        seconds(times.step),
        percent(times.waited / times.step)
    );
    let (end, ticks) = axis(longest(&bars), amount);
    Chart { title: TIME, about, legend: Vec::new(), end, ticks, bars }
}

/// Of several runs, a bar for each.
fn side_by_side(times: &[(&Run, Times)]) -> Chart {
    let mut legend: Vec<(&'static str, String)> = Vec::new();
    for (_, it) in times {
        for (class, words, _) in &it.parts {
            if !legend.iter().any(|(known, _)| known == class) {
                legend.push((class, (*words).to_owned()));
            }
        }
    }
    // As they stand in the bars.
    let place = |class: &str| PHASES.iter().position(|(_, known, _)| *known == class).unwrap_or(PHASES.len());
    legend.sort_by_key(|(class, _)| place(class));
    let bars: Vec<Bar> = times
        .iter()
        .map(|(run, it)| Bar {
            label: run.name.clone(),
            parts: it.parts.iter().map(|(class, _, seconds)| (*class, *seconds)).collect(),
            value: seconds(it.parts.iter().map(|(_, _, seconds)| seconds).sum()),
            more: format!("{} in collectives", percent(it.waited / it.step)),
            ..Bar::default()
        })
        .collect();
    let (end, ticks) = axis(longest(&bars), amount);
    let about = "Seconds of rank 0 from step to step, the mean of all steps but the first".to_owned();
    Chart { title: TIME, about, legend, end, ticks, bars }
}

/// Memory that was planned and measured; nothing where there is no plan.
pub(super) fn memory(runs: &[Run]) -> String {
    let plans: Vec<_> = runs.iter().filter_map(|run| Some((run, run.plan.as_ref()?))).collect();
    let most = plans.iter().flat_map(|(_, plan)| {
        [plan.planned.plan.total, plan.measured.map_or(0, |measured| measured.live_peak.max(measured.loading_peak))]
    });
    let (unit, name) = unit(most.max().unwrap_or(0) as f64);
    let mut bars = Vec::new();
    for (run, plan) in &plans {
        // Of one run every part; of several the peaks, which is what is compared.
        let parts = plan.parts().into_iter().filter(|part| part.is_memory);
        let parts = parts.filter(|part| plans.len() == 1 || part.name == "peak in a step");
        for part in parts {
            bars.push(Bar {
                label: if plans.len() == 1 { capitalised(part.name) } else { run.name.clone() },
                parts: part.measured.map(|bytes| ("measured", bytes as f64 / unit)).into_iter().collect(),
                mark: Some(part.planned as f64 / unit),
                value: part.measured.map_or_else(|| "not measured".to_owned(), format::bytes),
                more: format!("planned {}", format::bytes(part.planned)),
                ..Bar::default()
            });
        }
    }
    if bars.is_empty() {
        return String::new();
    }
    let marks = bars.iter().filter_map(|bar| bar.mark).fold(0.0, f64::max);
    let (end, ticks) = axis(longest(&bars).max(marks), amount);
    html(&Chart {
        title: "Memory against plan",
        about: format!("Tensors of the rank with most, {name}; measured at the end of a job"),
        legend: vec![("measured", "measured".to_owned()), ("mark", "planned".to_owned())],
        end,
        ticks,
        bars,
    })
}

fn capitalised(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

/// `41 ms`, `1.25 s`.
pub(super) fn seconds(time: f64) -> String {
    if time < 1.0 { format!("{:.0} ms", 1e3 * time) } else { format!("{time:.2} s") }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
