//! Where the big part of an upload goes while it is received: into local storage and, if the model is known already, from there
//! to the CDN part by part. Then the box never holds more than a few parts of it.

use std::io::{self, Write};
use std::mem;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::cdn_manager::{CdnError, CdnManager, Multipart};
use crate::metrics::{Stage, Transfer};
use crate::model_cache::Spool;
use crate::names::ModelName;
use crate::security::{Hasher, Sha256Hash, SmallHash};
use crate::threads::{self, lock};

/// How many parts are sent at once, while one more is received: a distant CDN takes longer to answer than to receive a part.
const SENDERS: usize = 3;

/// The destination of an upload whose model is known before its data.
pub(super) struct Target {
    pub(super) cdn: Arc<CdnManager>,
    pub(super) model: ModelName,
    pub(super) part_length: u64,
}

/// Receives a big part. If it fits into one part, or its model is not known yet, it stays in local storage.
pub(super) struct BigSink {
    spool: Spool,
    filled: u64,
    small: SmallHash,
    target: Option<Target>,
    sending: Option<Sending>,
}

/// A big part that has been received.
pub(super) enum Big {
    /// All of it is in local storage; its hash.
    Local(Spool, Sha256Hash),
    /// Its parts are in the CDN, in an upload that is not complete yet.
    Stored(Arc<Multipart>),
}

impl BigSink {
    pub(super) fn new(spool: Spool, small: SmallHash, target: Option<Target>) -> Self {
        Self { spool, filled: 0, small, target, sending: None }
    }

    /// Waits until everything is stored. `hash` is the hash of the big part, if it was computed on the way.
    pub(super) fn finish(mut self, hash: Option<Sha256Hash>) -> io::Result<Big> {
        let Some(mut sending) = self.sending.take() else {
            let hash = match hash {
                Some(hash) => hash,
                None => Hasher::of_range(self.spool.file(), 0..self.filled)?.finish(),
            };
            return Ok(Big::Local(self.spool, hash));
        };
        sending.hand_over(self.spool, self.filled)?;
        sending.finish().map(Big::Stored)
    }
}

impl Write for BigSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = u64::MAX;
        if let Some(target) = &self.target {
            if self.filled == target.part_length {
                let next = self.spool.another()?;
                if self.sending.is_none() {
                    self.sending = Some(Sending::begin(target, self.small)?);
                }
                if let Some(sending) = &mut self.sending {
                    sending.hand_over(mem::replace(&mut self.spool, next), mem::take(&mut self.filled))?;
                }
            }
            room = target.part_length - self.filled;
        }
        let count = self.spool.write(&bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))])?;
        self.filled += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.spool.flush()
    }
}

/// The number of a part, its bytes and how many they are.
type NumberedPart = (u32, Spool, u64);

/// An upload to the CDN whose parts are still being received. If it is dropped before its end, it is aborted when the parts that
/// are being sent have ended.
struct Sending {
    upload: Arc<Multipart>,
    parts: SyncSender<NumberedPart>,
    handed_over: u32,
    threads: Vec<JoinHandle<()>>,
    failure: Arc<Mutex<Option<CdnError>>>,
}

impl Sending {
    fn begin(target: &Target, small: SmallHash) -> io::Result<Self> {
        let upload = target.cdn.begin_generation(&target.model, small);
        let upload = Arc::new(upload.map_err(io::Error::other)?);
        let transfer = Arc::new(Transfer::begin(Stage::Publish, upload.object(), 0, None));
        // No buffer: a part that waits for a thread is one more in local storage.
        let (parts, received) = sync_channel(0);
        let (received, failure) = (Arc::new(Mutex::new(received)), Arc::new(Mutex::new(None)));
        let mut threads = Vec::new();
        for _ in 0..SENDERS {
            let (upload, transfer) = (Arc::clone(&upload), Arc::clone(&transfer));
            let (received, failure) = (Arc::clone(&received), Arc::clone(&failure));
            let send = move || {
                if let Err(error) = send_parts(&upload, &received, &transfer) {
                    lock(&failure).get_or_insert(error);
                }
            };
            match threads::spawn("sender", send) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(Self { upload, parts, handed_over: 0, threads, failure })
    }

    fn hand_over(&mut self, spool: Spool, length: u64) -> io::Result<()> {
        self.handed_over += 1;
        let sent = self.parts.send((self.handed_over, spool, length));
        match (lock(&self.failure).take(), sent) {
            (Some(error), _) => Err(io::Error::other(error)),
            (None, Ok(())) => Ok(()),
            (None, Err(_)) => Err(io::Error::other("the threads that store parts have ended")),
        }
    }

    fn finish(self) -> io::Result<Arc<Multipart>> {
        drop(self.parts);
        let panicked = self.threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
        match lock(&self.failure).take() {
            Some(error) => Err(io::Error::other(error)),
            None if panicked > 0 => Err(io::Error::other("a thread that stores parts has ended")),
            None => Ok(self.upload),
        }
    }
}

fn send_parts(upload: &Multipart, parts: &Mutex<Receiver<NumberedPart>>, transfer: &Transfer) -> Result<(), CdnError> {
    loop {
        let part = lock(parts).recv();
        let Ok((number, spool, length)) = part else { return Ok(()) };
        upload.store(number, spool.file(), 0, length, transfer)?;
    }
}
