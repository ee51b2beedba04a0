//! What comes out of a run: a table and the budgets on stdout, everything as
//! JSON, and a drawing of the ratios.

mod budgets;
mod json;
mod plot;
mod table;

use std::fs;
use std::io;

use self::json::Machine;
pub use self::json::etcd_version;
use crate::options::Options;
use crate::rounds::Row;

pub fn write(rows: &[Row], options: &Options) -> io::Result<()> {
    let machine = Machine::this();
    let kind = if options.is_cluster {
        "run of clusters of three"
    } else {
        "run"
    };
    let caption = format!("{}; {} {kind}", machine.caption(), options.mode.name());
    println!("{caption}\n\n{}", table::text(rows));
    let verdicts = budgets::verdicts(rows);
    if !verdicts.is_empty() {
        println!("{}", budgets::text(&verdicts));
    }

    fs::create_dir_all(&options.out)?;
    let path = options.out.join("load.json");
    fs::write(&path, json::text(rows, &verdicts, machine, options))?;
    println!("{}", path.display());
    if let Some(drawing) = plot::drawing(rows, &caption) {
        let path = options.out.join("load.svg");
        fs::write(&path, drawing)?;
        println!("{}", path.display());
    }
    Ok(())
}
