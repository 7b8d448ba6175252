//! Files as they come: which are found, and what is read from each form of them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (name, bytes) in files {
            let path = folder.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn plain(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "").replace(&self.0.path().display().to_string(), ".")
    }

    fn find(&self, names: &[&str]) -> Result<Sources, String> {
        let names: Vec<String> = names.iter().map(|name| self.0.path().join(name).display().to_string()).collect();
        Sources::find(&names).map_err(|error| self.plain(&error.to_string()))
    }

    fn names(&self, names: &[&str]) -> Result<Vec<String>, String> {
        Ok(self.find(names)?.files().iter().map(|file| self.plain(&file.shown())).collect())
    }

    /// Every row as its place and its JSON.
    fn read(&self, names: &[&str]) -> Result<Vec<(String, String)>, String> {
        let sources = self.find(names)?;
        let mut rows = RawRows::new(&sources);
        let mut read = Vec::new();
        while let Some(row) = rows.next() {
            let RawRow { file, number, content } = row.map_err(|error| self.plain(&error.to_string()))?;
            let place = rows.units()[file].place(&self.plain(&sources.files()[file].shown()), number);
            read.push((place, Value::Object(crate::rows::parse_object(content).unwrap()).to_string()));
        }
        Ok(read)
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Level::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(place, row)| ((*place).to_owned(), (*row).to_owned())).collect()
}

#[test]
fn paths_patterns_and_folders_are_found_in_a_settled_order() {
    let folder = Folder::new(&[
        ("data/b.jsonl", b"{}"),
        ("data/a.jsonl.gz", b""),
        ("data/README.md", b""),
        ("data/.hidden.jsonl", b""),
        ("data/inner/c.jsonl", b""),
        ("odd[1].jsonl", b""),
    ]);
    assert_eq!(folder.names(&["data"]).unwrap(), ["data/a.jsonl.gz", "data/b.jsonl"]);
    assert_eq!(folder.names(&["data/b.jsonl", "data"]).unwrap(), ["data/b.jsonl", "data/a.jsonl.gz", "data/b.jsonl"]);
    assert_eq!(folder.names(&["data/*.jsonl*"]).unwrap(), ["data/a.jsonl.gz", "data/b.jsonl"]);
    assert_eq!(folder.names(&["**/c.jsonl"]).unwrap(), ["data/inner/c.jsonl"]);
    assert_eq!(folder.names(&["odd[1].jsonl"]).unwrap(), ["odd[1].jsonl"], "a name that looks like a pattern");
}

#[test]
fn what_is_no_data_set_is_refused() {
    let folder = Folder::new(&[
        ("mixed/a.jsonl", b""),
        ("mixed/b.parquet", b""),
        ("hub/train-00000-of-00001.parquet", b""),
        ("hub/test-00000-of-00001.parquet", b""),
        ("empty/README.md", b""),
        ("a.arrow", b""),
        ("a.csv.gz", b""),
        ("a.jsonl.xz", b""),
    ]);
    let cases = [
        ("none.jsonl", "none.jsonl: cannot open the data set: No such file"),
        ("mixed", "mixed/b.parquet: is Parquet, but mixed/a.jsonl is JSONL\nhint: "),
        ("hub", "hub: holds both train-00000-of-00001.parquet and test-00000-of-00001.parquet\nhint: name one"),
        ("empty", "empty: there is no data file in this folder\nhint: "),
        ("*.parquet", "*.parquet: no file matches\nhint: "),
        ("a[.jsonl", "a[.jsonl: not a pattern: "),
        ("a.arrow", "a.arrow: JSONL, JSON and Parquet are read, this is something else"),
        ("a.csv.gz", "a.csv.gz: JSONL, JSON and Parquet are read"),
        ("a.jsonl.xz", "packed files may be .gz or .zst"),
    ];
    for (name, expected) in cases {
        let error = folder.find(&[name]).unwrap_err();
        assert!(error.contains(expected), "{name}\ngave {error}\nexpected {expected}");
    }
    assert_eq!(folder.names(&["hub/train*"]).unwrap(), ["hub/train-00000-of-00001.parquet"]);
}

#[test]
fn packed_files_read_as_unpacked_ones() {
    let text = b"{\"a\":1}\n\n{\"a\":2}\n";
    let members = [gzip(&text[..9]), gzip(&text[9..])].concat();
    let frames = [zstd::encode_all(&text[..9], 3).unwrap(), zstd::encode_all(&text[9..], 3).unwrap()].concat();
    let folder = Folder::new(&[("a.jsonl", text), ("b.jsonl.gz", &members), ("c.jsonl.zst", &frames)]);
    for name in ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst"] {
        let places = [format!("{name}:1"), format!("{name}:3")];
        let expected = [(places[0].as_str(), "{\"a\":1}"), (places[1].as_str(), "{\"a\":2}")];
        assert_eq!(folder.read(&[name]).unwrap(), pairs(&expected));
    }
    let rows = folder.read(&["a.jsonl", "c.jsonl.zst"]).unwrap();
    assert_eq!(
        rows.iter().map(|row| row.0.as_str()).collect::<Vec<_>>(),
        ["a.jsonl:1", "a.jsonl:3", "c.jsonl.zst:1", "c.jsonl.zst:3"]
    );
}

#[test]
fn json_is_an_array_or_an_object_with_one() {
    let expected = pairs(&[("a.json[0]", r#"{"a":"]\"},{"}"#), ("a.json[1]", r#"{"b":[[],{}]}"#)]);
    for text in [
        r#"[{"a":"]\"},{"},{"b":[[],{}]}]"#,
        "\u{feff} [\n {\"a\": \"]\\\"},{\"} ,\n {\"b\": [[], {}]}\n]\n",
        r#"{"version": "1,2", "list": {"x": [1]}, "data": [{"a":"]\"},{"},{"b":[[],{}]}], "n": null}"#,
    ] {
        let folder = Folder::new(&[("a.json", text.as_bytes())]);
        assert_eq!(folder.read(&["a.json"]).unwrap(), expected, "{text}");
    }
    // JSONL under the name .json, as it is often found.
    for text in ["{\"a\":1}\n{\"a\":2}", "{\"data\":[{\"a\":1}]}\n{\"data\":[{\"a\":1}]}\n"] {
        let folder = Folder::new(&[("a.json", text.as_bytes())]);
        assert_eq!(folder.read(&["a.json"]).unwrap().len(), 2);
    }
    let folder = Folder::new(&[("a.json", b"{\"messages\":[{\"role\":\"user\"}]}\n")]);
    assert_eq!(folder.read(&["a.json"]).unwrap()[0].0, "a.json:1");
    assert_eq!(Folder::new(&[("a.json", b" [ ] ")]).read(&["a.json"]).unwrap(), []);
}

#[test]
fn broken_json_tells_the_element() {
    let cases = [
        ("[{}, {}", "a.json[2]: broken JSON: expected `,` or `]`, found the end of the file"),
        ("[{}, {\"a\"", "a.json[1]: the file ends inside of this element"),
        ("[{}, {}] x", "a.json[2]: broken JSON: expected the end of the file, found `x`"),
        ("[{},]", "a.json[1]: broken JSON: expected a value, found `]`"),
        ("[{} {}]", "a.json[1]: broken JSON: expected `,` or `]`, found `{`"),
        ("7", "a.json[0]: broken JSON: expected an array or an object, found `7`"),
        ("", "a.json[0]: broken JSON: expected an array or an object, found the end"),
        ("{\n}", "a.json[0]: there is no array in this object"),
        ("{\n\"a\": 1}", "a.json[0]: there is no array in this object"),
        ("{\n\"a\": [{}], \"b\": [{}]}", "a.json[1]: the object has a second array"),
        ("{\n5: [{}]}", "a.json[0]: broken JSON: expected the name of a field, found `5`"),
        ("[{}, \"a", "a.json[1]: the file ends inside"),
    ];
    for (text, expected) in cases {
        let error = Folder::new(&[("a.json", text.as_bytes())]).read(&["a.json"]).unwrap_err();
        assert!(error.contains(expected) && error.contains("\nhint: "), "{text}\ngave {error}\nexpected {expected}");
    }
}

#[test]
fn long_rows_and_endless_emptiness_are_refused() {
    let long = gzip(&vec![b' '; ROW_LIMIT + 2]);
    let empty = gzip(&vec![b'\n'; ROW_LIMIT + 2]);
    let element = gzip(&[b"[\"".to_vec(), vec![b'x'; ROW_LIMIT + 2]].concat());
    let folder = Folder::new(&[("a.jsonl.gz", &long), ("b.jsonl.gz", &empty), ("c.json.gz", &element)]);
    assert!(folder.read(&["a.jsonl.gz"]).unwrap_err().contains("a.jsonl.gz:1: the line is longer than 64 MiB"));
    assert!(folder.read(&["b.jsonl.gz"]).unwrap_err().contains("64 MiB of empty lines"));
    assert!(folder.read(&["c.json.gz"]).unwrap_err().contains("c.json.gz[0]: the element is longer than 64 MiB"));
    write_table(&folder.0.path().join("d.parquet"), &["short", &"x".repeat(ROW_LIMIT), "short"]);
    let error = folder.read(&["d.parquet"]).unwrap_err();
    assert!(error.contains("d.parquet: row 1 (row group 0): the row is longer than 64 MiB\nhint: "), "{error}");
}

/// A table with one column of text.
fn write_table(path: &Path, texts: &[&str]) {
    let schema = parse_message_type("message rows { REQUIRED BYTE_ARRAY text (UTF8); }").unwrap();
    let mut writer =
        SerializedFileWriter::new(fs::File::create(path).unwrap(), Arc::new(schema), Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let texts: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_of_hugging_face_reads_as_the_same_rows_in_json() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data/files");
    let read = |name: &str| {
        let sources = Sources::find(&[fixtures.join(name).display().to_string()]).unwrap();
        let rows = RawRows::new(&sources).map(|row| crate::rows::parse_object(row.unwrap().content).unwrap());
        rows.map(|row| Value::Object(row).to_string()).collect::<Vec<_>>()
    };
    let mut compared = 0;
    for entry in fs::read_dir(&fixtures).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(stem) = name.strip_suffix(".parquet") {
            let expected = stem.split('-').next().unwrap();
            assert_eq!(read(&name), read(&format!("{expected}.jsonl")), "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 8, "only {compared} Parquet files in the fixtures");
}
