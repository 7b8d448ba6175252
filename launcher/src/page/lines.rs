//! Curves. The plot is inline SVG that is stretched to its column; text stands beside it as HTML, so that it keeps its size.
//! `lines.js` reads the values under the pointer from the curves' own points.

use std::fmt::Write;

use super::axis::Axis;
use super::escape;

/// The plot's own units from side to side, and from top to bottom.
const EXTENT: f64 = 1000.0;
/// A curve has at most about so many points: more than a screen shows.
const POINTS: usize = 800;
/// Colours that curves have before they come again.
pub(crate) const COLOURS: usize = 8;

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stroke {
    /// A line.
    Line,
    /// A thin line behind the others.
    Faint,
    /// A line with a dot at each value.
    Dots,
    /// A dashed line: what was planned.
    Dashes,
}

impl Stroke {
    fn class(self) -> &'static str {
        match self {
            Stroke::Line => "line",
            Stroke::Faint => "faint",
            Stroke::Dots => "dots",
            Stroke::Dashes => "dashes",
        }
    }
}

/// A curve.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// What is told under the pointer; a curve without a name tells nothing.
    pub(crate) name: String,
    /// Which of the colours.
    pub(crate) colour: usize,
    pub(crate) stroke: Stroke,
    /// From left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Something that happened at a place of the horizontal axis.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) at: f64,
    pub(crate) colour: usize,
    /// Across the whole plot, or a small one at its foot.
    pub(crate) tall: bool,
    /// What happened.
    pub(crate) words: String,
}

/// Curves over one axis.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// What a person hears who does not see it.
    pub(crate) label: String,
    pub(crate) horizontal: Axis,
    pub(crate) vertical: Axis,
    pub(crate) curves: Vec<Curve>,
    pub(crate) marks: Vec<Mark>,
}

impl Plot {
    /// The plot as HTML.
    pub(crate) fn html(&self) -> String {
        let (across, up) = (&self.horizontal, &self.vertical);
        let mut text = format!(
            "<div class=\"plot\" data-x=\"{} {}\" data-y=\"{} {}\" data-name=\"{}\"><div class=\"up\" aria-hidden=\"true\">",
            across.from,
            across.to,
            up.from,
            up.to,
            escape(&across.name)
        );
        for (tick, label) in &up.ticks {
            let _ = write!(text, "<span style=\"bottom:{:.2}%\">{}</span>", 100.0 * up.share(*tick), escape(label));
        }
        let _ = write!(
            text,
            "</div><svg viewBox=\"0 0 {EXTENT} {EXTENT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">",
            escape(&self.label)
        );
        for (tick, _) in &up.ticks {
            let y = EXTENT * (1.0 - up.share(*tick));
            let _ = write!(text, "<path class=\"grid\" d=\"M0 {y:.1}H{EXTENT}\"/>");
        }
        self.marks.iter().for_each(|mark| self.mark(mark, &mut text));
        self.curves.iter().for_each(|curve| self.curve(curve, &mut text));
        text.push_str("</svg><div class=\"across\" aria-hidden=\"true\">");
        for (tick, label) in &across.ticks {
            let _ = write!(text, "<span style=\"left:{:.2}%\">{}</span>", 100.0 * across.share(*tick), escape(label));
        }
        let _ = write!(text, "</div><p class=\"axis-name\" aria-hidden=\"true\">{}</p></div>", escape(&across.name));
        text
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (EXTENT * self.horizontal.share(x), EXTENT * (1.0 - self.vertical.share(y)))
    }

    fn curve(&self, curve: &Curve, text: &mut String) {
        let colour = curve.colour % COLOURS;
        let class = curve.stroke.class();
        // A value that is no number interrupts the line.
        for piece in curve.points.split(|(_, y)| !y.is_finite()).filter(|piece| !piece.is_empty()) {
            let points = thinned(piece);
            let mut line = String::with_capacity(points.len() * 18);
            for point in &points {
                let (x, y) = self.place(*point);
                let _ = write!(line, "{}{x:.3} {y:.3}", if line.is_empty() { "M" } else { "L" });
            }
            // A line of one point has no length; the round ends of its stroke are a dot.
            if points.len() == 1 {
                line.push_str("h0");
            }
            let name = escape(&curve.name);
            let _ = write!(text, "<path class=\"{class} c{colour}\" data-name=\"{name}\" d=\"{line}\"/>");
            if curve.stroke == Stroke::Dots {
                let dots = points.iter().map(|point| {
                    let (x, y) = self.place(*point);
                    format!("M{x:.3} {y:.3}h0")
                });
                let _ = write!(text, "<path class=\"dot c{colour}\" d=\"{}\"/>", dots.collect::<String>());
            }
        }
    }

    fn mark(&self, mark: &Mark, text: &mut String) {
        let x = EXTENT * self.horizontal.share(mark.at);
        let (class, top) = if mark.tall { ("restart", 0.0) } else { ("checkpoint", 0.95 * EXTENT) };
        let (colour, words) = (mark.colour % COLOURS, escape(&mark.words));
        let _ = write!(
            text,
            "<path class=\"{class} c{colour}\" data-mark=\"{words}\" d=\"M{x:.3} {top}V{EXTENT}\"><title>{words}</title></path>"
        );
    }
}

/// Not more points than can be seen: of each part of the curve its lowest and its highest stay, so that no peak is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let part = points.len().div_ceil(POINTS / 2);
    let mut kept = vec![points[0]];
    for part in points.chunks(part) {
        let by_height = |one: &&(f64, f64), other: &&(f64, f64)| one.1.total_cmp(&other.1);
        let (Some(low), Some(high)) = (part.iter().min_by(by_height), part.iter().max_by(by_height)) else { continue };
        let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
        kept.push(*first);
        if first != second {
            kept.push(*second);
        }
    }
    kept.extend(points.last());
    kept.dedup();
    kept
}

/// The mean of the values around each, so many of them.
pub(crate) fn smoothed(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let half = window / 2;
    let mean = |index: usize| {
        let around = &points[index.saturating_sub(half)..(index + half + 1).min(points.len())];
        let finite: Vec<f64> = around.iter().map(|(_, y)| *y).filter(|y| y.is_finite()).collect();
        finite.iter().sum::<f64>() / finite.len() as f64
    };
    points.iter().enumerate().map(|(index, (x, _))| (*x, mean(index))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_survive_thinning_and_a_gap_stays_a_gap() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|x| (f64::from(x), 1.0 + f64::from(x % 7))).collect();
        points[5_003].1 = 99.0;
        points[7_777].1 = -5.0;
        let kept = thinned(&points);
        assert!(kept.len() <= POINTS + 4, "{}", kept.len());
        assert!(kept.contains(&(5_003.0, 99.0)) && kept.contains(&(7_777.0, -5.0)));
        assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0), "from left to right");
        assert_eq!((kept[0], kept.last()), (points[0], points.last()));
        let axis = |name: &str| Axis::over([0.0, 2.0], false, name, |tick| tick.to_string());
        let points = vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 2.0)];
        let curve = Curve { name: "a<b".to_owned(), colour: 9, stroke: Stroke::Line, points };
        let mark = Mark { at: 1.0, colour: 0, tall: true, words: "\"x\"".to_owned() };
        let plot = Plot {
            label: "l".to_owned(),
            horizontal: axis("step"),
            vertical: axis("loss"),
            curves: vec![curve],
            marks: vec![mark],
        };
        let html = plot.html();
        assert!(html.contains("<path class=\"line c1\" data-name=\"a&lt;b\" d=\"M0.000 500.000h0\"/>"), "{html}");
        assert!(html.contains("d=\"M1000.000 0.000h0\"/>"), "{html}");
        assert!(html.contains("data-mark=\"&quot;x&quot;\" d=\"M500.000 0V1000\"") && !html.contains("NaN"), "{html}");
    }

    #[test]
    fn a_smoothed_curve_is_the_mean_around() {
        let points = [(0.0, 0.0), (1.0, 3.0), (2.0, f64::NAN), (3.0, 6.0)];
        assert_eq!(smoothed(&points, 3), [(0.0, 1.5), (1.0, 1.5), (2.0, 4.5), (3.0, 6.0)]);
    }
}
