//! The `options` parameter: a command line for the server process.

use super::StartupError;

/// Settings that single-letter switches stand for, those with an argument (`process_postgres_switches` in
/// `src/backend/tcop/postgres.c` of PostgreSQL 15).
const WITH_ARGUMENT: &[(char, &str)] = &[
    ('B', "shared_buffers"),
    ('h', "listen_addresses"),
    ('k', "unix_socket_directories"),
    ('N', "max_connections"),
    ('p', "port"),
    ('S', "work_mem"),
    ('W', "post_auth_delay"),
];

/// The same, those without an argument, and the value they set.
const WITHOUT_ARGUMENT: &[(char, &str, &str)] = &[
    ('e', "datestyle", "euro"),
    ('F', "fsync", "false"),
    ('i', "listen_addresses", "*"),
    ('l', "ssl", "true"),
    ('O', "allow_system_table_mods", "true"),
    ('P', "ignore_system_indexes", "true"),
    ('s', "log_statement_stats", "true"),
];

/// Switches that only a command line may use, without and with an argument: from a client, PostgreSQL passes
/// over them without a word, and so do we.
const IGNORED: &[char] = &['b', 'E', 'j', 'n', 'T'];
const IGNORED_WITH_ARGUMENT: &[char] = &['C', 'D', 'r', 'v'];

/// Plan types that `-f` forbids (`set_plan_disabling_options`).
const PLANS: &[(&str, &str)] = &[
    ("s", "enable_seqscan"),
    ("i", "enable_indexscan"),
    ("o", "enable_indexonlyscan"),
    ("b", "enable_bitmapscan"),
    ("t", "enable_tidscan"),
    ("n", "enable_nestloop"),
    ("m", "enable_mergejoin"),
    ("h", "enable_hashjoin"),
];

/// Statistics that `-t` asks for (`get_stats_option_name`).
const STATS: &[(&str, &str)] =
    &[("pa", "log_parser_stats"), ("pl", "log_planner_stats"), ("e", "log_executor_stats")];

/// Reads the settings out of an `options` parameter, in order, repetitions included: the last one of a name
/// wins. Names have `-` replaced by `_` and are otherwise as written; whether a setting exists and may be set
/// is for others to say.
///
/// As PostgreSQL does it (`pg_split_opts`, then `getopt`): white space separates arguments, a backslash takes
/// the next character as it is, and `-c name=value`, `-cname=value` and `--name=value` are the same, as are the
/// old one-letter switches for particular settings.
///
/// # Errors
/// A switch that does not exist, or an argument that is no switch; a setting without a value.
pub fn options(text: &str) -> Result<Vec<(String, String)>, StartupError> {
    let mut settings = Vec::new();
    let mut arguments = split(text).into_iter();
    while let Some(argument) = arguments.next() {
        let Some(switches) = argument.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            return Err(StartupError::Argument(argument));
        };
        // `--` alone ends the switches for getopt; what follows is no switch, and that is an error.
        if switches == "-" {
            match arguments.next() {
                Some(argument) => return Err(StartupError::Argument(argument)),
                None => break,
            }
        }
        cluster(&argument, switches, &mut arguments, &mut settings)?;
    }
    Ok(settings)
}

/// One argument of switches, such as `-es` or `-sc` with the setting in the next argument.
fn cluster(
    argument: &str,
    switches: &str,
    following: &mut impl Iterator<Item = String>,
    settings: &mut Vec<(String, String)>,
) -> Result<(), StartupError> {
    let refuse = || StartupError::Argument(argument.to_owned());
    // The argument that getopt has looked at last.
    let at_fault = |rest: &str, value: &str| {
        StartupError::Argument(if rest.is_empty() { value.to_owned() } else { argument.to_owned() })
    };
    for (at, switch) in switches.char_indices() {
        if let Some((_, name, value)) = WITHOUT_ARGUMENT.iter().find(|(known, ..)| *known == switch) {
            settings.push(((*name).to_owned(), (*value).to_owned()));
            continue;
        }
        if IGNORED.contains(&switch) {
            continue;
        }
        // Every other switch takes the rest of this argument, or the next one, as its value.
        let rest = &switches[at + switch.len_utf8()..];
        let named = WITH_ARGUMENT.iter().find(|(known, _)| *known == switch);
        let ignored = IGNORED_WITH_ARGUMENT.contains(&switch);
        if named.is_none() && !ignored && !matches!(switch, 'c' | '-' | 'd' | 'f' | 't') {
            return Err(refuse());
        }
        let value = if rest.is_empty() { following.next().ok_or_else(refuse)? } else { rest.to_owned() };
        if ignored {
            return Ok(());
        }
        let setting = match (switch, named) {
            (_, Some((_, name))) => ((*name).to_owned(), value),
            ('f', _) => (lookup(PLANS, &value).ok_or_else(|| at_fault(rest, &value))?, "false".to_owned()),
            ('t', _) => (lookup(STATS, &value).ok_or_else(|| at_fault(rest, &value))?, "true".to_owned()),
            ('d', _) => ("log_min_messages".to_owned(), debugging(&value)),
            _ => long(switch, &value)?,
        };
        settings.push(setting);
        return Ok(());
    }
    Ok(())
}

/// The level of messages that `-d` stands for (`set_debug_options`), which nobody but a superuser may set.
fn debugging(level: &str) -> String {
    let digits: String = level.chars().take_while(char::is_ascii_digit).take(9).collect();
    match digits.parse::<u32>() {
        Ok(level) if level > 0 => format!("debug{level}"),
        _ => "notice".to_owned(),
    }
}

fn lookup(table: &[(&str, &str)], key: &str) -> Option<String> {
    table.iter().find(|(known, _)| *known == key).map(|(_, name)| (*name).to_owned())
}

/// `name=value` of `-c` or `--` (`ParseLongOption` in `src/backend/utils/misc/guc.c`).
fn long(switch: char, text: &str) -> Result<(String, String), StartupError> {
    let Some((name, value)) = text.split_once('=') else {
        let written = if switch == '-' { format!("--{text}") } else { format!("-c {text}") };
        return Err(StartupError::NoValue(written));
    };
    Ok((name.replace('-', "_"), value.to_owned()))
}

/// `pg_split_opts` in `src/backend/utils/init/postinit.c`. A lone backslash at the end is dropped.
fn split(text: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|&c| is_space(c)).is_some() {}
        if chars.peek().is_none() {
            return arguments;
        }
        let mut argument = String::new();
        while let Some(c) = chars.next_if(|&c| !is_space(c)) {
            match c {
                '\\' => argument.extend(chars.next()),
                _ => argument.push(c),
            }
        }
        arguments.push(argument);
    }
}

/// C's `isspace` in the C locale.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}
