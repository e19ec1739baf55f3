//! The documents: their tables are compared with the program, and their shell blocks are run.

mod blocks;
mod tables;
