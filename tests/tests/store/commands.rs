//! `launch inspect`, `verify`, `diff` and `export` of what is in a store.

use serde_json::Value;
use zerofold_tests::{Scene, model};

use super::server::Server;
use super::{MODEL, look, model_bytes, names, train};

#[test]
fn the_commands_that_look_at_checkpoints_take_urls() {
    let scene = Scene::new();
    let server = Server::start(scene.path("store"));
    let run = scene.path("run");
    for steps in [2, 4] {
        let words = format!("--max_steps {steps} {}", if steps > 2 { "--resume" } else { "" });
        train(&scene, "run", server.address(), &words).run().assert_done();
    }
    let look = |words: &str| look(&scene, server.address(), words);
    let answer = |words: &str| -> Value {
        let ended = look(words);
        ended.assert_done();
        serde_json::from_str(&ended.out).unwrap()
    };
    for (remote, local) in
        [("s3://models/run/", run.clone()), ("s3://models/run/step-00000002", run.join("checkpoints/step-00000002"))]
    {
        let (mut remote, mut local) = (
            answer(&format!("inspect --tensors --json {remote}")),
            answer(&format!("inspect --tensors --json {}", local.display())),
        );
        assert!(remote["path"].take().as_str().unwrap().starts_with("s3://models/run/step-"));
        local["path"].take();
        assert_eq!(remote, local);
    }
    let ended = look("verify s3://models/run");
    ended.assert_done();
    for step in ["step-00000002", "step-00000004"] {
        assert!(ended.out.contains(&format!("whole    s3://models/run/{step}: 2 files")), "{ended}");
    }
    let ended = look(&format!("diff s3://models/run {}", run.display()));
    ended.assert_done();
    assert!(ended.out.contains("A  s3://models/run/step-00000004 (step 4)"), "{ended}");
    let ended = look("diff s3://models/run s3://models/run/step-00000002");
    assert_eq!(ended.code, Some(1), "{ended}");
    let output = scene.path("exported");
    let export = format!("export s3://models/run --output {}", output.display());
    look(&export).assert_done();
    assert!(std::fs::read(output.join("model.safetensors")).unwrap() == model_bytes(&run));

    // Damage is looked at from end to end, and named.
    let newest = server.objects("run").join("step-00000004");
    let second = names(&newest).into_iter().find(|name| name.starts_with("rank-00001")).unwrap();
    let mut bytes = std::fs::read(newest.join(&second)).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    std::fs::write(newest.join(&second), bytes).unwrap();
    let ended = look("verify s3://models/run");
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.out.contains("damaged  s3://models/run/step-00000004: "), "{ended}");
    assert!(ended.out.contains(&format!("{second}: its hash is ")) && ended.out.contains("affected: "), "{ended}");
    look(&format!("diff s3://models/run {}", run.display()))
        .assert_failed(2, &["step-00000004 is not whole: ", &second]);
    look(&format!(
        "export s3://models/run --output {} --model {}",
        scene.path("other").display(),
        model(MODEL).display()
    ))
    .assert_failed(2, &["step-00000004 is not whole: ", &second]);
    assert!(!scene.path("other").exists());
    std::fs::remove_file(newest.join(&second)).unwrap();
    look("inspect s3://models/run").assert_failed(2, &["step-00000004 is not whole: ", &second, "is missing"]);
    let ended = look("verify s3://models/run/step-00000004");
    assert!(ended.out.contains(&format!("{second}: it is missing")), "{ended}");
    look("inspect s3://models/nothing")
        .assert_failed(2, &["there is no checkpoint in s3://models/nothing", "hint: give"]);
    look("inspect s3://models/run/step-00000003").assert_failed(2, &["there is no s3://models/run/step-00000003"]);
    look("inspect gs://models/run").assert_failed(2, &["gs://models/run must be s3://BUCKET"]);
}
