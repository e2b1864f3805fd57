//! Rows of Parquet files as CSV, in the order of the files' names: for a look at
//! what landed, and for loading it where it can be compared.
//!
//! `rows [--limit N] FILE…`

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

fn main() -> Result<(), Box<dyn Error>> {
    let mut files: Vec<String> = std::env::args().skip(1).collect();
    let mut limit = usize::MAX;
    if files.first().is_some_and(|word| word == "--limit") {
        limit = files.get(1).ok_or("--limit needs a number")?.parse()?;
        files.drain(..2);
    }
    files.sort();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut header = String::new();
    for file in &files {
        let reader = SerializedFileReader::new(File::open(file)?)?;
        for row in reader.get_row_iter(None)? {
            if limit == 0 {
                break;
            }
            limit -= 1;
            let row = row?;
            let names = line(row.get_column_iter().map(|(name, _)| Some(name.clone())));
            // A file whose columns differ has a header of its own.
            if names != header {
                writeln!(out, "{names}")?;
                header = names;
            }
            writeln!(out, "{}", line(row.get_column_iter().map(|(_, value)| text(value))))?;
        }
    }
    out.flush()?;
    Ok(())
}

fn text(value: &Field) -> Option<String> {
    match value {
        Field::Null => None,
        Field::Str(text) => Some(text.clone()),
        value => Some(value.to_string()),
    }
}

/// NULL has no quotes, everything else has.
fn line(cells: impl Iterator<Item = Option<String>>) -> String {
    let cell =
        |cell: Option<String>| cell.map_or_else(String::new, |text| format!("\"{}\"", text.replace('"', "\"\"")));
    cells.map(cell).collect::<Vec<_>>().join(",")
}
