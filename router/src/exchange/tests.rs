use super::*;

fn exchange() -> Exchange {
    let mut x = Exchange::new();
    x.begin(Prefix::default());
    x
}

#[test]
fn a_query_is_over_at_its_ready() {
    let mut x = exchange();
    x.sent_query();
    assert!(!x.is_over());
    x.got_ready(b'T').unwrap();
    assert!(x.is_quiet() && !x.is_over());
    x.sent_query();
    x.got_ready(b'I').unwrap();
    assert!(x.is_over());
    assert_eq!(x.got_ready(b'I'), Err(Desync));
}

#[test]
fn extended_messages_without_sync_keep_it_open() {
    let mut x = exchange();
    x.sent_extended(Owed::ParseUnnamed(1));
    x.sent_bind(true);
    assert!(x.got_parse_complete().unwrap());
    x.got_bind_complete().unwrap();
    assert!(!x.is_over());
    x.sent_sync();
    x.got_ready(b'I').unwrap();
    assert!(x.is_over());
}

#[test]
fn a_query_ends_an_extended_group_that_has_no_sync() {
    // asyncpg: Parse, Describe, Flush; later a Query.
    let mut x = exchange();
    x.sent_extended(Owed::ParseUnnamed(1));
    x.sent_extended(Owed::Describe);
    x.got_parse_complete().unwrap();
    x.got_description().unwrap();
    assert!(!x.is_over());
    x.sent_query();
    x.got_ready(b'I').unwrap();
    assert!(x.is_over());
}

#[test]
fn an_error_undoes_up_to_the_next_sync_only() {
    let statements = crate::statements::StatementInterner::default();
    let s = statements.get(b"x", &[0, 0], Some(0));
    let mut x = exchange();
    x.sent_extended(Owed::Parse((*b"a").into(), s.clone()));
    x.sent_sync();
    x.sent_extended(Owed::Parse((*b"b").into(), s));
    x.sent_sync();
    let mut undo = Vec::new();
    assert_eq!(x.got_error(None, &mut undo), ErrorIs::Plain);
    assert_eq!(undo.len(), 1);
    x.got_ready(b'I').unwrap();
    assert!(x.got_parse_complete().unwrap());
    x.got_ready(b'I').unwrap();
    assert!(x.is_over());
}

#[test]
fn after_an_error_without_sync_everything_is_skipped() {
    let mut x = exchange();
    x.sent_bind(true);
    let mut undo = Vec::new();
    x.got_error(None, &mut undo);
    assert!(x.is_skipping());
    x.sent_extended(Owed::ParseUnnamed(1));
    x.sent_query();
    assert_eq!(x.readies_owed(), 0);
    x.sent_sync();
    x.got_ready(b'I').unwrap();
    assert!(x.is_over());
}

#[test]
fn copy_in_by_the_extended_protocol_swallows_syncs() {
    // Sync sent together with Execute, then data, CopyDone and a second Sync.
    for copy_response_late in [false, true] {
        let mut x = exchange();
        x.sent_extended(Owed::ParseUnnamed(1));
        x.sent_extended(Owed::Execute);
        x.sent_sync();
        x.got_parse_complete().unwrap();
        if !copy_response_late {
            x.got_copy_in();
            assert!(!x.is_over());
        }
        x.sent_copy_end();
        x.sent_sync();
        if copy_response_late {
            x.got_copy_in();
        }
        x.got_completion().unwrap();
        x.got_ready(b'I').unwrap();
        assert!(x.is_over(), "late: {copy_response_late}");
    }
}

#[test]
fn a_query_behind_an_error_is_skipped_with_the_rest() {
    // Describe of a portal that is not there, Query, Parse, Sync.
    let mut x = exchange();
    x.sent_extended(Owed::Describe);
    x.sent_query();
    x.sent_extended(Owed::ParseUnnamed(1));
    x.sent_sync();
    x.got_error(None, &mut Vec::new());
    x.got_ready(b'I').unwrap();
    assert!(x.is_over());
}

#[test]
fn a_copy_that_fails_leaves_doubt_about_the_syncs_before() {
    // Execute and Sync in one packet, as drivers do; it fails before or after it has read that Sync.
    let mut x = exchange();
    x.sent_extended(Owed::Execute);
    x.sent_sync();
    x.got_copy_in();
    x.got_error(None, &mut Vec::new());
    assert!(x.is_in_doubt() && !x.is_over());
    x.got_ready(b'I').unwrap();
    assert!(x.is_over(), "it was not read as part of the data");
    assert_eq!(x.got_ready(b'I'), Err(Desync));
    let mut x = exchange();
    x.sent_query();
    x.got_copy_in();
    x.sent_sync();
    x.got_error(None, &mut Vec::new());
    assert!(x.is_in_doubt());
    // Without such a Sync, and where it succeeds, there is none.
    let mut x = exchange();
    x.sent_query();
    x.got_copy_in();
    x.got_error(None, &mut Vec::new());
    assert!(!x.is_in_doubt());
    x.got_ready(b'I').unwrap();
    x.sent_query();
    x.got_copy_in();
    x.sent_sync();
    x.sent_copy_end();
    x.got_completion().unwrap();
    assert!(!x.is_in_doubt());
}

#[test]
fn ends_of_copies_that_nobody_waits_for_take_no_room() {
    let mut x = exchange();
    x.sent_extended(Owed::ParseUnnamed(1));
    (0..1000).for_each(|_| x.sent_copy_end());
    assert_eq!(x.owed.len(), 2);
    // Two COPYs in one Query, with the data and ends of both behind it.
    let mut x = exchange();
    x.sent_query();
    x.sent_copy_end();
    x.sent_copy_end();
    for _ in 0..2 {
        x.got_copy_in();
        assert!(!x.is_copying_in());
        x.got_completion().unwrap();
    }
    x.got_ready(b'I').unwrap();
    assert!(x.is_over());
}

#[test]
fn copy_in_by_query() {
    let mut x = exchange();
    x.sent_query();
    x.got_copy_in();
    x.sent_sync();
    x.sent_copy_end();
    assert!(!x.is_over());
    x.got_ready(b'I').unwrap();
    assert!(x.is_over());
}

#[test]
fn nothing_passes_a_pending_prefix_but_one_group() {
    let mut x = Exchange::new();
    x.begin(Prefix { commands: 1, readies: 1, ..Prefix::default() });
    x.sent_bind(true);
    assert!(!x.must_wait());
    x.sent_sync();
    assert!(x.must_wait());
    x.prefix = Prefix::default();
    assert!(!x.must_wait());
}

#[test]
fn the_end_of_a_copy_that_there_is_not_is_not_waited_for() {
    let mut x = exchange();
    x.sent_extended(Owed::Execute);
    x.wants_answers();
    x.sent_copy_end();
    assert!(x.must_be_answered());
    x.got_completion().unwrap();
    assert!(!x.must_be_answered());
}

/// A Query that fails in a transaction, before which `ran` says whether another statement of it has completed.
fn failed_query(x: &mut Exchange, ran: bool, code: &[u8; 5], status: u8) {
    x.sent_query();
    if ran {
        x.got_completion().unwrap();
    }
    x.got_error(Some(*code), &mut Vec::new());
    x.got_ready(status).unwrap();
}

#[test]
fn what_a_query_that_failed_has_left_is_not_run() {
    let mut x = exchange();
    failed_query(&mut x, true, b"22012", b'E');
    assert_eq!(x.unnamed_portal(), Unnamed::Left);
    // Refused before it runs: it makes no portal, and takes none away.
    failed_query(&mut x, false, b"25P02", b'E');
    assert_eq!(x.unnamed_portal(), Unnamed::Left);
    failed_query(&mut x, true, b"22012", b'I');
    assert_eq!(x.unnamed_portal(), Unnamed::Sound);
}

#[test]
fn a_query_under_way_may_leave_a_portal() {
    let mut x = exchange();
    x.sent_query();
    assert_eq!(x.unnamed_portal(), Unnamed::Unknown);
    x.got_completion().unwrap();
    x.got_ready(b'T').unwrap();
    assert_eq!(x.unnamed_portal(), Unnamed::Sound);
    x.sent_sync();
    assert_eq!(x.unnamed_portal(), Unnamed::Sound);
    x.got_ready(b'T').unwrap();
    x.sent_refused_query(ErrorResponse::error(switchyard_wire::error::sqlstate::SYNTAX_ERROR, "no"));
    assert_eq!(x.unnamed_portal(), Unnamed::Unknown);
}

#[test]
fn a_bind_takes_the_place_of_what_was_left_once_it_has_succeeded() {
    let mut x = exchange();
    failed_query(&mut x, true, b"22012", b'E');
    x.sent_bind(false);
    assert_eq!(x.unnamed_portal(), Unnamed::Left);
    x.got_bind_complete().unwrap();
    x.sent_bind(true);
    // If it fails, what follows is skipped.
    assert_eq!(x.unnamed_portal(), Unnamed::Sound);
    x.sent_sync();
    assert_eq!(x.unnamed_portal(), Unnamed::Unknown);
    let mut refused = exchange();
    std::mem::swap(&mut x, &mut refused);
    refused.got_error(Some(*b"25P02"), &mut Vec::new());
    refused.got_ready(b'E').unwrap();
    assert_eq!(refused.unnamed_portal(), Unnamed::Left);

    failed_query(&mut x, true, b"22012", b'E');
    x.sent_bind(true);
    x.sent_sync();
    x.got_bind_complete().unwrap();
    x.got_ready(b'E').unwrap();
    assert_eq!(x.unnamed_portal(), Unnamed::Sound);
    // It is a ROLLBACK, or it could not have been bound: refused Queries leave it there.
    failed_query(&mut x, false, b"25P02", b'E');
    failed_query(&mut x, false, b"42601", b'E');
    assert_eq!(x.unnamed_portal(), Unnamed::Sound);
    // A function of a transaction that has begun meanwhile may say the same.
    failed_query(&mut x, true, b"25P02", b'E');
    assert_eq!(x.unnamed_portal(), Unnamed::Left);
}

#[test]
fn a_query_of_the_routers_own_may_leave_a_portal() {
    let mut x = exchange();
    x.sent_query();
    x.got_ready(b'T').unwrap();
    x.sent_own(Owed::OwnQuery(None));
    assert_eq!(x.unnamed_portal(), Unnamed::Unknown);
    use switchyard_wire::frame::backend;
    x.got_own(backend::ERROR, 0).unwrap();
    x.got_own(backend::READY_FOR_QUERY, b'E').unwrap();
    assert_eq!(x.unnamed_portal(), Unnamed::Left);
}
