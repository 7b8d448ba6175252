//! How fast data become tokens, beside the bare tokenizers crate on the same texts. Used by scripts/bench-data.
//!
//! `tokenise prepare|bare MODEL DATA MAX_LENGTH` does one of the two once and prints a JSON object: `prepare` reads, renders,
//! tokenises, masks and packs (bfd); `bare` only tokenises texts that were rendered before. `rows` prints what `prepare` makes, an
//! object of `input_ids` and `labels` for each row. Threads: RAYON_NUM_THREADS.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use serde_json::json;
use zerofold_data::{ChatTemplate, Columns, Packing, PackingStrategy, Packs, Prepare, RowReader, Sources, prepare};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, model, data, max_length] = &arguments[..] else {
        return Err("usage: tokenise prepare|bare|rows MODEL DATA MAX_LENGTH".into());
    };
    let (model, sources, columns) = (Path::new(model), Sources::find(&[data])?, Columns::default());
    match what.as_str() {
        "prepare" => prepared(model, &sources, &columns, max_length.parse()?),
        "rows" => rows(model, &sources, &columns, max_length.parse()?),
        "bare" => bare(model, &sources, &columns),
        _ => Err("the first argument is prepare, bare or rows".into()),
    }
}

fn options<'a>(
    model: &'a Path,
    sources: &'a Sources,
    columns: &'a Columns,
    max_length: u32,
    cache: &'a Path,
) -> Prepare<'a> {
    Prepare {
        model_directory: model,
        sources,
        columns,
        max_length: Some(max_length),
        assistant_only_loss: true,
        chat_template: None,
        template_date: None,
        eos_token: None,
        completion_only_loss: None,
        classes: None,
        cache,
    }
}

fn rows(model: &Path, sources: &Sources, columns: &Columns, max_length: u32) -> Result<(), Failure> {
    let cache = tempfile::tempdir()?;
    let dataset = prepare(&options(model, sources, columns, max_length, cache.path()))?.dataset;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for row in 0..dataset.rows() {
        let (input_ids, labels) = dataset.row(row);
        writeln!(out, "{}", json!({"input_ids": input_ids, "labels": labels}))?;
    }
    Ok(out.flush()?)
}

fn prepared(model: &Path, sources: &Sources, columns: &Columns, max_length: u32) -> Result<(), Failure> {
    let cache = tempfile::tempdir()?;
    let began = Instant::now();
    let prepared = prepare(&options(model, sources, columns, max_length, cache.path()))?;
    let packs = Packs::new(&prepared.dataset, Packing { strategy: PackingStrategy::Bfd, max_length })?;
    let seconds = began.elapsed().as_secs_f64();
    let report = prepared.report;
    let told = json!({
        "side": "zerofold",
        "seconds": seconds,
        "rows": report.rows,
        "tokens": report.tokens,
        "supervised": report.supervised_tokens,
        "packs": packs.count(),
        "peak_bytes": peak_bytes()?,
    });
    println!("{told}");
    Ok(())
}

fn bare(model: &Path, sources: &Sources, columns: &Columns) -> Result<(), Failure> {
    let template = ChatTemplate::load(model)?;
    let tokenizer = tokenizers::Tokenizer::from_file(model.join("tokenizer.json"))?;
    let mut texts = Vec::new();
    for row in RowReader::new(sources, columns) {
        let messages = row?.1.into_conversation().ok_or("rows of conversations are measured")?;
        texts.push(template.render(&messages, false)?);
    }
    let began = Instant::now();
    let encode = |text: &String| tokenizer.encode(text.as_str(), false).map(|encoding| encoding.len());
    let tokens = texts.par_iter().map(encode).try_reduce(|| 0, |left, right| Ok(left + right))?;
    let seconds = began.elapsed().as_secs_f64();
    println!("{}", json!({"side": "tokenizers", "seconds": seconds, "rows": texts.len(), "tokens": tokens}));
    Ok(())
}

/// The most memory that this process ever had.
fn peak_bytes() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
