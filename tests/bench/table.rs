//! Tables in Markdown, which read well as plain text too.

/// The rows, of which the first is the head, with columns as wide as their widest cell.
pub fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("| {cell:<width$} "));
        text.extend(cells.chain(["|\n".to_owned()]));
        if index == 0 {
            text.extend(widths.iter().map(|width| format!("|{}", "-".repeat(width + 2))));
            text.push_str("|\n");
        }
    }
    text
}

/// A value with its significant digits and its unit.
pub fn number(value: f64, unit: &str) -> String {
    match unit {
        "1/s" => format!("{value:.0}/s"),
        _ if value >= 100.0 => format!("{value:.0} {unit}"),
        _ if value >= 10.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.2} {unit}"),
    }
}
