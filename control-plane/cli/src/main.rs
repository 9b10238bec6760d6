//! The `switchyard` command.

mod args;
mod demo;
mod failure;
mod http;
mod local;
mod logging;
mod output;
mod serve;
mod shards;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match args.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.told(),
    }
}
