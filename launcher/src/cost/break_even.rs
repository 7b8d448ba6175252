//! Tuning against prompting.

use serde_json::{Value, json};
use zerofold_plan::{BreakEven, break_even};

use super::estimate::Estimate;
use super::table::{assumptions, dollar, dollars};
use crate::columns::aligned;
use crate::error::LaunchError;
use crate::format;

pub(super) fn answer(
    estimate: &Estimate,
    prompts: &[f64],
    requests: &[f64],
) -> Result<(Vec<String>, Value), LaunchError> {
    let Some(money) = estimate.run.money else {
        let message = format!("--break-even: what a run costs is not known: {} has no price", estimate.gpu.name);
        return Err(LaunchError::usage(message, "give --price LOW..HIGH, in dollars a GPU-hour"));
    };
    let found: Vec<BreakEven> =
        prompts.iter().map(|prompt| break_even(&estimate.assumed, money, *prompt, requests)).collect();
    let mut lines = vec![String::new()];
    lines.extend(assumptions(estimate, true));
    lines.push(String::new());
    lines.push(format!("tuning costs {} once, at {}", dollars(money), price(estimate)));
    lines.extend(table(&found, requests));
    lines.push(
        "prompting with so many tokens: a request's dollars, the requests that pay the tuning back, and dollars for so many; below \
         them the tuned model, tuning included"
            .to_owned(),
    );
    Ok((lines, json!({ "once": money, "prompts": found })))
}

fn price(estimate: &Estimate) -> String {
    estimate.price.map(|price| format!("{} a GPU-hour", dollars(price))).unwrap_or_default()
}

fn table(found: &[BreakEven], requests: &[f64]) -> Vec<String> {
    let counts = requests.iter().map(|count| format!("{} requests", format::count(*count as u64)));
    let head = ["prompt", "a request", "breaks even at"].map(str::to_owned).into_iter().chain(counts).collect();
    let row = |it: &BreakEven| {
        let at = match it.requests {
            Some([low, high]) => format::spread(low, high),
            None => "never".to_owned(),
        };
        let first = [format!("{} tokens", format::figure(it.prompted_tokens)), small(it.prompted_request), at];
        first.into_iter().chain(it.counts.iter().map(|count| dollar(count.prompted))).collect()
    };
    let tuned = |it: &BreakEven| {
        let first = ["tuned".to_owned(), small(it.tuned_request), String::new()];
        first.into_iter().chain(it.counts.iter().map(|count| dollars(count.tuned))).collect()
    };
    let rows = found.iter().map(row).chain(found.first().map(tuned));
    aligned(&std::iter::once(head).chain(rows).collect::<Vec<Vec<String>>>())
}

/// Dollars of one request.
fn small(amount: f64) -> String {
    format!("${amount:.6}")
}
