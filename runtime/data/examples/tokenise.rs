//! How fast data become tokens, beside the bare tokenizers crate on the same texts. Used by scripts/bench-data.
//!
//! `tokenise MODEL DATA [ROUNDS]`: both in turn, as often; one JSON object a round. Threads: RAYON_NUM_THREADS.

use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use zerofold_data::{ChatTemplate, Columns, Prepare, RowReader, Sources, prepare};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let (Some(model), Some(data)) = (arguments.get(1), arguments.get(2)) else {
        return Err("usage: tokenise MODEL DATA [ROUNDS]".into());
    };
    let rounds: usize = arguments.get(3).map_or(Ok(1), |text| text.parse())?;
    let (model, sources, columns) = (Path::new(model), Sources::find(&[data])?, Columns::default());
    let template = ChatTemplate::load(model)?;
    let bare = tokenizers::Tokenizer::from_file(model.join("tokenizer.json"))?;
    let mut texts = Vec::new();
    for row in RowReader::new(&sources, &columns) {
        let messages = row?.1.into_conversation().ok_or("rows of conversations are measured")?;
        texts.push(template.render(&messages, false)?);
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    for _ in 0..rounds {
        let cache = tempfile::tempdir()?;
        let began = Instant::now();
        let prepared = prepare(&Prepare {
            model_directory: model,
            sources: &sources,
            columns: &columns,
            max_length: None,
            assistant_only_loss: true,
            chat_template: None,
            template_date: None,
            eos_token: None,
            completion_only_loss: None,
            cache: cache.path(),
        })?;
        let prepare_seconds = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let encode = |text: &String| bare.encode(text.as_str(), false).map(|encoding| encoding.len());
        let tokens = texts.par_iter().map(encode).try_reduce(|| 0, |left, right| Ok(left + right))?;
        let bare_seconds = began.elapsed().as_secs_f64();
        let report = prepared.report;
        println!(
            "{{\"rows\": {}, \"bytes\": {bytes}, \"tokens\": {tokens}, \"supervised\": {}, \"prepare_seconds\": {prepare_seconds:.3}, \
             \"bare_seconds\": {bare_seconds:.3}, \"ratio\": {:.3}}}",
            report.rows,
            report.supervised_tokens,
            prepare_seconds / bare_seconds
        );
    }
    Ok(())
}
