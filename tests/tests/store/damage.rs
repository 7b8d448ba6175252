//! Objects that are not what their manifest says.

use std::path::Path;

use zerofold_tests::{Scene, json};

use super::server::{BUCKET, Server, published};
use super::{FIRST, assert_ends_as, look, names, train, whole};

/// Three steps in the store, and its objects under other prefixes, each spoiled in its own way.
#[test]
fn damage_in_the_store_is_named_and_the_older_step_is_taken() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let whole = whole(&scene, 6);
    for steps in [2, 4, 6] {
        let resume = if steps > 2 { "--resume" } else { "" };
        let words = format!("--max_steps {steps} {resume}");
        train(&scene, "run", server.address(), &words).run().assert_done();
    }
    assert_eq!(published(&server.objects("run")), [2, 4, 6]);
    let file = |step: &Path| names(step).into_iter().find(|name| name.starts_with("rank-00001")).unwrap();
    type Damage = fn(&Path, &str);
    let damages: [(&str, Damage, &str); 6] = [
        (
            "flipped",
            |step, file| {
                let mut bytes = std::fs::read(step.join(file)).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(step.join(file), bytes).unwrap();
            },
            " has the hash ",
        ),
        ("missing", |step, file| std::fs::remove_file(step.join(file)).unwrap(), " is missing"),
        (
            "cut",
            |step, file| {
                let file = std::fs::File::options().write(true).open(step.join(file)).unwrap();
                file.set_len(file.metadata().unwrap().len() - 1).unwrap();
            },
            " bytes, its manifest says ",
        ),
        (
            "outside",
            |step, _| {
                let manifest = step.join("manifest.json");
                let text = std::fs::read_to_string(&manifest).unwrap();
                let tricked = text.replace("\"rank-00001", "\"../../rank-00001");
                assert!(tricked != text);
                std::fs::write(&manifest, tricked).unwrap();
            },
            "is not of the form rank-NNNNN",
        ),
        (
            "half-a-manifest",
            |step, _| {
                let manifest = step.join("manifest.json");
                let text = std::fs::read_to_string(&manifest).unwrap();
                std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
            },
            "cannot make sense of ",
        ),
        (
            "another-step",
            |step, _| {
                let manifest = step.join("manifest.json");
                let text = std::fs::read_to_string(&manifest).unwrap();
                std::fs::write(&manifest, text.replace("\"step\": 6,", "\"step\": 8,")).unwrap();
            },
            "is of step 8",
        ),
    ];
    for (name, damage, expected) in damages {
        scene.copy(&server.objects("run"), &format!("store/{BUCKET}/{name}"));
        let newest = server.objects(name).join("step-00000006");
        damage(&newest, &file(&newest));
        let ended = train(&scene, name, server.address(), "--max_steps 6 --resume").run();
        ended.assert_done();
        ended.assert_says(&[&format!("skipped s3://models/{name}/step-00000006: "), expected]);
        assert!(ended.out.contains("resuming after step 4 from "), "{name}\n{ended}");
        assert_ends_as(&scene.path(name), &whole);
        // The step was saved anew, beside what was set aside.
        assert_eq!(published(&server.objects(name)), [2, 4, 6], "{name}");
        assert!(names(&newest).iter().any(|name| name.starts_with("manifest.json.replaced-")), "{name}");
        let generation = json(&newest.join("manifest.json"))["generation"].as_u64();
        assert_eq!(generation, Some(4), "{name}: shards in the store are never written over");
        look(&scene, server.address(), &format!("verify s3://models/{name}/step-00000006")).assert_done();
        let steps = names(&scene.path(name).join("checkpoints"));
        assert_eq!(steps, ["step-00000004", "step-00000006"], "{name}: nothing half stays");
    }

    // With none that is whole there is nothing to go on from.
    scene.copy(&server.objects("run"), &format!("store/{BUCKET}/none"));
    for step in published(&server.objects("none")) {
        std::fs::remove_file(
            server.objects("none").join(format!("step-{step:08}")).join(FIRST.replace("g1", &format!("g{}", step / 2))),
        )
        .unwrap();
    }
    let ended = train(&scene, "none", server.address(), "--max_steps 6 --resume").run();
    ended.assert_failed(
        2,
        &["none of 3 checkpoints in it and in s3://models/none is whole", "hint: leave --resume out"],
    );
}
