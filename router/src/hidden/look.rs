//! The question by which a session learns what its database runs behind the texts of statements.

/// What a database has behind the texts of statements.
///
/// `loud` are functions that do more than compute, extensions' apart; `reach` are those and the ones that mention
/// them; an entry is what calls one of these without its name in the text; `direct` is for views, policies, defaults and the
/// like that call PostgreSQL's own loud functions, on which nothing depends. What is in the schema `switchyard` is this
/// router's, and quiet. Of the loud ones those are sure that are seen to set, lock or make something; what others do, by
/// dynamic SQL or in another language, is found out by asking. Rows: `r` where reading is enough to reach a loud one, `w`
/// where it takes a write, with `s` if it is sure; `f` for the names of the sure ones and those that mention them; `c` for settings
/// that loud functions name; `v` if a function asks for a sequence's last value. Operators and functions are named by their schema, as the session's `search_path` applies. The numbers
/// are OIDs of catalogs:
/// pg_proc 1255, pg_trigger 2620, pg_attrdef 2604, pg_class 1259 (of indexes), pg_event_trigger 3466, pg_rewrite 2618,
/// pg_constraint 2606. // src/include/catalog; 16384 is FirstNormalObjectId, src/include/access/transam.h
pub(crate) const LOOK: &str = r#"WITH RECURSIVE f AS MATERIALIZED (
    SELECT p.oid, p.proname::pg_catalog.text AS name, l.lanname::pg_catalog.text AS lang,
        pg_catalog.lower(coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc)) AS src
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang
    WHERE p.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d WHERE d.classid OPERATOR(pg_catalog.=) 1255::pg_catalog.oid
            AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog."char")
        AND p.pronamespace OPERATOR(pg_catalog.<>) ALL (
            SELECT oid FROM pg_catalog.pg_namespace WHERE nspname OPERATOR(pg_catalog.=) 'switchyard')),
loud AS MATERIALIZED (
    SELECT oid, name, src, sure FROM f, LATERAL (SELECT
            pg_catalog.regexp_replace(src, $1::pg_catalog.text, '', 'g') OPERATOR(pg_catalog.~) $2::pg_catalog.text) AS s (sure)
    WHERE sure OR lang OPERATOR(pg_catalog.<>) ALL (ARRAY['sql', 'plpgsql', 'internal'])
        OR src OPERATOR(pg_catalog.~) $5::pg_catalog.text),
sure AS (
    SELECT oid, name FROM loud WHERE sure UNION SELECT f.oid, f.name FROM f, sure s
    WHERE pg_catalog.strpos(f.src, pg_catalog.lower(s.name)) OPERATOR(pg_catalog.>) 0),
reach AS (
    SELECT oid, name FROM loud UNION SELECT f.oid, f.name FROM f, reach r
    WHERE pg_catalog.strpos(f.src, pg_catalog.lower(r.name)) OPERATOR(pg_catalog.>) 0),
entry AS (
    SELECT d.classid, d.objid, CASE WHEN r.oid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT oid FROM sure)) THEN 's' ELSE '' END AS sure
    FROM pg_catalog.pg_depend d JOIN reach r ON d.refobjid OPERATOR(pg_catalog.=) r.oid
    WHERE d.refclassid OPERATOR(pg_catalog.=) 1255::pg_catalog.oid
        AND (d.classid OPERATOR(pg_catalog.<>) 1255::pg_catalog.oid OR EXISTS (
            SELECT FROM pg_catalog.pg_aggregate a
            WHERE a.aggfnoid::pg_catalog.oid OPERATOR(pg_catalog.=) d.objid))),
direct AS MATERIALIZED (
    SELECT pg_catalog.concat(':(funcid|opfuncid) (', pg_catalog.string_agg(oid::pg_catalog.text, '|'), ') ') AS calls
    FROM pg_catalog.pg_proc
    WHERE pronamespace OPERATOR(pg_catalog.=) 11::pg_catalog.oid AND proname OPERATOR(pg_catalog.~) $3::pg_catalog.text)
SELECT DISTINCT CASE
    WHEN e.classid OPERATOR(pg_catalog.=) ANY (ARRAY[2620, 2604, 1259, 3466]::pg_catalog.oid[])
        OR (w.oid IS NOT NULL AND w.ev_type OPERATOR(pg_catalog.<>) '1'::pg_catalog."char")
        OR (c.oid IS NOT NULL AND c.conrelid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid)
    THEN 'w' ELSE 'r' END, e.sure, ''
FROM entry e
    LEFT JOIN pg_catalog.pg_rewrite w
        ON e.classid OPERATOR(pg_catalog.=) 2618::pg_catalog.oid AND w.oid OPERATOR(pg_catalog.=) e.objid
    LEFT JOIN pg_catalog.pg_constraint c
        ON e.classid OPERATOR(pg_catalog.=) 2606::pg_catalog.oid AND c.oid OPERATOR(pg_catalog.=) e.objid
UNION ALL SELECT CASE WHEN ev_type OPERATOR(pg_catalog.=) '1'::pg_catalog."char" THEN 'r' ELSE 'w' END, 's', ''
    FROM pg_catalog.pg_rewrite, direct
    WHERE oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid AND ev_action::pg_catalog.text OPERATOR(pg_catalog.~) calls
UNION ALL SELECT 'r', 's', '' FROM pg_catalog.pg_policy, direct
    WHERE pg_catalog.concat(polqual, ' ', polwithcheck) OPERATOR(pg_catalog.~) calls
UNION ALL SELECT 'w', 's', '' FROM pg_catalog.pg_attrdef, direct
    WHERE adbin::pg_catalog.text OPERATOR(pg_catalog.~) calls
UNION ALL SELECT CASE WHEN conrelid OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'r' ELSE 'w' END, 's', ''
    FROM pg_catalog.pg_constraint, direct
    WHERE conbin::pg_catalog.text OPERATOR(pg_catalog.~) calls
UNION ALL SELECT 'w', 's', '' FROM pg_catalog.pg_type, direct
    WHERE typdefaultbin::pg_catalog.text OPERATOR(pg_catalog.~) calls
UNION ALL SELECT 'w', 's', '' FROM pg_catalog.pg_trigger, direct
    WHERE tgqual::pg_catalog.text OPERATOR(pg_catalog.~) calls
UNION ALL SELECT 'w', 's', '' FROM pg_catalog.pg_depend
    WHERE refclassid OPERATOR(pg_catalog.=) 1259::pg_catalog.oid AND classid OPERATOR(pg_catalog.=) 2618::pg_catalog.oid
        AND refobjid OPERATOR(pg_catalog.=) 'pg_catalog.pg_settings'::pg_catalog.regclass::pg_catalog.oid
        AND objid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
UNION ALL (SELECT 'v', '', '' FROM f WHERE src OPERATOR(pg_catalog.~) $6::pg_catalog.text LIMIT 1)
UNION ALL (SELECT DISTINCT 'f', name, '' FROM sure LIMIT 1001)
UNION ALL (SELECT DISTINCT 'c', m[1], '' FROM loud, pg_catalog.regexp_matches(src, $4::pg_catalog.text, 'g') m LIMIT 64)"#;

/// How many changes there have been of the catalogs that [`LOOK`] reads, as far as the server has counted them: those of an
/// open session may be counted ten seconds late. Those that every temporary table changes are left out, which
/// tell of the defaults of domains and expressions of indexes alone. The OIDs are of pg_proc 1255, pg_attrdef 2604,
/// pg_constraint 2606, pg_rewrite 2618, pg_trigger 2620, pg_policy 3256, pg_event_trigger 3466.
/// // PGSTAT_IDLE_INTERVAL, src/include/pgstat.h
pub(crate) const COUNT: &str = "SELECT 'p', CASE pg_catalog.current_setting('track_counts')
        WHEN 'on' THEN pg_catalog.sum(pg_catalog.pg_stat_get_tuples_inserted(c)
            OPERATOR(pg_catalog.+) pg_catalog.pg_stat_get_tuples_updated(c)
            OPERATOR(pg_catalog.+) pg_catalog.pg_stat_get_tuples_deleted(c))::pg_catalog.text
        ELSE pg_catalog.clock_timestamp()::pg_catalog.text END, ''
    FROM pg_catalog.unnest('{1255,2604,2606,2618,2620,3256,3466}'::pg_catalog.oid[]) AS t (c)";

/// The parameters of [`LOOK`], as a setting of the session's decides how constants are read: what lasts no longer than
/// its transaction, what makes a function surely loud, PostgreSQL's own loud functions, names of settings, dynamic SQL, and
/// what asks for a sequence's last value.
pub(crate) const PATTERNS: [&str; 6] = [
    r"set_config\s*\([^()]*,\s*true\s*\)",
    concat!(
        r"set_config|pg_settings|advisory_lock|advisory_unlock|\mtemp\M|\mtemporary\M|pg_temp|with\s+hold|",
        r"_to_xml|ts_stat|dblink|",
        r"(^|;|>>|\mbegin\M|\mthen\M|\melse\M|\mloop\M)(\s|--[^\n]*\n|/\*([^*]|\*[^/])*\*/)*",
        r"(set(?!\s+(local|constraints|transaction)\M)|reset|prepare|deallocate|listen|unlisten|discard|load)\M",
    ),
    r"^(set_config|pg_(try_)?advisory_(un)?lock.*|.*_to_xml(schema|_and_xmlschema)?|ts_stat)$",
    r"(?:'|\mset\s+|\msession\s+|\mreset\s+)([a-z_][a-z0-9_$]*\.[a-z_][a-z0-9_$.]*)",
    r"\mexecute\M",
    r"\m(curr|last)val\M",
];

/// Most names of functions that texts are looked through for: [`LOOK`] tells one more, and then every text is taken to have one.
pub(crate) const FUNCTIONS_MAX: usize = 1000;
