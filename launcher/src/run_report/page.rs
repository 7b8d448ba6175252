//! The report as a page: one file, which needs no network. Its one script tells the values under the pointer, and is the only one
//! that the page lets run.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::history::{Step, What};
use super::parts::seconds;
use super::run::{Run, words};
use super::{configuration, curves, parts};
use crate::format;
use crate::page::lines::COLOURS;
use crate::page::{self, escape, fill};

const TEMPLATE: &str = include_str!("page.html");

/// The whole page.
pub(super) fn page(runs: &[Run], made: u64) -> String {
    let title = match runs {
        [run] => format!("Run {}", run.name),
        runs => format!("{} runs", runs.len()),
    };
    let footer = format!("Made {} by launch report {}.", format::date(made), env!("CARGO_PKG_VERSION"));
    let head = ["", "steps", "time", "loss", "held-out", "tokens/s", "step", "peak/rank", "checkpoints", "restarts"];
    fill(
        TEMPLATE,
        &[
            ("script_hash", STANDARD.encode(Sha256::digest(page::LINES_SCRIPT))),
            ("title", escape(&title)),
            ("style", format!("{}{}", page::STYLE, page::LINES_STYLE)),
            ("label_width", label_width(runs)),
            ("facts", facts(runs)),
            ("runs_title", if runs.len() == 1 { "Figures" } else { "The runs" }.to_owned()),
            ("head", head.iter().map(|cell| format!("<th>{cell}</th>")).collect()),
            ("rows", runs.iter().enumerate().map(|(index, run)| row(run, index)).collect()),
            ("legend", legend(runs)),
            ("curves", curves::curves(runs)),
            ("parts", parts::time(runs) + &parts::memory(runs)),
            ("events", events(runs)),
            ("configuration", configuration::configuration(runs)),
            ("footer", escape(&footer)),
            ("script", page::LINES_SCRIPT.to_owned()),
        ],
    )
}

/// Labels of bars are names of runs, or of parts of memory.
fn label_width(runs: &[Run]) -> String {
    let longest = runs.iter().map(|run| run.name.chars().count()).max().unwrap_or(0);
    let least = if runs.len() == 1 { 17 } else { 4 };
    format!("{:.1}em", 0.56 * longest.clamp(least, 24) as f64)
}

/// What all runs have in common, in words.
fn facts(runs: &[Run]) -> String {
    type Fact = (&'static str, fn(&Run) -> String);
    let told: [Fact; 5] = [
        ("Model", |run| {
            let hub = run.words("hub_model.id");
            if hub.is_empty() { run.words("training.model_name_or_path") } else { hub }
        }),
        ("Data", data),
        ("Job", |run| {
            let (ranks, stage) = (run.words("num_processes"), run.words("sharding.stage"));
            if ranks.is_empty() {
                return ranks;
            }
            let ranks = if ranks == "1" { "1 rank".to_owned() } else { format!("{ranks} ranks") };
            format!("{ranks} on {}, backend {}, ZeRO stage {stage}", run.words("device"), run.words("backend"))
        }),
        ("Batch", |run| {
            let number = |key: &str| run.value(key).and_then(serde_json::Value::as_u64);
            let rows = number("training.per_device_train_batch_size");
            let (Some(rows), Some(accumulation), Some(ranks)) =
                (rows, number("gradient_accumulation_steps"), number("num_processes"))
            else {
                return String::new();
            };
            let micro_batches = format::plural(accumulation, "micro-batch").replace("batchs", "batches");
            let (all, ranks) = (rows.saturating_mul(accumulation).saturating_mul(ranks), format::plural(ranks, "rank"));
            let packed = run.value("training.packing").and_then(serde_json::Value::as_bool).unwrap_or(false);
            format!(
                "{} × {micro_batches} × {ranks} = {} a step",
                format::items(rows, packed),
                format::items(all, packed)
            )
        }),
        ("Folder", |run| run.path.clone()),
    ];
    let fact = |(name, of): &Fact| {
        let first = of(&runs[0]);
        let shared = !first.is_empty() && runs.iter().all(|run| of(run) == first);
        if shared { format!("<dt>{name}</dt><dd>{}</dd>", escape(&first)) } else { String::new() }
    };
    told.iter().map(fact).collect()
}

/// The training data: as it was named, or of several sources the path and the weight of each.
fn data(run: &Run) -> String {
    let Some(sources) = run.value("training.dataset").and_then(Value::as_array) else {
        return run.words("training.dataset");
    };
    let source = |source: &Value| {
        let weight = source.get("weight").map_or(String::new(), |weight| format!(" × {weight}"));
        format!("{}{weight}", words(source.get("path").unwrap_or(source)))
    };
    sources.iter().map(source).collect::<Vec<_>>().join(", ")
}

fn row(run: &Run, index: usize) -> String {
    let steps = &run.history.steps;
    let finite =
        |figure: fn(&Step) -> f64| -> Vec<f64> { steps.iter().map(figure).filter(|value| value.is_finite()).collect() };
    let median = |figure: fn(&Step) -> f64| format::median(&finite(figure));
    let change = |values: &[f64]| match values {
        [] => "–".to_owned(),
        [only] => format!("{only:.4}"),
        [first, .., last] => format!("{first:.4} → {last:.4}"),
    };
    let losses = finite(|step| step.loss);
    let held_out: Vec<f64> = run.history.evaluations().map(|(_, loss, _)| loss).collect();
    let peak = finite(|step| step.live_bytes).into_iter().fold(0.0, f64::max);
    let cells = [
        steps.last().map_or_else(|| "0".to_owned(), |step| format::count(step.step)),
        format::duration(std::time::Duration::from_secs_f64(run.history.seconds().clamp(0.0, 1e9))),
        change(&losses),
        change(&held_out),
        median(|step| step.tokens_per_second).map_or_else(|| "–".to_owned(), format::figure),
        median(|step| step.seconds).map_or_else(|| "–".to_owned(), seconds),
        if peak > 0.0 { format::bytes(peak as u64) } else { "–".to_owned() },
        format::count(run.history.count(|what| matches!(what, What::Checkpoint(_)))),
        format::count(run.history.count(|what| matches!(what, What::Restart(_)))),
    ];
    let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
    format!("<tr><td><i class=\"c{}\"></i>{}</td>{cells}</tr>", index % COLOURS, escape(&run.name))
}

/// What colours and marks mean in all curves.
fn legend(runs: &[Run]) -> String {
    let mut items: Vec<String> = Vec::new();
    if runs.len() > 1 {
        let named = runs.iter().enumerate();
        items.extend(
            named.map(|(index, run)| format!("<li><i class=\"c{}\"></i>{}</li>", index % COLOURS, escape(&run.name))),
        );
    }
    let happened = |like: fn(&What) -> bool| runs.iter().any(|run| run.history.count(like) > 0);
    if happened(|what| matches!(what, What::Checkpoint(_))) {
        items.push("<li><i class=\"key-checkpoint\"></i>checkpoint</li>".to_owned());
    }
    if happened(|what| matches!(what, What::Restart(_) | What::Resumed)) {
        items.push("<li><i class=\"key-restart\"></i>restart</li>".to_owned());
    }
    items.concat()
}

/// Restarts, jobs that went on, saves that failed and steps that were skipped; nothing where all went well.
fn events(runs: &[Run]) -> String {
    let mut rows = Vec::new();
    for run in runs {
        for it in &run.history.happened {
            let (bad, words) = match &it.what {
                What::Restart(reason) => (true, format!("begun again: {reason}")),
                What::Resumed => (false, "another job went on from here".to_owned()),
                What::FailedSave(reason) => (true, format!("a save failed: {reason}")),
                What::Evaluation(..) | What::Checkpoint(_) => continue,
            };
            rows.push(event_row(run, runs.len(), (it.step, it.at), bad, &words));
        }
        let skipped = run.history.steps.iter().filter(|step| step.skipped).count() as u64;
        if skipped > 0 {
            let last =
                run.history.steps.iter().rfind(|step| step.skipped).map_or((0, 0.0), |step| (step.step, step.at));
            let words = format!("{} skipped, this one last", format::plural(skipped, "step"));
            rows.push(event_row(run, runs.len(), last, true, &words));
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let name = if runs.len() > 1 { "<th>run</th>" } else { "" };
    format!(
        "<section class=\"card figures\"><h2>What happened</h2><div class=\"scroll\" tabindex=\"0\" role=\"region\" \
         aria-label=\"What happened\"><table class=\"events\"><thead><tr>{name}<th>after step</th><th>at</th><th></th></tr>\
         </thead><tbody>{}</tbody></table></div></section>",
        rows.concat()
    )
}

fn event_row(run: &Run, runs: usize, (step, at): (u64, f64), bad: bool, words: &str) -> String {
    let name = if runs > 1 { format!("<td>{}</td>", escape(&run.name)) } else { String::new() };
    let time = format::duration(std::time::Duration::from_secs_f64(at.clamp(0.0, 1e9)));
    let class = if bad { " class=\"bad\"" } else { "" };
    format!("<tr>{name}<td>{}</td><td>{time}</td><td{class}>{}</td></tr>", format::count(step), escape(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_report::history::History;

    #[test]
    fn every_name_of_the_template_is_filled() {
        let names = TEMPLATE.split("{{").skip(1).filter_map(|piece| Some(piece.split_once("}}")?.0));
        let source = include_str!("page.rs");
        names.for_each(|name| assert!(source.contains(&format!("(\"{name}\", ")), "{name} is filled by nothing"));
    }

    #[test]
    fn what_runs_say_is_shown_and_never_markup() {
        let lines = "{\"step\":0,\"eval_loss\":3.0,\"eval_f1\":0.25,\"eval_loss_by_source\":{\"<i>\":2.5}}\n\
                     {\"step\":1,\"loss\":2.0,\"grad_norm\":null,\"tokens_per_second\":100.0,\"step_seconds\":0.5,\
                     \"communication_seconds\":0.1,\"live_peak_bytes\":1048576,\"time\":10.0}\n\
                     {\"step\":1,\"restart\":2,\"reason\":\"<script>alert(1)</script>\",\"time\":12.0}\n\
                     {\"step\":1,\"checkpoint_failed\":\"a & b\",\"time\":12.0}\n";
        let run = |name: &str| Run {
            name: name.to_owned(),
            path: "/runs/\"x\"".to_owned(),
            history: History::read(lines.as_bytes()).unwrap(),
            plan: None,
            configuration: Some("a: </pre><script>\n".to_owned()),
            values: Value::Null,
        };
        let text = page(&[run("<b>"), run("y")], 1_795_501_773);
        assert_eq!(text.matches("<script>").count(), 1, "its own");
        for part in [
            "<title>2 runs</title>",
            "<td><i class=\"c0\"></i>&lt;b&gt;</td><td>1</td><td>2.5 s</td><td>2.0000</td><td>3.0000</td><td>100</td><td>500 ms</td>\
             <td>1.00 MiB</td><td>0</td><td>1</td>",
            "<h2>F1</h2>",
            "<h2>Loss of &lt;i&gt;</h2>",
            "begun again: &lt;script&gt;alert(1)&lt;/script&gt;",
            "a save failed: a &amp; b",
            "<dt>Folder</dt><dd>/runs/&quot;x&quot;</dd>",
            "Made 2026-11-24 06:29:33 UTC by",
            "data-mark=\"restart after step 1: &lt;script&gt;",
        ] {
            assert!(text.contains(part), "{part}\n{}", text.split_once("<body>").map_or("", |(_, body)| body));
        }
        assert!(!text.contains("{{") && !text.contains("NaN") && !text.contains("http:") && !text.contains("https:"));
        let empty = Run { history: History::default(), ..run("empty") };
        assert!(page(&[empty], 0).contains("<title>Run empty</title>"));
    }
}
