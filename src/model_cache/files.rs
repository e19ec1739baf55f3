//! The file with the chunks of a version, and where it is.

use std::fs::File;

use super::reservation::Reservation;

pub(super) struct Files {
    pub(super) file: Option<File>,
    pub(super) place: Place,
    /// Whether the file has all chunks, or none.
    pub(super) is_whole: bool,
    /// For a part file.
    pub(super) reservation: Option<Reservation>,
}

impl Files {
    pub(super) fn part(file: File, reservation: Reservation) -> Self {
        Self { file: Some(file), place: Place::Part, is_whole: false, reservation: Some(reservation) }
    }

    pub(super) fn big(file: File) -> Self {
        Self { file: Some(file), place: Place::Big, is_whole: true, reservation: None }
    }

    /// The version cannot be cached.
    pub(super) fn none() -> Self {
        Self { file: None, place: Place::Nowhere, is_whole: false, reservation: None }
    }
}

/// Where the file of a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In an unfinished download.
    Part,
    /// In the cache under its final name.
    Big,
    /// It cannot be written, or is gone. Each reader fetches for itself what is not stored.
    Nowhere,
}
