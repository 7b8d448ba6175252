//! From how many requests on a tuned model, which costs once and needs a shorter prompt, is cheaper than prompting.

use super::Assumptions;
use serde::Serialize;
use zerofold_configs::PriceRange;

/// Prices are told for so many tokens.
const MILLION: f64 = 1e6;

/// What tuning saves where prompting takes so many tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BreakEven {
    /// Tokens of the prompt that the tuned model does without most of.
    pub prompted_tokens: f64,
    /// Dollars that a request costs by prompting.
    pub prompted_request: f64,
    /// Dollars that it costs of the tuned model.
    pub tuned_request: f64,
    /// Requests from which on tuning is cheaper, at the lower and the higher cost of a run; none where it never is.
    pub requests: Option<[f64; 2]>,
    /// Both ways for given numbers of requests.
    pub counts: Vec<Requests>,
}

/// Dollars for so many requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Requests {
    /// How many.
    pub count: f64,
    /// By prompting.
    pub prompted: f64,
    /// By tuning, from and to.
    pub tuned: PriceRange,
}

/// Compares the two ways for a run of this cost.
pub fn break_even(assumed: &Assumptions, run: PriceRange, prompted_tokens: f64, counts: &[f64]) -> BreakEven {
    let request = |prompt: f64, input: f64, output: f64| (prompt * input + assumed.answer_tokens * output) / MILLION;
    let prompted_request = request(prompted_tokens, assumed.prompted_input_price, assumed.prompted_output_price);
    let tuned_request = request(assumed.tuned_tokens, assumed.tuned_input_price, assumed.tuned_output_price);
    let once = [run.low, run.high].map(|money| money + assumed.preparation_cost);
    let saved = prompted_request - tuned_request;
    let requests = (saved > 0.0).then(|| once.map(|money| money / saved));
    let of = |&count: &f64| {
        let [low, high] = once.map(|money| money + count * tuned_request);
        Requests { count, prompted: count * prompted_request, tuned: PriceRange { low, high } }
    };
    let counts = counts.iter().map(of).collect();
    BreakEven { prompted_tokens, prompted_request, tuned_request, requests, counts }
}
