//! What was planned for a run and what its ranks measured: `plan.json` in the run folder, and the table at the end.

use std::path::Path;

use serde::{Deserialize, Serialize};
use zerofold_configs::Resolved;
use zerofold_data::{Collator, Piece, StepPlan, TokenizedDataset};
use zerofold_plan::{ModelConfig, Plan, PlanInputs, plan};
use zerofold_proto::v1::StateBytes;

use crate::columns::aligned;
use crate::error::LaunchError;
use crate::format;

/// Rows that are looked through for the largest micro-batch; a run with more has seen its long rows by then.
const ROWS_LOOKED_THROUGH: u64 = 1 << 22;

/// The plan of a run whose data are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// Rows of the largest micro-batch; one where documents lie end to end.
    pub rows: usize,
    /// Tokens of its longest row, to which the others are padded.
    pub length: usize,
    /// Its supervised tokens.
    pub supervised: usize,
    /// What a rank needs for it.
    pub plan: Plan,
}

impl Prediction {
    /// Plans for the largest micro-batch that a run will see. None when the model or the layout is not one that can be
    /// planned: the workers tell why.
    pub fn of(
        config: &Resolved,
        (dataset, collator): (&TokenizedDataset, &Collator),
        steps: &StepPlan,
    ) -> Option<Prediction> {
        let model = ModelConfig::read(&config.training.model_name_or_path).ok()?;
        let per_device = config.training.per_device_train_batch_size as usize;
        let Largest { rows, length, document, supervised } =
            largest_micro_batch((dataset, collator), steps, per_device);
        let inputs = PlanInputs::of(config, &model, config.device.into());
        let inputs = PlanInputs {
            per_device_batch: rows,
            length,
            longest_document: inputs.longest_document.map(|_| document),
            supervised: Some(supervised),
            ..inputs
        };
        Some(Prediction { rows, length, supervised, plan: plan(&inputs).ok()? })
    }

    /// One line for the start of a run.
    pub fn words(&self) -> String {
        let plan = &self.plan;
        format!(
            "memory {} a rank planned: state {}, buffers {}, activations and working space {} ({} × {} tokens)",
            format::bytes(plan.total),
            format::bytes(plan.state.total() as u64),
            format::bytes(plan.all_gather_buffers() + plan.gradient_buffers + plan.reduce_buffers),
            format::bytes(plan.activations + plan.loss.max(plan.temporary)),
            self.rows,
            self.length,
        )
    }
}

/// The micro-batch with the most tokens, padding included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Largest {
    rows: usize,
    /// Of a row, padded.
    length: usize,
    /// Tokens of its longest row, or document.
    document: usize,
    supervised: usize,
}

/// Of equally large ones that with the most supervised tokens.
fn largest_micro_batch(
    (dataset, collator): (&TokenizedDataset, &Collator),
    steps: &StepPlan,
    per_device: usize,
) -> Largest {
    // The label of a document's first token is predicted by nothing.
    let supervised = |piece: &Piece| piece.of(dataset).1.iter().skip(1).filter(|&&label| label >= 0).count();
    let looked_through = (ROWS_LOOKED_THROUGH / steps.global_batch().max(1)).max(1);
    let mut largest = Largest { rows: 1, length: 1, document: 1, supervised: 0 };
    for step in (steps.first_step()..steps.total_steps()).take(looked_through as usize) {
        for items in steps.rows_of_step(step).chunks(per_device.max(1)) {
            let pieces = collator.pieces(dataset, items);
            let (rows, length) = collator.shape(&pieces);
            let (tokens, before) = (rows * length, largest.rows * largest.length);
            if tokens >= before {
                let document = pieces.iter().map(|piece| piece.length as usize).max().unwrap_or(1);
                let supervised = pieces.iter().map(supervised).sum();
                let found = Largest { rows, length, document, supervised };
                let more = tokens > before || supervised > largest.supervised;
                largest = if more { found } else { largest };
            }
        }
    }
    largest
}

/// What the ranks held, in bytes: of each part, the largest rank's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Parameters between steps.
    pub parameters: u64,
    /// Accumulated gradients.
    pub gradients: u64,
    /// Masters.
    pub masters: u64,
    /// Moments.
    pub moments: u64,
    /// The weights that training is drawn toward.
    #[serde(default)]
    pub pretrained: u64,
    /// Gather buffers, that of the unit that stays included.
    pub gather_buffers: u64,
    /// Full gradients until they are reduced.
    pub gradient_buffers: u64,
    /// The largest sum of live tensors during the steps.
    pub live_peak: u64,
    /// And while the model was read.
    pub loading_peak: u64,
    /// Optimizer state in files, which is not in the numbers above.
    pub offloaded: u64,
    /// Sent by rank 0 in the last step.
    #[serde(default)]
    pub sent_bytes_per_step: u64,
}

impl Measured {
    /// What the ranks told, and what one sent in a step; none when none of them measured.
    pub fn of(states: &[StateBytes], sent_bytes_per_step: u64) -> Option<Measured> {
        let largest = |part: fn(&StateBytes) -> u64| states.iter().map(part).max().unwrap_or(0);
        let measured = Measured {
            parameters: largest(|state| state.parameters),
            gradients: largest(|state| state.gradients),
            masters: largest(|state| state.masters),
            moments: largest(|state| state.moments),
            pretrained: largest(|state| state.pretrained),
            gather_buffers: largest(|state| state.gather_buffers),
            gradient_buffers: largest(|state| state.gradient_buffers),
            live_peak: largest(|state| state.live_peak),
            loading_peak: largest(|state| state.loading_peak),
            offloaded: largest(|state| state.offloaded),
            sent_bytes_per_step,
        };
        (measured.live_peak > 0).then_some(measured)
    }
}

/// What a run folder keeps of its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRecord {
    /// Before the run.
    pub planned: Prediction,
    /// After it.
    pub measured: Option<Measured>,
}

/// One of the things that are planned and measured, in bytes of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// Before the run.
    pub planned: u64,
    /// After it; none where nothing was measured.
    pub measured: Option<u64>,
    /// It is held in memory, not written to files or sent.
    pub is_memory: bool,
}

impl PlanRecord {
    /// Writes the record as JSON.
    ///
    /// # Errors
    /// [`LaunchError::System`] when the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), LaunchError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        std::fs::write(path, text + "\n").map_err(LaunchError::system(format!("write {}", path.display())))
    }

    /// What was planned, and measured where it was.
    pub fn parts(&self) -> Vec<Part> {
        let (plan, measured) = (&self.planned.plan, self.measured.as_ref());
        let state = &plan.state;
        let part = |name, planned, of: fn(&Measured) -> u64| Part {
            name,
            planned,
            measured: measured.map(of),
            is_memory: true,
        };
        let parts = [
            part("parameters", state.parameters as u64, |it| it.parameters),
            part("gradients", state.gradients as u64, |it| it.gradients),
            part("masters", state.masters as u64, |it| it.masters),
            part("moments", state.moments as u64, |it| it.moments),
            part("pretrained weights", state.pretrained as u64, |it| it.pretrained),
            Part { is_memory: false, ..part("optimizer state in files", plan.offloaded_disk, |it| it.offloaded) },
            part("gather buffers", plan.all_gather_buffers(), |it| it.gather_buffers),
            part("gradient buffers", plan.gradient_buffers, |it| it.gradient_buffers),
            part("peak while loading", plan.loading_peak, |it| it.loading_peak),
            part("peak in a step", plan.total, |it| it.live_peak),
            Part { is_memory: false, ..part("sent in a step", plan.sent_bytes_per_step, |it| it.sent_bytes_per_step) },
        ];
        parts.into_iter().filter(|part| part.planned > 0 || part.measured.is_some_and(|bytes| bytes > 0)).collect()
    }

    /// Planned and measured side by side; nothing when nothing was measured. The error is that of the plan.
    pub fn lines(&self) -> Vec<String> {
        if self.measured.is_none() {
            return Vec::new();
        }
        let head = ["bytes per rank", "planned", "measured", "error"].map(str::to_owned).to_vec();
        let rows = self.parts().into_iter().map(|Part { name, planned, measured, .. }| {
            let measured = measured.unwrap_or(0);
            let error = match measured {
                0 => "-".to_owned(),
                measured => {
                    let tenths = (1000.0 * (planned as f64 / measured as f64 - 1.0)).round();
                    // Adding 0 makes +0 of −0.
                    format!("{:+.1} %", tenths / 10.0 + 0.0)
                }
            };
            vec![format!("  {name}"), format::bytes(planned), format::bytes(measured), error]
        });
        aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_data::{Batching, Items, Packing, PackingStrategy, Sampling, StepPlanOptions};

    fn steps(rows: usize, per_device_batch: u32, max_steps: i64) -> StepPlan {
        let options = StepPlanOptions {
            items: Items::rows(rows),
            world_size: 2,
            per_device_batch,
            accumulation: 1,
            epochs: 1.0,
            max_steps,
            seed: 1,
            data_seed: None,
            sampling: Sampling::Sequential,
            mixing: None,
        };
        StepPlan::new(options).unwrap()
    }

    #[test]
    fn the_largest_micro_batch_is_one_that_the_run_sees() {
        let mut dataset = TokenizedDataset::new();
        for length in [3, 5, 4, 4, 2, 9] {
            let labels: Vec<i32> = (0..length).map(|at| if at < 2 { -100 } else { 7 }).collect();
            dataset.push(1, &vec![7; length as usize], &labels);
        }
        let largest = |batching, steps: &StepPlan, per_device| {
            let collator = Collator::new(&dataset, batching).unwrap();
            let Largest { rows, length, document, supervised } =
                largest_micro_batch((&dataset, &collator), steps, per_device);
            (rows, length, document, supervised)
        };
        // Micro-batches of 2 rows: 2 × 5, 2 × 4, 2 × 9.
        assert_eq!(largest(Batching::Padded, &steps(6, 2, -1), 2), (2, 9, 9, 7));
        assert_eq!(largest(Batching::Padded, &steps(6, 2, 1), 2), (2, 5, 5, 4));
        assert_eq!(largest(Batching::Padded, &steps(6, 4, 1), 4), (4, 5, 5, 8));
        // End to end: 8, 8, 11.
        assert_eq!(largest(Batching::PaddingFree, &steps(6, 2, -1), 2), (1, 11, 9, 7));
        // Packs of 9, 5 + 4 and 4 + 3 + 2 tokens; two of them in a micro-batch.
        let packed = Batching::Packed(Packing { strategy: PackingStrategy::Bfd, max_length: 9 });
        assert_eq!(largest(packed, &steps(3, 2, -1), 2), (1, 18, 9, 12));
    }

    #[test]
    fn planned_and_measured_stand_side_by_side() {
        let state = StateBytes { parameters: 100 << 20, ..StateBytes::default() };
        assert_eq!(Measured::of(&[state], 0), None, "no peak: not measured");
        let measured = [110 << 20, 120 << 20].map(|live_peak| StateBytes { live_peak, ..state });
        let model = ModelConfig::published("llama-7b").unwrap();
        let plan = plan(&PlanInputs {
            model: &ModelConfig { num_hidden_layers: 1, vocab_size: 64, ..model },
            world_size: 1,
            sharding: zerofold_configs::Sharding::of(zerofold_configs::Stage::Zero),
            types: zerofold_configs::ElementTypes::of(zerofold_configs::ElementType::Float32),
            per_device_batch: 1,
            length: 8,
            longest_document: None,
            supervised: None,
            accumulation: 1,
            gradient_checkpointing: true,
            gradient_checkpointing_every: 1,
            offload_optimizer: false,
            device: zerofold_plan::PlannedDevice::Cpu,
            receives: false,
            copies: false,
            training: None,
        });
        let plan = Plan { total: 114 << 20, loading_peak: 0, sent_bytes_per_step: 500 << 20, ..plan.unwrap() };
        let state = zerofold_plan::StateBytes { parameters: 100 << 20, ..Default::default() };
        let planned = Prediction { rows: 1, length: 8, supervised: 7, plan: Plan { state, ..plan } };
        let record = PlanRecord { planned, measured: Measured::of(&measured, 500 << 20) };
        assert_eq!(
            record.lines(),
            [
                "bytes per rank    planned  measured   error",
                "  parameters      100 MiB   100 MiB  +0.0 %",
                "  peak in a step  114 MiB   120 MiB  -5.0 %",
                "  sent in a step  500 MiB   500 MiB  +0.0 %",
            ]
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        record.write(&path).unwrap();
        let read: PlanRecord = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(read, record);
        assert!(PlanRecord { measured: None, ..record }.lines().is_empty());
    }
}
