//! Whether plaintext has been left in files.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use memchr::memmem::Finder;

use super::Models;

/// The length of a probe: so many bytes occur nowhere else by chance.
const PROBE: usize = 64;

/// A piece of a plaintext that is searched for.
pub struct Traces {
    probe: Vec<u8>,
}

impl Traces {
    /// The bytes at a position of a plaintext of this length.
    pub fn of(length: u64, position: u64) -> Self {
        let mut plain = Models::plain(length);
        std::io::copy(&mut plain.by_ref().take(position), &mut std::io::sink()).expect("a pattern can be read");
        let mut probe = vec![0; PROBE];
        plain.read_exact(&mut probe).expect("the position is in the plaintext");
        Self { probe }
    }

    /// Which files below this directory hold it.
    pub fn in_files(&self, dir: &Path) -> Option<String> {
        let holding = files(dir).into_iter().filter(|file| self.is_in(file));
        let mut names: Vec<String> = holding.map(|file| name(&file)).collect();
        names.sort();
        (!names.is_empty()).then(|| names.join(", "))
    }

    fn is_in(&self, path: &Path) -> bool {
        let Ok(mut file) = File::open(path) else { return false };
        let finder = Finder::new(&self.probe);
        let mut buffer = vec![0; 1 << 20];
        // The end of a piece is searched again with the next one: the probe may lie across both.
        let mut kept = 0;
        while let Ok(count @ 1..) = file.read(&mut buffer[kept..]) {
            let filled = kept + count;
            if finder.find(&buffer[..filled]).is_some() {
                return true;
            }
            kept = filled.min(PROBE - 1);
            buffer.copy_within(filled - kept..filled, 0);
        }
        false
    }
}

/// The name of a file without the parts that differ from run to run.
fn name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("rauc-") { "`rauc-…decrypted.raucb`".to_owned() } else { format!("`{name}`") }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_symlink() {
        } else if path.is_dir() {
            all.extend(files(&path));
        } else if path.is_file() {
            all.push(path);
        }
    }
    all
}
