//! Names that may stand in front of a parenthesis and leave nothing behind on the connection:
//! PostgreSQL's own functions that only compute, and key words. Everything else may be a function
//! that sets, locks or makes anything.

/// Sorted, in lower case.
#[rustfmt::skip]
const HARMLESS: &[&str] = &[
    "abs", "acos", "age", "all", "and", "any", "array", "array_agg", "array_append", "array_cat",
    "array_dims", "array_fill", "array_length", "array_lower", "array_ndims", "array_position",
    "array_positions", "array_prepend", "array_remove", "array_replace", "array_sort", "array_to_json",
    "array_to_string", "array_upper", "as", "asc", "ascii", "asin", "atan", "atan2", "avg", "between",
    "bigint", "bit", "bit_and", "bit_length", "bit_or", "bool", "bool_and", "bool_or", "boolean", "bpchar",
    "btrim", "by", "bytea", "cardinality", "case", "cast", "cbrt", "ceil", "ceiling", "char",
    "char_length", "character", "character_length", "check", "chr", "clock_timestamp", "coalesce",
    "col_description", "collate", "concat", "concat_ws", "conflict", "convert_from", "convert_to", "copy",
    "corr", "cos", "cot", "count", "cross", "cube", "cume_dist", "current_database", "current_schema",
    "current_schemas", "current_setting", "current_user", "cursor", "date", "date_bin", "date_part",
    "date_trunc", "dec", "decimal", "decode", "default", "degrees", "delete", "dense_rank", "desc",
    "distinct", "div", "do", "double", "else", "encode", "end", "escape", "every", "except", "exclude",
    "exists", "exp", "extract", "factorial", "false", "filter", "first", "first_value", "float", "floor",
    "following", "for", "format", "format_type", "from", "full", "gcd", "gen_random_uuid",
    "generate_series", "generate_subscripts", "get_bit", "get_byte", "greatest", "group", "grouping",
    "has_schema_privilege", "has_table_privilege", "having", "host", "if", "ilike", "in", "initcap",
    "inner", "insert", "int", "integer", "intersect", "interval", "into", "is", "isfinite", "isnull",
    "join", "json", "json_agg", "json_array_elements", "json_array_elements_text", "json_array_length",
    "json_build_array", "json_build_object", "json_each", "json_each_text", "json_extract_path",
    "json_extract_path_text", "json_object", "json_object_agg", "json_object_keys", "json_populate_record",
    "json_populate_recordset", "json_strip_nulls", "json_to_record", "json_to_recordset", "json_typeof",
    "jsonb", "jsonb_agg", "jsonb_array_elements", "jsonb_array_elements_text", "jsonb_array_length",
    "jsonb_build_array", "jsonb_build_object", "jsonb_each", "jsonb_each_text", "jsonb_extract_path",
    "jsonb_extract_path_text", "jsonb_insert", "jsonb_object", "jsonb_object_agg", "jsonb_object_keys",
    "jsonb_path_exists", "jsonb_path_match", "jsonb_path_query", "jsonb_path_query_array",
    "jsonb_path_query_first", "jsonb_populate_record", "jsonb_populate_recordset", "jsonb_pretty",
    "jsonb_set", "jsonb_strip_nulls", "jsonb_to_record", "jsonb_to_recordset", "jsonb_typeof",
    "justify_days", "justify_hours", "justify_interval", "key", "lag", "last", "last_value", "lateral",
    "lcm", "lead", "least", "left", "length", "like", "limit", "ln", "localtime", "localtimestamp", "log",
    "log10", "lower", "lpad", "ltrim", "make_date", "make_interval", "make_time", "make_timestamp",
    "make_timestamptz", "materialized", "max", "md5", "min", "mod", "mode", "natural", "nchar", "next",
    "nextval", "normalize", "not", "notnull", "now", "nth_value", "ntile", "null", "nullif", "nulls",
    "num_nonnulls", "num_nulls", "numeric", "obj_description", "octet_length", "offset", "on", "only",
    "or", "order", "ordinality", "over", "overlaps", "overlay", "parse_ident", "partition", "percent_rank",
    "percentile_cont", "percentile_disc", "pg_advisory_xact_lock", "pg_advisory_xact_lock_shared",
    "pg_backend_pid", "pg_column_size", "pg_database_size", "pg_encoding_to_char", "pg_get_constraintdef",
    "pg_get_expr", "pg_get_function_identity_arguments", "pg_get_indexdef", "pg_get_serial_sequence",
    "pg_get_userbyid", "pg_get_viewdef", "pg_is_in_recovery", "pg_relation_size", "pg_size_pretty",
    "pg_sleep", "pg_table_is_visible", "pg_table_size", "pg_total_relation_size",
    "pg_try_advisory_xact_lock", "pg_type_is_visible", "pg_typeof", "phraseto_tsquery", "pi",
    "plainto_tsquery", "position", "power", "preceding", "precision", "primary", "quote_ident",
    "quote_literal", "quote_nullable", "radians", "random", "range", "rank", "real", "recursive",
    "references", "regexp_count", "regexp_instr", "regexp_like", "regexp_match", "regexp_matches",
    "regexp_replace", "regexp_split_to_array", "regexp_split_to_table", "regexp_substr", "repeat",
    "replace", "returning", "reverse", "right", "rollup", "round", "row", "row_number", "row_to_json",
    "rows", "rpad", "rtrim", "select", "session_user", "set", "sets", "setweight", "sha224", "sha256",
    "sha384", "sha512", "sign", "similar", "sin", "smallint", "some", "split_part", "sqrt", "starts_with",
    "statement_timestamp", "stddev", "stddev_pop", "stddev_samp", "string_agg", "string_to_array",
    "string_to_table", "strpos", "substr", "substring", "sum", "symmetric", "table", "tan", "text", "then",
    "time", "timeofday", "timestamp", "timestamptz", "timetz", "to", "to_char", "to_date", "to_hex",
    "to_json", "to_jsonb", "to_number", "to_regclass", "to_regtype", "to_timestamp", "to_tsquery",
    "to_tsvector", "transaction_timestamp", "translate", "trim", "trim_array", "true", "trunc",
    "ts_headline", "ts_rank", "ts_rank_cd", "txid_current", "union", "unique", "unistr", "unnest",
    "update", "upper", "user", "using", "uuid", "uuid_generate_v4", "values", "var_pop", "var_samp",
    "varchar", "variance", "varying", "version", "websearch_to_tsquery", "when", "where", "width_bucket",
    "window", "with", "within", "without", "xmlelement", "xmlforest",
];

/// Words after which a name in front of a parenthesis is a table's or an alias, not a function's.
const NAMES_A_RELATION: &[&[u8]] =
    &[b"into", b"as", b"with", b"recursive", b"copy", b"table", b"analyze", b"vacuum", b"conflict"];

/// Whether `sql`, a single statement, calls a function that is not known to be harmless. Strings, comments
/// and quoted names are skipped; what else is not understood counts as a call.
pub(super) fn calls_unknown(sql: &[u8]) -> bool {
    if memchr::memchr(b'(', sql).is_none() {
        return false;
    }
    let mut at = 0;
    let mut comment_end = 0;
    // Most texts, and the longest, have neither comments nor dollars but those of parameters.
    let quotes = |at: usize| !sql.get(at + 1).is_some_and(u8::is_ascii_digit);
    let odd = memchr::memchr2(b'-', b'/', sql).is_some() || memchr::memchr_iter(b'$', sql).any(quotes);
    loop {
        let rest = &sql[at..];
        let found = match odd {
            false => memchr::memchr3(b'\'', b'"', b'(', rest),
            true => rest.iter().position(|b| matches!(b, b'\'' | b'"' | b'(' | b'$' | b'-' | b'/')),
        };
        let Some(found) = found else { return false };
        let here = at + found;
        at = here + 1;
        match sql[here] {
            quote @ (b'\'' | b'"') => {
                let Some(end) = memchr::memchr(quote, &sql[at..]) else { return true };
                at += end + 1;
                // It may not be the end: then what follows is not understood.
                if quote == b'\'' && sql[at - 2] == b'\\' {
                    return memchr::memchr(b'(', &sql[at..]).is_some();
                }
                continue;
            }
            b'$' => {
                if sql.get(at).is_some_and(u8::is_ascii_digit) && !follows_name(&sql[..here]) {
                    continue;
                }
                let Some(tag) = memchr::memchr(b'$', &sql[at..]) else { return true };
                let tag = &sql[here..=at + tag];
                let is_tag = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
                if follows_name(&sql[..here]) || !tag[1..tag.len() - 1].iter().all(is_tag) {
                    return true;
                }
                at = here + tag.len();
                let Some(end) = memchr::memmem::find(&sql[at..], tag) else { return true };
                at += end + tag.len();
                continue;
            }
            b'-' | b'/' => {
                let rest = &sql[here..];
                if rest.starts_with(b"--") || rest.starts_with(b"/*") {
                    at = sql.len() - super::skip_blank(rest).len();
                    comment_end = at;
                }
                continue;
            }
            _ => {}
        }
        let before = sql[..here].trim_ascii_end();
        let is_name =
            |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.' | b'"') || *b >= 0x80;
        let start = before.iter().rposition(|b| !is_name(b)).map_or(0, |at| at + 1);
        let name = &before[start..];
        // A comment stands between the name and the parenthesis.
        if comment_end > 0 && before.len() <= comment_end {
            return true;
        }
        if name.is_empty() || is_harmless(name) {
            continue;
        }
        let before = before[..start].trim_ascii_end();
        // What looks like the word before may be in a comment, or in a quoted name.
        if (comment_end > 0 && start <= comment_end) || (name.contains(&b'"') && name[0] != b'"') {
            return true;
        }
        let start = before.iter().rposition(|b| !b.is_ascii_alphanumeric()).map_or(0, |at| at + 1);
        let previous = &before[start..];
        if !NAMES_A_RELATION.iter().any(|word| previous.eq_ignore_ascii_case(word)) {
            return true;
        }
    }
}

/// Whether `before` ends within a name or a number.
fn follows_name(before: &[u8]) -> bool {
    before.last().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$') || *b >= 0x80)
}

fn is_harmless(name: &[u8]) -> bool {
    let name = match name.len() {
        12.. if name[..11].eq_ignore_ascii_case(b"pg_catalog.") => &name[11..],
        _ => name,
    };
    let mut lower = [0; 40];
    let Some(lower) = lower.get_mut(..name.len()) else { return false };
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    // What it sets is looked at elsewhere.
    lower == b"set_config" || HARMLESS.binary_search_by(|harmless| harmless.as_bytes().cmp(lower)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted() {
        assert!(HARMLESS.is_sorted());
        assert!(!HARMLESS.contains(&"set_config"));
    }

    #[test]
    fn calls() {
        for sql in [
            "SELECT count(*), lower(name) FROM t WHERE id IN (1, 2) AND (a OR b)",
            "INSERT INTO leads (a, b) VALUES ('f(x)', now()) ON CONFLICT (a) DO NOTHING",
            "WITH x (a) AS (SELECT 1) SELECT * FROM x",
            "SELECT pg_catalog.upper('a''b (c')",
            "SELECT 1",
            "SELECT $1::numeric(10, 2)",
            "/* it's */ SELECT count(*) FROM t -- (it's",
            "SELECT $a$ f('x') $a$, \"f(\" FROM t WHERE a IN ($1, $2)",
            "INSERT INTO t (a, b) VALUES ($1, lower($2))",
            "SELECT 1 WHERE 'open",
        ] {
            assert!(!calls_unknown(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "SELECT f()",
            "SELECT my.lower('x')",
            "SELECT \"F\"(1)",
            "SELECT set_tenant ('globex')",
            "SELECT query_to_xml('select 1', true, true, '')",
            "SELECT 'a', f(1)",
            "select -- the user's context\n setu('alice')",
            "select /* it's */ setu('alice')",
            "select 1 as \"it's\", setu('alice')",
            "select $$it's$$, setu('alice')",
            "select E'\\'', setu('alice'), E'\\''",
            "select setu/* a */('alice')",
            "select -- as\n setu('alice')",
            "select 'open (",
            "select f($1)",
            "select $1, f$1 ($2)",
            "select $1 || 'a'::text, $2f(1)",
            "select $1, $$x$$, f($2)",
        ] {
            assert!(calls_unknown(sql.as_bytes()), "{sql}");
        }
    }
}
