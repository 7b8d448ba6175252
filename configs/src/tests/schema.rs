//! The schema for editors against files that are read, and files that are not.

use super::{TRAINING, with_flags};
use crate::{Form, Inputs, PRESETS, compose, outline, schema};
use boon::{Compiler, SchemaIndex, Schemas};

struct Checker {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Checker {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("zerofold.json", schema()).unwrap();
        let index = compiler.compile("zerofold.json", &mut schemas).unwrap();
        Checker { schemas, index }
    }

    fn takes(&self, text: &str) -> Result<(), String> {
        let value: serde_json::Value = serde_yaml::from_str(text).unwrap();
        self.schemas.validate(&value, self.index).map_err(|error| error.to_string())
    }
}

#[test]
fn the_schema_takes_what_is_read() {
    let checker = Checker::new();
    for preset in PRESETS {
        checker.takes(preset.text).unwrap_or_else(|error| panic!("{}: {error}", preset.name));
    }
    let files = [
        "distributed_type: no\nmixed_precision: false\nnum_processes: '4'\n",
        "distributed_type: FSDP\nfsdp_config:\n  version: 2\n  reshard_after_forward: 2\n  fsdp_min_num_params: 1e8\nnum_processes: 4\n",
        "distributed_type: FSDP\nfsdp_config:\n  fsdp_sharding_strategy: 1\n  fsdp_reshard_after_forward: FULL_SHARD\n",
        "distributed_type: DEEPSPEED\ndeepspeed_config:\n  gradient_clipping: auto\n  zero_stage: '3'\n  overlap_comm: true\n",
        "distributed_type: MULTI_CPU\ntpu_env: []\ndowncast_bf16: 'no'\ncompute_environment: LOCAL_MACHINE\nmain_training_function: main\n",
        "distributed_type: MULTI_CPU\ndynamo_config: {}\nmpirun_config:\n  mpirun_ccl: '1'\nmixed_precision: BF16\n",
    ];
    for file in files {
        let text = format!(
            "{file}{TRAINING}  learning_rate: '1e-5'\n  report_to: [tensorboard]\n  packing: False\n  lr_scheduler_type: polynomial\n  lr_scheduler_kwargs: {{power: 2, lr_end: 1e-9}}\n  group_by_length: yes\n  max_steps: -1\n  eval_dataset: [{{path: e/*.jsonl, label: 7}}, {{path: [f, g], column_mapping: text=body}}]\n"
        );
        with_flags(&text, &[], &[]).unwrap_or_else(|error| panic!("{text}{error}"));
        checker.takes(&text).unwrap_or_else(|error| panic!("{text}{error}"));
    }
    let inputs = Inputs { config: Some("zero3.yaml".to_owned()), ..Inputs::default() };
    let outline = outline(&inputs).unwrap();
    for form in [Form::Zerofold, Form::Accelerate] {
        let text = compose(&outline, form, &inputs).unwrap().text;
        checker.takes(&text).unwrap_or_else(|error| panic!("{text}{error}"));
    }
}

#[test]
fn the_schema_refuses_what_is_refused() {
    let checker = Checker::new();
    for (accelerate, more) in [
        ("mixed_precison: bf16\n", ""),
        ("", "  learning_rte: 1\n"),
        ("", "  max_seq_length: 1\n"),
        ("", "  learning_rate: -1\n"),
        ("", "  learning_rate: fast\n"),
        ("", "  adam_beta1: 1\n"),
        ("", "  max_steps: 0\n"),
        ("", "  per_device_train_batch_size: 2.5\n"),
        ("", "  lr_scheduler_type: cosin\n"),
        ("", "  profile: 5-8\n"),
        ("", "  lr_scheduler_type: cosine\n  lr_scheduler_kwargs: {num_cycels: 1}\n"),
        ("", "  lr_scheduler_type: cosine\n  lr_scheduler_kwargs: {num_cycles: 0}\n"),
        ("", "  lr_scheduler_kwargs: [1]\n"),
        ("", "  max_length: null\n"),
        ("", "  packing_strategy: ffd\n"),
        ("distributed_type: DEEPSPED\n", ""),
        ("distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 4\n", ""),
        ("distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 3\n", ""),
        ("parallelism_config: {tp_sise: 1}\n", ""),
        ("training_: {}\n", ""),
    ] {
        let text = format!("{accelerate}{TRAINING}{more}");
        assert!(with_flags(&text, &[], &[]).is_err(), "read:\n{text}");
        assert!(checker.takes(&text).is_err(), "the schema takes\n{text}");
    }
}
