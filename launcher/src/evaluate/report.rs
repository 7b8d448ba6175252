//! What was measured: the object that `--json` prints, and the table of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use zerofold_configs::{Dataset, HubModel};
use zerofold_proto::v1::EvaluationRecord;

use super::answers::Answers;
use super::candidate::Candidate;
use crate::columns::aligned;
use crate::format;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The held-out data, by the names of their sources.
    dataset: Vec<String>,
    max_length: u32,
    /// In the order in which they were named.
    models: Vec<Model>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answers: Option<Answers>,
}

/// A model, and what was measured of it.
#[derive(Debug, Serialize)]
struct Model {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<String>,
    #[serde(flatten)]
    figures: Figures,
    eval_rows: u64,
    eval_supervised_tokens: u64,
    eval_seconds: f64,
    /// From the first model to this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Figures>,
}

/// What models are compared by.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Figures {
    eval_loss: f64,
    /// Of a language model, as the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_perplexity: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_mean_token_accuracy: Option<f64>,
    /// Of a classifier, by their names.
    #[serde(flatten)]
    of_classifier: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    eval_loss_by_source: BTreeMap<String, f64>,
}

impl Figures {
    fn of(record: &EvaluationRecord) -> Figures {
        let of_language = !record.mean_token_accuracy.is_nan();
        Figures {
            eval_loss: record.loss,
            eval_perplexity: of_language.then(|| record.loss.exp()),
            eval_mean_token_accuracy: of_language.then_some(record.mean_token_accuracy),
            of_classifier: record.figures.iter().map(|it| (format!("eval_{}", it.name), it.value)).collect(),
            eval_loss_by_source: record.sources.iter().map(|source| (source.label.clone(), source.loss)).collect(),
        }
    }

    /// How much more each is than in `other`.
    fn from(&self, other: &Figures) -> Figures {
        let sources = self.eval_loss_by_source.iter().filter_map(|(label, loss)| {
            let before = other.eval_loss_by_source.get(label)?;
            Some((label.clone(), loss - before))
        });
        let more = |own: Option<f64>, other: Option<f64>| Some(own? - other?);
        let figures = self.of_classifier.iter();
        let figures = figures.filter_map(|(name, own)| Some((name.clone(), own - other.of_classifier.get(name)?)));
        Figures {
            eval_loss: self.eval_loss - other.eval_loss,
            eval_perplexity: more(self.eval_perplexity, other.eval_perplexity),
            eval_mean_token_accuracy: more(self.eval_mean_token_accuracy, other.eval_mean_token_accuracy),
            of_classifier: figures.collect(),
            eval_loss_by_source: sources.collect(),
        }
    }
}

impl Report {
    /// Of these models, each with what its rank 0 told.
    pub(super) fn new(candidates: &[Candidate], records: &[EvaluationRecord], answers: Option<Answers>) -> Report {
        let first = records.first().map(Figures::of);
        let model = |(index, (candidate, record)): (usize, (&Candidate, &EvaluationRecord))| {
            let (config, figures) = (&candidate.config, Figures::of(record));
            Model {
                model: candidate.name.clone(),
                commit: config.hub_model.as_ref().map(|HubModel { commit, .. }| commit.clone()),
                checkpoint: config.initial_checkpoint.as_deref().map(shown),
                difference: first.as_ref().filter(|_| index > 0).map(|first| figures.from(first)),
                figures,
                eval_rows: candidate.data.rows as u64,
                eval_supervised_tokens: record.supervised_tokens,
                eval_seconds: record.seconds,
            }
        };
        let training = candidates.first().map(|candidate| &candidate.config.training);
        let names = |dataset: &Dataset| -> Vec<String> {
            dataset.sources().iter().flat_map(|source| source.path.names()).map(String::clone).collect()
        };
        Report {
            dataset: training.and_then(|training| training.eval_dataset.as_ref()).map(names).unwrap_or_default(),
            max_length: training.map_or(0, |training| training.max_length),
            models: candidates.iter().zip(records).enumerate().map(model).collect(),
            answers,
        }
    }

    /// A table with a column for each model, and one for how each after the first differs from it.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut rows = vec![vec![String::new()], vec!["held-out loss".to_owned()]];
        let first = self.models.first().map(|model| &model.figures);
        let of_language = first.is_none_or(|figures| figures.eval_perplexity.is_some());
        if of_language {
            rows.extend([vec!["perplexity".to_owned()], vec!["tokens right".to_owned()]]);
        }
        // One that is not defined for a model is missing there alone.
        let names: BTreeSet<&String> =
            self.models.iter().flat_map(|model| model.figures.of_classifier.keys()).collect();
        let names: Vec<&String> = names.into_iter().collect();
        rows.extend(names.iter().map(|name| vec![name.trim_start_matches("eval_").replace('_', " ")]));
        let labels: Vec<&String> =
            self.models.first().map(|model| model.figures.eval_loss_by_source.keys().collect()).unwrap_or_default();
        rows.extend(labels.iter().map(|label| vec![format!("loss of {label}")]));
        rows.push(vec![if of_language { "tokens predicted" } else { "rows" }.to_owned()]);
        for model in &self.models {
            let plain = Numbers { sign: false, figures: &model.figures };
            let tokens = format::count(model.eval_supervised_tokens);
            add_column(&mut rows, model.model.clone(), plain.cells(&names, &labels), tokens);
            if let Some(figures) = &model.difference {
                let signed = Numbers { sign: true, figures };
                add_column(&mut rows, "difference".to_owned(), signed.cells(&names, &labels), String::new());
            }
        }
        let mut lines = aligned(&rows);
        lines.extend(self.answers.iter().flat_map(|answers| answers.lines(self.models.iter().map(|it| &it.model))));
        lines
    }
}

fn add_column(rows: &mut [Vec<String>], head: String, cells: Vec<String>, last: String) {
    rows.iter_mut().zip([vec![head], cells, vec![last]].concat()).for_each(|(row, cell)| row.push(cell));
}

/// Figures as text, with a sign where they are differences.
struct Numbers<'a> {
    sign: bool,
    figures: &'a Figures,
}

impl Numbers<'_> {
    /// The figures of a classifier by these names, and the losses of these sources, stand behind the others.
    fn cells(&self, names: &[&String], labels: &[&String]) -> Vec<String> {
        let Figures { eval_loss, eval_perplexity, eval_mean_token_accuracy, of_classifier, eval_loss_by_source } =
            self.figures;
        let mut cells = vec![self.number(*eval_loss, 4)];
        cells.extend(eval_perplexity.map(|perplexity| self.number(perplexity, 3)));
        cells.extend(eval_mean_token_accuracy.map(|share| format!("{} %", self.number(100.0 * share, 1))));
        let of_name = |name: &&String| of_classifier.get(*name).map_or("-".to_owned(), |it| self.number(*it, 4));
        cells.extend(names.iter().map(of_name));
        let of_source =
            |label: &&String| eval_loss_by_source.get(*label).map_or("-".to_owned(), |it| self.number(*it, 4));
        cells.extend(labels.iter().map(of_source));
        cells
    }

    fn number(&self, number: f64, digits: usize) -> String {
        match self.sign {
            true => format!("{number:+.digits$}"),
            false => format!("{number:.digits$}"),
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, figures: Figures, difference: Option<Figures>) -> Model {
        Model {
            model: name.to_owned(),
            commit: None,
            checkpoint: None,
            figures,
            eval_rows: 3,
            eval_supervised_tokens: 1234,
            eval_seconds: 0.5,
            difference,
        }
    }

    fn figures(loss: f64, accuracy: f64, sources: &[(&str, f64)]) -> Figures {
        Figures {
            eval_loss: loss,
            eval_perplexity: Some(loss.exp()),
            eval_mean_token_accuracy: Some(accuracy),
            of_classifier: BTreeMap::new(),
            eval_loss_by_source: sources.iter().map(|(label, loss)| ((*label).to_owned(), *loss)).collect(),
        }
    }

    #[test]
    fn classifiers_have_their_own_figures() {
        let figures = |accuracy: f64| Figures {
            eval_perplexity: None,
            eval_mean_token_accuracy: None,
            of_classifier: BTreeMap::from([("eval_accuracy".to_owned(), accuracy), ("eval_f1".to_owned(), 0.5)]),
            ..figures(2.0, 0.0, &[])
        };
        let difference = figures(0.75).from(&figures(0.5));
        let report = Report {
            dataset: vec!["d.jsonl".to_owned()],
            max_length: 64,
            models: vec![model("base", figures(0.5), None), model("after", figures(0.75), Some(difference))],
            answers: None,
        };
        let expected = [
            "                 base   after  difference",
            "held-out loss  2.0000  2.0000     +0.0000",
            "accuracy       0.5000  0.7500     +0.2500",
            "f1             0.5000  0.5000     +0.0000",
            "rows            1,234   1,234",
        ];
        assert_eq!(report.lines(), expected);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            (&json["models"][1]["eval_accuracy"], json["models"][1].get("eval_perplexity")),
            (&serde_json::json!(0.75), None)
        );
    }

    #[test]
    fn models_stand_side_by_side_with_the_difference() {
        let before = figures(2.0, 0.25, &[("chat", 1.5), ("code", 2.5)]);
        let after = figures(1.0, 0.5, &[("chat", 0.5), ("code", f64::NAN)]);
        let difference = after.from(&before);
        let report = Report {
            dataset: vec!["d.jsonl".to_owned()],
            max_length: 64,
            models: vec![model("base", before, None), model("runs/a", after, Some(difference))],
            answers: None,
        };
        let expected = [
            "                    base  runs/a  difference",
            "held-out loss     2.0000  1.0000     -1.0000",
            "perplexity         7.389   2.718      -4.671",
            "tokens right      25.0 %  50.0 %     +25.0 %",
            "loss of chat      1.5000  0.5000     -1.0000",
            "loss of code      2.5000     NaN         NaN",
            "tokens predicted   1,234   1,234",
        ];
        assert_eq!(report.lines(), expected);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["models"][0]["difference"], serde_json::Value::Null);
        assert_eq!(json["models"][1]["difference"]["eval_loss"], -1.0);
        // What is no number is null.
        assert_eq!(json["models"][1]["eval_loss_by_source"]["code"], serde_json::Value::Null);
        assert_eq!(json["models"][1]["eval_supervised_tokens"], 1234);
    }
}
