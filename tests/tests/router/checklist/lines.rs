//! The lines of the checklist, and the tests that show what cannot be compared with PostgreSQL.

/// A line.
pub(super) struct Line {
    pub(super) id: &'static str,
    pub(super) what: &'static str,
    /// What shows it, besides the cases that name it.
    pub(super) evidence: &'static [Evidence],
}

/// What shows a line, or why nothing does.
pub(super) enum Evidence {
    /// A test: `file::name` of this suite, or a path from the root of the repository and a name.
    Test(&'static str),
    /// A part of the line that the router does not have, and why.
    Not(&'static str, &'static str),
}

use Evidence::{Not, Test};

const fn line(id: &'static str, what: &'static str, evidence: &'static [Evidence]) -> Line {
    Line { id, what, evidence }
}

pub(super) const LINES: &[Line] = &[
    line(
        "S1",
        "SSLRequest",
        &[
            Test("tls::plain_text_is_refused_in_words_where_tls_is_required"),
            Test("tls::tls_is_asked_for_once"),
        ],
    ),
    line("S2", "GSSENCRequest", &[Test("tls::a_client_may_go_on_in_plain_text_after_no")]),
    line(
        "S3",
        "bytes behind a request for encryption",
        &[
            Test("tls::bytes_before_the_handshake_are_never_part_of_the_session"),
            Test("hostile/shard::bytes_behind_the_answer_to_ssl_request"),
        ],
    ),
    line(
        "S4",
        "direct TLS",
        &[
            Test("tls::direct_tls_needs_the_protocol_by_name"),
            Not(
                "sslnegotiation=direct toward shards",
                "every PostgreSQL that offers it takes SSLRequest as well",
            ),
        ],
    ),
    line("S5", "protocol versions", &[]),
    line(
        "S6",
        "long cancel keys",
        &[
            Test("startup::a_client_of_protocol_3_2_gets_a_long_key"),
            Test("hostile/shard::backend_keys_of_every_size"),
        ],
    ),
    line(
        "S7",
        "sizes and layout of the startup packet",
        &[Test("limits::a_startup_packet_may_be_as_large_as_configured")],
    ),
    line("S8", "parameters and options", &[]),
    line("S9", "settings at startup", &[Test("startup::startup_parameters_are_honoured")]),
    line(
        "S10",
        "what is reported at login",
        &[
            Test("startup::what_is_reported_is_of_the_tenants_shard"),
            Test("startup::parameters_are_known_while_the_shard_is_down"),
        ],
    ),
    line("S11", "application_name", &[]),
    line(
        "S12",
        "PROXY protocol",
        &[
            Test("proxy::the_address_is_believed_of_trusted_proxies_only"),
            Test("proxy::both_versions_and_nonsense"),
        ],
    ),
    line("S13", "other protocols, and probes", &[Test("startup::a_probe_leaves_no_line_in_the_log")]),
    line(
        "A1",
        "SCRAM-SHA-256",
        &[Test("router/wire/src/scram/tests.rs::salt"), Test("login::scram_by_our_client_and_by_libpq")],
    ),
    line(
        "A2",
        "SCRAM-SHA-256-PLUS",
        &[
            Test("login::scram_plus_where_the_client_insists"),
            Test("login::a_downgrade_of_channel_binding_is_noticed"),
        ],
    ),
    line(
        "A3",
        "SCRAM toward the shard",
        &[
            Test("hostile/shard::iterations_without_end"),
            Test("hostile/shard::mechanisms_that_nobody_has"),
            Test("login::a_password_that_changes_on_the_shard"),
        ],
    ),
    line(
        "A4",
        "md5, certificates, trust",
        &[
            Test("login::md5_is_off_by_default_and_can_be_had"),
            Test("login::a_client_certificate"),
            Test("login::trust_where_it_is_configured"),
            Not("a file of host-based rules", "what a user may prove itself by stands with the user"),
        ],
    ),
    line(
        "A5",
        "a query for verifiers",
        &[Not("auth_query", "verifiers come from the file or the catalog; no query runs before a login")],
    ),
    line("A6", "LDAP and PAM", &[Not("LDAP, PAM", "tokens take their place")]),
    line(
        "A7",
        "tokens",
        &[
            Test("jwt::every_algorithm_and_the_claim_is_the_tenant"),
            Test("jwt::a_token_may_be_long_and_not_too_long"),
            Not(
                "SASL OAUTHBEARER",
                "drivers do not send it yet; a token in place of the password works with all of them",
            ),
        ],
    ),
    line(
        "A8",
        "refusals",
        &[
            Test("login::refusals_look_the_same"),
            Test("hostile/guessing::the_challenge_does_not_tell_who_exists"),
        ],
    ),
    line(
        "A9",
        "the deadline of a login",
        &[
            Test("limits::a_login_has_a_deadline_in_every_phase"),
            Test("hostile/slots::one_byte_a_second_is_no_progress"),
        ],
    ),
    line(
        "P1",
        "reported parameters follow the session",
        &[Test("startup::reported_parameters_follow_the_session")],
    ),
    line(
        "P2",
        "other settings",
        &[
            Test("settings::heavy_each_session_sees_its_own_settings"),
            Test("isolation::a_session_keeps_what_it_set"),
        ],
    ),
    line(
        "P3",
        "what keeps a connection",
        &[Test("isolation::what_a_living_session_holds_is_not_seen_by_others")],
    ),
    line(
        "P4",
        "what is cleaned at release",
        &[
            Test("isolation::what_a_session_leaves_is_gone_for_the_next_tenant"),
            Test("random::heavy_random_scripts_are_answered_as_by_postgresql"),
        ],
    ),
    line(
        "P5",
        "the tenant's variable",
        &[
            Test("isolation::a_session_that_threw_its_context_away_gets_it_back"),
            Test("context::the_context_is_not_written_again_where_it_stands"),
        ],
    ),
    line(
        "P6",
        "SET LOCAL, savepoints, settings of roles",
        &[Test("isolation::a_rollback_does_not_take_the_context_with_it")],
    ),
    line(
        "Q1",
        "named statements",
        &[
            Test("prepared::scripts_behave_as_with_postgresql"),
            Test("prepared::many_statements_of_one_client"),
            Test("prepared::the_same_name_means_something_else_to_each_client"),
            Test("prepared::a_text_is_another_statement_where_it_is_read_otherwise"),
        ],
    ),
    line("Q2", "PREPARE, EXECUTE, DEALLOCATE", &[]),
    line("Q3", "tables that change under a statement", &[]),
    line(
        "Q4",
        "the unnamed statement, and Describe",
        &[Test("prepared::the_unnamed_statement_survives_a_sync")],
    ),
    line("Q5", "portals", &[Test("protocol::portals")]),
    line("Q6", "Flush", &[Test("protocol::flush_sync_and_the_order_of_errors")]),
    line(
        "Q7",
        "pipelines",
        &[Test("protocol::heavy_pipelines_of_any_depth"), Test("protocol::transactions_and_their_status")],
    ),
    line("Q8", "simple queries", &[Test("protocol::simple_queries")]),
    line("Q9", "FunctionCall", &[Test("protocol::function_calls")]),
    line(
        "Q10",
        "simple queries switched off",
        &[Not("disable_simple_query", "nobody has asked for it; a tenant's rights are PostgreSQL's affair")],
    ),
    line(
        "Q11",
        "notices and notifications",
        &[
            Test("isolation::a_notification_reaches_nobody_else"),
            Test("notifications::a_listener_hears_its_own_tenant_and_nobody_else"),
            Test("listen_elsewhere::a_listener_hears_its_tenant_by_a_peer"),
        ],
    ),
    line(
        "Q12",
        "large values",
        &[
            Test("protocol::heavy_large_values"),
            Test("vanish::while_a_large_result_is_on_its_way_memory_stays_bounded"),
        ],
    ),
    line("K1", "COPY in", &[Test("protocol::copy")]),
    line("K2", "COPY out", &[]),
    line("K3", "COPY both", &[Not("replication", "it is refused: see S8")]),
    line("K4", "COPY in the extended protocol, in a transaction", &[]),
    line("K5", "the client vanishes in COPY", &[Test("vanish::in_copy")]),
    line("K6", "the server vanishes in COPY", &[Test("vanish::a_server_that_dies_in_copy_out")]),
    line("K7", "a slow reader", &[Test("vanish::while_a_large_result_is_on_its_way_memory_stays_bounded")]),
    line("X1", "a running query", &[Test("cancel::it_ends_the_statement_it_is_for")]),
    line("X2", "cancel over TLS", &[Test("cancel::it_comes_over_tls_too")]),
    line("X3", "a wrong key", &[Test("cancel::a_wrong_key_does_nothing")]),
    line(
        "X4",
        "never the next query",
        &[
            Test("cancel::it_never_hits_the_next_on_the_same_server"),
            Test("cancel::heavy_it_hits_nothing_that_comes_after_it"),
        ],
    ),
    line("X5", "while waiting for a connection", &[Test("cancel::it_ends_the_wait_for_a_server")]),
    line(
        "X6",
        "during the router's own statements",
        &[Test("cancel::it_never_hits_the_next_on_the_same_server")],
    ),
    line(
        "X7",
        "connections of their own, and a deadline",
        &[Test("cancel::it_ends_the_statement_it_is_for")],
    ),
    line(
        "X8",
        "through another router",
        &[
            Test("cancel_elsewhere::a_request_reaches_the_router_that_has_the_session"),
            Test("cancel_elsewhere::peers_in_a_circle_pass_a_request_on_no_more_than_twice"),
        ],
    ),
    line("X9", "keys that cannot be guessed", &[Test("cancel::a_wrong_key_does_nothing")]),
    line(
        "X10",
        "after the tenant has moved",
        &[Test("cancel::it_reaches_a_shard_that_has_left_the_topology")],
    ),
    line(
        "L1",
        "clients that vanish",
        &[
            Test("vanish::in_a_transaction"),
            Test("vanish::in_the_middle_of_messages"),
            Test("vanish::in_the_queue"),
        ],
    ),
    line(
        "L2",
        "servers that are killed",
        &[
            Test("pool::a_server_killed_while_idle_costs_nobody_an_error"),
            Test("pool::a_server_killed_in_a_transaction_says_so_and_the_pool_recovers"),
        ],
    ),
    line(
        "L3",
        "deadlines",
        &[
            Test("limits::idle_clients_end_where_they_are_told_to"),
            Test("pool::waiting_for_a_connection_has_an_end"),
        ],
    ),
    line(
        "L4",
        "shards that refuse the login",
        &[
            Test("pool::a_shard_that_refuses_the_router_is_an_error_and_not_a_hang"),
            Test("pool::a_shard_that_is_down_stops_nobody_else"),
        ],
    ),
    line(
        "L5",
        "limits",
        &[Test("limits::more_clients_than_allowed_are_told_so"), Test("pool::the_size_is_never_exceeded")],
    ),
    line(
        "L6",
        "shutdown",
        &[
            Test("operation::sigterm_waits_for_open_transactions"),
            Test("operation::sigterm_does_not_wait_for_ever"),
        ],
    ),
    line("L7", "restart", &[Test("operation::a_bad_configuration_leaves_everything_as_it_was")]),
    line(
        "L8",
        "PAUSE, RESUME and others",
        &[Not("PAUSE, RESUME", "they are the console's, which has tests of its own")],
    ),
    line(
        "L9",
        "reload",
        &[
            Test("operation::a_reload_brings_and_takes_users_and_tenants"),
            Test("tls::a_new_certificate_is_shown_after_a_reload"),
        ],
    ),
    line("L10", "errors of accept", &[Test("limits::running_out_of_files_is_survived")]),
];

/// Whether there is such a test.
pub(super) fn exists(name: &str) -> bool {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some((file, function)) = name.rsplit_once("::") else { return false };
    let candidates = match file.strip_suffix(".rs") {
        Some(_) => vec![root.join("..").join(file)],
        None => {
            let base = root.join("tests/router");
            vec![base.join(format!("{file}.rs")), base.join(file).join("mod.rs")]
        }
    };
    let declared = format!("fn {function}(");
    candidates.iter().any(|path| std::fs::read_to_string(path).is_ok_and(|text| text.contains(&declared)))
}
