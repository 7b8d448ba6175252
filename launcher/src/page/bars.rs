//! Horizontal bars. Text is HTML, so that it keeps its size; bars are inline SVG, as wide as their column, in percent.

use std::fmt::Write;

use super::escape;
use crate::format;

/// A chart; amounts are in the axis's unit.
pub(crate) struct Chart {
    pub(crate) title: &'static str,
    /// What is shown, and in which unit.
    pub(crate) about: String,
    /// Colours by class, and what they are.
    pub(crate) legend: Vec<(&'static str, String)>,
    /// The axis's end.
    pub(crate) end: f64,
    /// Places on the axis and their labels.
    pub(crate) ticks: Vec<(f64, String)>,
    pub(crate) bars: Vec<Bar>,
}

/// One thing in a chart.
pub(crate) struct Bar {
    /// What it shares with its neighbours; a heading where it changes.
    pub(crate) group: Option<String>,
    pub(crate) label: String,
    pub(crate) chosen: bool,
    /// Parts from left to right, with the class of each.
    pub(crate) parts: Vec<(&'static str, f64)>,
    /// A range across the end of the bar.
    pub(crate) whisker: Option<(f64, f64)>,
    /// What was planned.
    pub(crate) mark: Option<f64>,
    pub(crate) value: String,
    /// Smaller, behind the value.
    pub(crate) more: String,
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

/// The end of the longest bar.
pub(crate) fn longest(bars: &[Bar]) -> f64 {
    bars.iter().map(|bar| bar.parts.iter().map(|(_, amount)| amount).sum()).fold(0.0, f64::max)
}

/// The chart as HTML.
pub(crate) fn html(chart: &Chart) -> String {
    let mut text = format!("<section class=\"card chart\"><h2>{}</h2><p>{}</p>", chart.title, escape(&chart.about));
    if !chart.legend.is_empty() {
        let items =
            chart.legend.iter().map(|(class, words)| format!("<li><i class=\"{class}\"></i>{}</li>", escape(words)));
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
    let spread = bar.whisker.map(|(lowest, highest)| format!(", rounds {}", format::spread(lowest, highest)));
    let more = if bar.more.is_empty() { String::new() } else { format!(", {}", bar.more) };
    format!("{}{}{more}", bar.value, spread.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

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
