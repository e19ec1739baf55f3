//! How much is measured.

use std::time::Duration;

const USAGE: &str = "\
Usage: cargo bench -- [--quick] [--record] [PART]...

  --quick    a few minutes with small sizes: shows that everything runs, and judges no goal
  --record   write the tables and the chart into tests/bench/README.md and figures.svg as well

Named parts are measured alone: health, transfers, far, mount, keep, connections, alternatives, unlock.

Files go to TMPDIR, which should be on a real disk and have 30 GiB to spare.
";

/// What can be measured alone.
const PARTS: [&str; 8] = ["health", "transfers", "far", "mount", "keep", "connections", "alternatives", "unlock"];

const MIB: u64 = 1 << 20;

/// The sizes and repetitions of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whether sizes are too small to judge goals by.
    pub quick: bool,
    /// Whether the table and the chart go into the repository.
    pub record: bool,
    /// The parts to measure; all if none is named.
    only: Vec<&'static str>,
    /// Rounds of every contestant.
    pub rounds: usize,
    /// Rounds of the unlock. The engine's time varies a lot, so there are more.
    pub unlock_rounds: usize,
    /// The file size that the goals are for, in bytes.
    pub main: u64,
    /// All file sizes of the chart, in bytes; `main` is one of them.
    pub sizes: Vec<u64>,
    /// The peer holds four copies of a file in memory, so larger files are not measured with it.
    pub peer_up_to: u64,
    /// Larger files are measured once.
    pub rounds_up_to: u64,
    /// The image in the archive, in bytes.
    pub image: usize,
    /// The file that is loaded over the far link, in bytes.
    pub far: u64,
    /// The file that is loaded over the far link that loses packets, in bytes.
    pub lossy: u64,
    /// The model in `KEEP`, in bytes.
    pub kept: u64,
    /// How many idle connections there are.
    pub connections: Vec<usize>,
    /// The file in whose ciphertext a byte is changed, in bytes.
    pub damaged: u64,
    /// How long `/health` is asked at a time.
    pub health: Duration,
}

impl Plan {
    /// What the command line asks for; the error is the usage.
    pub fn of_arguments(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut quick, mut record, mut only) = (false, false, Vec::new());
        for word in words {
            match word.as_str() {
                "--quick" => quick = true,
                "--record" => record = true,
                // Cargo's own.
                "--bench" => {}
                part => only.push(*PARTS.iter().find(|known| **known == part).ok_or_else(|| USAGE.to_owned())?),
            }
        }
        let plan = if quick { Self::quick() } else { Self::full() };
        Ok(Self { record, only, ..plan })
    }

    /// Whether this part is to be measured.
    pub fn includes(&self, part: &'static str) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// Whether any of these parts is to be measured.
    pub fn includes_any(&self, parts: &[&'static str]) -> bool {
        parts.iter().any(|part| self.includes(part))
    }

    fn full() -> Self {
        Self {
            quick: false,
            record: false,
            only: Vec::new(),
            rounds: 5,
            unlock_rounds: 9,
            main: 1024 * MIB,
            sizes: vec![MIB, 64 * MIB, 1024 * MIB, 4096 * MIB],
            peer_up_to: 1024 * MIB,
            rounds_up_to: 1024 * MIB,
            image: 600_000_000,
            far: 256 * MIB,
            lossy: 64 * MIB,
            kept: 256 * MIB,
            connections: vec![10, 100, 1_000, 10_000],
            damaged: 64 * MIB,
            health: Duration::from_secs(3),
        }
    }

    fn quick() -> Self {
        Self {
            quick: true,
            record: false,
            only: Vec::new(),
            rounds: 2,
            unlock_rounds: 2,
            main: 48 * MIB,
            sizes: vec![MIB, 48 * MIB, 192 * MIB],
            peer_up_to: 48 * MIB,
            rounds_up_to: 48 * MIB,
            image: 30_000_000,
            far: 64 * MIB,
            lossy: 4 * MIB,
            kept: 48 * MIB,
            connections: vec![10, 100, 1_000, 10_000],
            damaged: 8 * MIB,
            health: Duration::from_secs(1),
        }
    }
}

/// A size in words.
pub fn size(bytes: u64) -> String {
    if bytes.is_multiple_of(1024 * MIB) {
        format!("{} GiB", bytes / 1024 / MIB)
    } else {
        format!("{} MiB", bytes / MIB)
    }
}
