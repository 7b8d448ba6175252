//! The model card of an exported folder: facts that the run tells, and nothing else.

use std::fmt::Write;
use std::path::Path;

use zerofold_checkpoint::{Dtype, Manifest};
use zerofold_configs::{DataSource, Resolved, Training, WarmupType};

use crate::format;

/// What a card is made of.
pub(super) struct Card<'a> {
    /// The checkpoint.
    pub(super) manifest: &'a Manifest,
    /// The name of the model that was trained: the hub's, or its folder's.
    pub(super) model: &'a str,
    /// The type of the weights.
    pub(super) dtype: Dtype,
    /// The run's configuration, if it can be read.
    pub(super) run: Option<&'a Resolved>,
    /// When, in seconds since 1970.
    pub(super) exported: u64,
}

impl Card<'_> {
    /// The card as Markdown. Folders and files are named without their paths, which are nobody's business elsewhere.
    pub(super) fn text(&self) -> String {
        let model = self.model;
        let manifest = self.manifest;
        let ranks = format::plural(u64::from(manifest.world_size), "rank");
        let mut text = format!("# {model}, fine-tuned\n\n");
        let facts = [
            ("base model", format!("`{model}`")),
            ("optimizer steps", format::count(manifest.step)),
            ("parameters", format::count(manifest.elements())),
            ("type of the weights", self.dtype.config_name().to_owned()),
            ("checkpoint saved by", format!("{ranks}, ZeRO stage {}", manifest.stage)),
            ("exported", format::date(self.exported)),
            ("by", format!("`launch export` of Zerofold {}", env!("CARGO_PKG_VERSION"))),
        ];
        table(&mut text, facts);
        match self.run {
            Some(run) => {
                text += "\n## Training\n\nAs the run's configuration had it.\n\n";
                table(&mut text, hyperparameters(run));
            }
            None => text += "\nThe run's configuration was not there any more when this folder was exported.\n",
        }
        text
    }
}

fn table<'a>(text: &mut String, rows: impl IntoIterator<Item = (&'a str, String)>) {
    text.push_str("| | |\n| --- | --- |\n");
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {} |", value.replace('|', "\\|"));
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn hyperparameters(run: &Resolved) -> Vec<(&'static str, String)> {
    let training = &run.training;
    let length = match training.max_steps {
        steps @ 1.. => ("max_steps", steps.to_string()),
        _ => ("num_train_epochs", training.num_train_epochs.to_string()),
    };
    let warmup = match training.warmup_steps > 0.0 {
        true => ("warmup_steps", training.warmup_steps.to_string()),
        false => ("warmup_ratio", training.warmup_ratio.to_string()),
    };
    let parameters = training.lr_scheduler_type.parameters();
    let schedule = (!parameters.is_empty())
        .then(|| ("lr_scheduler_kwargs", serde_json::to_string(&parameters).unwrap_or_default()));
    let packing = training.packing.then(|| ("packing", training.packing_strategy.to_string()));
    let of_data = vec![
        ("dataset", dataset(run)),
        length,
        ("num_processes", run.num_processes.to_string()),
        ("per_device_train_batch_size", training.per_device_train_batch_size.to_string()),
        ("gradient_accumulation_steps", run.gradient_accumulation_steps.to_string()),
        ("max_length", training.max_length.to_string()),
    ];
    let of_training = vec![
        ("assistant_only_loss", training.assistant_only_loss.to_string()),
        ("learning_rate", format!("{:?}", training.learning_rate)),
        ("lr_scheduler_type", training.lr_scheduler_type.to_string()),
    ];
    let of_optimizer = vec![
        warmup,
        ("weight_decay", format!("{:?}", training.weight_decay)),
        ("adam_beta1", format!("{:?}", training.adam_beta1)),
        ("adam_beta2", format!("{:?}", training.adam_beta2)),
        ("adam_epsilon", format!("{:?}", training.adam_epsilon)),
        ("max_grad_norm", format!("{:?}", run.max_grad_norm)),
        ("mixed_precision", run.mixed_precision.to_string()),
        ("master_dtype", run.master_dtype.to_string()),
        ("seed", training.seed.to_string()),
    ];
    let logarithmic = (training.warmup_type == WarmupType::Log).then(|| ("warmup_type", "log".to_owned()));
    let of_training = of_training.into_iter().chain(schedule).chain(logarithmic);
    of_data.into_iter().chain(packing).chain(mixing(training)).chain(of_training).chain(of_optimizer).collect()
}

/// How sources are mixed, beside their weights.
fn mixing(training: &Training) -> Vec<(&'static str, String)> {
    let temperature = training.mixing_temperature.filter(|_| training.dataset.sources().len() > 1);
    let mixed = temperature.is_some() || training.dataset.weights().is_some();
    let temperature = temperature.map(|temperature| ("mixing_temperature", format!("{temperature:?}")));
    let stopping = mixed.then(|| ("stopping_strategy", training.stopping_strategy.to_string()));
    temperature.into_iter().chain(stopping).collect()
}

/// The names of the data, and of mixed sources their weights.
fn dataset(run: &Resolved) -> String {
    let source = |source: &DataSource| {
        let names = source.path.names().iter().map(|name| match run.hub_data_of(name) {
            Some(data) => format!("`{}`", data.id),
            None => format!("`{}`", name_of(name.as_ref())),
        });
        let weight = source.weight.map_or(String::new(), |weight| format!(" × {weight}"));
        names.collect::<Vec<_>>().join(", ") + &weight
    };
    run.training.dataset.sources().iter().map(source).collect::<Vec<_>>().join(", ")
}
