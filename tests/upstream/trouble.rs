//! The faults that a server upstream can have.

use crate::world::resource_api::Fault as ApiFault;
use crate::world::s3_fault::Fault as CdnFault;

/// What goes wrong, on either server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Refused,
    Hang,
    Status500,
    TooManyRequests,
    Reset,
    ResetAfterServed,
    Truncated,
    Garbage,
    Trickle,
    Redirect,
    IgnoredRange,
    WrongContentRange,
    MissingContentRange,
    WrongTotal,
    LateRange,
    GarbledByte,
}

use Trouble::{
    Garbage, GarbledByte, Hang, IgnoredRange, LateRange, MissingContentRange, Redirect, Refused, Reset,
    ResetAfterServed, Status500, TooManyRequests, Trickle, Truncated, WrongContentRange, WrongTotal,
};

/// Faults that any call can meet, except those that take a stall timeout.
pub(super) const OF_ALL_CALLS: [Trouble; 9] =
    [Refused, Status500, TooManyRequests, Reset, ResetAfterServed, Truncated, Garbage, Trickle, Redirect];
/// Further faults that a call with `Range` can meet.
pub(super) const OF_RANGES: [Trouble; 6] =
    [IgnoredRange, WrongContentRange, MissingContentRange, WrongTotal, LateRange, GarbledByte];

impl Trouble {
    pub(super) fn of_api(self) -> ApiFault {
        match self {
            Hang => ApiFault::Hang,
            Status500 => ApiFault::Status(500, String::new()),
            TooManyRequests => ApiFault::StatusWithRetryAfter(429, 1),
            Reset => ApiFault::Reset,
            ResetAfterServed => ApiFault::ResetAfterServed,
            Truncated => ApiFault::Truncate,
            Garbage => ApiFault::Garbage,
            Trickle => ApiFault::Trickle(1000),
            Redirect => ApiFault::Redirect("http://127.0.0.1:9/".into()),
            other => unreachable!("{other:?} is not a fault of the Resource API"),
        }
    }

    pub(super) fn of_cdn(self) -> CdnFault {
        match self {
            Hang => CdnFault::HangBeforeResponse,
            Status500 => CdnFault::Status(500),
            TooManyRequests => CdnFault::StatusWithRetryAfter(429, 1),
            Reset => CdnFault::Reset,
            ResetAfterServed => CdnFault::ResetAfterServed,
            Truncated => CdnFault::CutAtHalf,
            Garbage => CdnFault::Garbage,
            Trickle => CdnFault::Trickle(100_000),
            Redirect => CdnFault::Redirect("http://127.0.0.1:9/".into()),
            IgnoredRange => CdnFault::IgnoreRange,
            WrongContentRange => CdnFault::WrongContentRange,
            MissingContentRange => CdnFault::DropContentRange,
            WrongTotal => CdnFault::WrongTotal,
            LateRange => CdnFault::ShiftRange(7),
            GarbledByte => CdnFault::CorruptByteAt(9),
            Refused => unreachable!("nobody answers"),
        }
    }

    /// Whether a call that meets it once succeeds when it is repeated.
    pub(super) fn passes(self) -> bool {
        matches!(self, Refused | Hang | Status500 | TooManyRequests | Reset | ResetAfterServed | Truncated | Garbage)
    }

    /// Whether it only costs time, however often it comes.
    pub(super) fn is_harmless(self) -> bool {
        matches!(self, Trickle | IgnoredRange)
    }
}
