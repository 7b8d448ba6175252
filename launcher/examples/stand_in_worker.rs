//! A worker for tests: it speaks the control plane's protocol but trains nothing. `STAND_IN` says what its ranks do, as
//! `RANK:BEHAVIOUR` separated by commas; other ranks train for `STAND_IN_STEPS` steps (default 3) and leave.

use std::path::Path;
use std::time::Duration;

use zerofold_checkpoint::{
    Dtype, FileEntry, Part, STATES, SafetensorsWriter, SavedParameter, SavedUnit, TensorEntry, TensorRange,
    digest_units, shard_file_name,
};
use zerofold_configs::{Resolved, UnitPolicy};
use zerofold_plan::{ModelConfig, ModelUnits};
use zerofold_proto::v1::control_client::ControlClient;
use zerofold_proto::v1::*;
use zerofold_trust::{Token, Wire, connect};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What a rank can be told to do.
const BEHAVIOURS: [&str; 9] = [
    "crash",       // kill itself by SIGKILL after the first step
    "fail",        // tell a failure of its own, exit 3
    "consequence", // tell a failure that another rank caused at once, exit 1
    "panic",       // write to stderr, exit 101, without a word to the control plane
    "leave-early", // exit 0 without leaving
    "silent",      // never join
    "deaf",        // go on for ever whatever the directive, ignoring SIGTERM
    "endless",     // train until told to stop
    "checkpoint",  // send a part of a checkpoint after the last step
];

struct Rank {
    rank: u32,
    world_size: u32,
    generation: u64,
    behaviour: String,
    steps: u64,
    client: ControlClient<Wire>,
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|error| format!("{name}: {error}").into())
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("generate") {
        println!("request: {}", std::env::args().nth(2).unwrap_or_default());
        std::process::exit(7);
    }
    let rank: u32 = variable("RANK")?.parse()?;
    let roles = std::env::var("STAND_IN").unwrap_or_default();
    let mine = roles.split(',').filter_map(|role| role.split_once(':')).find(|(of, _)| *of == rank.to_string());
    let behaviour = mine.map_or("train", |(_, behaviour)| behaviour).to_owned();
    if behaviour != "train" && !BEHAVIOURS.contains(&behaviour.as_str()) {
        return Err(format!("no behaviour {behaviour}").into());
    }
    if !std::path::Path::new(&variable("ZEROFOLD_CONFIG")?).is_file() {
        return Err("no configuration".into());
    }
    println!("rank {rank} writes to standard output");
    eprintln!("pid {} is {behaviour}", std::process::id());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if behaviour == "silent" {
            std::future::pending::<()>().await;
        }
        let token = Token::parse(&variable("ZEROFOLD_TOKEN")?)?;
        let client =
            ControlClient::new(connect(&variable("ZEROFOLD_CONTROL")?, &token, Duration::from_secs(20)).await?);
        let mut rank = Rank {
            rank,
            world_size: variable("WORLD_SIZE")?.parse()?,
            generation: variable("ZEROFOLD_GENERATION")?.parse()?,
            behaviour,
            steps: std::env::var("STAND_IN_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(3),
            client,
        };
        rank.work().await
    })
}

impl Rank {
    async fn work(&mut self) -> Result<()> {
        let (rank, generation) = (self.rank, self.generation);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let join =
            JoinRequest { rank, world_size: self.world_size, generation, pid: std::process::id(), version, nonce: 0 };
        self.client.join(join).await?;
        match self.behaviour.as_str() {
            "fail" => return self.fail("the loss is gone", false, 3).await,
            "consequence" => return self.fail("a peer went away", true, 1).await,
            "panic" => {
                eprintln!("something went wrong\nvery wrong");
                std::process::exit(101);
            }
            "leave-early" => std::process::exit(0),
            "deaf" => ignore_terminate(),
            _ => {}
        }
        let mut stopped = false;
        let mut step = 0;
        while !stopped && (step < self.steps || matches!(self.behaviour.as_str(), "deaf" | "endless")) {
            step += 1;
            stopped = self.step(step).await? && self.behaviour != "deaf";
            if self.behaviour == "crash" {
                // SAFETY: kill takes numbers only.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            }
        }
        if self.behaviour == "checkpoint" {
            self.checkpoint(step).await?;
        }
        let state = StateBytes { parameters: 1 << 20, live_peak: 3 << 20, ..StateBytes::default() };
        let model_directory = if rank == 0 && !stopped { "the/model".to_owned() } else { String::new() };
        let state = Some(state);
        let leave = LeaveRequest { rank, generation, step, stopped, model_directory, state, model_step: step };
        self.client.leave(leave).await?;
        Ok(())
    }

    /// Tells a step; returns whether to stop.
    async fn step(&mut self, step: u64) -> Result<bool> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let record = StepRecord {
            step,
            epoch: step as f64 / 10.0,
            loss: 2.0 / step as f64,
            grad_norm: 1.0,
            learning_rate: 1e-4,
            tokens: 100,
            supervised_tokens: 20,
            seconds: 0.01,
            peak_memory_bytes: 1 << 20,
            ..StepRecord::default()
        };
        let evaluation =
            EvaluationRecord { step, loss: 3.0, supervised_tokens: 20, seconds: 0.1, ..EvaluationRecord::default() };
        let first = self.rank == 0;
        let beat = HeartbeatRequest {
            rank: self.rank,
            generation: self.generation,
            step,
            memory_bytes: 1 << 20,
            peak_memory_bytes: 2 << 20,
            steps: if first { vec![record] } else { Vec::new() },
            evaluations: if first && step == 1 { vec![evaluation] } else { Vec::new() },
            ..HeartbeatRequest::default()
        };
        Ok(self.client.heartbeat(beat).await?.into_inner().directive() == Directive::Stop)
    }

    async fn checkpoint(&mut self, step: u64) -> Result<()> {
        let config = std::path::PathBuf::from(variable("ZEROFOLD_CONFIG")?);
        let folder = config.with_file_name("checkpoints").join(format!("step-{step:08}"));
        std::fs::create_dir_all(&folder)?;
        // The place in the data of the fixture's job: 8 rows, 2 ranks × 8 rows a step.
        let cursor = serde_json::json!({"rows": 8, "epoch": step, "row": 0, "global_batch": 16, "row_seed": 42,
            "sampling": "random"});
        let units = [unit_of(&config)?];
        let mut part = Part {
            rank: self.rank,
            world_size: self.world_size,
            step,
            generation: self.generation,
            stage: 0,
            layout: digest_units(&units),
            units: Vec::new(),
            state: serde_json::json!({"data": cursor}),
            files: Vec::new(),
        };
        if self.rank == 0 {
            part.files.push(write_zeros(&folder, &units[0], &part)?);
            part.units = units.to_vec();
        }
        let part = serde_json::to_string(&part)?;
        let part = CheckpointPart {
            rank: self.rank,
            generation: self.generation,
            step,
            directory: folder.display().to_string(),
            part: part.into_bytes(),
            failure: String::new(),
        };
        self.client.checkpoint_written(part).await?;
        Ok(())
    }

    async fn fail(&mut self, message: &str, consequence: bool, code: i32) -> Result<()> {
        let (rank, generation) = (self.rank, self.generation);
        self.client.fail(FailRequest { rank, generation, message: message.to_owned(), consequence }).await?;
        std::process::exit(code);
    }
}

/// All parameters of the job's model, end to end.
fn unit_of(config: &Path) -> Result<SavedUnit> {
    let model = ModelConfig::read(&Resolved::read(config)?.training.model_name_or_path)?;
    let units = ModelUnits::new(&model, UnitPolicy::Whole).units;
    let (mut length, mut parameters) = (0, Vec::new());
    for leaf in units.into_iter().flat_map(|unit| unit.leaves).flat_map(|leaf| leaf.parameters) {
        let shape: Vec<u64> = leaf.shape.iter().map(|&size| size as u64).collect();
        let elements: u64 = shape.iter().product();
        parameters.push(SavedParameter { name: leaf.name, shape, begin: length });
        length += elements;
    }
    Ok(SavedUnit { name: "model".to_owned(), length, parameters })
}

/// A file with all of a unit's state, which is zero.
fn write_zeros(folder: &Path, unit: &SavedUnit, part: &Part) -> Result<FileEntry> {
    let name = shard_file_name(part.rank, part.world_size, part.generation);
    let entries = STATES.map(|state| TensorEntry::new(unit.whole(state), Dtype::F32, [unit.length as usize]));
    let mut writer = SafetensorsWriter::create(&folder.join(&name), &entries, &Default::default())?;
    for entry in &entries {
        writer.write_f32(&entry.name, 0, &vec![0.0; unit.length as usize])?;
    }
    let range = |entry: &TensorEntry| TensorRange {
        name: entry.name.clone(),
        dtype: Dtype::F32,
        whole: entry.name.clone(),
        length: unit.length,
        begin: 0,
        end: unit.length,
    };
    Ok(FileEntry::new(name, writer.finish()?, entries.iter().map(range).collect()))
}

fn ignore_terminate() {
    // SAFETY: SIG_IGN is a valid disposition, and no handler of ours is replaced.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}
