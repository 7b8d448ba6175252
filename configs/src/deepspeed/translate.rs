//! From the keys of a DeepSpeed JSON to settings of ours.

use super::{Entry, keys};
use crate::error::ConfigError;
use crate::registry::Section;
use crate::settings::{Layer, Original, Setting};
use crate::value::{FromValue, number, text};
use serde_yaml::Value;

/// The settings that the JSON makes.
pub(super) fn settings(file: &str, entries: &[Entry]) -> Result<Vec<Setting>, ConfigError> {
    let mut settings = Vec::new();
    for entry in entries.iter().filter(|entry| !entry.is_auto() && !entry.value.is_null()) {
        let path = normal(&entry.path);
        if let Some((_, section, key)) = keys::SAME.iter().find(|(same, _, _)| *same == path) {
            settings.push(entry.setting((*section, key), entry.value.clone()));
        }
    }
    let json = Json { file, entries };
    settings.extend(json.stage());
    settings.extend(json.old_offload()?);
    settings.extend(json.optimizer()?);
    settings.extend(json.scheduler()?);
    settings.extend(json.types()?);
    Ok(settings)
}

/// `bfloat16` is an old name of `bf16`.
fn normal(path: &str) -> String {
    path.strip_prefix("bfloat16.").map_or_else(|| path.to_owned(), |rest| format!("bf16.{rest}"))
}

struct Json<'a> {
    file: &'a str,
    entries: &'a [Entry],
}

/// What can be done about a `cos_min_ratio` that no cosine has.
const COSINE: &str =
    "only WarmupCosineLR ends at a share of its rate: name it in scheduler.type, or remove cos_min_ratio";

impl Json<'_> {
    /// The entry of this path, when it says something.
    fn find(&self, path: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| normal(&entry.path) == path && !entry.value.is_null())
    }

    /// What DeepSpeed takes where the JSON says nothing.
    fn default(&self, path: &str, place: Option<&Entry>, (key, value): (&'static str, Value)) -> Setting {
        let written = crate::value::written(&value) + crate::settings::DEEPSPEEDS_DEFAULT;
        let section = if key == "zero_stage" { Section::DeepSpeed } else { Section::Training };
        Setting {
            section,
            key,
            value,
            layer: Layer::File,
            place: place.map_or_else(|| self.file.to_owned(), |entry| entry.place.clone()),
            original: Some(Original { path: path.to_owned(), value: Some(written) }),
            column: place.map(|entry| entry.column),
        }
    }

    /// Without a stage DeepSpeed shards nothing.
    fn stage(&self) -> Option<Setting> {
        let path = "zero_optimization.stage";
        self.find(path).is_none().then(|| self.default(path, None, ("zero_stage", 0.into())))
    }

    /// The switches that were there before `offload_optimizer` and `offload_param`.
    fn old_offload(&self) -> Result<Vec<Setting>, ConfigError> {
        let table = [
            ("zero_optimization.cpu_offload", "offload_optimizer_device"),
            ("zero_optimization.cpu_offload_param", "offload_param_device"),
            ("zero_optimization.cpu_offload_params", "offload_param_device"),
        ];
        let mut settings = Vec::new();
        for (path, key) in table {
            let Some(entry) = self.find(path) else { continue };
            let setting = entry.setting((Section::DeepSpeed, key), "cpu".into());
            match bool::from_value(&entry.value) {
                Some(true) => settings.push(setting),
                Some(false) => {}
                None => return Err(setting.not_allowed("it must be true or false", None)),
            }
        }
        Ok(settings)
    }

    fn optimizer(&self) -> Result<Vec<Setting>, ConfigError> {
        let mut settings = Vec::new();
        if let Some(entry) = self.find("optimizer.type") {
            let setting = entry.setting((Section::Training, "optim"), entry.value.clone());
            let name = text(&entry.value).unwrap_or_default().to_lowercase();
            if !["adamw", "adam"].contains(&name.as_str()) {
                return Err(setting.not_built("use AdamW, or remove optimizer"));
            }
            // Adam is AdamW there, unless `adam_w_mode` says otherwise.
            if let (Some(mode), "adam") = (self.find("optimizer.params.adam_w_mode"), name.as_str())
                && bool::from_value(&mode.value) != Some(true)
            {
                let setting = mode.setting((Section::Training, "optim"), mode.value.clone());
                return Err(setting.not_built("weight decay is AdamW's, beside the gradient: use adam_w_mode: true"));
            }
        }
        if let Some(entry) = self.find("optimizer.params.betas").filter(|entry| !entry.is_auto()) {
            let numbers = match &entry.value {
                Value::Sequence(numbers) if numbers.len() == 2 => numbers,
                _ => {
                    let setting = entry.setting((Section::Training, "adam_beta1"), entry.value.clone());
                    return Err(setting.not_allowed("it must be two numbers, [beta1, beta2], or auto", None));
                }
            };
            for (index, key) in ["adam_beta1", "adam_beta2"].into_iter().enumerate() {
                let mut setting = entry.setting((Section::Training, key), numbers[index].clone());
                let path = format!("{}[{index}]", entry.path);
                setting.original = Some(Original { path, value: None });
                settings.push(setting);
            }
        }
        Ok(settings)
    }

    /// The schedule of the same shape. Values that are not written are DeepSpeed's defaults; `auto` ones are the trainer's.
    fn scheduler(&self) -> Result<Vec<Setting>, ConfigError> {
        let Some(entry) = self.find("scheduler.type") else {
            return match self.find("scheduler.params.cos_min_ratio") {
                None => Ok(Vec::new()),
                Some(end) => {
                    let setting = end.setting((Section::Training, "lr_scheduler_kwargs"), end.value.clone());
                    Err(setting.not_allowed("it is of a scheduler, and scheduler.type names none", Some(COSINE.into())))
                }
            };
        };
        let target = (Section::Training, "lr_scheduler_type");
        let name = match text(&entry.value).unwrap_or_default().as_str() {
            "WarmupLR" => "constant_with_warmup",
            "WarmupDecayLR" => "linear",
            "WarmupCosineLR" if self.cosine_end(entry)?.is_some() => "cosine_with_min_lr",
            "WarmupCosineLR" => "cosine",
            _ => {
                let setting = entry.setting(target, entry.value.clone());
                return Err(setting.not_built("use WarmupLR, WarmupDecayLR or WarmupCosineLR, or remove scheduler"));
            }
        };
        if let Some(end) = self.find("scheduler.params.cos_min_ratio").filter(|_| !name.starts_with("cosine"))
            && number(&end.value) != Some(0.0)
        {
            let setting = end.setting((Section::Training, "lr_scheduler_kwargs"), end.value.clone());
            let reason = format!("scheduler.type is {}", crate::value::written(&entry.value));
            return Err(setting.not_allowed(reason, Some(COSINE.into())));
        }
        let mut settings = vec![entry.setting(target, name.into())];
        settings.extend(self.cosine_end(entry)?.filter(|_| name == "cosine_with_min_lr"));
        let absent = |key: &str| self.find(&format!("scheduler.params.{key}")).is_none();
        let mut default = |name: &str, key: &'static str, value: Value| {
            settings.push(self.default(&format!("scheduler.params.{name}"), Some(entry), (key, value)));
        };
        if absent("warmup_num_steps") {
            default("warmup_num_steps", "warmup_steps", 1000.into());
        }
        match self.find("scheduler.params.warmup_type") {
            None => default("warmup_type", "warmup_type", "log".into()),
            // No trainer fills it in, and DeepSpeed takes what it does not know for log.
            Some(kind) if kind.is_auto() => {
                let setting = kind.setting((Section::Training, "warmup_type"), kind.value.clone());
                return Err(setting.not_allowed("it must be linear or log", None));
            }
            Some(_) => {}
        }
        if absent("warmup_max_lr") && name == "linear" {
            default("warmup_max_lr", "learning_rate", 1e-3.into());
        }
        if name != "constant_with_warmup" && absent("total_num_steps") {
            let setting = entry.setting(target, entry.value.clone());
            return Err(setting.not_allowed("it needs scheduler.params.total_num_steps", Some("set it to auto".into())));
        }
        Ok(settings)
    }

    /// The share of the highest rate that DeepSpeed's cosine ends at, where it is not 0.
    fn cosine_end(&self, scheduler: &Entry) -> Result<Option<Setting>, ConfigError> {
        let target = (Section::Training, "lr_scheduler_kwargs");
        let kwargs = |share: f64| Value::Mapping([("min_lr_rate".into(), share.into())].into_iter().collect());
        let path = "scheduler.params.cos_min_ratio";
        let Some(entry) = self.find(path) else {
            return Ok(Some(self.default(path, Some(scheduler), (target.1, kwargs(1e-4)))));
        };
        match number(&entry.value) {
            Some(0.0) => Ok(None),
            Some(share) if share > 0.0 && share <= 1.0 => Ok(Some(entry.setting(target, kwargs(share)))),
            // No trainer fills in `auto`.
            _ => Err(entry.setting(target, entry.value.clone()).not_allowed("it must be a number, from 0 to 1", None)),
        }
    }

    /// The types of masters, reductions and accumulation.
    fn types(&self) -> Result<Vec<Setting>, ConfigError> {
        let mut settings = Vec::new();
        let table = [("communication_data_type", "reduce_dtype"), ("data_types.grad_accum_dtype", "grad_accum_dtype")];
        for (path, key) in table {
            let Some(entry) = self.find(path).filter(|entry| !entry.is_auto()) else { continue };
            let name = match text(&entry.value).unwrap_or_default().to_lowercase().as_str() {
                "fp32" | "float32" => "float32",
                "bf16" | "bfp16" | "bfloat16" => "bfloat16",
                "fp16" | "float16" | "half" => "float16",
                _ => {
                    let setting = entry.setting((Section::Training, key), entry.value.clone());
                    return Err(setting.not_allowed("it must be one of fp32, bf16, fp16", None));
                }
            };
            settings.push(entry.setting((Section::Training, key), name.into()));
        }
        let switch = |name: &str| {
            let entry = self.find(&format!("bf16.{name}"));
            entry.filter(|entry| bool::from_value(&entry.value) != Some(false))
        };
        match (switch("bf16_master_weights_and_grads"), switch("bf16_optimizer_states")) {
            (Some(entry), Some(_)) => {
                settings.push(entry.setting((Section::Training, "master_dtype"), "bfloat16".into()))
            }
            (Some(entry), None) | (None, Some(entry)) => {
                let setting = entry.setting((Section::Training, "master_dtype"), entry.value.clone());
                let hint = "masters and moments have one type: set bf16_master_weights_and_grads and \
                    bf16_optimizer_states both";
                return Err(setting.not_built(hint));
            }
            (None, None) => {}
        }
        Ok(settings)
    }
}
