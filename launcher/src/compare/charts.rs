//! What a comparison shows as bars.

use super::figures::{Comparison, Figures, Row};
use super::table::{percent, seconds};
use crate::format;
use crate::page::axis::{amount, axis, unit};
use crate::page::bars::{Bar, Chart, html, longest};

/// All charts as HTML.
pub(super) fn charts(comparison: &Comparison) -> String {
    [speed, memory, time, sent].iter().map(|chart| html(&chart(comparison))).collect()
}

fn speed(comparison: &Comparison) -> Chart {
    let bars: Vec<Bar> = bars(comparison, |_, figures| {
        let (lowest, highest) = (figures.tokens_per_second_lowest, figures.tokens_per_second_highest);
        Bar {
            parts: vec![("measured", figures.tokens_per_second)],
            whisker: (lowest < highest).then_some((lowest, highest)),
            value: format::figure(figures.tokens_per_second),
            more: figures
                .share_of_gemm_rate
                .map(|share| format!("{} of GEMM rate", percent(share)))
                .unwrap_or_default(),
            ..Bar::default()
        }
    });
    let end = bars.iter().filter_map(|bar| bar.whisker).map(|(_, highest)| highest).fold(longest(&bars), f64::max);
    let (end, ticks) = axis(end, |tick| match tick {
        1000.0.. => format!("{}k", amount(tick / 1000.0)),
        _ => amount(tick),
    });
    Chart {
        title: "Speed",
        about: "Tokens per second of all ranks together".to_owned(),
        legend: match comparison.method.rounds {
            1 => Vec::new(),
            _ => legend([("measured", "median of the rounds"), ("whisker", "slowest to fastest round")]),
        },
        end,
        ticks,
        bars,
    }
}

fn memory(comparison: &Comparison) -> Chart {
    let planned = |row: &Row| row.planned.peak_bytes_per_rank as f64;
    let most = comparison.rows.iter().map(planned).fold(0.0, f64::max);
    let (unit, name) = unit(most);
    let bars = bars(comparison, |row, figures| Bar {
        parts: vec![("measured", figures.peak_bytes_per_rank as f64 / unit)],
        mark: Some(planned(row) / unit),
        value: format::bytes(figures.peak_bytes_per_rank),
        more: format!("planned {}", format::bytes(row.planned.peak_bytes_per_rank)),
        ..Bar::default()
    });
    let (end, ticks) = axis(longest(&bars).max(most / unit), amount);
    let usable = comparison.ceilings.usable_bytes_per_rank;
    let usable = usable.map(|bytes| format!("; {} can be used", format::bytes(bytes))).unwrap_or_default();
    Chart {
        title: "Memory of a rank",
        about: format!("Most tensors at once, {name}{usable}"),
        legend: legend([("measured", "measured"), ("mark", "planned")]),
        end,
        ticks,
        bars,
    }
}

fn time(comparison: &Comparison) -> Chart {
    let bars = bars(comparison, |_, figures| {
        let exposed = figures.exposed_communication_share_of_step.clamp(0.0, 1.0);
        Bar {
            parts: vec![("measured", 100.0 * (1.0 - exposed)), ("exposed", 100.0 * exposed)],
            value: format!("{} exposed", percent(exposed)),
            more: format!(
                "{} of {}",
                seconds(figures.exposed_communication_seconds_per_step),
                seconds(figures.step_seconds)
            ),
            ..Bar::default()
        }
    });
    Chart {
        title: "Where a step’s time goes",
        about: "Share of the step, per cent, rank 0".to_owned(),
        legend: legend([("measured", "computing"), ("exposed", "waiting in collectives")]),
        end: 100.0,
        ticks: [0.0, 25.0, 50.0, 75.0, 100.0].map(|tick| (tick, amount(tick))).to_vec(),
        bars,
    }
}

fn sent(comparison: &Comparison) -> Chart {
    let planned = |row: &Row| row.planned.sent_bytes_per_step as f64;
    let most = comparison.rows.iter().map(planned).fold(0.0, f64::max);
    let (unit, name) = unit(most);
    let bars = bars(comparison, |row, figures| Bar {
        parts: vec![("measured", figures.sent_bytes_per_step as f64 / unit)],
        mark: Some(planned(row) / unit),
        value: format::bytes(figures.sent_bytes_per_step),
        more: format!("planned {}", format::bytes(row.planned.sent_bytes_per_step)),
        ..Bar::default()
    });
    let (end, ticks) = axis(longest(&bars).max(most / unit), amount);
    Chart {
        title: "Sent in a step",
        about: format!("By rank 0 to the others, {name}"),
        legend: legend([("measured", "measured"), ("mark", "planned")]),
        end,
        ticks,
        bars,
    }
}

/// A bar for each row: what `of` makes of its figures, or that there are none.
fn bars(comparison: &Comparison, of: impl Fn(&Row, &Figures) -> Bar) -> Vec<Bar> {
    let rows = &comparison.rows;
    let differ = |one: fn(&Row) -> String| rows.iter().any(|row| one(row) != one(&rows[0]));
    let backends = differ(|row| row.configuration.backend.to_string());
    let accumulations = differ(|row| row.configuration.accumulation.to_string());
    let bar = |row: &Row| {
        let configuration = &row.configuration;
        let mut label = format!("Stage {}", configuration.stage);
        if backends {
            label.push_str(&format!(", {}", configuration.backend));
        }
        let bar = match &row.measured {
            Some(figures) => of(row, figures),
            None => Bar { value: "does not fit".to_owned(), ..Bar::default() },
        };
        let chosen = comparison.choices.iter().any(|choice| choice.configuration == *configuration);
        let group = accumulations.then(|| format!("Accumulation {}", configuration.accumulation));
        Bar { group, label, chosen, ..bar }
    };
    rows.iter().map(bar).collect()
}

fn legend(items: [(&'static str, &str); 2]) -> Vec<(&'static str, String)> {
    items.map(|(class, words)| (class, words.to_owned())).to_vec()
}
