//! What was tokenised before: taken, kept, made anew where it is damaged, put into a run folder.

use super::*;

#[test]
fn what_was_tokenised_before_is_taken_from_the_cache() {
    let setting = Setting::new(testing::CHATML, &(row(&["Q", "A"]) + &row(&["Q", "B"])));
    let first = setting.prepare(1024, true).unwrap();
    let again = setting.prepare(1024, true).unwrap();
    assert_eq!((first.from_cache, again.from_cache), (false, true));
    assert_eq!((&again.dataset, &again.report, &again.digest), (&first.dataset, &first.report, &first.digest));
    assert_eq!(again.digest, again.dataset.digest());
    // Everything that has a say in the rows makes other ones.
    let new = |what: &str, prepared: Prepared| assert!(!prepared.from_cache, "{what}");
    new("max_length", setting.prepare(1000, true).unwrap());
    let uncut = setting.prepare_with(&["train.jsonl"], |options| Prepare { max_length: None, ..options });
    new("rows that packing cuts", uncut.unwrap());
    new("loss", setting.prepare(1024, false).unwrap());
    setting.write("train.jsonl", &(row(&["Q", "A"]) + &row(&["Q", "C"])));
    new("data of the same size", setting.prepare(1024, true).unwrap());
    setting.write("config.json", r#"{"vocab_size": 268}"#);
    new("config.json", setting.prepare(1024, true).unwrap());
    setting.write("tokenizer_config.json", &serde_json::json!({"chat_template": testing::MARKED}).to_string());
    new("template", setting.prepare(1024, true).unwrap());
    fs::rename(setting.path("train.jsonl"), setting.path("other.jsonl")).unwrap();
    let renamed = setting.prepare_with(&["other.jsonl"], |options| options).unwrap();
    assert!(!renamed.from_cache && renamed.dataset.places.words(0).ends_with("other.jsonl"));
    // The files that a pattern finds are the same as by their names.
    assert!(setting.prepare_with(&["oth*.jsonl"], |options| options).unwrap().from_cache);
}

#[test]
fn a_use_keeps_a_file_of_the_cache_and_the_next_data_set_removes_what_was_not_used() {
    let setting = Setting::new(testing::CHATML, &row(&["Q", "A"]));
    let first = setting.prepare(1024, true).unwrap();
    let long_ago = || {
        let time = SystemTime::now() - std::time::Duration::from_secs(31 * 86_400);
        fs::File::open(&first.file).unwrap().set_modified(time).unwrap();
    };
    long_ago();
    assert!(setting.prepare(1024, true).unwrap().from_cache);
    assert_eq!(setting.prepare(1000, true).unwrap().tidied, Tidied::default());
    assert!(first.file.exists());
    long_ago();
    assert_eq!(setting.prepare(999, true).unwrap().tidied.datasets, 1);
    assert!(!first.file.exists());
    assert!(!setting.prepare(1024, true).unwrap().from_cache);
}

#[test]
fn a_damaged_file_of_the_cache_is_made_anew_and_said() {
    let setting = Setting::new(testing::CHATML, &row(&["Q", "A"]));
    let first = setting.prepare(1024, true).unwrap();
    let whole = fs::read(&first.file).unwrap();
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.clear(),
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| {
            let at = bytes.len() - 60;
            bytes[at] ^= 4;
        },
    ];
    for (index, damage) in damages.iter().enumerate() {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::remove_file(&first.file).unwrap();
        fs::write(&first.file, bytes).unwrap();
        let again = setting.prepare(1024, true).unwrap();
        assert!(!again.from_cache, "damage {index}");
        assert_eq!((&again.dataset, &again.digest), (&first.dataset, &first.digest));
        assert!(again.report.warnings.iter().any(|warning| warning.contains("was damaged and is made anew")));
        assert_eq!(fs::read(&first.file).unwrap(), whole);
    }
}

#[test]
fn many_may_prepare_the_same_at_once() {
    let setting =
        Setting::new(testing::CHATML, &(0..200).map(|index| row(&["Q", &index.to_string()])).collect::<String>());
    let digests: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| setting.prepare(1024, true).unwrap().digest)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    let kept = fs::read_dir(setting.path("cache")).unwrap().count();
    assert_eq!(kept, 1, "one file, and nothing half written");
    assert!(setting.prepare(1024, true).unwrap().from_cache);
}

#[test]
fn rows_are_put_into_a_run_folder_whatever_was_there() {
    let setting = Setting::new(testing::CHATML, &row(&["Q", "A"]));
    let prepared = setting.prepare(1024, true).unwrap();
    let target = setting.path("run/data/train.safetensors");
    for _ in 0..2 {
        prepared.put(&target).unwrap();
        assert_eq!(TokenizedDataset::load(&target).unwrap(), prepared.dataset);
    }
    assert_eq!(fs::read_dir(setting.path("run/data")).unwrap().count(), 1);
}
