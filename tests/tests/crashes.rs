//! Processes that are killed or stopped while a checkpoint is saved: there is always a whole one to go on from, and the run
//! goes on bit by bit as if nothing had been.

use std::path::Path;

use zerofold_checkpoint::fault::{BEGIN, COLLECTED, DELETING, PUBLISHED, WRITING, WRITTEN};
use zerofold_tests::{Ended, Job, Metrics, Scene, checkpoints};

const JOB: &str = "--nproc 2 --per_device_train_batch_size 5 --max_steps 8 --save_steps 2 --save_total_limit 2 \
                   --train_sampling_strategy random --learning_rate 1e-3 --zero_stage 3";

fn train<'a>(scene: &'a Scene, run: &str) -> Job<'a> {
    scene.train("tiny-llama", run, JOB)
}

/// A job in which something happens.
fn struck<'a>(scene: &'a Scene, run: &str, fault: &str) -> Job<'a> {
    train(scene, run).adjust(|command| {
        command.env("ZEROFOLD_FAULT", fault);
    })
}

fn model(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("model/model.safetensors")).expect("a model was written")
}

/// Goes on, perhaps from the beginning, to the end that the whole run had.
#[track_caller]
fn assert_goes_on(scene: &Scene, run: &str, what: &str) {
    let folder = scene.path(run);
    let before = Metrics::of(&folder).count();
    // Killed before its first checkpoint a run begins again; nothing else is ever in the way.
    let job = match checkpoints(&folder).iter().any(|step| step.join("manifest.json").exists()) {
        true => train(scene, run).words("--resume"),
        false => {
            std::fs::remove_dir_all(&folder).unwrap();
            train(scene, run)
        }
    };
    let ended: Ended = job.run();
    ended.assert_done();
    let begun = Metrics::of(&folder);
    assert_eq!(begun.exact(), Metrics::of(&scene.path("whole")).exact(), "{what}, {before} steps before");
    assert!(model(&folder) == model(&scene.path("whole")), "{what}: the models differ");
    let names: Vec<_> = checkpoints(&folder).iter().map(|step| step.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["step-00000006", "step-00000008"], "{what}");
}

#[test]
fn whoever_is_killed_wherever_the_run_goes_on() {
    let scene = Scene::new();
    train(&scene, "whole").run().assert_done();
    let workers = [BEGIN, WRITING, WRITTEN].into_iter().flat_map(|point| ["0", "1", "all"].map(|who| (who, point)));
    let launch = [COLLECTED, PUBLISHED, DELETING].map(|point| ("launch", point));
    let cases: Vec<(&str, &str, u32)> =
        workers.chain(launch).flat_map(|(who, point)| [1, 2].map(|count| (who, point, count))).collect();
    for (index, (who, point, count)) in cases.iter().enumerate() {
        let run = format!("run-{index}");
        let fault = format!("{who}@{point}#{count}=kill");
        let ended = struck(&scene, &run, &fault).start().finish();
        assert_ne!(ended.code, Some(0), "{fault} did not strike\n{ended}");
        scene.assert_nobody_left();
        assert_goes_on(&scene, &run, &fault);
    }
    println!("{} kills", cases.len());
}

/// A rank is stopped while it saves, its launch is killed, and the run goes on: what the rank was about to do is of no effect,
/// whether it wakes up or not.
#[test]
fn a_rank_that_was_stopped_disturbs_no_later_run() {
    let scene = Scene::new();
    train(&scene, "whole").run().assert_done();
    for point in [BEGIN, WRITING, WRITTEN] {
        let run = format!("stopped-{point}");
        let mut running = struck(&scene, &run, &format!("1@{point}#1=stop")).start();
        let rank = scene.rank(1);
        running.wait_for("the rank to stop", || rank.is_stopped().then_some(()));
        running.signal(libc::SIGKILL);
        running.finish();
        zerofold_tests::signal(rank.pid, libc::SIGCONT);
        assert_goes_on(&scene, &run, point);
        scene.assert_nobody_left();
    }
}

/// Numbers that look random (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// `KILLS` (200) times, somebody is killed at some time; each run goes on from its newest checkpoint until it is done, and then
/// is what a run is that nobody disturbed. `SEED` makes it another series.
#[test]
#[ignore = "takes minutes"]
fn two_hundred_random_kills_lose_nothing_which_takes_minutes() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (kills, seed) = (number("KILLS", 200), number("SEED", 1));
    let scene = Scene::new();
    let long = |run: &str| train(&scene, run).words("--max_steps 60");
    long("whole").run().assert_done();
    let newest = |run: &Path| {
        let published = checkpoints(run).into_iter().rfind(|step| step.join("manifest.json").exists());
        published.map(|step| step.file_name().unwrap().to_str().unwrap()["step-".len()..].parse::<u64>().unwrap())
    };
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let (mut tally, mut killed, mut runs) = (std::collections::BTreeMap::<String, u32>::new(), 0, 0);
    while killed < kills {
        let run = format!("run-{runs}");
        let folder = scene.path(&run);
        loop {
            let from = newest(&folder);
            if from.is_none() && folder.exists() {
                std::fs::remove_dir_all(&folder).unwrap();
            }
            let job = if from.is_some() { long(&run).words("--resume") } else { long(&run) };
            let mut running = job.start();
            let whom = ["rank 0", "rank 1", "both ranks", "launch"][dice.below(4) as usize];
            std::thread::sleep(std::time::Duration::from_millis(dice.below(1500)));
            if running.has_ended() {
                let ended = running.finish();
                ended.assert_done();
                break;
            }
            let (before, steps) = (newest(&folder), Metrics::of(&folder).count() as u64);
            for process in scene.processes() {
                let name = process.rank.map_or("launch".to_owned(), |rank| format!("rank {rank}"));
                if whom == name || whom == "both ranks" && process.rank.is_some() {
                    zerofold_tests::signal(process.pid, libc::SIGKILL);
                }
            }
            running.finish();
            scene.assert_nobody_left();
            let after = newest(&folder);
            assert!(after >= before, "a checkpoint is gone: {before:?}, {after:?}");
            // A save may be under way, and the next one waits for it.
            assert!(after.unwrap_or(0) + 4 >= steps, "{steps} steps were done, and the newest checkpoint is {after:?}");
            killed += 1;
            *tally.entry(whom.to_owned()).or_default() += 1;
        }
        runs += 1;
        assert_eq!(Metrics::of(&folder).exact(), Metrics::of(&scene.path("whole")).exact(), "{run}");
        assert!(model(&folder) == model(&scene.path("whole")), "{run}: the models differ");
        std::fs::remove_dir_all(&folder).unwrap();
    }
    println!("seed {seed}: {killed} kills ({tally:?}) in {runs} runs of 60 steps, all of them as if nothing had been");
}
