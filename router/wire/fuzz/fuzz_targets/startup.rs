//! The first packet: what is read can be built again and reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_wire::build;
use switchyard_wire::startup::{First, first};

fuzz_target!(|data: &[u8]| {
    // Half of the inputs get a length that fits, so that the fuzzer need not guess it.
    let mut packet = data.to_vec();
    if data.first().is_some_and(|byte| byte % 2 == 1) && packet.len() >= 4 {
        let len = u32::try_from(packet.len()).unwrap_or(u32::MAX).to_be_bytes();
        packet[..4].copy_from_slice(&len);
    }
    match first(&packet) {
        Ok(First::Startup(startup)) => {
            assert!(!startup.user().is_empty() && !startup.database().is_empty());
            let params: Vec<(&str, &str)> =
                startup.params.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let mut again = Vec::new();
            let version = u32::from(startup.major) << 16 | u32::from(startup.minor);
            build::startup(&mut again, version, &params).expect("what was read has no NUL");
            let Ok(First::Startup(second)) = first(&again) else { panic!("unreadable") };
            assert_eq!(second.params, startup.params);
        }
        Ok(First::Cancel { key, .. }) => assert!((4..=256).contains(&key.len())),
        Ok(_) => {}
        Err(error) => {
            let mut answer = Vec::new();
            error.encode(&mut answer);
            assert_eq!(answer.is_empty(), error.is_silent());
        }
    }
});
