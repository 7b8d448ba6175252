//! What is asked, and what is predicted of it.

use std::collections::BTreeMap;

use zerofold_configs::{DeviceKind, Gpu, Hardware, Precision, PriceRange, Strategy};
use zerofold_plan::{
    Advice, Assumptions, CostInputs, Plan, PlanInputs, Prediction, RunCost, RunData, plan, predict, recommend, usable,
};

use super::{CostOptions, DEFAULT_EXAMPLES, calibration};
use crate::error::LaunchError;
use crate::hub::{self, DataUse, Extent};
use crate::plan::{PlanOptions, Question};
use crate::terminal::Terminal;
use crate::{chat_template, classifier, format, job};

/// A question with its answer.
pub(super) struct Estimate {
    pub(super) question: Question,
    pub(super) hardware: Hardware,
    pub(super) gpu: Gpu,
    pub(super) assumed: Assumptions,
    /// Where assumptions come from that are not at their default, by name.
    sources: BTreeMap<String, String>,
    pub(super) data: RunData,
    /// Tokens of an average row.
    length: usize,
    gpus_per_host: usize,
    /// The job, at the stage that is predicted.
    stage: zerofold_configs::Stage,
    pub(super) plan: Plan,
    pub(super) advice: Advice,
    pub(super) prediction: Prediction,
    pub(super) run: RunCost,
    pub(super) price: Option<PriceRange>,
    pub(super) notes: Vec<String>,
}

/// Assumptions that the hardware file sets.
const OF_HARDWARE: [&str; 7] = [
    "peak_flops",
    "product_efficiency",
    "attention_efficiency",
    "memory",
    "memory_bandwidth",
    "link_bandwidth",
    "host_bandwidth",
];
/// The assumption that a measured run sets.
const MEASURED: &str = "compute_efficiency";

impl Estimate {
    pub(super) fn of(options: &CostOptions, terminal: &Terminal) -> Result<Estimate, LaunchError> {
        let hardware = hardware(options)?;
        let gpu = hardware.gpu(&options.gpu)?.clone();
        let (question, mut notes) = ask(options, &gpu, terminal)?;
        let (mut assumed, sources) = assumptions(options, &hardware, &gpu, question.inputs())?;
        if let Some(folder) = &options.calibrate {
            assumed = calibration::calibrated(folder, options, &assumed)?;
        }
        let (job, advice) = laid_out(&question, &assumed, &mut notes)?;
        let stage = job.sharding.stage;
        let (data, length) = data(options, &question, &mut notes)?;
        let inputs = CostInputs { length, ..CostInputs::new(job, options.gpus_per_host) };
        let prediction = predict(&inputs, &assumed)?;
        let price = options.price.or(gpu.price);
        if price.is_none() {
            notes.push(format!(
                "{} has no price for {}: give --price LOW..HIGH to hear of money",
                hardware.file, gpu.name
            ));
        }
        let run = RunCost::of(&data, &inputs, (&prediction, &assumed), price);
        let plan = plan(&job)?;
        Ok(Estimate {
            gpus_per_host: inputs.gpus_per_host,
            question,
            hardware,
            gpu,
            assumed,
            sources,
            data,
            length,
            stage,
            plan,
            advice,
            prediction,
            run,
            price,
            notes,
        })
    }

    pub(super) fn inputs(&self) -> CostInputs<'_> {
        let job = self.question.inputs();
        let job = if job.sharding.stage == self.stage { job } else { job.at(self.stage) };
        CostInputs { length: self.length, ..CostInputs::new(job, self.gpus_per_host) }
    }

    /// Where the value of an assumption comes from.
    pub(super) fn source(&self, name: &str) -> String {
        self.sources.get(name).cloned().unwrap_or_else(|| "default".to_owned())
    }

    /// Bytes of a GPU that can be used.
    pub(super) fn usable(&self) -> u64 {
        usable(self.assumed.memory as u64)
    }

    pub(super) fn fits(&self) -> bool {
        self.plan.total <= self.usable()
    }
}

pub(super) fn hardware(options: &CostOptions) -> Result<Hardware, LaunchError> {
    Ok(match &options.hardware {
        Some(path) => Hardware::read(path)?,
        None => Hardware::shipped()?,
    })
}

/// The question as `plan` has it, for GPUs; in bfloat16 unless something says otherwise.
fn ask(options: &CostOptions, gpu: &Gpu, terminal: &Terminal) -> Result<(Question, Vec<String>), LaunchError> {
    let mut asked = PlanOptions {
        inputs: options.inputs.clone(),
        model: options.model.clone(),
        gpu_memory: Some(gpu.memory as u64),
        json: options.json,
    };
    let question = Question::of(&asked, terminal)?;
    let notes = question.config.notes.clone();
    let is_default = |key: &str| question.config.provenance.get(key).is_none_or(|place| place == "default");
    let plain = question.config.mixed_precision == Precision::No;
    if !plain || !is_default("mixed_precision") || !is_default("master_dtype") {
        return Ok((question, notes));
    }
    asked.inputs.flags.push(("mixed_precision".to_owned(), "bf16".to_owned()));
    let question = Question::of(&asked, terminal)?;
    let mut notes = question.config.notes.clone();
    notes.push("no precision is set: bfloat16 is taken; train needs --bf16, or --mixed_precision no here".to_owned());
    Ok((question, notes))
}

/// What is assumed, and where it comes from.
fn assumptions(
    options: &CostOptions,
    hardware: &Hardware,
    gpu: &Gpu,
    job: PlanInputs<'_>,
) -> Result<(Assumptions, BTreeMap<String, String>), LaunchError> {
    let mut assumed = Assumptions::of(gpu, job.types.compute);
    let mut sources: BTreeMap<String, String> =
        OF_HARDWARE.iter().map(|name| ((*name).to_owned(), hardware.file.clone())).collect();
    for (name, value) in &options.assume {
        assumed.set(name, *value).map_err(|error| LaunchError::usage_of("--assume", &error))?;
        sources.insert(name.replace('-', "_"), "--assume".to_owned());
    }
    if let Some(folder) = &options.calibrate {
        let measured = sources.insert(MEASURED.to_owned(), format!("measured: {}", folder.display()));
        if measured.is_some() {
            let message = format!("--calibrate and --assume {MEASURED} both set {MEASURED}");
            return Err(LaunchError::usage(message, "give one of the two"));
        }
    }
    Ok((assumed, sources))
}

/// The job at its stage; where none is set, at the lowest that fits, else at the one that needs least.
fn laid_out<'a>(
    question: &'a Question,
    assumed: &Assumptions,
    notes: &mut Vec<String>,
) -> Result<(PlanInputs<'a>, Advice), LaunchError> {
    let job = question.inputs();
    let advice = recommend(&job, assumed.memory as u64)?;
    if question.config.sharding_as_written.is_some() {
        return Ok((job, advice));
    }
    let (stage, why) = match &advice {
        Advice::Stage(need) => (need.stage, "the lowest that fits"),
        Advice::Nothing { least, .. } => (least.stage, "none fits, and it needs least"),
    };
    if job.world_size > 1 {
        notes.push(format!("no stage is set: {stage} is taken, {why}; --stage N sets it"));
    }
    Ok((job.at(stage), advice))
}

/// What is trained on, and the tokens of an average row: an example, or a full pack.
fn data(options: &CostOptions, question: &Question, notes: &mut Vec<String>) -> Result<(RunData, usize), LaunchError> {
    let training = &question.config.training;
    let longest = training.max_length as f64;
    let (mut examples, mut tokens) = (options.examples, options.tokens_per_example.map(|tokens| tokens as f64));
    if examples.is_none() && question.has_data() {
        let (rows, mean) = measured_data(question)?;
        examples = Some(rows);
        tokens = tokens.or(Some(mean));
    }
    if examples.is_none() {
        notes.push(format!(
            "no data are named: {} examples are taken; --examples N, or --dataset with a model's folder, says otherwise",
            format::count(DEFAULT_EXAMPLES)
        ));
    }
    let cut = tokens.filter(|tokens| *tokens > longest);
    if let Some(tokens) = cut {
        notes.push(format!("examples of {} tokens are cut to max_length = {longest}", format::figure(tokens)));
    }
    let tokens_per_example = tokens.unwrap_or(longest).min(longest);
    let length = if training.packing { longest } else { tokens_per_example.round().max(1.0) };
    let data = RunData {
        examples: examples.unwrap_or(DEFAULT_EXAMPLES),
        tokens_per_example,
        epochs: training.num_train_epochs,
        max_steps: u64::try_from(training.max_steps).ok().filter(|steps| *steps > 0),
    };
    if training.early_stopping_patience.is_some() {
        notes.push("early_stopping_patience may end the run sooner: all of it is counted".to_owned());
    }
    if training.freeze.is_some() || training.gradual_unfreezing != Strategy::No {
        notes.push(
            "time is that of training every parameter: what freezing spares is counted in memory alone".to_owned(),
        );
    }
    if training.mixes() {
        notes.push("of mixout, the gathering at stage 0 is counted, and not the drawing of masks".to_owned());
    }
    if training.estimates_fisher() {
        notes.push(format!(
            "the estimate of the Fisher information ({} rows, once) is not counted",
            training.ewc_samples
        ));
    }
    Ok((data, length as usize))
}

/// Rows of the configuration's data and their mean length in tokens, as the job would see them.
fn measured_data(question: &Question) -> Result<(u64, f64), LaunchError> {
    let quiet = Terminal::new(true);
    let mut config = question.config.clone();
    // The host's own devices have no part in this.
    config.device = DeviceKind::Cpu;
    config.training.eval_dataset = None;
    config.training.ewc_dataset = None;
    hub::bring(&mut config, None, Extent::Whole, &quiet)?;
    chat_template::settle(&mut config, &quiet)?;
    hub::bring_data(&mut config, &[DataUse::Training], None, &quiet)?;
    classifier::settle(&mut config, &quiet)?;
    let prepared = job::tokenise(&config, (DataUse::Training, config.training.packing), None, &quiet)?;
    let report = &prepared.report;
    Ok((report.rows as u64, report.tokens as f64 / report.rows.max(1) as f64))
}
