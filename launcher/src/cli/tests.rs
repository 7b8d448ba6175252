use super::*;
use crate::checkpoints::ExportDtype;
use crate::config_command::{ConfigAction, Target};
use crate::run_folder::Resume;
use std::time::Duration;
use zerofold_checkpoint::Dtype;
use zerofold_configs::Form;

fn parse_line(line: &str) -> Result<Meant, CliError> {
    parse(line.split_whitespace().map(OsString::from), false)
}

fn train(line: &str) -> TrainOptions {
    match parse_line(line) {
        Ok(Meant::Train(options)) => *options,
        other => panic!("{line}: {other:?}"),
    }
}

fn error(line: &str) -> String {
    match parse_line(line).unwrap_err() {
        CliError::Clap(error) => error.to_string(),
        CliError::Launch(error) => error.to_string(),
    }
}

#[test]
fn the_definition_is_sound() {
    arguments::command().debug_assert();
}

#[test]
fn options_stand_before_or_after_the_command() {
    for line in ["launch --nproc 2 --config zero3.yaml train", "launch train --config_file=zero3.yaml --nproc 2"] {
        let options = train(line);
        assert_eq!(options.inputs.nproc, Some(2), "{line}");
        assert_eq!(options.inputs.config.as_deref(), Some("zero3.yaml"), "{line}");
        assert_eq!(options.timeout, Duration::from_secs(1800));
    }
    assert_eq!(train("launch --nproc 2 train --nproc 3").inputs.nproc, Some(3));
    let options = train("launch --set seed=1 train --set max_steps=2 --set=a=b");
    assert_eq!(options.inputs.set, ["seed=1", "max_steps=2", "a=b"]);
}

#[test]
fn every_key_is_a_flag_in_both_spellings() {
    for key in zerofold_configs::KEYS {
        for name in [key.name.to_owned(), key.name.replace('_', "-")] {
            let options = train(&format!("launch train --{name} 1"));
            assert_eq!(options.inputs.flags, [(key.name.to_owned(), "1".to_owned())]);
        }
    }
    // As transformers' parser has it for what is true by default; a key of its own that begins so stays what it is.
    let options = train("launch train --no_gradient_checkpointing --no-eval-on-start --no_cuda");
    let expected = [("gradient_checkpointing", "false"), ("eval_on_start", "false"), ("no_cuda", "true")];
    for (name, value) in expected {
        assert!(options.inputs.flags.contains(&(name.into(), value.into())), "{name}: {:?}", options.inputs.flags);
    }
    let options = train("launch train --max_steps -1 --bf16 --learning-rate 1e-5");
    let expected = [("learning_rate", "1e-5"), ("max_steps", "-1"), ("bf16", "true")];
    for (name, value) in expected {
        assert!(options.inputs.flags.contains(&(name.into(), value.into())), "{name}: {:?}", options.inputs.flags);
    }
}

#[test]
fn the_steps_of_a_timeline_may_be_called_steps() {
    for line in ["launch train --profile steps 5..8", "launch --profile 5..8 train", "launch train --profile=5..8"] {
        assert_eq!(train(line).inputs.flags, [("profile".to_owned(), "5..8".to_owned())], "{line}");
    }
}

#[test]
fn an_option_without_its_value_does_not_take_the_command() {
    let options = train("launch --bf16 --resume train");
    assert_eq!(options.resume, Some(Resume::Newest));
    assert_eq!(options.inputs.flags, [("bf16".to_owned(), "true".to_owned())]);
    assert_eq!(train("launch train --resume").resume, Some(Resume::Newest));
    assert_eq!(train("launch train").resume, None);
    let step = Some(Resume::Step("step-00000020".into()));
    assert_eq!(train("launch --resume step-00000020 train").resume, step);
}

#[test]
fn a_script_and_wrong_names_get_an_answer() {
    for line in ["launch --nproc 2 train.py --lr 1", "launch train train.py"] {
        assert!(error(line).contains("launch runs no script; its command is `train`"), "{line}: {}", error(line));
    }
    assert!(error("launch trian").contains("did you mean `train`?"));
    assert!(error("launch train --learning_rat 1").contains("--learning_rate"));
    assert!(error("launch --nproc two train").contains("invalid value 'two'"));
    for (line, part) in [
        ("--nproc auto", "it is a whole number of processes"),
        ("--timeout 5s", "it is a whole number from 1 to 10000000, without a unit"),
        ("--timeout 0", "from 1 to 10000000"),
        ("--grace=-1", "it is a whole number from 0 to 10000000"),
        ("--max-restarts x", "it is a whole number from 0 to 4294967295"),
    ] {
        let told = error(&format!("launch {line} train"));
        assert!(told.contains(part) && !told.contains("invalid digit"), "{line}: {told}");
    }
    assert!(error("launch --nproc 2 generate --model m").contains("--nproc has no meaning for generate"));
}

#[test]
fn plan_takes_what_train_takes_and_its_own() {
    let plan = |line: &str| match parse_line(line) {
        Ok(Meant::Plan(options)) => *options,
        other => panic!("{line}: {other:?}"),
    };
    let options = plan("launch --nproc 8 plan --model llama-7b --gpu-memory 80GiB --zero_stage 3 --json");
    assert_eq!((options.inputs.nproc, options.model.as_deref()), (Some(8), Some("llama-7b")));
    assert_eq!((options.gpu_memory, options.json), (Some(80 << 30), true));
    assert_eq!(options.inputs.flags, [("zero_stage".to_owned(), "3".to_owned())]);
    let options = plan("launch --bf16 plan --config zero3.yaml --set max_length=64");
    assert_eq!((options.gpu_memory, options.json, options.inputs.set.len()), (None, false, 1));
    assert!(error("launch plan --gpu-memory 80Gx").contains("`80Gx` is no size"));
    assert!(error("launch --resume plan").contains("--resume has no meaning for plan"));
    assert!(error("launch plan --learning_rat 1").contains("--learning_rate"));
}

#[test]
fn compare_takes_lists_and_every_key() {
    let compare = |line: &str| match parse_line(line) {
        Ok(Meant::Compare(options)) => *options,
        other => panic!("{line}: {other:?}"),
    };
    let options = compare("launch compare --config zero3.yaml");
    assert_eq!(options.stages.iter().map(|stage| stage.number()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!((options.accumulations, options.backends, options.steps, options.rounds), (None, None, 3, 2));
    let options =
        compare("launch --nproc 2 --bf16 compare --stages 1,3 --accumulation 1,4 --backend shm,gloo --steps 5 --json");
    assert_eq!(options.stages.iter().map(|stage| stage.number()).collect::<Vec<_>>(), [1, 3]);
    assert_eq!((options.accumulations, options.steps, options.json), (Some(vec![1, 4]), 5, true));
    assert_eq!(options.backends.unwrap().len(), 2);
    assert_eq!((options.inputs.nproc, options.inputs.flags), (Some(2), vec![("bf16".to_owned(), "true".to_owned())]));
    for (line, parts) in [
        ("--stages 4", "--stages 4: `4` is no ZeRO stage\nhint: the stages are 0, 1, 2 and 3"),
        ("--stages 1,", "--stages 1,: `` is no ZeRO stage"),
        ("--stages 1,2,1", "1 stands there twice"),
        ("--accumulation 0", "`0` is no number of micro-batches\nhint: "),
        ("--backend gloo,smh", "`smh` is no backend\nhint: did you mean shm?"),
        ("--zero_stage 2", "--zero_stage has no meaning for compare\nhint: give --stages 2"),
        ("--max_steps 9", "--max_steps has no meaning for compare\nhint: give --steps 9"),
        ("--accumulation 2 --gradient_accumulation_steps 4", "name the same\nhint: give one of the two"),
        ("--steps 0", "0 is not in 1.."),
        ("--learning_rat 1", "--learning_rate"),
    ] {
        let told = error(&format!("launch compare {line}"));
        assert!(told.contains(parts), "{line}: {told}");
    }
    assert!(error("launch --resume compare").contains("--resume has no meaning for compare"));
}

#[test]
fn config_takes_every_key_and_writes_to_files() {
    let config = |line: &str| match parse_line(line) {
        Ok(Meant::Config(options)) => *options,
        other => panic!("{line}: {other:?}"),
    };
    let options = config("launch --bf16 config show --config zero3.yaml --nproc 3 --changed --seed 7");
    assert_eq!(options.action, ConfigAction::Show { json: false, changed: true });
    assert_eq!((options.inputs.config.as_deref(), options.inputs.nproc), (Some("zero3.yaml"), Some(3)));
    for flag in [("bf16", "true"), ("seed", "7")] {
        assert!(options.inputs.flags.contains(&(flag.0.to_owned(), flag.1.to_owned())), "{flag:?}");
    }
    let target = |output: Option<&str>, force| Target { output: output.map(Into::into), force };
    let options = config("launch config init --output mine.yaml --zero_stage 3");
    assert_eq!(options.action, ConfigAction::Init(target(Some("mine.yaml"), false)));
    assert_eq!(options.inputs.flags, [("zero_stage".to_owned(), "3".to_owned())]);
    let options = config("launch config convert --to deepspeed --force");
    assert_eq!(options.action, ConfigAction::Convert(Form::DeepSpeed, target(None, true)));
    assert_eq!(config("launch config check").action, ConfigAction::Check);
    assert_eq!(config("launch config schema").action, ConfigAction::Schema);
    for (line, part) in [
        ("launch config convert", "--to"),
        ("launch config convert --to hugging", "[possible values: zerofold, accelerate, deepspeed]"),
        ("launch config init --output", "a value is required for '--output <FILE>'"),
        ("launch config shwo", "'show'"),
        ("launch --resume config show", "--resume has no meaning for config"),
        ("launch config show --learning_rat 1", "--learning_rate"),
    ] {
        assert!(error(line).contains(part), "{line}: {}", error(line));
    }
}

#[test]
fn generate_asks_for_what_was_meant() {
    let request =
        |line: &str, on_terminal| match parse(line.split_whitespace().map(OsString::from), on_terminal).unwrap() {
            Meant::Generate(options) => {
                let dtype = options.dtype.unwrap_or(options.request.dtype);
                zerofold_configs::GenerateRequest { dtype, ..options.request }
            }
            other => panic!("{other:?}"),
        };
    let chat = request("launch generate --model m --chat Hello --temperature 0.7 --dtype bfloat16", false);
    assert_eq!((chat.prompt.as_deref(), chat.chat, chat.temperature), (Some("Hello"), true, 0.7));
    assert_eq!(chat.dtype, zerofold_configs::ComputeDtype::Bfloat16);
    let plain = request("launch generate --model m --prompt Once", true);
    assert_eq!((plain.prompt.as_deref(), plain.chat), (Some("Once"), false));
    assert!(request("launch generate --model m", true).chat);
    assert!(!request("launch generate --model m", false).chat);
    assert!(request("launch generate --model m --chat", false).chat);
    let data = request("launch generate --model m --dataset d.jsonl --limit 5 --output o.jsonl", true);
    assert_eq!((data.limit, data.prompt, data.output), (Some(5), None, Some("o.jsonl".into())));
    assert!(error("launch generate --model m --prompt a --chat b").contains("cannot be used with"));
    assert!(error("launch generate --prompt a").contains("--model"));
    assert!(error("launch generate --model m --dataset d --system s").contains("--system has no meaning with"));
    assert!(error("launch --resume generate --model m --dataset d").contains("--resume has no meaning for generate"));
    for line in ["launch generate --model m --bf16", "launch --config c.yaml generate --model m --prompt a"] {
        assert!(error(line).contains("has no meaning for generate without --dataset\nhint: answer a data set"));
    }
    assert!(error("launch generate --model m --prompt a --output o").contains("--output belongs to a data set"));
    assert!(error("launch generate --model m --prompt a --timeout 9").contains("--timeout has no meaning"));
    assert!(error("launch --model_name_or_path x generate --model m --dataset d").contains("the model is --model"));
    assert!(error("launch --seed 7 generate --model m --prompt a").contains("--seed stands before generate\nhint: "));
    let line = "launch --nproc 2 generate --model m --dataset d --zero_stage 3 --seed 7 --per_device_eval_batch_size 4 \
                --output o --limit 3";
    let Ok(Meant::Generate(job)) = parse(line.split_whitespace().map(OsString::from), false) else { panic!("{line}") };
    let mut keys: Vec<&str> = job.inputs.flags.iter().map(|(name, _)| name.as_str()).collect();
    keys.sort_unstable();
    assert_eq!((job.inputs.nproc, keys), (Some(2), vec!["per_device_eval_batch_size", "zero_stage"]));
    assert_eq!((job.request.seed, job.request.dataset), (7, Some("d".into())));
    assert!(error("launch generate --model m --top_p 1.5").contains("top_p"));
}

#[test]
fn checkpoints_are_named_by_their_paths() {
    match parse_line("launch inspect runs/a --tensors --json") {
        Ok(Meant::Inspect(it)) => assert_eq!((it.path, it.tensors, it.json), ("runs/a".into(), true, true)),
        other => panic!("{other:?}"),
    }
    match parse_line("launch verify a b --json c") {
        Ok(Meant::Verify(it)) => assert_eq!((it.paths, it.json), (vec!["a".into(), "b".into(), "c".into()], true)),
        other => panic!("{other:?}"),
    }
    match parse_line("launch diff a b --top 3") {
        Ok(Meant::Diff(it)) => assert_eq!((it.left, it.right, it.top), ("a".into(), "b".into(), 3)),
        other => panic!("{other:?}"),
    }
    match parse_line("launch push runs/a --repo me/m --private") {
        Ok(Meant::Push(it)) => {
            assert_eq!((it.folder, it.repo.as_str(), it.private), ("runs/a".into(), "me/m", true))
        }
        other => panic!("{other:?}"),
    }
    assert!(error("launch push runs/a").contains("--repo"));
    let export = |line: &str| match parse_line(line) {
        Ok(Meant::Export(options)) => options,
        other => panic!("{line}: {other:?}"),
    };
    let options = export("launch export a --output b");
    assert_eq!((options.output, options.dtype, options.model), ("b".into(), None, None));
    let names = ExportDtype::NAMES.map(|name| export(&format!("launch export a --output b --dtype {name}")).dtype);
    let [f32, bf16, f16] = [Dtype::F32, Dtype::BF16, Dtype::F16].map(|dtype| Some(ExportDtype::Given(dtype)));
    assert_eq!(names, [Some(ExportDtype::Source), f32, bf16, f16]);
    for (line, parts) in [
        ("launch inspect", "PATH"),
        ("launch inspect a b", "unexpected argument 'b'"),
        ("launch verify", "PATH"),
        ("launch diff a", "<B>"),
        ("launch diff a b --top many", "invalid value 'many'"),
        ("launch export a", "--output"),
        ("launch export a --output b --dtype int8", "[possible values: source, float32, bfloat16, float16]"),
        ("launch --nproc 2 export a --output b", "--nproc has no meaning for export"),
        ("launch inspct a", "did you mean `inspect`?"),
    ] {
        assert!(error(line).contains(parts), "{line}: {}", error(line));
    }
}

#[test]
fn doctor_and_bench_take_options_of_their_own_and_nproc() {
    let doctor = |line: &str| match parse_line(line) {
        Ok(Meant::Doctor(options)) => *options,
        other => panic!("{line}: {other:?}"),
    };
    let plain = doctor("launch doctor");
    assert_eq!((plain.output_dir, plain.bench.device, plain.bench.nproc), (".".into(), None, None));
    let options = doctor("launch --nproc 4 doctor --device cuda --output-dir runs --quick --json");
    assert_eq!(options.output_dir, std::path::Path::new("runs"));
    assert_eq!((options.bench.device, options.bench.nproc), (Some(zerofold_configs::DeviceKind::Cuda), Some(4)));
    assert!(options.bench.quick && options.bench.json);
    match parse_line("launch bench --nproc 2 --quick") {
        Ok(Meant::Bench(options)) => {
            assert_eq!((options.nproc, options.quick, options.json), (Some(2), true, false))
        }
        other => panic!("{other:?}"),
    }
    assert!(error("launch doctr").contains("did you mean `doctor`?"));
    assert!(error("launch doctor --devise cpu").contains("--device"));
    assert!(error("launch doctor --device gpu").contains("[possible values: cpu, cuda]"));
    assert!(error("launch --bf16 doctor").contains("--bf16 has no meaning before doctor"));
    assert!(error("launch bench --output_dir x").contains("--output_dir"));
    assert!(error("launch bench --nproc 0").contains("--nproc is 0"));
}
