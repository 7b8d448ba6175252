//! Horizontal bars. Text is HTML, so that it keeps its size; bars are inline SVG, as wide as their column, in percent.

use std::fmt::Write;

use super::figures::{Comparison, Figures, Row};
use super::page::escape;
use super::table::{percent, seconds, spread};
use crate::format;

/// About so many parts an axis has.
const PARTS: f64 = 4.0;
const MEBIBYTE: f64 = (1u64 << 20) as f64;
const GIBIBYTE: f64 = (1u64 << 30) as f64;

/// A chart; amounts are in the axis's unit.
struct Chart {
    title: &'static str,
    /// What is shown, and in which unit.
    about: String,
    /// Colours by class, and what they are.
    legend: Vec<(&'static str, &'static str)>,
    /// The axis's end.
    end: f64,
    /// Places on the axis and their labels.
    ticks: Vec<(f64, String)>,
    bars: Vec<Bar>,
}

/// A configuration in a chart.
struct Bar {
    /// What it shares with its neighbours; a heading where it changes.
    group: Option<String>,
    label: String,
    chosen: bool,
    /// Parts from left to right, with the class of each.
    parts: Vec<(&'static str, f64)>,
    /// A range across the end of the bar.
    whisker: Option<(f64, f64)>,
    /// What was planned.
    mark: Option<f64>,
    value: String,
    /// Smaller, behind the value.
    more: String,
}

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
            _ => vec![("measured", "median of the rounds"), ("whisker", "slowest to fastest round")],
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
        legend: vec![("measured", "measured"), ("mark", "planned")],
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
        legend: vec![("measured", "computing"), ("exposed", "waiting in collectives")],
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
        legend: vec![("measured", "measured"), ("mark", "planned")],
        end,
        ticks,
        bars,
    }
}

impl Default for Bar {
    fn default() -> Self {
        let text = String::new;
        Bar {
            group: None,
            label: text(),
            chosen: false,
            parts: vec![],
            whisker: None,
            mark: None,
            value: text(),
            more: text(),
        }
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

/// The end of the longest bar.
fn longest(bars: &[Bar]) -> f64 {
    bars.iter().map(|bar| bar.parts.iter().map(|(_, amount)| amount).sum()).fold(0.0, f64::max)
}

/// The unit for amounts up to `most` bytes, and its name.
fn unit(most: f64) -> (f64, &'static str) {
    if most >= GIBIBYTE { (GIBIBYTE, "GiB") } else { (MEBIBYTE, "MiB") }
}

/// An amount on an axis, with as many digits as it needs.
fn amount(tick: f64) -> String {
    let text = format!("{tick:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// An axis from 0 that reaches `most`, with ticks at round numbers.
fn axis(most: f64, label: impl Fn(f64) -> String) -> (f64, Vec<(f64, String)>) {
    let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
    let rough = most / PARTS;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let count = (most / step).ceil();
    let ticks = (0..=count as u32).map(|index| f64::from(index) * step);
    (count * step, ticks.map(|tick| (tick, label(tick))).collect())
}

fn html(chart: &Chart) -> String {
    let mut text = format!("<section class=\"card chart\"><h2>{}</h2><p>{}</p>", chart.title, escape(&chart.about));
    if !chart.legend.is_empty() {
        let items = chart.legend.iter().map(|(class, words)| format!("<li><i class=\"{class}\"></i>{words}</li>"));
        let _ = write!(text, "<ul class=\"legend\">{}</ul>", items.collect::<String>());
    }
    text.push_str("<div class=\"bars\">");
    let mut group = None;
    for bar in &chart.bars {
        if bar.group != group {
            group = bar.group.clone();
            let _ = write!(text, "<h3>{}</h3>", escape(group.as_deref().unwrap_or_default()));
        }
        let class = if bar.chosen { "bar chosen" } else { "bar" };
        let _ = write!(
            text,
            "<div class=\"{class}\"><b>{}</b>{}<span>{}<small>{}</small></span></div>",
            escape(&bar.label),
            svg(chart, bar),
            escape(&bar.value),
            escape(&bar.more)
        );
    }
    let last = chart.ticks.len().saturating_sub(1);
    let ticks = chart.ticks.iter().enumerate().map(|(index, (place, label))| {
        // Labels at both ends stay inside.
        let anchor = if index == 0 {
            "start"
        } else if index == last {
            "end"
        } else {
            "middle"
        };
        format!(
            "<text x=\"{:.2}%\" y=\"14\" text-anchor=\"{anchor}\">{}</text>",
            place_of(chart, *place),
            escape(label)
        )
    });
    let _ = write!(
        text,
        "<div class=\"bar axis\" aria-hidden=\"true\"><b></b><svg>{}</svg><span></span></div></div></section>",
        ticks.collect::<String>()
    );
    text
}

/// Per cent of the axis.
fn place_of(chart: &Chart, amount: f64) -> f64 {
    (100.0 * amount / chart.end).clamp(0.0, 100.0)
}

fn svg(chart: &Chart, bar: &Bar) -> String {
    let place = |amount: f64| place_of(chart, amount);
    let mut text = format!("<svg role=\"img\" aria-label=\"{} {}\">", escape(&bar.label), escape(&label(bar)));
    let line = |text: &mut String, class: &str, [x1, x2]: [f64; 2], [y1, y2]: [u32; 2]| {
        let _ = write!(text, "<line class=\"{class}\" x1=\"{x1:.2}%\" x2=\"{x2:.2}%\" y1=\"{y1}\" y2=\"{y2}\"/>");
    };
    for (tick, _) in &chart.ticks {
        line(&mut text, "grid", [place(*tick); 2], [0, 40]);
    }
    let mut from = 0.0;
    for (class, amount) in &bar.parts {
        let (x, width) = (place(from), place(from + amount) - place(from));
        let _ = write!(text, "<rect class=\"{class}\" x=\"{x:.2}%\" y=\"11\" width=\"{width:.2}%\" height=\"18\"/>");
        from += amount;
    }
    if let Some((lowest, highest)) = bar.whisker {
        let [lowest, highest] = [lowest, highest].map(place);
        line(&mut text, "whisker", [lowest, highest], [20, 20]);
        line(&mut text, "whisker", [lowest; 2], [15, 25]);
        line(&mut text, "whisker", [highest; 2], [15, 25]);
    }
    if let Some(mark) = bar.mark {
        line(&mut text, "mark", [place(mark); 2], [7, 33]);
    }
    text.push_str("</svg>");
    text
}

/// What a person hears who does not see the bar.
fn label(bar: &Bar) -> String {
    let spread = bar.whisker.map(|(lowest, highest)| format!(", rounds {}", spread(lowest, highest)));
    let more = if bar.more.is_empty() { String::new() } else { format!(", {}", bar.more) };
    format!("{}{}{more}", bar.value, spread.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number_beyond_the_bars() {
        let of = |most: f64| {
            let (end, ticks) = axis(most, amount);
            (end, ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(of(371.0), (400.0, "0 100 200 300 400".to_owned()));
        assert_eq!(of(2.46), (3.0, "0 1 2 3".to_owned()));
        assert_eq!(of(0.73), (0.8, "0 0.2 0.4 0.6 0.8".to_owned()));
        assert_eq!(of(20.0), (20.0, "0 5 10 15 20".to_owned()));
        for nothing in [0.0, f64::NAN, f64::INFINITY] {
            assert_eq!(of(nothing).0, 1.0);
        }
    }

    #[test]
    fn parts_lie_side_by_side_within_the_axis() {
        let bar = Bar { parts: vec![("measured", 75.0), ("exposed", 25.0)], mark: Some(200.0), ..Bar::default() };
        let chart =
            Chart { title: "", about: String::new(), legend: vec![], end: 100.0, ticks: vec![], bars: vec![bar] };
        let text = svg(&chart, &chart.bars[0]);
        assert!(text.contains("class=\"measured\" x=\"0.00%\" y=\"11\" width=\"75.00%\""), "{text}");
        assert!(text.contains("class=\"exposed\" x=\"75.00%\" y=\"11\" width=\"25.00%\""), "{text}");
        assert!(text.contains("class=\"mark\" x1=\"100.00%\""), "{text}");
    }
}
