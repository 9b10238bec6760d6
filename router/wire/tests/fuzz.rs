//! The fuzz targets on a stable compiler: every input that is kept, and many made from them. Finds less
//! than a fuzzer that sees which branches are taken, and runs everywhere.
//!
//! `SWITCHYARD_FUZZ_RUNS` is how many inputs each target gets.

// The targets are written for libfuzzer, of which this crate stands in for the one macro.
extern crate self as libfuzzer_sys;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Inputs for each target where nothing else is said.
const RUNS: u64 = 20_000;
/// Longest input made, in bytes.
const LONGEST: usize = 4096;

/// What libfuzzer's macro makes of a target, as a function.
#[macro_export]
macro_rules! fuzz_target {
    (|$data:ident: &[u8]| $body:block) => {
        pub(crate) fn run($data: &[u8]) $body
    };
    (|$data:ident: $kind:ty| $body:block) => {
        pub(crate) fn run(bytes: &[u8]) {
            let unstructured = arbitrary::Unstructured::new(bytes);
            let Ok($data) = <$kind as arbitrary::Arbitrary>::arbitrary_take_rest(unstructured) else { return };
            $body
        }
    };
}

macro_rules! targets {
    ($($name:ident = $path:literal),* $(,)?) => {
        $(
            #[allow(unused_attributes, unused_imports, missing_docs, clippy::expect_used, reason = "written for another harness")]
            #[path = $path]
            mod $name;
        )*

        const TARGETS: &[&str] = &[$(stringify!($name)),*];

        $(
            #[test]
            fn $name() {
                fuzz(stringify!($name), $name::run);
            }
        )*
    };
}

targets!(
    bind_parse = "../fuzz/fuzz_targets/bind_parse.rs",
    error_fields = "../fuzz/fuzz_targets/error_fields.rs",
    frames = "../fuzz/fuzz_targets/frames.rs",
    options = "../fuzz/fuzz_targets/options.rs",
    proxy = "../fuzz/fuzz_targets/proxy.rs",
    scram_client = "../fuzz/fuzz_targets/scram_client.rs",
    scram_server = "../fuzz/fuzz_targets/scram_server.rs",
    startup = "../fuzz/fuzz_targets/startup.rs",
);

#[test]
fn every_target_is_run() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    files.sort();
    assert_eq!(files, TARGETS);
}

fn fuzz(name: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let read = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read(entry.ok()?.path()).ok();
    let corpus: Vec<Vec<u8>> = std::fs::read_dir(&dir).into_iter().flatten().filter_map(read).collect();
    assert!(!corpus.is_empty(), "{} holds nothing", dir.display());
    for input in &corpus {
        attempt(run, input);
    }
    let runs = std::env::var("SWITCHYARD_FUZZ_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(RUNS);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..runs {
        let mut input = corpus[dice.below(corpus.len())].clone();
        for _ in 0..=dice.below(4) {
            change(&mut input, &corpus, &mut dice);
        }
        input.truncate(LONGEST);
        attempt(run, &input);
    }
}

/// Runs one input; says which it was if it fails.
fn attempt(run: fn(&[u8]), input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| run(input))).is_err() {
        panic!("fails with {}", input.escape_ascii());
    }
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    let odd = [0_u8, 1, 0x7f, 0x80, 0xff, b',', b'=', b'\\', b'\'', b'\n'];
    match dice.below(9) {
        0 if at < input.len() => input[at] ^= 1 << dice.below(8),
        1 if at < input.len() => input[at] = odd[dice.below(odd.len())],
        2 if at < input.len() => input[at] = dice.next() as u8,
        3 => input.insert(at, odd[dice.below(odd.len())]),
        4 if at < input.len() => drop(input.remove(at)),
        5 => input.truncate(at),
        6 if at + 4 <= input.len() => {
            let lengths = [0_u32, 3, 4, 5, 0x7fff_ffff, 0x8000_0000, u32::MAX, input.len() as u32];
            input[at..at + 4].copy_from_slice(&lengths[dice.below(lengths.len())].to_be_bytes());
        }
        7 => {
            let other = &corpus[dice.below(corpus.len())];
            let from = dice.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let part = input[at..(at + dice.below(40)).min(input.len())].to_vec();
            input.splice(at..at, part);
        }
    }
}

/// The same numbers each time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
