//! The curves of runs, by step and by time.

use std::collections::BTreeSet;

use super::history::{FIGURES, Happened, Step, Told, What};
use super::run::Run;
use crate::format;
use crate::page::axis::{Axis, short, unit};
use crate::page::escape;
use crate::page::lines::{Curve, Mark, Plot, Stroke, smoothed};

/// A curve of more steps is smoothed.
const SMOOTHED_FROM: usize = 60;
/// Over this share of all steps.
const SMOOTHED_SHARE: usize = 30;
/// More checkpoints than this would be a row of marks.
const MOST_CHECKPOINTS: usize = 60;

/// What lies along the horizontal axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Along {
    Steps,
    Time,
}

/// A curve's values at each step; those that are not there are no numbers.
type Figure = Box<dyn Fn(&Step) -> f64>;
/// The values at each pass over held-out rows, of its loss and what else it told.
type HeldOut = Box<dyn Fn(f64, &Told) -> Option<f64>>;

/// What one chart shows.
struct Shown {
    title: String,
    about: String,
    figure: Figure,
    /// Divides every value.
    unit: f64,
    from_zero: bool,
    smooth: bool,
    held_out: Option<HeldOut>,
    planned: bool,
}

impl Shown {
    fn new(title: &str, about: &str, figure: impl Fn(&Step) -> f64 + 'static) -> Self {
        let (title, about, figure) = (title.to_owned(), about.to_owned(), Box::new(figure));
        Shown { title, about, figure, unit: 1.0, from_zero: true, smooth: false, held_out: None, planned: false }
    }

    /// One that may be below zero, drawn of held-out rows too.
    fn held_out(self, held_out: impl Fn(f64, &Told) -> Option<f64> + 'static) -> Self {
        Shown { smooth: true, from_zero: false, held_out: Some(Box::new(held_out)), ..self }
    }
}

/// All curves as HTML.
pub(super) fn curves(runs: &[Run]) -> String {
    let steps = || runs.iter().flat_map(|run| &run.history.steps);
    let planned = runs.iter().filter_map(|run| run.plan.as_ref()).map(|plan| plan.planned.plan.total as f64);
    let most = steps().map(|step| step.live_bytes).chain(planned).filter(|bytes| bytes.is_finite()).fold(0.0, f64::max);
    let (bytes, bytes_name) = unit(most);
    let memory = format!("Most in tensors at once, of the rank with most, {bytes_name}");
    let smooth = |title, about, figure: fn(&Step) -> f64| Shown { smooth: true, ..Shown::new(title, about, figure) };
    let mut charts = vec![
        Shown::new("Loss", "Nats a token; of a classifier the mean over rows", |step| step.loss)
            .held_out(|loss, _| Some(loss)),
    ];
    charts.extend(of_rows(runs));
    charts.extend([
        smooth("Gradient norm", "Of the whole gradient, before clipping", |step| step.grad_norm),
        smooth("Speed", "Tokens a second, all ranks, without padding", |step| step.tokens_per_second),
        Shown::new("Learning rate", "Of each step", |step| step.learning_rate),
        Shown { unit: bytes, planned: true, ..Shown::new("Memory", &memory, |step| step.live_bytes) },
        smooth("Time of a step", "Seconds, evaluation and saving left out", |step| step.seconds),
    ]);
    charts.iter().map(|shown| chart(shown, runs)).collect()
}

/// The figures that are told of rows, and the losses by source where there are several.
fn of_rows(runs: &[Run]) -> Vec<Shown> {
    let steps = runs.iter().flat_map(|run| &run.history.steps).map(|step| &step.told);
    let told: Vec<&Told> = steps.chain(runs.iter().flat_map(|run| run.history.evaluations().map(|it| it.2))).collect();
    let figures = FIGURES.into_iter().filter(|(name, ..)| told.iter().any(|told| told.figures.contains_key(*name)));
    let figures = figures.map(|(name, title, about)| {
        let of = move |told: &Told| told.figures.get(name).copied();
        Shown::new(title, about, move |step| of(&step.told).unwrap_or(f64::NAN)).held_out(move |_, told| of(told))
    });
    let sources: BTreeSet<&String> = told.iter().flat_map(|told| told.loss_by_source.keys()).collect();
    let sources = sources.into_iter().map(|source| {
        let of = |told: &Told, source: &String| told.loss_by_source.get(source).copied();
        let (trained, held_out) = (source.clone(), source.clone());
        Shown::new(&format!("Loss of {source}"), "Nats a token, of the rows of this source", move |step| {
            of(&step.told, &trained).unwrap_or(f64::NAN)
        })
        .held_out(move |_, told| of(told, &held_out))
    });
    figures.chain(sources).collect()
}

fn chart(shown: &Shown, runs: &[Run]) -> String {
    let window = window(runs).filter(|_| shown.smooth);
    let mut legend = Vec::new();
    let mut explain = |class: &str, words: String| legend.push(format!("<li><i class=\"{class}\"></i>{words}</li>"));
    if let Some(window) = window {
        explain("key-faint", "each step".to_owned());
        explain("key-line", format!("mean of {window} steps"));
    }
    let is_drawn = |held_out: &HeldOut| {
        let mut evaluations = runs.iter().flat_map(|run| run.history.evaluations());
        evaluations.any(|(_, loss, told)| held_out(loss, told).is_some())
    };
    if shown.held_out.as_ref().is_some_and(is_drawn) {
        explain("key-dots", "held-out".to_owned());
    }
    if shown.planned && runs.iter().any(|run| run.plan.is_some()) {
        explain("key-dashes", "planned".to_owned());
    }
    let legend = match legend.is_empty() {
        true => String::new(),
        false => format!("<ul class=\"legend\">{}</ul>", legend.concat()),
    };
    let plots = [(Along::Steps, "by-step"), (Along::Time, "by-time")].map(|(along, class)| {
        let plot = plot(shown, runs, along, window);
        format!("<div class=\"{class}\">{}</div>", plot.html())
    });
    let (title, about) = (escape(&shown.title), escape(&shown.about));
    format!("<section class=\"card chart\"><h2>{title}</h2><p>{about}</p>{legend}{}</section>", plots.concat())
}

/// Over so many steps curves are smoothed; none where there are few.
fn window(runs: &[Run]) -> Option<usize> {
    let longest = runs.iter().map(|run| run.history.steps.len()).max().unwrap_or(0);
    // An odd number, so that it is the mean around a step.
    (longest >= SMOOTHED_FROM).then_some((longest / SMOOTHED_SHARE) | 1)
}

fn plot(shown: &Shown, runs: &[Run], along: Along, window: Option<usize>) -> Plot {
    let (second, horizontal) = across(runs, along);
    let x = |step: u64, at: f64| match along {
        Along::Steps => step as f64,
        Along::Time => at / second,
    };
    let (mut curves, mut marks) = (Vec::new(), Vec::new());
    for (colour, run) in runs.iter().enumerate() {
        let points: Vec<(f64, f64)> =
            run.history.steps.iter().map(|step| (x(step.step, step.at), (shown.figure)(step) / shown.unit)).collect();
        let named = |what: &str| match (runs.len(), what) {
            (1, what) => what.to_owned(),
            (_, "") => run.name.clone(),
            (_, what) => format!("{}, {what}", run.name),
        };
        let curve = |name: String, stroke, points| Curve { name, colour, stroke, points };
        match window {
            Some(window) => {
                let mean = smoothed(&points, window);
                curves.push(curve(named(if runs.len() == 1 { "step" } else { "" }), Stroke::Faint, points));
                curves.push(curve(named("mean"), Stroke::Line, mean));
            }
            None => curves.push(curve(named(if runs.len() == 1 { "value" } else { "" }), Stroke::Line, points)),
        }
        if let Some(held_out) = &shown.held_out {
            let evaluations = run.history.evaluations();
            let points =
                evaluations.filter_map(|(it, loss, told)| Some((x(it.step, it.at), held_out(loss, told)?))).collect();
            curves.push(curve(named("held-out"), Stroke::Dots, points));
        }
        if let Some(plan) = run.plan.as_ref().filter(|_| shown.planned) {
            let planned = plan.planned.plan.total as f64 / shown.unit;
            let points = vec![(horizontal.from, planned), (horizontal.to, planned)];
            curves.push(curve(named("planned"), Stroke::Dashes, points));
        }
        marks.extend(run_marks(run, colour, |it| x(it.step, it.at)));
    }
    let values = curves.iter().flat_map(|curve| &curve.points).map(|(_, y)| *y);
    let vertical = Axis::over(values, shown.from_zero, &shown.title, short);
    let along = if along == Along::Steps { "step" } else { "time" };
    Plot { label: format!("{} by {along}", shown.title), horizontal, vertical, curves, marks }
}

/// The horizontal axis, and how many seconds its unit has.
fn across(runs: &[Run], along: Along) -> (f64, Axis) {
    let longest = runs.iter().map(|run| run.history.seconds()).fold(0.0, f64::max);
    match along {
        Along::Steps => {
            let steps = runs.iter().flat_map(|run| &run.history.steps).map(|step| step.step as f64);
            let whole = |tick: f64| if tick.fract() == 0.0 { short(tick) } else { String::new() };
            (1.0, Axis::along(steps, "step", whole))
        }
        Along::Time => {
            let (second, name) = match longest {
                7200.0.. => (3600.0, "hours of work"),
                120.0.. => (60.0, "minutes of work"),
                _ => (1.0, "seconds of work"),
            };
            (second, Axis::along([longest / second], name, short))
        }
    }
}

fn run_marks(run: &Run, colour: usize, at: impl Fn(&Happened) -> f64) -> Vec<Mark> {
    let checkpoints = run.history.count(|what| matches!(what, What::Checkpoint(_))) as usize;
    let every = checkpoints.div_ceil(MOST_CHECKPOINTS).max(1);
    let mut seen = 0;
    let mut marks = Vec::new();
    for it in &run.history.happened {
        let (tall, words) = match &it.what {
            What::Checkpoint(_) => {
                seen += 1;
                if seen % every != 0 {
                    continue;
                }
                (false, format!("checkpoint of step {}", format::count(it.step)))
            }
            What::Restart(reason) => (true, format!("restart after step {}: {reason}", format::count(it.step))),
            What::Resumed => (true, format!("resumed after step {}", format::count(it.step))),
            What::Evaluation(..) | What::FailedSave(_) => continue,
        };
        marks.push(Mark { at: at(it), colour, tall, words });
    }
    marks
}
