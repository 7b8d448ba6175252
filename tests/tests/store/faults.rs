//! Lines that are cut, and processes that are asked to stop or killed, while a checkpoint is uploaded.

use zerofold_tests::{Dtype, Metrics, RandomModel, Scene, SmallDisk, wait_for};

use super::proxy::Proxy;
use super::server::{Server, published};
use super::{FIRST, assert_ends_as, look, names, reaching, stored, train, whole};

#[test]
fn a_lost_connection_costs_an_upload_and_nothing_else() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let proxy = Proxy::to(server.address());
    let (run, objects) = (scene.path("run"), server.objects("run"));
    train(&scene, "run", proxy.address(), "--max_steps 2").run().assert_done();
    assert_eq!(published(&objects), [2]);

    // In the second of two files: probe, listing and the first one need less.
    let bytes = std::fs::metadata(objects.join("step-00000002").join(FIRST)).unwrap().len();
    proxy.cut_after(bytes + bytes / 2);
    let ended = train(&scene, "run", proxy.address(), "--max_steps 4 --resume").run();
    ended.assert_done();
    assert!(proxy.is_cut(), "{ended}");
    ended.assert_says(&[
        "error: the checkpoint of step 4 is not in s3://models/run/step-00000004: cannot write ",
        "hint: ",
    ]);
    assert!(ended.out.contains("1 upload failed, the last one of step 4: cannot write "), "{ended}");
    assert!(ended.out.contains("this job put no checkpoint into the store"), "{ended}");
    assert_eq!(published(&objects), [2]);
    assert!(run.join("checkpoints/step-00000004/manifest.json").is_file());

    // At the start nobody waits for long, and nothing is touched.
    let ended = train(&scene, "run", proxy.address(), "--max_steps 6 --resume").run();
    ended.assert_failed(2, &["error: cannot write to s3://models/run: ", "hint: AWS_ENDPOINT_URL says"]);

    // Once it is back, the next save arrives, and what the lost one left is cleared away.
    proxy.mend();
    let ended = train(&scene, "run", proxy.address(), "--max_steps 6 --resume").run();
    ended.assert_done();
    assert!(ended.out.contains("resuming after step 4 from "), "{ended}");
    assert_eq!(published(&objects), [2, 6]);
    assert_eq!(stored(&objects), ["step-00000002", "step-00000006"]);
    look(&scene, server.address(), "verify s3://models/run").assert_done();
}

#[test]
fn a_line_that_is_mended_in_time_costs_nothing() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let proxy = Proxy::to(server.address());
    proxy.cut_after(300_000);
    let job = train(&scene, "run", proxy.address(), "--max_steps 2").adjust(|command| {
        command.env("ZEROFOLD_STORE_PATIENCE", "60");
    });
    let running = job.start();
    wait_for("the cut", || proxy.is_cut().then_some(()));
    proxy.mend();
    let ended = running.finish();
    ended.assert_done();
    assert!(!ended.err.contains("error: "), "{ended}");
    assert_eq!(published(&server.objects("run")), [2]);
    look(&scene, server.address(), "verify s3://models/run").assert_done();
}

#[test]
fn what_is_asked_to_stop_does_not_wait_for_ever() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let proxy = Proxy::to(server.address());
    let words = "--max_steps 100000 --save_steps 100000 --grace 4";
    let mut running = train(&scene, "run", proxy.address(), words)
        .adjust(|command| {
            command.env("ZEROFOLD_STORE_PATIENCE", "600");
        })
        .start();
    let run = scene.path("run");
    running.wait_for("a step", || (Metrics::of(&run).count() >= 1).then_some(()));
    proxy.cut_after(0);
    // The save that SIGTERM asks for cannot be uploaded.
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert_eq!(ended.code, Some(143), "{ended}");
    ended.assert_says(&[
        "waiting until the checkpoint of step ",
        "(at most 4 s; again to give it up at once)",
        "it was given up before its end",
        "--resume",
    ]);
    scene.assert_nobody_left();
    assert_eq!(published(&server.objects("run")), [0; 0]);
}

#[test]
fn a_launch_killed_while_it_uploads_leaves_nothing_that_counts() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let whole = whole(&scene, 40);
    // Two parts a step: in the second file of the second step, and before the manifest of that.
    for (run, fault, left) in
        [("part", "uploading#4", 1), ("manifest", "uploaded#2", 1), ("deleting", "deleting-stored#1", 1)]
    {
        let words = "--max_steps 40 --save_total_limit 1";
        let killed = train(&scene, run, server.address(), words).adjust(|command| {
            command.env("ZEROFOLD_FAULT", format!("launch@{fault}=kill"));
        });
        let ended = killed.start().finish();
        assert_eq!(ended.signal, Some(libc::SIGKILL), "{fault} did not strike\n{ended}");
        scene.assert_nobody_left();
        let objects = server.objects(run);
        assert_eq!(published(&objects).len(), left, "{fault}: {:?}", published(&objects));
        let from = *published(&objects).last().unwrap();
        assert_eq!(stored(&objects).len(), 2, "{fault}: a step that is not whole is there too");
        std::fs::remove_dir_all(scene.path(run)).unwrap();
        let ended = train(&scene, run, server.address(), words).words("--resume").run();
        ended.assert_done();
        assert!(ended.out.contains(&format!("resuming after step {from} from ")), "{fault}\n{ended}");
        assert_ends_as(&scene.path(run), &whole);
        assert_eq!(published(&objects), [40], "{fault}");
        assert_eq!(stored(&objects), ["step-00000040"], "{fault}: what was killed is cleared away");
    }
}

/// A file of 44 MiB is six parts on the way there and six ranges on the way back.
#[test]
fn files_of_many_parts_come_and_go_over_a_line_that_is_cut_once() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let proxy = Proxy::to(server.address());
    let large = RandomModel {
        hidden: 64,
        intermediate: 64,
        layers: 1,
        vocabulary: 60_000,
        tied: true,
        dtype: Dtype::BF16,
        file_bytes: 1 << 30,
    };
    large.write(&scene.path("large"));
    let job = |words: &str| {
        let job = train(&scene, "run", proxy.address(), words).words("--nproc 1 --zero_stage 0");
        job.with("--model_name_or_path", scene.path("large")).adjust(|command| {
            command.env("ZEROFOLD_STORE_PATIENCE", "60");
        })
    };
    proxy.cut_after(20_000_000);
    let running = job("--max_steps 2").start();
    wait_for("the cut", || proxy.is_cut().then_some(()));
    proxy.mend();
    let ended = running.finish();
    ended.assert_done();
    assert!(!ended.err.contains("error: "), "{ended}");
    let name = "step-00000002/rank-00000-of-00001.g1.safetensors";
    let read = |folder: &std::path::Path| std::fs::read(folder.join(name)).unwrap();
    let local = read(&scene.path("run/checkpoints"));
    assert!(local.len() > 5 << 23, "{} bytes", local.len());
    assert!(read(&server.objects("run")) == local);
    assert_eq!(server.parts(), 0);
    std::fs::remove_dir_all(scene.path("run")).unwrap();
    let ended = job("--max_steps 3 --resume").run();
    ended.assert_done();
    assert!(ended.out.contains("resuming after step 2 from "), "{ended}");
    assert!(read(&scene.path("run/checkpoints")) == local);
}

/// Somebody else's manifest appears where this run is about to commit: it stays, and the run goes on without.
#[test]
fn another_run_in_the_same_prefix_is_not_written_over() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let mut running = train(&scene, "run", server.address(), "--max_steps 60 --save_steps 60").start();
    running.wait_for("a step", || (Metrics::of(&scene.path("run")).count() >= 1).then_some(()));
    let theirs = server.objects("run/step-00000060");
    std::fs::create_dir_all(&theirs).unwrap();
    std::fs::write(theirs.join("manifest.json"), "theirs").unwrap();
    let ended = running.finish();
    ended.assert_done();
    ended.assert_says(&[
        "error: the checkpoint of step 60 is not in ",
        "another run wrote it",
        "hint: give each run a prefix",
    ]);
    assert_eq!(std::fs::read_to_string(theirs.join("manifest.json")).unwrap(), "theirs");
}

#[test]
fn a_command_that_is_stopped_leaves_nothing_behind() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let proxy = Proxy::to(server.address());
    train(&scene, "run", server.address(), "--max_steps 2").run().assert_done();
    let temporary = scene.path("temporary");
    std::fs::create_dir(&temporary).unwrap();
    // The list of objects comes, and then nothing more.
    proxy.cut_after(1000);
    let job = reaching(scene.launch("verify s3://models/run"), proxy.address()).adjust(|command| {
        command.env("TMPDIR", &temporary).env("ZEROFOLD_STORE_PATIENCE", "600");
    });
    let mut running = job.start();
    running.wait_for("a folder", || (!names(&temporary).is_empty()).then_some(()));
    running.wait_for("the cut", || proxy.is_cut().then_some(()));
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert_eq!(ended.code, Some(143), "{ended}");
    assert_eq!(names(&temporary), [""; 0]);
}

#[test]
fn what_the_disk_has_no_room_for_is_not_fetched() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    train(&scene, "run", server.address(), "--max_steps 2").run().assert_done();
    let run = scene.path("run");
    std::fs::remove_dir_all(&run).unwrap();
    let Some(_disk) = SmallDisk::mount(&run, 1 << 20) else {
        eprintln!("mounting is not permitted here");
        return;
    };
    let ended = train(&scene, "run", server.address(), "--max_steps 4 --resume").run();
    ended.assert_failed(2, &["not enough space on the disk of ", "hint: free space there"]);
    assert_eq!(names(&run.join("checkpoints")), [""; 0]);
}
