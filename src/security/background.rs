//! Hashing in the background. The hash is the slowest stage of receiving an upload and the only one that can run apart from the
//! others, so a long stream is hashed on a thread of its own, a few buffers late.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::constants::CHUNK;
use crate::page_buffer::PageBuffer;
use crate::threads;

/// A shorter stream is not worth a thread.
const WORTH_A_THREAD: usize = 1 << 20;

/// Buffers on the way to the thread. With an exact scheduler two would do.
const BUFFERS: usize = 4;

/// Consumes bytes, as a hash does.
pub trait Absorb: Clone + Send + 'static {
    /// Adds `bytes`.
    fn absorb(&mut self, bytes: &[u8]);
}

/// A running hash that moves to another core once the stream is long enough.
pub struct BackgroundHasher<H: Absorb> {
    /// The state until the thread takes over.
    hasher: H,
    seen: usize,
    worker: Option<Worker<H>>,
}

impl<H: Absorb> BackgroundHasher<H> {
    /// Continues from the state of `hasher`.
    pub fn new(hasher: H) -> Self {
        Self { hasher, seen: 0, worker: None }
    }

    /// Adds `bytes`. Waits while all buffers are full.
    pub fn update(&mut self, bytes: &[u8]) {
        if self.worker.is_none() && self.seen < WORTH_A_THREAD {
            self.seen += bytes.len();
            if self.seen >= WORTH_A_THREAD {
                self.worker = Worker::start(&self.hasher);
            }
        }
        match &self.worker {
            Some(worker) => worker.update(bytes),
            None => self.hasher.absorb(bytes),
        }
    }

    /// The state after all bytes added.
    pub fn into_hasher(self) -> H {
        self.worker.map_or(self.hasher, Worker::finish)
    }
}

/// The thread, and the buffers that circulate between it and the caller. They are page buffers, as a load's chunks are, so that both
/// share one channel's code: 7 KB less.
struct Worker<H> {
    full: SyncSender<PageBuffer>,
    empty: Receiver<PageBuffer>,
    thread: JoinHandle<H>,
}

impl<H: Absorb> Worker<H> {
    /// None without a second core or a thread; the caller then hashes itself.
    fn start(hasher: &H) -> Option<Self> {
        if !threads::has_second_core() {
            return None;
        }
        let (full, filled) = sync_channel::<PageBuffer>(BUFFERS);
        let (emptied, empty) = sync_channel(BUFFERS);
        for _ in 0..BUFFERS {
            emptied.send(PageBuffer::new(CHUNK)).ok()?;
        }
        let mut hasher = hasher.clone();
        let hash = move || {
            while let Ok(buffer) = filled.recv() {
                hasher.absorb(&buffer);
                // Fails if the caller is gone, which does not matter.
                let _ = emptied.send(buffer);
            }
            hasher
        };
        Some(Self { full, empty, thread: threads::spawn("hash", hash).ok()? })
    }

    fn update(&self, bytes: &[u8]) {
        for bytes in bytes.chunks(CHUNK) {
            // Only a panic ends the thread early, and `finish` resumes it.
            let Ok(mut buffer) = self.empty.recv() else { return };
            buffer.resize(bytes.len());
            buffer.copy_from_slice(bytes);
            let _ = self.full.send(buffer);
        }
    }

    fn finish(self) -> H {
        drop(self.full);
        drop(self.empty);
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::{Hasher, Sha256Hash};

    #[test]
    fn the_hash_is_the_same_with_and_without_the_thread() {
        for size in [0, 1, WORTH_A_THREAD - 1, WORTH_A_THREAD, WORTH_A_THREAD + 1, 20 * CHUNK + 7] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            for portion in [7777, CHUNK, CHUNK + 32, usize::MAX] {
                let mut hasher = BackgroundHasher::new(Hasher::default());
                for part in bytes.chunks(portion.min(size.max(1))) {
                    hasher.update(part);
                }
                assert_eq!(hasher.into_hasher().finish(), Sha256Hash::of(&bytes), "size {size}, portions of {portion}");
            }
        }
    }

    #[test]
    fn it_continues_from_an_earlier_state() {
        let bytes = vec![5; 3 * WORTH_A_THREAD];
        let mut hasher = Hasher::default();
        hasher.update(&bytes[..1000]);
        let mut hasher = BackgroundHasher::new(hasher);
        bytes[1000..].chunks(CHUNK).for_each(|part| hasher.update(part));
        assert_eq!(hasher.into_hasher().finish(), Sha256Hash::of(&bytes));
    }
}
