//! The `flockwork` program: a command line around the library.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
