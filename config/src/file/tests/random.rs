//! Whatever the text, it is read or refused; never a panic, never a secret in a message.

use proptest::prelude::*;

use super::*;

const FULL: &str = include_str!("../../../examples/full.toml");

fn check(text: &str) -> Result<(), TestCaseError> {
    if let Err(errors) = read(text) {
        prop_assert!(!errors.0.is_empty());
        let lines = text.matches('\n').count() + 1;
        for error in &errors.0 {
            prop_assert!(error.line.is_some_and(|l| (1..=lines).contains(&l)), "{error} of {lines}");
            prop_assert!(!error.message.is_empty() && !error.to_string().contains('\n'), "{error:?}");
        }
    }
    Ok(())
}

/// A line out of keys that are known and values of every type.
fn line() -> impl Strategy<Value = String> {
    let keys: Vec<&str> = FULL
        .lines()
        .filter_map(|l| Some(l.trim_start_matches("# ").split_once(" = ")?.0))
        .chain(["x", "\"\"", "url_env", "a.b", "pool.size", "context.variables.\"a b\""])
        .collect();
    let heads: Vec<&str> = FULL.lines().filter(|l| l.starts_with('[')).collect();
    let value = prop_oneof![
        Just("1".to_owned()),
        Just("-9223372036854775808".to_owned()),
        Just("0xffff_ffff".to_owned()),
        Just("1e400".to_owned()),
        Just("true".to_owned()),
        Just("1979-05-27T07:32:00Z".to_owned()),
        Just("[]".to_owned()),
        Just("[[], {}, 1, \"s1\"]".to_owned()),
        Just("{ size = \"1\", role = [] }".to_owned()),
        Just("[{ algorithm = \"HS256\", secret = \"x\" }, {}]".to_owned()),
        Just("\"s1\"".to_owned()),
        Just("\"30s\"".to_owned()),
        Just("\"postgres://a@b/c\"".to_owned()),
        Just("\"*\"".to_owned()),
        "\"[^\"\\\\\\p{Cc}]{0,12}\"",
    ];
    prop_oneof![
        2 => (proptest::sample::select(keys), value).prop_map(|(k, v)| format!("{k} = {v}")),
        1 => proptest::sample::select(heads).prop_map(str::to_owned),
    ]
}

proptest! {
    #[test]
    fn any_text(text in "\\PC{0,100}") {
        check(&text)?;
    }

    #[test]
    fn any_bytes_of_syntax(text in "[\\[\\]{}=,.\"'#\\\\ \\nabc01\\r-]{0,60}") {
        check(&text)?;
    }

    #[test]
    fn known_keys_with_any_values(lines in proptest::collection::vec(line(), 0..12)) {
        check(&lines.join("\n"))?;
    }

    #[test]
    fn a_damaged_example(from in 0usize..6000, len in 0usize..40, with in "\\PC{0,4}") {
        let floor = |i: usize| (0..=i.min(FULL.len())).rev().find(|i| FULL.is_char_boundary(*i)).unwrap_or(0);
        let (from, to) = (floor(from), floor(from + len));
        check(&format!("{}{with}{}", &FULL[..from], &FULL[to..]))?;
    }
}

#[test]
fn depth_is_bounded() {
    for deep in ["[", "{a=", "[{a="] {
        assert!(read(&format!("x = {}", deep.repeat(100_000))).is_err());
    }
    assert!(read(&"a.".repeat(100_000)).is_err());
    assert!(read(&format!("{}b = 1", "a.".repeat(100_000))).is_err());
    assert!(read(&format!("[{}b]", "a.".repeat(100_000))).is_err());
}
