//! What a YAML text may ask of its reader. Aliases repeat what they name, and each repeats the aliases in that; brackets
//! cost time by the square of their depth.

/// Aliases (`*name`) of one file.
const MOST_ALIASES: usize = 16;
/// Bytes of a file that has aliases.
const MOST_BYTES_WITH_ALIASES: usize = 16 << 10;
/// Brackets that are open at a time.
const MOST_OPEN: usize = 64;

/// Refuses a text that would take long, or much memory, to read.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    let mut aliases = 0;
    let mut open = 0_usize;
    let mut before = b'\n';
    for (index, byte) in bytes.iter().copied().enumerate() {
        let begins = before.is_ascii_whitespace() || b"[{,:-?".contains(&before);
        let named = bytes.get(index + 1).is_some_and(|next| next.is_ascii_alphanumeric() || b"_-".contains(next));
        aliases += usize::from(byte == b'*' && begins && named);
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MOST_OPEN {
            let line = bytes[..index].iter().filter(|byte| **byte == b'\n').count() + 1;
            return Err(format!("more than {MOST_OPEN} brackets are open in line {line}"));
        }
        before = byte;
    }
    if aliases > MOST_ALIASES || (aliases > 0 && bytes.len() > MOST_BYTES_WITH_ALIASES) {
        return Err(format!(
            "it has {aliases} aliases (*name) in {} bytes; there may be {MOST_ALIASES} in {MOST_BYTES_WITH_ALIASES}",
            bytes.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_texts_pass_and_bombs_do_not() {
        for text in ["", "a: &x {b: 1}\nc: *x\n", "dataset: data/*.jsonl\nother: '*'\n# * * *\n", "a: [[1, 2], {b: 3}]"]
        {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        assert!(check(&"[".repeat(65)).unwrap_err().contains("line 1"));
        assert_eq!(check(&"[]".repeat(1000)), Ok(()));
        let bomb = (1..9).map(|level| format!("a{level}: &a{level} [*a{0}, *a{0}, *a{0}]\n", level - 1));
        assert!(check(&bomb.collect::<String>()).unwrap_err().contains("24 aliases"));
        let long = format!("a: &x [{}]\nb: *x\n", "1, ".repeat(10_000));
        assert!(check(&long).unwrap_err().contains("1 aliases"));
    }
}
