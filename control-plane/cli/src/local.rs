//! Commands that need nobody else.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use secrecy::{ExposeSecret, SecretString};
use switchyard_wire::scram::Verifier;
use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome};
use crate::output;

/// Longest password that is read, in bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// Reports every mistake in a router's file.
pub(crate) fn config_check(file: &Path) -> Outcome {
    match switchyard_config::file::load(file) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            let topology = &loaded.topology;
            output::line(&format!(
                "{}: ok: {} shards, {} tenants, {} users{}",
                file.display(),
                topology.shards.len(),
                topology.tenants.len(),
                topology.users.len(),
                if loaded.settings.catalog.is_some() { ", and a catalog" } else { "" }
            ))
        }
        Err(errors) => {
            for error in &errors.0 {
                eprintln!("{error}");
            }
            Err(Failure::Error(anyhow::anyhow!("{} mistakes in {}", errors.0.len(), file.display())))
        }
    }
}

/// Reads a password and prints its verifier.
pub(crate) fn auth_hash(iterations: u32) -> Outcome {
    let password = read_password()?;
    let verifier = Verifier::from_password(password.expose_secret().as_bytes(), iterations);
    output::line(&verifier.to_string())
}

/// A password from the terminal, unseen and twice, or a line of standard input.
pub(crate) fn read_password() -> anyhow::Result<SecretString> {
    let password = if io::stdin().is_terminal() {
        let first = read_unseen("password: ")?;
        if *first != *read_unseen("again: ")? {
            bail!("the two are not the same");
        }
        first
    } else {
        read_line()?
    };
    if password.is_empty() {
        bail!("the password is empty");
    }
    Ok(SecretString::from(password.as_str()))
}

fn read_unseen(prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    eprint!("{prompt}");
    let before = tcgetattr(io::stdin()).context("the terminal")?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(io::stdin(), OptionalActions::Flush, &silent).context("the terminal")?;
    let line = read_line();
    // Whatever was read: a terminal that stays silent is of no use.
    tcsetattr(io::stdin(), OptionalActions::Now, &before).context("the terminal")?;
    eprintln!();
    line
}

fn read_line() -> anyhow::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::new());
    io::stdin().lock().take(MAX_PASSWORD_BYTES).read_line(&mut line).context("standard input")?;
    let end = line.trim_end_matches(['\n', '\r']).len();
    line.truncate(end);
    Ok(line)
}
