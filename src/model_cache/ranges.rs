//! A download in several ranges at once, for a CDN that is far away.
//!
//! One connection carries at most a window of bytes in a round trip, whatever the line could do. So several connections
//! fetch pieces of the object, the next piece in order each, and write them to their places in the file: the file is
//! where pieces that come too early wait, and memory does not grow with them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::OpenRange;
use crate::threads;

/// What a connection is asked for at a time: much more than a window, so that waiting for the next one's first byte costs
/// little.
const PIECE: u64 = 8 << 20;

/// Bytes that a connection reads before it writes them.
const BUFFER: usize = 64 * 1024;

/// Why there are no more bytes.
pub(super) enum Broken {
    /// The CDN has failed.
    Source(io::Error),
    /// The file cannot be written.
    File(io::Error),
}

/// Whether a download of so many bytes is worth more than one connection.
pub(super) fn worth_it(length: u64) -> bool {
    length >= 2 * PIECE
}

/// The running download. Dropping it ends its threads.
pub(super) struct Ranges {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    file: Arc<File>,
    open: OpenRange,
    end: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Where the next piece begins that nobody has taken.
    next: u64,
    /// The pieces that are not whole yet, in order: where each has come to, and where it ends. Whole ones remain behind
    /// one that is not.
    pieces: Vec<(u64, u64)>,
    /// Threads that may still bring bytes.
    running: usize,
    broken: Option<Broken>,
    stopped: bool,
}

impl State {
    /// Up to where all bytes are in the file.
    fn available(&self) -> u64 {
        self.pieces.first().map_or(self.next, |(position, _)| *position)
    }
}

impl Ranges {
    /// Fetches `start..end` into `file` over so many connections.
    ///
    /// # Errors
    /// The operating system's, if not even one thread can be started.
    pub(super) fn start(
        file: &Arc<File>,
        open: &OpenRange,
        start: u64,
        end: u64,
        connections: usize,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            file: Arc::clone(file),
            open: Arc::clone(open),
            end,
            state: Mutex::new(State { next: start, pieces: Vec::new(), running: 0, broken: None, stopped: false }),
            changed: Condvar::new(),
        });
        let mut ranges = Self { shared, threads: Vec::new() };
        for _ in 0..connections {
            let running = Running::of(&ranges.shared);
            match threads::spawn("range", move || running.0.fetch_pieces()) {
                Ok(thread) => ranges.threads.push(thread),
                Err(error) if ranges.threads.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(ranges)
    }

    /// Waits until more than the bytes before `position` are in the file; answers up to where they are.
    pub(super) fn wait(&self, position: u64) -> Result<u64, Broken> {
        // Where one thread has failed, the others still bring what comes before.
        let waiting = |state: &mut State| state.available() <= position && state.running > 0;
        let state = self.shared.changed.wait_while(self.shared.state(), waiting);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        match state.available() {
            available if available > position => Ok(available),
            _ => Err(state.broken.take().unwrap_or_else(|| Broken::Source(io::ErrorKind::UnexpectedEof.into()))),
        }
    }
}

impl Drop for Ranges {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        // A thread that lived on would write into the file of the next download.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Counts a thread for as long as it lives, even if it panics: nobody must wait for it then.
struct Running(Arc<Shared>);

impl Running {
    fn of(shared: &Arc<Shared>) -> Self {
        shared.state().running += 1;
        Self(Arc::clone(shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch_pieces(&self) {
        let mut buffer = vec![0; BUFFER];
        while let Some((start, end)) = self.take_piece() {
            if let Err(broken) = self.fetch(start, end, &mut buffer) {
                self.state().broken.get_or_insert(broken);
                return;
            }
        }
    }

    fn take_piece(&self) -> Option<(u64, u64)> {
        let mut state = self.state();
        if state.next == self.end || state.stopped || state.broken.is_some() {
            return None;
        }
        let piece = (state.next, self.end.min(state.next + PIECE));
        state.next = piece.1;
        state.pieces.push(piece);
        Some(piece)
    }

    fn fetch(&self, start: u64, end: u64, buffer: &mut [u8]) -> Result<(), Broken> {
        let mut source = (self.open)(start..end);
        let mut position = start;
        loop {
            let count = match source.read(buffer) {
                Ok(0) if position == end => return Ok(()),
                Ok(0) => return Err(Broken::Source(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Broken::Source(error)),
            };
            self.file.write_all_at(&buffer[..count], position).map_err(Broken::File)?;
            position += count as u64;
            if !self.advance(position, end) {
                return Ok(());
            }
        }
    }

    /// Notes how far the piece that ends at `end` has come. Answers whether to go on.
    fn advance(&self, position: u64, end: u64) -> bool {
        let mut state = self.state();
        let before = state.available();
        if let Some(piece) = state.pieces.iter_mut().find(|piece| piece.1 == end) {
            piece.0 = position;
        }
        let whole = state.pieces.iter().take_while(|(position, end)| position == end).count();
        state.pieces.drain(..whole);
        let goes_on = !state.stopped;
        if state.available() > before {
            self.changed.notify_all();
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::ops::Range;
    use std::sync::Mutex;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn byte_at(position: u64) -> u8 {
        (position % 251) as u8
    }

    /// An object's range: bytes as [`byte_at`] says, an error at `broken`, and a pause before each read of the first piece.
    struct Object {
        range: Range<u64>,
        broken: u64,
        slow: bool,
    }

    impl Read for Object {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.range.contains(&self.broken) && self.range.start == self.broken {
                return Err(io::Error::other("broken"));
            }
            if self.slow && self.range.start < PIECE {
                thread::sleep(Duration::from_millis(1));
            }
            let end = if self.range.contains(&self.broken) { self.broken } else { self.range.end };
            let count = out.len().min((end - self.range.start) as usize);
            out[..count].iter_mut().zip(self.range.start..).for_each(|(byte, at)| *byte = byte_at(at));
            self.range.start += count as u64;
            Ok(count)
        }
    }

    /// Reads all; answers how far it came and why it ended.
    fn read_all(length: u64, broken: u64, slow: bool) -> (u64, Option<Broken>, Vec<Range<u64>>) {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let open: OpenRange = {
            let asked = Arc::clone(&asked);
            Arc::new(move |range| {
                asked.lock().unwrap().push(range.clone());
                Box::new(Object { range, broken, slow })
            })
        };
        let ranges = Ranges::start(&file, &open, 5, length, 3).unwrap();
        let (mut position, mut why) = (5, None);
        while position < length {
            match ranges.wait(position) {
                Ok(available) => {
                    assert!(available > position && available <= length);
                    let mut bytes = vec![0; (available - position) as usize];
                    file.read_exact_at(&mut bytes, position).unwrap();
                    assert!(bytes.iter().zip(position..).all(|(byte, at)| *byte == byte_at(at)), "at {position}");
                    position = available;
                }
                Err(broken) => {
                    why = Some(broken);
                    break;
                }
            }
        }
        drop(ranges);
        let asked = asked.lock().unwrap().clone();
        (position, why, asked)
    }

    #[test]
    fn bytes_are_given_out_in_order_although_the_first_piece_is_the_slowest() {
        let length = 3 * PIECE + 1234;
        let (position, why, mut asked) = read_all(length, u64::MAX, true);
        assert!(position == length && why.is_none());
        asked.sort_by_key(|range| range.start);
        assert!(asked.len() == 4 && asked.windows(2).all(|pair| pair[0].end == pair[1].start), "{asked:?}");
        assert_eq!((asked[0].start, asked[3].end), (5, length));
    }

    #[test]
    fn what_came_before_a_failure_is_given_out_and_nothing_behind_it() {
        for broken in [5, 100, PIECE + 5, PIECE + 70_000, 2 * PIECE + 5] {
            let (position, why, _) = read_all(3 * PIECE, broken, false);
            assert!(matches!(why, Some(Broken::Source(_))), "{broken}");
            assert_eq!(position, broken);
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_from_a_source_that_fails() {
        let file = Arc::new(File::open("/dev/null").unwrap());
        let open: OpenRange = Arc::new(|range| Box::new(Object { range, broken: u64::MAX, slow: false }));
        let ranges = Ranges::start(&file, &open, 0, 2 * PIECE, 2).unwrap();
        assert!(matches!(ranges.wait(0), Err(Broken::File(_))));
    }
}
