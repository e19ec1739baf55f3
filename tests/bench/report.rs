//! What comes out of a run: the table on standard output, and files in Cargo's target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::chart;
use crate::figure::{Figure, median};
use crate::plan::{Plan, size};
use crate::table::{markdown, number};

/// What the loader and the peer need for one file size: seconds, and MiB over idle.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    /// The length of the file.
    pub bytes: u64,
    /// Seconds of an upload: loader, peer.
    pub upload: [Option<f64>; 2],
    /// Seconds of a cold load.
    pub cold: [Option<f64>; 2],
    /// Seconds of a warm load.
    pub warm: [Option<f64>; 2],
    /// Peak memory over idle, in MiB.
    pub memory: [Option<f64>; 2],
}

/// All that was measured so far.
pub struct Report {
    plan: Plan,
    figures: Vec<Figure>,
    growth: Vec<Growth>,
    peaks: Vec<(u64, f64)>,
    tables: Vec<Table>,
    left_out: Vec<String>,
}

/// A table of its own, whose rows are no figures with a peer and a limit.
struct Table {
    /// The part of the run that it belongs to.
    part: &'static str,
    rows: Vec<Vec<String>>,
    /// How it was measured.
    note: String,
}

impl Report {
    /// An empty report.
    pub fn new(plan: &Plan) -> Self {
        Self {
            plan: plan.clone(),
            figures: Vec::new(),
            growth: Vec::new(),
            peaks: Vec::new(),
            tables: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Says what is being measured.
    pub fn says(&self, what: &str) {
        println!("measuring: {what}");
    }

    /// Says what is not measured, and why.
    pub fn leave_out(&mut self, what: &str) {
        println!("LEFT OUT: {what}");
        self.left_out.push(what.to_owned());
    }

    /// Adds a row, and says it at once: a long run that is broken off has then shown what it had.
    pub fn add(&mut self, figure: Figure) {
        if figure.loader.is_empty() {
            return;
        }
        print!("  {}:", figure.name);
        for (who, values) in [("loader", &figure.loader), ("peer", &figure.peer), ("limit", &figure.limit)] {
            if let Some(value) = median(values) {
                print!(" {who} {}", number(value, figure.unit));
            }
        }
        println!();
        self.figures.push(figure);
    }

    /// Adds a table of its own. The first of the rows is its head.
    pub fn add_table(&mut self, part: &'static str, rows: Vec<Vec<String>>, note: impl Into<String>) {
        println!("{}", markdown(&rows));
        self.tables.push(Table { part, rows, note: note.into() });
    }

    /// Adds a size to the chart.
    pub fn grows(&mut self, growth: Growth) {
        self.growth.push(growth);
    }

    /// Adds a size and the loader's peak memory over idle at it, in MiB.
    pub fn peaks(&mut self, peak: (u64, f64)) {
        self.peaks.push(peak);
    }

    /// The peaks of all sizes.
    pub fn all_peaks(&self) -> Vec<f64> {
        self.peaks.iter().map(|(_, peak)| *peak).collect()
    }

    /// The largest size that was measured.
    pub fn largest(&self) -> u64 {
        self.peaks.iter().map(|(bytes, _)| *bytes).max().unwrap_or_default()
    }

    /// Prints the table and writes the files; with `record`, into the repository as well.
    pub fn finish(self, took: Duration, record: bool) {
        let machine = Machine::look();
        // Texts for the README, each with its mark there.
        let mut tables = Vec::new();
        if !self.figures.is_empty() {
            tables.push(("cargo bench".to_owned(), self.figures(&machine)));
        }
        for Table { part, rows, note } in &self.tables {
            let text = format!("{}\n{note} {}.\n", markdown(rows), machine.line());
            tables.push((format!("cargo bench: {part}"), text));
        }
        let all: Vec<&str> = tables.iter().map(|(_, text)| text.as_str()).collect();
        let all = all.join("\n");
        println!("\n{all}");
        let target = target_dir();
        let svg = chart::svg(&self.growth, &machine.line());
        write(&target.join("bench.json"), &format!("{:#}\n", self.to_json(&machine, took)));
        write(&target.join("bench.md"), &all);
        write(&target.join("bench.svg"), &svg);
        println!("{} s; {}/bench.json, bench.md, bench.svg", took.as_secs(), target.display());
        if record {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench");
            if !self.growth.is_empty() {
                write(&directory.join("figures.svg"), &svg);
            }
            record_tables(&directory.join("README.md"), &tables);
        }
    }

    fn figures(&self, machine: &Machine) -> String {
        let head = ["figure", "loader", "peer", "limit", "× peer", "× limit", "goal"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for figure in &self.figures {
            let value = |values: &[f64]| median(values).map_or_else(String::new, |value| number(value, figure.unit));
            let times = |times: Option<f64>| times.map_or_else(String::new, |times| format!("{times:.2}"));
            let goals = figure.goals.iter().map(|goal| {
                let (goal, met) = figure.judge(*goal);
                match met {
                    _ if self.plan.quick => goal,
                    Some(true) => format!("{goal}: met"),
                    Some(false) => format!("{goal}: MISSED"),
                    None => format!("{goal}: not compared"),
                }
            });
            let limit = match value(&figure.limit) {
                value if value.is_empty() => value,
                value => format!("{value} ({})", figure.limit_is),
            };
            rows.push(vec![
                figure.name.clone(),
                value(&figure.loader),
                value(&figure.peer),
                limit,
                times(figure.times_peer()),
                times(figure.times_limit()),
                goals.collect::<Vec<_>>().join("; "),
            ]);
        }
        let left_out: String = self.left_out.iter().map(|what| format!("\nLeft out: {what}.\n")).collect();
        let quick = if self.plan.quick { " Quick run: the sizes are too small to judge by." } else { "" };
        format!(
            "{}\nMedians of {} rounds in turns, {} for the unlock; ratios round by round. {}.{quick}\n{left_out}",
            markdown(&rows),
            self.plan.rounds,
            self.plan.unlock_rounds,
            machine.line()
        )
    }

    fn to_json(&self, machine: &Machine, took: Duration) -> Value {
        let pair = |pair: [Option<f64>; 2]| json!({"loader": pair[0], "peer": pair[1]});
        let growth = self.growth.iter().map(|growth| {
            json!({
                "bytes": growth.bytes, "uploadSeconds": pair(growth.upload), "coldSeconds": pair(growth.cold),
                "warmSeconds": pair(growth.warm), "peakOverIdleMiB": pair(growth.memory),
            })
        });
        json!({
            "machine": machine.line(), "date": machine.date, "quick": self.plan.quick, "rounds": self.plan.rounds,
            "unlockRounds": self.plan.unlock_rounds, "seconds": took.as_secs(), "leftOut": self.left_out,
            "figures": self.figures.iter().map(Figure::to_json).collect::<Vec<_>>(),
            "growth": growth.collect::<Vec<_>>(),
            "tables": self.tables.iter().map(|table| json!({"part": table.part, "rows": table.rows})).collect::<Vec<_>>(),
        })
    }
}

/// The machine that the numbers are from.
struct Machine {
    cpu: String,
    cores: usize,
    memory: String,
    kernel: String,
    date: String,
}

impl Machine {
    fn look() -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |path: &str, name: &str| {
            let line = file(path).lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
            line.map(|line| line.trim_start_matches(':').trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok());
        let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: size(memory.unwrap_or_default().div_ceil(1 << 20) << 30),
            kernel: file("/proc/sys/kernel/osrelease").trim().split('-').next().unwrap_or_default().to_owned(),
            date: date.map_or_else(|_| String::new(), |date| String::from_utf8_lossy(&date.stdout).trim().to_owned()),
        }
    }

    fn line(&self) -> String {
        let Self { cpu, cores, memory, kernel, date } = self;
        format!("{date}, {cores} cores of {cpu}, {memory}, Linux {kernel}")
    }
}

/// This program is in `target/release/deps`.
fn target_dir() -> PathBuf {
    let program = std::env::current_exe().expect("this program has a path");
    program.ancestors().nth(3).expect("Cargo's layout").to_owned()
}

/// Puts each text between its two marks.
fn record_tables(readme: &Path, tables: &[(String, String)]) {
    let mut text = fs::read_to_string(readme).expect("the README is there");
    for (mark, table) in tables {
        let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->\n"));
        let (before, rest) = text.split_once(&begin).expect("the README has its mark");
        let (_, after) = rest.split_once(&end).expect("the README has its second mark");
        text = format!("{before}{begin}{table}{end}{after}");
    }
    write(readme, &text);
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
