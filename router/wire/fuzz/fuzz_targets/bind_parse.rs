//! Parse, Bind, Describe, Close and Execute: whole, in prefixes, and built again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_wire::build;
use switchyard_wire::frame::HEADER;
use switchyard_wire::message;

fuzz_target!(|data: &[u8]| {
    let mut again = Vec::new();
    if let Ok(parse) = message::parse(data) {
        build::parse(&mut again, parse.name, parse.sql, parse.types).expect("as read");
        assert_eq!(&again[HEADER..], data);
    }
    if let Ok(target) = message::describe(data) {
        assert_eq!(message::close(data), Ok(target));
        again.clear();
        build::close(&mut again, target.kind, target.name).expect("as read");
        assert_eq!(&again[HEADER..], data);
    }
    if let Ok(execute) = message::execute(data) {
        again.clear();
        build::execute(&mut again, execute.portal, execute.max_rows).expect("as read");
        assert_eq!(message::execute(&again[HEADER..]), Ok(execute));
    }
    if let Ok(bind) = message::bind(data) {
        let names = message::bind_names(data).expect("as read").expect("whole");
        assert_eq!((bind.portal, bind.statement), (names.portal, names.statement));
        assert!(bind.params.len() * 4 <= data.len());
    }
    if let Ok(Some(whole)) = message::bind_names(data) {
        for end in 0..data.len().min(whole.rest + 2) {
            let wanted = (end >= whole.rest).then_some(whole);
            assert_eq!(message::bind_names(&data[..end]), Ok(wanted));
        }
    }
});
