//! Every stage, and hybrid, on ever more GPUs.

use serde_json::{Value, json};
use zerofold_plan::{Overtaking, Scale, ScaledLayout, ScaledRow, scale};

use super::estimate::Estimate;
use crate::columns::aligned;
use crate::error::LaunchError;
use crate::format;

pub(super) fn answer(estimate: &Estimate) -> Result<(Vec<String>, Value), LaunchError> {
    let scale = scale(&estimate.inputs(), &estimate.assumed)?;
    let mut lines = vec![String::new()];
    lines.extend(table(&scale));
    lines.push(
        "tokens/s of one GPU, each with the same batch; * the fastest that fits, of equally fast ones the simplest; in \
         parentheses what does not fit"
            .to_owned(),
    );
    lines.extend(words(&scale));
    Ok((lines, json!({ "rows": rows(&scale), "overtakings": overtakings(&scale) })))
}

fn table(scale: &Scale) -> Vec<String> {
    let names = ScaledLayout::ALL.iter().map(ScaledLayout::to_string);
    let head = std::iter::once("GPUs".to_owned()).chain(names).chain(["all tokens/s".to_owned()]).collect();
    let row = |row: &ScaledRow| {
        let cells = ScaledLayout::ALL.iter().map(|layout| cell(row, *layout));
        std::iter::once(format::count(row.gpus as u64)).chain(cells).chain([best(row)]).collect()
    };
    aligned(&std::iter::once(head).chain(scale.rows.iter().map(row)).collect::<Vec<Vec<String>>>())
}

fn cell(row: &ScaledRow, layout: ScaledLayout) -> String {
    let Some(scaled) = row.layouts.iter().find(|scaled| scaled.layout == layout) else { return "-".to_owned() };
    let rate = format::figure(scaled.tokens_per_second_per_gpu);
    match (scaled.fits, row.best == Some(layout)) {
        (false, _) => format!("({rate})"),
        (true, true) => format!("{rate} *"),
        (true, false) => format!("{rate}  "),
    }
}

/// Of all GPUs, with the best layout.
fn best(row: &ScaledRow) -> String {
    let best = row.layouts.iter().find(|scaled| row.best == Some(scaled.layout));
    best.map_or_else(|| "-".to_owned(), |best| format::figure(best.tokens_per_second_per_gpu * row.gpus as f64))
}

/// Where one overtakes another.
fn words(scale: &Scale) -> Vec<String> {
    if scale.overtakings.is_empty() {
        return vec!["none overtakes another from 8 to 4,096 GPUs".to_owned()];
    }
    let line = |it: &Overtaking| {
        format!(
            "from {} GPUs on, {} is faster than {}: {} against {} tokens/s a GPU",
            format::count(it.gpus as u64),
            it.faster,
            it.slower,
            format::figure(it.faster_rate),
            format::figure(it.slower_rate),
        )
    };
    scale.overtakings.iter().map(line).collect()
}

fn rows(scale: &Scale) -> Vec<Value> {
    let layouts = |row: &ScaledRow| -> Vec<Value> {
        let layout = |it: &zerofold_plan::Scaled| {
            json!({
                "layout": it.layout.to_string(),
                "tokens_per_second_per_gpu": it.tokens_per_second_per_gpu,
                "exposed_seconds": it.exposed,
                "memory_bytes": it.memory,
                "fits": it.fits,
            })
        };
        row.layouts.iter().map(layout).collect()
    };
    let row = |row: &ScaledRow| json!({ "gpus": row.gpus, "layouts": layouts(row), "best": row.best.map(|best| best.to_string()) });
    scale.rows.iter().map(row).collect()
}

fn overtakings(scale: &Scale) -> Vec<Value> {
    let one =
        |it: &Overtaking| json!({ "gpus": it.gpus, "faster": it.faster.to_string(), "slower": it.slower.to_string() });
    scale.overtakings.iter().map(one).collect()
}
