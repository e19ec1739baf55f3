//! The integration tests: one program, a folder for each subject. `README.md` has the promises and the test of each.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

mod api;
mod clients;
mod images;
mod models;
mod operations;
mod readme;
mod upstream;
