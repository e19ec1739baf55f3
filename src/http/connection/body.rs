//! Request bodies: taken out of the request, and read without the library's deadly habit.

use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of, size_of_val};
use std::ptr::NonNull;
use std::sync::OnceLock;

use tiny_http::{Request, TestRequest};

type RawBody = Box<dyn Read + Send>;

/// Takes the body reader out of a request, without telling the client to go on sending (`as_reader` would).
///
/// `Request` keeps it in a private field of the type `Option<Box<dyn Read + Send>>`. `as_reader` lends a pointer to the box
/// inside, which tells the field's offset; measuring it on a test request asks no client for anything.
pub(in crate::http) fn take_body(request: &mut Request) -> Option<RawBody> {
    static OFFSET: OnceLock<usize> = OnceLock::new();
    let offset = *OFFSET.get_or_init(|| {
        let mut probe: Request = TestRequest::new().into();
        let start = (&raw const probe).addr();
        let reader = probe.as_reader();
        // The borrowed value must be the fat box itself, not what it points to.
        assert_eq!(size_of_val(reader), size_of::<RawBody>(), "tiny_http is not the version this was written for");
        let offset = (&raw const *reader).cast::<u8>().addr() - start;
        assert!(offset + size_of::<RawBody>() <= size_of::<Request>());
        offset
    });
    // SAFETY: the offset was measured on a value of the same type, so it is that of the field `data_reader`, whose type in
    // the pinned version is `Option<Box<dyn Read + Send>>`; `Option` of a box is a box or null. The request is borrowed
    // mutably, and nothing else reads the field after it was taken: the one caller goes on with `into_writer` only.
    unsafe { (&raw mut *request).byte_add(offset).cast::<Option<RawBody>>().as_mut()?.take() }
}

/// A body reader of `tiny_http` that allocates no more than was asked of it, whatever the client declared.
pub(in crate::http) struct TamedReader {
    reader: RawBody,
    /// The reader's own count of missing bytes, where it has one.
    missing: Option<NonNull<usize>>,
}

// SAFETY: `missing` points into the allocation that `reader` owns, and `reader` is `Send`.
unsafe impl Send for TamedReader {}

impl TamedReader {
    /// Tames the reader of a body with the declared length, of which nothing has been read. None if the count cannot be
    /// found: then nobody may drop the reader.
    pub(in crate::http) fn of_declared_length(mut reader: RawBody, declared: usize) -> Result<Self, RawBody> {
        // `tiny_http` has read a short body into memory already (unless the client waits for a `100 Continue`), and what it
        // allocates for a short rest is harmless.
        if declared <= 1024 {
            return Ok(Self { reader, missing: None });
        }
        match find_count(&mut *reader, declared) {
            Some(missing) => Ok(Self { reader, missing: Some(missing) }),
            None => Err(reader),
        }
    }

    /// A reader that does not count: of a chunked body, or of none.
    pub(in crate::http) fn of_no_length(reader: RawBody) -> Self {
        Self { reader, missing: None }
    }

    fn allow(&mut self, count: usize) {
        if let Some(missing) = self.missing {
            // SAFETY: `find_count` found a `usize` there, inside the allocation that `reader` owns and nobody borrows now.
            unsafe { missing.write(count) };
        }
    }
}

/// The field of a body reader that counts the missing bytes.
///
/// The reader is `tiny_http`'s private `FusedReader<EqualReader<SequentialReader<BufReader<_>>>>`. The count is the one word
/// in it that equals the declared length: the other words are addresses, descriptors and buffer positions up to 1024. Its
/// place is the same in all readers of the type, so it is learned from the first one, and a client who guesses the value
/// of another word later gains nothing.
fn find_count(reader: &mut (dyn Read + Send), declared: usize) -> Option<NonNull<usize>> {
    static PLACE: OnceLock<(usize, usize)> = OnceLock::new();
    let size = size_of_val(reader);
    let words = NonNull::from(reader).cast::<MaybeUninit<usize>>();
    let holds_count = |index: usize| {
        // SAFETY: the index is inside the value, whose alignment is that of its pointers. A word may be padding, whose
        // value means nothing; the volatile read keeps the compiler from drawing conclusions from that.
        let word = unsafe { words.add(index).read_volatile().assume_init() };
        word == declared
    };
    let index = match PLACE.get() {
        Some((known_size, index)) => (*known_size == size && holds_count(*index)).then_some(*index)?,
        None => {
            let mut found = (0..size / size_of::<usize>()).filter(|index| holds_count(*index));
            let index = found.next()?;
            if found.next().is_some() {
                return None;
            }
            PLACE.get_or_init(|| (size, index)).1
        }
    };
    // SAFETY: inside the value, see above.
    Some(unsafe { words.add(index) }.cast())
}

impl Read for TamedReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // If the connection ends during this read, the reader drops its inner part and allocates what it misses then.
        self.allow(out.len());
        let count = self.reader.read(out)?;
        if count == 0 && !out.is_empty() {
            self.missing = None;
        }
        Ok(count)
    }
}

impl Drop for TamedReader {
    fn drop(&mut self) {
        self.allow(0);
    }
}
