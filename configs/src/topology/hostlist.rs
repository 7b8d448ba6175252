//! Slurm's lists of hosts, such as `node[01-03,07],x1`.

/// More hosts than any cluster has: a list that says more is a slip.
const MOST: usize = 65_536;

/// Every host of the list, in order.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn expand(list: &str) -> Result<Vec<String>, String> {
    let mut hosts = Vec::new();
    for part in parts(list)? {
        let mut names = vec![String::new()];
        let mut rest = part;
        while let Some((before, after)) = rest.split_once('[') {
            let (inside, behind) = after.split_once(']').ok_or_else(|| format!("a `[` of {part:?} is not closed"))?;
            let numbers = ranges(inside)?;
            if names.len().saturating_mul(numbers.len()) > MOST {
                return Err(format!("{part:?} has more than {MOST} hosts"));
            }
            let extended = |name: &String| {
                let start = format!("{name}{before}");
                numbers.iter().map(|number| format!("{start}{number}")).collect::<Vec<_>>()
            };
            names = names.iter().flat_map(extended).collect();
            rest = behind;
        }
        if rest.contains(']') {
            return Err(format!("a `]` of {part:?} was not opened"));
        }
        names.iter_mut().for_each(|name| name.push_str(rest));
        if names.iter().any(String::is_empty) {
            return Err("a name is empty".to_owned());
        }
        hosts.append(&mut names);
        if hosts.len() > MOST {
            return Err(format!("it has more than {MOST} hosts"));
        }
    }
    Ok(hosts)
}

/// The list cut at its commas, but for those inside brackets.
fn parts(list: &str) -> Result<Vec<&str>, String> {
    let mut inside = false;
    let mut found = Vec::new();
    let mut from = 0;
    for (at, letter) in list.char_indices() {
        match letter {
            '[' if inside => return Err("a `[` stands inside another".to_owned()),
            '[' => inside = true,
            ']' => inside = false,
            ',' if !inside => {
                found.push(list[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    found.push(list[from..].trim());
    Ok(found)
}

/// The numbers of `01-03,07`, as wide as they are written.
fn ranges(inside: &str) -> Result<Vec<String>, String> {
    let mut numbers = Vec::new();
    for range in inside.split(',') {
        let range = range.trim();
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let parsed = if digits { text.parse::<u64>().ok() } else { None };
            parsed.ok_or_else(|| format!("[{inside}] is not numbers such as 01-03,07"))
        };
        let (from, to) = (number(first)?, number(last)?);
        if to < from || to - from >= MOST as u64 || numbers.len() > MOST {
            return Err(format!("[{inside}] runs backwards, or has more than {MOST} numbers"));
        }
        let width = first.len();
        numbers.extend((from..=to).map(|number| format!("{number:0width$}")));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_expanded() {
        let table: [(&str, &[&str]); 7] = [
            ("localhost", &["localhost"]),
            ("a,b", &["a", "b"]),
            ("node[01-03,07],x1", &["node01", "node02", "node03", "node07", "x1"]),
            ("n[8-11]", &["n8", "n9", "n10", "n11"]),
            ("r[1-2]n[1-2]", &["r1n1", "r1n2", "r2n1", "r2n2"]),
            ("gpu-[3].cluster", &["gpu-3.cluster"]),
            ("a-b-1", &["a-b-1"]),
        ];
        for (list, hosts) in table {
            assert_eq!(expand(list).unwrap(), hosts, "{list}");
        }
    }

    #[test]
    fn broken_lists_are_errors() {
        for list in
            ["", "a,,b", "n[1-", "n]1[", "n[x]", "n[3-1]", "n[1[2]]", "n[]", "n[1-99999999]", "n[1-256]m[1-257]"]
        {
            assert!(expand(list).is_err(), "{list}");
        }
    }
}
