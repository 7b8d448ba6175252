//! Rows of tokens come to the model exactly as they stand in the file, in its order.

use std::path::Path;

use zerofold_data::{
    Batch, Columns, IGNORED, Items, Prepare, Sampling, Sources, StepPlan, StepPlanOptions, TokenizedDataset, prepare,
};

/// Rows in the file.
const ROWS: usize = 53;
/// Rows of an optimizer step.
const GLOBAL_BATCH: usize = 12;

/// Row `index` of the file: ids and labels, the labels not always the ids.
fn row(index: usize) -> (Vec<i64>, Vec<i64>) {
    let ids: Vec<i64> = (0..2 + index * 7 % 11).map(|at| ((index * 31 + at * 7) % 317) as i64).collect();
    let labels = ids.iter().enumerate().map(|(at, &id)| if at % 3 == 2 { i64::from(IGNORED) } else { (id + 1) % 320 });
    (ids.clone(), labels.collect())
}

fn dataset() -> TokenizedDataset {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let text: String = (0..ROWS)
        .map(|index| {
            let (ids, labels) = row(index);
            format!("{{\"input_ids\": {ids:?}, \"labels\": {labels:?}}}\n")
        })
        .collect();
    std::fs::write(&path, text).unwrap();
    let prepared = prepare(&Prepare {
        model_directory: &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/tiny-llama"),
        sources: &Sources::find(&[path.to_str().unwrap()]).unwrap(),
        columns: &Columns::default(),
        max_length: Some(512),
        assistant_only_loss: true,
        chat_template: None,
        template_date: None,
        eos_token: None,
        completion_only_loss: None,
        classes: None,
        cache: &folder.path().join("cache"),
    });
    // Mapped: the folder may go.
    prepared.unwrap().dataset
}

#[test]
fn step_k_has_the_rows_of_the_file_from_k_b_on_whatever_the_ranks() {
    let dataset = dataset();
    let shapes = [(1, 12, 1), (1, 1, 12), (2, 3, 2), (2, 6, 1), (3, 2, 2), (4, 1, 3), (4, 3, 1), (6, 2, 1), (12, 1, 1)];
    for (world_size, per_device_batch, accumulation) in shapes {
        let plan = StepPlan::new(StepPlanOptions {
            items: Items::rows(dataset.rows()),
            world_size,
            per_device_batch,
            accumulation,
            epochs: 2.0,
            max_steps: -1,
            seed: 42,
            data_seed: None,
            sampling: Sampling::Sequential,
            mixing: None,
        })
        .unwrap();
        let mut step_of_epoch = 0;
        for step in 0..plan.total_steps() {
            let mut seen = Vec::new();
            for micro_batch in 0..accumulation {
                for rank in 0..world_size {
                    let batch = Batch::collate(&dataset, &plan.rows_of(step, micro_batch, rank), 0).unwrap();
                    let cells = batch.of_dataset.len() * batch.length;
                    let rows = batch.input_ids[..cells].chunks(batch.length).zip(batch.labels.chunks(batch.length));
                    seen.extend(rows.map(|(ids, labels)| (ids.to_vec(), labels.to_vec())));
                }
            }
            let first = step_of_epoch * GLOBAL_BATCH;
            let last = (first + GLOBAL_BATCH).min(ROWS);
            assert_eq!(seen.len(), last - first, "step {step}");
            for (offset, (ids, labels)) in seen.iter().enumerate() {
                let (expected_ids, expected_labels) = row(first + offset);
                let length = expected_ids.len();
                assert_eq!(ids[..length], expected_ids, "step {step}, row {}", first + offset);
                // A position is labelled with what the next one is to be.
                assert_eq!(labels[..length - 1], expected_labels[1..], "step {step}, row {}", first + offset);
                assert!(labels[length - 1..].iter().all(|&label| label == i64::from(IGNORED)));
            }
            step_of_epoch = if last == ROWS { 0 } else { step_of_epoch + 1 };
        }
    }
}
