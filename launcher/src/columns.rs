//! Rows of cells as lines of a table.

/// Columns side by side: the first to the left, the others to the right.
pub fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    side_by_side(rows, |column| column == 0)
}

/// Columns side by side, all to the left.
pub fn left_aligned(rows: &[Vec<String>]) -> Vec<String> {
    side_by_side(rows, |_| true)
}

fn side_by_side(rows: &[Vec<String>], to_the_left: impl Fn(usize) -> bool) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match to_the_left(column) {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}
