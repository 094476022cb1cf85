//! The `wardrobe` command.
//!
//! This file and what is below `cli` are the only places that install a logger, handle signals, read the command line,
//! draw progress, or end the process.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
