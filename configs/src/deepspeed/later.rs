//! What a DeepSpeed JSON asks for that can only be checked once the rest is decided.

use super::{Entry, keys};
use crate::error::ConfigError;
use crate::known::judge;
use crate::registry::Section;
use crate::resolved::Resolved;
use crate::settings::{Setting, Settings};
use crate::types::{Precision, Scheduler, WarmupType};
use crate::value::number;
use std::collections::BTreeMap;

/// Keys whose meaning depends on others.
const DEPENDENT: [&str; 6] = [
    "train_batch_size",
    "scheduler.type",
    "scheduler.params.total_num_steps",
    "optimizer.type",
    "optimizer.params.weight_decay",
    "gradient_clipping",
];

/// The entries that are checked later, by their paths.
#[derive(Debug)]
pub(crate) struct Later {
    file: String,
    entries: BTreeMap<String, Setting>,
    has_rate: bool,
}

impl Later {
    pub(super) fn of(file: &str, entries: &[Entry]) -> Self {
        let dependent = |entry: &&Entry| DEPENDENT.contains(&entry.path.as_str()) || entry.path.starts_with("fp16.");
        let kept = entries.iter().filter(dependent).filter(|entry| !entry.value.is_null());
        let setting = |entry: &Entry| entry.setting((Section::DeepSpeed, "deepspeed_config_file"), entry.value.clone());
        Later {
            file: file.to_owned(),
            entries: kept.map(|entry| (entry.path.clone(), setting(entry))).collect(),
            has_rate: entries.iter().any(|entry| entry.path == "optimizer.params.lr"),
        }
    }

    fn written(&self, path: &str) -> Option<&Setting> {
        self.entries.get(path).filter(|setting| setting.value.as_str() != Some("auto"))
    }

    /// Checks the JSON against the decided configuration and fills in the factor of the batch that nobody wrote. Returns
    /// what is to be told.
    pub(crate) fn settle(&self, settings: &Settings, resolved: &mut Resolved) -> Result<Vec<String>, ConfigError> {
        self.batch(settings, resolved)?;
        self.schedule(resolved)?;
        if resolved.mixed_precision == Precision::Fp16 {
            for (path, setting) in &self.entries {
                if let Some(known) = keys::find(path).filter(|_| path.starts_with("fp16.")) {
                    judge(known, setting)?;
                }
            }
        }
        Ok(self.differences(settings, resolved))
    }

    /// `train_batch_size` = rows per device × accumulation × processes.
    fn batch(&self, settings: &Settings, resolved: &mut Resolved) -> Result<(), ConfigError> {
        let Some(total_setting) = self.written("train_batch_size") else { return Ok(()) };
        let total = match number(&total_setting.value) {
            Some(total) if total >= 1.0 && total.fract() == 0.0 && total < 9e15 => total as u64,
            _ => return Err(total_setting.not_allowed("it must be a whole number, 1 or more, or auto", None)),
        };
        let set = |section: Section, key: &str| settings.find(section, key).filter(|setting| !setting.is_auto());
        let rows = set(Section::Training, "per_device_train_batch_size");
        let steps = set(Section::Training, "gradient_accumulation_steps")
            .or(set(Section::DeepSpeed, "gradient_accumulation_steps"));
        let world = u64::from(resolved.num_processes);
        let quotient = |factor: u64| {
            let product = factor.checked_mul(world)?;
            let whole = product > 0 && total.is_multiple_of(product);
            whole.then(|| u32::try_from(total / product).ok()).flatten().filter(|quotient| *quotient > 0)
        };
        // The factor that nobody wrote follows from the others: of two, the rows, as in DeepSpeed.
        let derived = match (rows, steps) {
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some("gradient_accumulation_steps")
                .zip(quotient(u64::from(resolved.training.per_device_train_batch_size))),
            (None, _) => {
                Some("per_device_train_batch_size").zip(quotient(u64::from(resolved.gradient_accumulation_steps)))
            }
        };
        if let Some((key, value)) = derived {
            resolved.provenance.insert(key.to_owned(), format!("train_batch_size ({})", total_setting.place));
            match key {
                "gradient_accumulation_steps" => resolved.gradient_accumulation_steps = value,
                _ => resolved.training.per_device_train_batch_size = value,
            }
        }
        if resolved.global_batch() == total {
            return Ok(());
        }
        let factor = |value: u32, key: &str, setting: Option<&Setting>| {
            let place = setting.map(|setting| setting.place.clone());
            let place = place.or_else(|| resolved.provenance.get(key).cloned()).unwrap_or_else(|| "default".to_owned());
            format!("{value} ({place})")
        };
        let equation = format!(
            "{} × {} × {} = {}",
            factor(resolved.training.per_device_train_batch_size, "per_device_train_batch_size", rows),
            factor(resolved.gradient_accumulation_steps, "gradient_accumulation_steps", steps),
            factor(resolved.num_processes, "num_processes", None),
            resolved.global_batch()
        );
        let (total, place) = (total_setting.equation(), total_setting.place.clone());
        let hint = "write auto for train_batch_size, or change one of the factors".to_owned();
        Err(ConfigError::Batch { total, place, equation, hint })
    }

    /// The JSON's schedule, unless a flag has chosen another.
    fn scheduler(&self, resolved: &Resolved) -> Option<&Setting> {
        let holds = |setting: &&Setting| resolved.provenance.get("lr_scheduler_type") == Some(&setting.place);
        self.written("scheduler.type").filter(holds)
    }

    /// Where DeepSpeed's schedule is not the one of the same shape here.
    fn schedule(&self, resolved: &Resolved) -> Result<(), ConfigError> {
        if self.scheduler(resolved).is_none() {
            return Ok(());
        }
        let training = &resolved.training;
        if let Some(total) = self.written("scheduler.params.total_num_steps")
            && number(&total.value) != Some(training.max_steps as f64)
        {
            let max_steps = match training.max_steps {
                -1 => "max_steps is not set".to_owned(),
                steps => format!("max_steps is {steps}"),
            };
            let hint = "write auto, or set max_steps to the same number".to_owned();
            return Err(total.not_allowed(format!("the schedule ends with the training, and {max_steps}"), Some(hint)));
        }
        Ok(())
    }

    /// What is computed otherwise than by DeepSpeed, where the JSON leaves it open.
    fn differences(&self, settings: &Settings, resolved: &Resolved) -> Vec<String> {
        let mut notes = Vec::new();
        let unset = |key: &str| settings.find(Section::Training, key).is_none();
        if !self.entries.contains_key("gradient_clipping") && unset("max_grad_norm") && resolved.max_grad_norm > 0.0 {
            notes.push(format!(
                "{} does not set gradient_clipping: gradients are clipped to max_grad_norm {}, the trainer's default; \
                 DeepSpeed would not clip",
                self.file, resolved.max_grad_norm
            ));
        }
        if let Some(optimizer) = self.entries.get("optimizer.type").filter(|_| !self.has_rate && unset("learning_rate"))
        {
            notes.push(format!(
                "{} ({}) has no lr: learning_rate is {}, the trainer's default; DeepSpeed's is 0.001",
                optimizer.equation(),
                optimizer.place,
                resolved.training.learning_rate
            ));
        }
        let kind = resolved.training.lr_scheduler_type.scheduler();
        let later = warms(resolved) || kind == Scheduler::Linear;
        if let Some(scheduler) = self.scheduler(resolved).filter(|_| later) {
            let logarithmic = warms(resolved) && resolved.training.warmup_type == WarmupType::Log;
            notes.push(format!(
                "{} ({}): rates are those of transformers' {kind}{}; DeepSpeed's own come one step later{}",
                scheduler.equation(),
                scheduler.place,
                if logarithmic { " with DeepSpeed's logarithmic warm-up" } else { "" },
                if matches!(kind, Scheduler::Cosine | Scheduler::CosineWithMinLr) { " in the warm-up" } else { "" }
            ));
        }
        if let Some(decay) =
            self.written("optimizer.params.weight_decay").filter(|_| resolved.training.weight_decay > 0.0)
        {
            notes.push(format!(
                "{} ({}): biases and norm weights are not decayed; DeepSpeed's own optimizer decays them too",
                decay.equation(),
                decay.place
            ));
        }
        notes
    }
}

/// Whether the rate rises at first.
fn warms(resolved: &Resolved) -> bool {
    resolved.training.warmup_steps > 0.0 || resolved.training.warmup_ratio > 0.0
}
