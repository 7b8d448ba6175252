//! Many random faults over one run: it finishes, as if nothing had been, and `launch` does not grow.
//!
//! `cargo test --release -p zerofold-tests --test soak -- --ignored --nocapture` (about 15 minutes; `ZEROFOLD_SOAK_FAULTS` and
//! `ZEROFOLD_SOAK_SEED` set how many faults, and which).

use std::path::Path;
use std::time::{Duration, Instant};

use zerofold_tests::{Ended, Metrics, Process, Running, Scene, signal, wait_for};

const JOB: &str = "--nproc 2 --per_device_train_batch_size 4 --save_steps 20 --save_total_limit 2 --zero_stage 3 \
                   --train_sampling_strategy random --learning_rate 1e-4 --max-restarts 100000 --quiet";

/// What befalls the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    KillRank,
    SegmentationFault,
    Abort,
    /// Stopped for a moment.
    Pause,
    KillLaunch,
    Terminate,
    /// SIGTERM at a worker.
    TerminateRank,
    /// A checkpoint on demand.
    Save,
}

impl Blow {
    const ALL: [Blow; 8] = [
        Blow::KillRank,
        Blow::SegmentationFault,
        Blow::Abort,
        Blow::Pause,
        Blow::KillLaunch,
        Blow::Terminate,
        Blow::TerminateRank,
        Blow::Save,
    ];
}

/// SplitMix64: the faults of a seed can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// What `launch` holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    files: usize,
    threads: usize,
    memory: u64,
}

impl Held {
    fn of(launch: u32) -> Option<Held> {
        let count = |what: &str| Some(std::fs::read_dir(format!("/proc/{launch}/{what}")).ok()?.count());
        let memory = Process { pid: launch, rank: None }.status_bytes("VmRSS")?;
        Some(Held { files: count("fd")?, threads: count("task")?, memory })
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn start(scene: &Scene, run: &Path, steps: u64) -> Running {
    let job = scene.train("tiny-llama", "run", JOB).with("--max_steps", steps.to_string());
    let saved = zerofold_tests::checkpoints(run).iter().any(|step| step.join("manifest.json").exists());
    match saved {
        true => job.words("--resume").start(),
        false => {
            let _ = std::fs::remove_dir_all(run);
            job.start()
        }
    }
}

#[test]
#[ignore = "takes a quarter of an hour"]
fn two_hundred_faults_change_nothing() {
    let (faults, seed) = (number("ZEROFOLD_SOAK_FAULTS", 200), number("ZEROFOLD_SOAK_SEED", 1));
    let scene = Scene::new();
    let run = scene.path("run");
    // So many that the faults are over before the steps are.
    let steps = 100 * faults;
    let began = Instant::now();
    let whole = scene.train("tiny-llama", "whole", JOB).with("--max_steps", steps.to_string());
    let ended = wait_until_done(whole.start());
    ended.assert_done();
    let undisturbed = began.elapsed();

    let mut random = Random(seed);
    let mut struck = std::collections::BTreeMap::<Blow, u32>::new();
    // Of each launch what it held after its first restart, and after its last.
    let mut growth: Vec<(Held, Held)> = Vec::new();
    let mut running = start(&scene, &run, steps);
    let mut held: Vec<Held> = Vec::new();
    let mut seen = 0;
    for fault in 0..faults {
        // The run came further than ever before, so that no three faults hit the same step.
        wait_for("a new step", || {
            let count = Metrics::of(&run).count();
            (count > seen).then(|| seen = count)
        });
        let pause = Duration::from_millis(random.below(1000));
        let until = Instant::now() + pause;
        wait_for("the moment", || (Instant::now() >= until).then_some(()));
        // Only while it has all that it ever has at once: one that is about to start its ranks holds less.
        let ranks = scene.processes().iter().filter(|process| process.rank.is_some()).count();
        held.extend(Held::of(running.pid()).filter(|_| ranks == 2));
        let blow = Blow::ALL[random.below(Blow::ALL.len() as u64) as usize];
        let rank = random.below(2) as u32;
        let victim = scene.processes().into_iter().find(|process| process.rank == Some(rank));
        *struck.entry(blow).or_default() += 1;
        let at_rank = |number| {
            victim.iter().for_each(|victim| signal(victim.pid, number));
        };
        match blow {
            Blow::KillRank => at_rank(libc::SIGKILL),
            Blow::SegmentationFault => {
                // The standard library's handler lets the first one pass that no instruction caused.
                at_rank(libc::SIGSEGV);
                at_rank(libc::SIGSEGV);
            }
            Blow::Abort => at_rank(libc::SIGABRT),
            Blow::TerminateRank => at_rank(libc::SIGTERM),
            Blow::Pause => {
                at_rank(libc::SIGSTOP);
                let until = Instant::now() + Duration::from_millis(300);
                wait_for("the end of the pause", || (Instant::now() >= until).then_some(()));
                at_rank(libc::SIGCONT);
            }
            Blow::Save => running.signal(libc::SIGUSR1),
            Blow::KillLaunch => running.signal(libc::SIGKILL),
            Blow::Terminate => running.signal(libc::SIGTERM),
        }
        if matches!(blow, Blow::KillLaunch | Blow::Terminate | Blow::TerminateRank) {
            let ended = running.finish();
            assert!(ended.code != Some(1), "fault {fault}, {blow:?}: the job failed\n{ended}");
            scene.assert_nobody_left();
            growth.extend(held.first().zip(held.last()).map(|(first, last)| (*first, *last)));
            held.clear();
            running = start(&scene, &run, steps);
        }
    }
    let ended = wait_until_done(running);
    ended.assert_done();
    growth.extend(held.first().zip(held.last()).map(|(first, last)| (*first, *last)));
    scene.assert_nobody_left();
    assert_eq!(Metrics::of(&run).exact(), Metrics::of(&scene.path("whole")).exact(), "seed {seed}");
    let model = |run: &Path| std::fs::read(run.join("model/model.safetensors")).expect("a model was written");
    assert!(model(&run) == model(&scene.path("whole")), "seed {seed}: the models differ");
    for (first, last) in &growth {
        assert!(last.files <= first.files + 8 && last.threads <= first.threads + 4, "{first:?} became {last:?}");
        assert!(last.memory <= first.memory + (32 << 20), "{first:?} became {last:?}");
    }
    let most = growth.iter().map(|(first, last)| last.memory.saturating_sub(first.memory)).max().unwrap_or(0);
    println!(
        "{faults} faults {struck:?} over {steps} steps, seed {seed}: {:.0} s (undisturbed {:.0} s); launch grew by at most \
         {:.1} MiB",
        began.elapsed().as_secs_f64() - undisturbed.as_secs_f64(),
        undisturbed.as_secs_f64(),
        most as f64 / f64::from(1 << 20),
    );
}

/// The steps that are left may take longer than a test's patience.
fn wait_until_done(mut running: Running) -> Ended {
    let deadline = Instant::now() + Duration::from_secs(3600);
    while !running.has_ended() {
        assert!(Instant::now() < deadline, "the run does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    running.finish()
}
