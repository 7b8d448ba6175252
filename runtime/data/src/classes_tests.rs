use super::*;
use serde_json::json;

fn classes(problem: ProblemType, names: &[&str]) -> Classes {
    Classes { problem, names: names.iter().map(|name| (*name).to_owned()).collect(), at_last_token: false }
}

#[test]
fn a_class_is_given_by_its_name_or_its_number() {
    let classes = classes(ProblemType::SingleLabel, &["no", "yes"]);
    for (label, class) in [(json!("yes"), 1), (json!(0), 0), (json!(1.0), 1), (json!(true), 1)] {
        assert_eq!(classes.told(&label).unwrap(), Told::Class(class), "{label}");
    }
    for wrong in [json!("YES"), json!(2), json!(-1), json!(0.5), json!([1]), json!({})] {
        assert!(classes.told(&wrong).is_err(), "{wrong}");
    }
    let digits = self::classes(ProblemType::SingleLabel, &["0", "10", "2"]);
    assert_eq!((digits.told(&json!(0)).unwrap(), digits.told(&json!("10")).unwrap()), (Told::Class(0), Told::Class(1)));
    assert_eq!(digits.told(&json!(1)).unwrap(), Told::Class(1), "no class is called 1");
    assert!(digits.told(&json!(10)).unwrap_err().message.contains("a class that is not number 10 is called so"));
    let fault = classes.told(&json!("maybe")).unwrap_err();
    assert_eq!(fault.message, "`label` is \"maybe\", and the model has 2 classes: no, yes");
}

#[test]
fn several_classes_are_a_list_of_them_or_of_flags() {
    let classes = classes(ProblemType::MultiLabel, &["a", "b", "c"]);
    let table = [
        (json!(["c", "a"]), [1.0, 0.0, 1.0]),
        (json!([2]), [0.0, 0.0, 1.0]),
        (json!([]), [0.0, 0.0, 0.0]),
        (json!([0, 1, 1]), [0.0, 1.0, 1.0]),
        (json!([1.0, 0.0, 0.0]), [1.0, 0.0, 0.0]),
        (json!([true, false, true]), [1.0, 0.0, 1.0]),
        // Numbers of classes, since they are no flags.
        (json!([0, 1, 2]), [1.0, 1.0, 1.0]),
    ];
    for (label, values) in table {
        assert_eq!(classes.told(&label).unwrap(), Told::Values(values.to_vec()), "{label}");
    }
    for wrong in [json!("a"), json!(1), json!(["d"]), json!([3]), json!([0.5]), json!([0, 1, 1, 1]), json!(["a", "a"])]
    {
        assert!(classes.told(&wrong).is_err(), "{wrong}");
    }
}

#[test]
fn numbers_are_as_many_as_the_model_tells() {
    let one = classes(ProblemType::Regression, &["LABEL_0"]);
    assert_eq!(one.told(&json!(-2.5)).unwrap(), Told::Values(vec![-2.5]));
    assert_eq!(one.told(&json!([3])).unwrap(), Told::Values(vec![3.0]));
    for wrong in [json!("1"), json!([1, 2]), json!(1e300), json!(true)] {
        assert!(one.told(&wrong).is_err(), "{wrong}");
    }
    let two = classes(ProblemType::Regression, &["x", "y"]);
    assert_eq!(two.told(&json!([1, 2.5])).unwrap(), Told::Values(vec![1.0, 2.5]));
    assert!(two.told(&json!(1)).is_err());
}

/// Problem and names of such labels.
fn found(labels: &[Value]) -> (ProblemType, Result<Vec<String>, String>) {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<String> = labels.iter().map(|label| json!({"text": "t", "label": label}).to_string()).collect();
    std::fs::write(folder.path().join("rows.jsonl"), rows.join("\n")).unwrap();
    let sources = Sources::find(&[folder.path().join("rows.jsonl").display().to_string()]).unwrap();
    let found = FoundLabels::of(&sources, &Columns::default()).unwrap();
    (found.problem(), found.classes(found.problem()).map_err(|error| error.to_string()))
}

#[test]
fn what_labels_are_is_seen_of_all_of_them() {
    let names = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let numbered = |count: usize| Ok((0..count).map(|id| format!("LABEL_{id}")).collect::<Vec<_>>());
    let (single, several, numbers) = (ProblemType::SingleLabel, ProblemType::MultiLabel, ProblemType::Regression);
    let table = [
        (vec![json!("b"), json!("a"), json!("b")], single, names(&["a", "b"])),
        (vec![json!(0), json!(4)], single, numbered(5)),
        // One class would tell nothing.
        (vec![json!(0), json!(0)], single, numbered(2)),
        (vec![json!(true), json!(false)], single, numbered(2)),
        (vec![json!(1), json!(0.5)], numbers, numbered(1)),
        (vec![json!(0.0), json!(2.0)], single, numbered(3)),
        (vec![json!([0.5, 1]), json!([2, 3])], numbers, numbered(2)),
        (vec![json!(["b"]), json!([]), json!(["a", "b"])], several, names(&["a", "b"])),
        (vec![json!([0, 1, 0, 0]), json!([1, 1, 0, 0])], several, numbered(4)),
        (vec![json!([0]), json!([3, 1])], several, numbered(4)),
    ];
    for (labels, problem, names) in table {
        assert_eq!(found(&labels), (problem, names), "{labels:?}");
    }
    for (label, words) in [(json!(-1), "below 0"), (json!(u64::MAX), "100000 or larger")] {
        let refused = found(&[label]).1.unwrap_err();
        assert!(refused.contains(words) && refused.contains("problem_type: regression"), "{refused}");
    }
    for (labels, words) in [
        (
            vec![json!("a"), json!(1)],
            ["a number in some rows (", "rows.jsonl:2) and a name in others (", "rows.jsonl:1: \"a\")"],
        ),
        (vec![json!(1), json!(-1)], ["labels that are below 0 (", "rows.jsonl:2)", "numbered from 0"]),
        (
            vec![json!([1, 0]), json!([1, 0, 1])],
            ["`label` is of 2 flags in ", "rows.jsonl:1, and of 3 in ", "rows.jsonl:2"],
        ),
    ] {
        let refused = found(&labels).1.unwrap_err();
        assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    }
}

#[test]
fn labels_of_several_sources_come_together() {
    let of = |names: &[&str], largest: Option<u64>| FoundLabels {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        largest,
        all_flags: true,
        ..FoundLabels::default()
    };
    let both = of(&["b"], None).and(of(&["a"], None));
    assert_eq!(both.classes(ProblemType::SingleLabel).unwrap(), ["a", "b"]);
    assert_eq!(of(&[], Some(2)).and(of(&[], Some(7))).largest, Some(7));
}

#[test]
fn a_row_without_a_label_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, "{\"text\": \"t\", \"label\": 1}\n{\"text\": \"t\"}\n").unwrap();
    let sources = Sources::find(&[path.display().to_string()]).unwrap();
    let error = FoundLabels::of(&sources, &Columns::default()).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:2") && error.contains("no `label`; found: text"), "{error}");
}
