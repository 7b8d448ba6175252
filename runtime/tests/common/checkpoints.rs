//! Ranks as threads that share memory, and checkpoints of their trainers.

use super::Spec;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use zerofold_checkpoint::{Found, Manifest, Part, open_step, publish, shard_file_name};
use zerofold_data::{Batching, Collator, Cursor, Sampling};
use zerofold_runtime::comm::{Collectives, LocalStore, Shm, Single, Store};
use zerofold_runtime::control::Identity;
use zerofold_runtime::trainer::{Progress, Requests, Rows, Snapshot, StepOutcome, Trainer};

/// Runs `body` on as many threads as there are ranks, and gives what each returned.
pub(crate) fn on_ranks<T: Send>(world_size: usize, body: impl Fn(Rc<dyn Collectives>) -> T + Sync) -> Vec<T> {
    let store: Arc<dyn Store> = Arc::new(LocalStore::default());
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                let (store, body) = (store.clone(), &body);
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    let limit = Duration::from_secs(120);
                    let comm: Rc<dyn Collectives> = match world_size {
                        1 => Rc::new(Single::new(tch::Device::Cpu).unwrap()),
                        _ => Rc::new(Shm::connect(store.as_ref(), rank, world_size, limit, Arc::default()).unwrap()),
                    };
                    let result = body(comm.clone());
                    comm.barrier().unwrap();
                    result
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Writes this rank's share of a checkpoint.
pub(crate) fn write(trainer: &Trainer, directory: &Path, step: u64) -> Part {
    let comm = trainer.shards.comm();
    let (rank, world_size) = (comm.rank() as u32, comm.world_size() as u32);
    let cursor = Cursor {
        rows: 1,
        packing: None,
        sources: Vec::new(),
        epoch: 0,
        row: 0,
        global_batch: 1,
        row_seed: 0,
        sampling: Sampling::Random,
        group: None,
        mixture: None,
    };
    let mut part = trainer.part(&Identity { rank, world_size, generation: 1 }, &Progress { step }, &cursor);
    if trainer.shards.is_first_replica() {
        let snapshot = Snapshot::new(&trainer.shards).unwrap();
        part.files.push(snapshot.write(directory, &shard_file_name(rank, world_size, 1)).unwrap());
    }
    part
}

/// The checkpoint of these shares.
pub(crate) fn committed(directory: &Path, parts: Vec<Part>) -> Found {
    publish(directory, &Manifest::assemble(parts).unwrap()).unwrap();
    open_step(directory).unwrap()
}

/// The steps that follow `from` finished ones; before the first the Fisher information is estimated, where the curve says so.
pub(crate) fn take_steps(trainer: &mut Trainer, spec: &Spec, from: u64, steps: u64) -> Vec<StepOutcome> {
    let (dataset, rank) = (spec.dataset(), trainer.shards.comm().rank());
    let methods = spec.methods();
    if from == 0 && methods.estimates_fisher() {
        let dataset = spec.dataset();
        let rows = Rows { collator: Collator::new(&dataset, Batching::of(&methods, false)).unwrap(), dataset };
        trainer.estimate_fisher(&rows, methods.ewc_samples as usize).unwrap();
    }
    (from..from + steps)
        .map(|step| {
            trainer.open(spec.openings(&dataset, step), step).unwrap();
            trainer.step(step, &spec.window(&dataset, step, rank), Requests::default()).unwrap()
        })
        .collect()
}
