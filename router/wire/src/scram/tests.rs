use proptest::prelude::*;

use super::*;

const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

fn password(text: &str) -> ClientSecret {
    ClientSecret::Password(text.to_owned().into())
}

fn verifier(password: &str) -> Verifier {
    Verifier::from_password(password.as_bytes(), 2)
}

/// The exchange of RFC 7677 section 3, but for the user name, which that client sends and ours leaves out.
mod rfc_7677 {
    use super::*;

    fn salt() -> Vec<u8> {
        keys::unbase64("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap()
    }

    #[test]
    fn server() {
        let verifier = Verifier::with_salt(b"pencil", salt(), 4096);
        let mut server = ServerScram::new(&verifier, ChannelBinding::None);
        let first = format!("n,,n=user,r={NONCE}");
        let challenge = server.first_with_nonce(SCRAM_SHA_256, first.as_bytes(), SERVER_NONCE).unwrap();
        let expected =
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(challenge, expected.as_bytes());
        let last = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
            p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let (answer, client_key) = server.last(last.as_bytes()).unwrap();
        assert_eq!(answer, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert_eq!(keys::sha256(&client_key), verifier.stored_key);
    }

    /// The same challenge; proof and signature computed independently for `n=` without a name.
    #[test]
    fn client() {
        let mut client = ClientScram::new(password("pencil"), None);
        client.set_nonce(NONCE);
        assert_eq!(client.first(), format!("n,,n=,r={NONCE}").as_bytes());
        let challenge = format!("r={NONCE}{SERVER_NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        let last = client.challenge(challenge.as_bytes()).unwrap();
        let expected =
            format!("c=biws,r={NONCE}{SERVER_NONCE},p=qvT2SWdEH5Q06albL+hjSYuUhCG7VndFyzIb7CK4n9k=");
        assert_eq!(String::from_utf8(last).unwrap(), expected);
        client.verify(b"v=3HO6Qt1M4MKJrmlKaoOqLAI0/0TV0HZe7J9H3MBtSOg=").unwrap();
    }
}

/// `rolpassword` of PostgreSQL 15 for passwords that `SASLprep` changes, empties, or cannot prepare.
#[test]
fn verifiers_of_postgresql() {
    let stored = [
        (
            "pencil",
            "4096:aeInjVIm8ipXCUqv1Af5NA==$6pFg7OrCJZQl2B54AgIcdXIYr4NHfieiJUjsDnA3CA4=:PeuitCKkdgL8bTuOm0x8V3XrrVMvAemrCqqX6p/LVJ8=",
        ),
        (
            "I\u{ad}X",
            "4096:XxdRVrh9atT71+nC5w78bg==$vLApnD+9UD0u/jqBlvoKHNob8PlhWvUO/hLfR9ogxaw=:+3v8jYIaaxpnKzFXSJO23Rbs+XRB9bHk36TivpcdyPQ=",
        ),
        (
            "\u{2168}",
            "4096:AZjtfU1O5W3do/rp5fVzyA==$vR1cw3MhEFAhPaEe1ioZKt246f3ara1K9PeK0eQYtc0=:HJlBWZkRxjaOpEEbvzqzcfvxy8GpdsnpmhjB6B0DjLE=",
        ),
        (
            "\u{ad}",
            "4096:OFelHNGmVGtPCulFeUjyYA==$8YjqW0EZBXKh9uVh13ALk/VJ4WeKla6OGI1Z5SyCpgI=:fHhoonpF7fMtWhli702k4q/RVehwLN+bOsiGOXtm0Rw=",
        ),
        (
            "a\u{a0}b",
            "4096:dF3A6R0PxOJCGaEufWw1lg==$KYsQpLNgm6TcoLxAg2GyqptL0PICpcY1axt42PtUx7k=:9C7l09XdXXKEpBFHIMCIzGVycmt/M4s8HzWVyy5ds0I=",
        ),
        (
            "tab\u{7}x",
            "4096:8YM+WcEEVJ/A2EZzFnvhSQ==$kKuqRMYq4mY3sniJX9nb5mQJsSMsIm1TqshjIdz1B94=:gjf2S49lXwAzUSs4f8iK6IhY4wqdK2dAZz1htUfI124=",
        ),
        (
            "\u{627}1",
            "4096:CzwhGUlG2NKhjNoBOBii3Q==$sUzyryyahEhE3xjkBfnfALyZgnn21NGTcDnEpHh1hTQ=:EJu98pv5YQ0jgbjE5WDqj2IgMdbVdEdqC7gKPwOqHts=",
        ),
        (
            " p%&",
            "4096:MgS/hIYNJ31Klz3YCFvb5w==$ZWOu2r7sHxO8ZZEXg4VkdUSKdmTCSpIFxvjuOavwOY8=:ukTHinQrlESJbyHujQ22ipW+z6qUHK6PL6eAR9qot2M=",
        ),
    ];
    for (password, stored) in stored {
        let text = format!("SCRAM-SHA-256${stored}");
        let verifier = Verifier::parse(&text).unwrap();
        assert_eq!(verifier.to_string(), text);
        assert!(
            Verifier::with_salt(password.as_bytes(), verifier.salt.clone(), 4096) == verifier,
            "{password:?}"
        );
    }
}

#[test]
fn what_is_no_verifier() {
    let good = Verifier::with_salt(b"x", vec![1; 16], 1).to_string();
    assert!(Verifier::parse(&good).is_ok());
    let (head, tail) = good.split_at(good.len() - 44);
    for bad in [
        String::new(),
        "md53175bce1d3201d16594cebf9d7eb3f9d".to_owned(),
        good.replace("256$1:", "256$0:"),
        good.replace("256$1:", "256$+1:"),
        good.replace("256$1:", "256$:"),
        good.replace("256$1:", "256$4294967297:"),
        good.replace("SCRAM", "scram"),
        head.to_owned(),
        format!("{head}{}", &tail[..40]),
        format!("{good}AAAA"),
        format!("{good} "),
        format!("SCRAM-SHA-256$1:${}", &good[good.len() - 89..]),
    ] {
        assert!(Verifier::parse(&bad).is_err(), "{bad}");
    }
}

#[test]
fn nothing_secret_in_debug() {
    let verifier = verifier("secret");
    assert_eq!(format!("{verifier:?}"), "Verifier { iterations: 2, .. }");
    assert!(!format!("{:?}", password("secret")).contains("secret"));
    let cancel = crate::startup::First::Cancel { pid: 1, key: vec![7; 4] };
    assert_eq!(format!("{cancel:?}"), "Cancel { pid: 1, .. }");
    let initial = crate::message::sasl_initial(b"OAUTHBEARER\0\0\0\0\x05token").unwrap();
    assert_eq!(format!("{initial:?}"), "SaslInitial { mechanism: \"OAUTHBEARER\", .. }");
    assert!(!format!("{:?}", ClientSecret::Keys { client_key: [7; 32], server_key: [7; 32] }).contains("7,"));
}

/// Runs an exchange to its end: what the client sees, and the keys that it derived.
fn exchange(
    verifier: &Verifier,
    server_binding: ChannelBinding,
    client: &mut ClientScram,
) -> Result<[u8; 32], ScramError> {
    let mut server = ServerScram::new(verifier, server_binding);
    let mechanism = client.mechanism(server.mechanisms()).unwrap();
    let challenge = server.first(mechanism, &client.first())?;
    let proof = client.challenge(&challenge)?;
    let (answer, client_key) = server.last(&proof)?;
    client.verify(&answer)?;
    Ok(client_key)
}

#[test]
fn both_sides_agree() {
    let hash = || vec![5; 32];
    let verifier = verifier("pa,s=s\u{e9}");
    for (server, client) in [
        (ChannelBinding::None, None),
        (ChannelBinding::None, Some(hash())),
        (ChannelBinding::TlsServerEndPoint(hash()), None),
        (ChannelBinding::TlsServerEndPoint(hash()), Some(hash())),
    ] {
        let mut right = ClientScram::new(password("pa,s=s\u{e9}"), client.clone());
        exchange(&verifier, server.clone(), &mut right).unwrap();
        let mut wrong = ClientScram::new(password("pa,s=s"), client);
        assert_eq!(exchange(&verifier, server, &mut wrong), Err(ScramError::WrongProof));
    }
}

#[test]
fn empty_password() {
    let verifier = Verifier::from_password(b"", 1);
    exchange(&verifier, ChannelBinding::None, &mut ClientScram::new(password(""), None)).unwrap();
}

#[test]
fn plus_comes_first_and_is_chosen() {
    let bound = ChannelBinding::TlsServerEndPoint(vec![1; 32]);
    assert_eq!(bound.mechanisms(), [SCRAM_SHA_256_PLUS, SCRAM_SHA_256]);
    assert_eq!(ChannelBinding::None.mechanisms(), [SCRAM_SHA_256]);
    let mut client = ClientScram::new(password("x"), Some(vec![1; 32]));
    assert_eq!(client.mechanism(&["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"]), Some(SCRAM_SHA_256_PLUS));
    assert!(client.first().starts_with(b"p=tls-server-end-point,,n=,r="));
    assert_eq!(client.mechanism(&["OAUTHBEARER", "SCRAM-SHA-256"]), Some(SCRAM_SHA_256));
    assert!(client.first().starts_with(b"y,,n=,r="));
    assert_eq!(client.mechanism(&["OAUTHBEARER"]), None);
}

#[test]
fn another_certificate_is_noticed() {
    let verifier = verifier("x");
    let mut client = ClientScram::new(password("x"), Some(vec![1; 32]));
    let bound = ChannelBinding::TlsServerEndPoint(vec![2; 32]);
    assert_eq!(exchange(&verifier, bound, &mut client), Err(ScramError::ChannelBinding));
}

/// Somebody took SCRAM-SHA-256-PLUS off the list on its way to a client that would have chosen it.
#[test]
fn a_downgrade_is_noticed() {
    let verifier = verifier("x");
    let mut client = ClientScram::new(password("x"), Some(vec![1; 32]));
    client.mechanism(&[SCRAM_SHA_256]).unwrap();
    let mut server = ServerScram::new(&verifier, ChannelBinding::TlsServerEndPoint(vec![1; 32]));
    assert_eq!(server.first(SCRAM_SHA_256, &client.first()), Err(ScramError::Downgrade));
}

#[test]
fn first_messages_that_are_refused() {
    use ScramError::{Malformed, State};
    let verifier = verifier("x");
    let hash = vec![1; 32];
    let ask = |mechanism: &str, message: &[u8], bound: bool| {
        let binding =
            if bound { ChannelBinding::TlsServerEndPoint(hash.clone()) } else { ChannelBinding::None };
        let mut server = ServerScram::new(&verifier, binding);
        let answer = server.first(mechanism, message);
        if answer.is_err() {
            assert_eq!(server.last(b"c=biws,r=x,p="), Err(State));
        }
        answer.map(|_| ())
    };
    let plain = |message: &[u8]| ask(SCRAM_SHA_256, message, false);
    assert_eq!(plain(b"n,,n=,r=abc"), Ok(()));
    assert_eq!(plain(b"y,,n=,r=abc"), Ok(()));
    assert_eq!(plain(b"n,,n=u,r=abc,x=optional"), Ok(()));
    assert_eq!(plain(b"n,a=other,n=,r=abc"), Err(ScramError::AuthorizationIdentity));
    assert_eq!(plain(b"n,,m=x,n=,r=abc"), Err(ScramError::MandatoryExtension));
    assert_eq!(plain(b"n,,n=,r=abc,m=x"), Err(ScramError::MandatoryExtension));
    let long = format!("n,,n=,r={}", "a".repeat(MAX_MESSAGE));
    for bad in [
        &b""[..],
        b"n",
        b"n,",
        b"n,,",
        b"n,,n=",
        b"n,,r=abc",
        b"n,,n=,r=abc\0",
        b"n,x,n=,r=abc",
        b"z,,n=,r=abc",
        b"N,,n=,r=abc",
        b"n,,n=,r=abc,",
        b"n,,n=,r=abc,x",
        b"p=tls-server-end-point,,n=,r=abc",
        b"n,,n=\xff,r=abc",
    ] {
        assert!(matches!(plain(bad), Err(Malformed(_))), "{bad:?}");
    }
    for bad in [&b"n,,n=,r=a\x7fb"[..], b"n,,n=,r=a b", b"n,,n=,r=\xc3\xa9"] {
        assert_eq!(plain(bad), Err(ScramError::NonceCharacters), "{bad:?}");
    }
    assert_eq!(plain(b"n,,n=,r="), Ok(()));
    assert_eq!(plain(long.as_bytes()), Err(ScramError::WrongProof));

    let plus = |message: &[u8]| ask(SCRAM_SHA_256_PLUS, message, true);
    assert_eq!(plus(b"p=tls-server-end-point,,n=,r=abc"), Ok(()));
    assert_eq!(plus(b"p=tls-unique,,n=,r=abc"), Err(ScramError::BindingType("tls-unique".to_owned())));
    assert!(matches!(plus(b"n,,n=,r=abc"), Err(Malformed(_))));
    assert!(matches!(plus(b"y,,n=,r=abc"), Err(Malformed(_))));
    let unbound = ask(SCRAM_SHA_256_PLUS, b"p=tls-server-end-point,,n=,r=abc", false);
    assert_eq!(unbound, Err(ScramError::Mechanism));
    assert_eq!(ask("SCRAM-SHA-1", b"n,,n=,r=abc", true), Err(ScramError::Mechanism));
}

#[test]
fn last_messages_that_are_refused() {
    let secret = Verifier::with_salt(b"pencil", vec![1; 16], 1);
    let proved = |change: &dyn Fn(String) -> String| {
        let mut server = ServerScram::new(&secret, ChannelBinding::None);
        let mut client = ClientScram::new(password("pencil"), None);
        let challenge = server.first(SCRAM_SHA_256, &client.first()).unwrap();
        let proof = client.challenge(&challenge).unwrap();
        let answer = server.last(change(String::from_utf8(proof).unwrap()).as_bytes()).map(|_| ());
        assert_eq!(server.last(b"again"), Err(ScramError::State));
        answer
    };
    assert_eq!(proved(&|m| m), Ok(()));
    assert_eq!(proved(&|m| m.replace("c=biws", "c=eSws")), Err(ScramError::BindingAttribute));
    assert_eq!(proved(&|m| m.replace(",r=", ",r=x")), Err(ScramError::Nonce));
    assert_eq!(proved(&|m| m.replace(",p=", "x,p=")), Err(ScramError::Nonce));
    // An extension is signed along, so adding one spoils the proof and nothing else.
    assert_eq!(proved(&|m| m.replace(",p=", ",x=1,p=")), Err(ScramError::WrongProof));
    assert_eq!(proved(&|m| m.replace(",p=", ",m=1,p=")), Err(ScramError::MandatoryExtension));
    for change in [
        &(|m: String| m.split(",p=").next().unwrap().to_owned()) as &dyn Fn(String) -> String,
        &|m| format!("{m},x=1"),
        &|m| format!("{m},p=AAAA"),
        &|m| m[..m.len() - 4].to_owned(),
        &|m| format!("{m}AAAA"),
        &|m| m.replace("c=biws,", ""),
        &|_| String::new(),
        &|m| format!("{m}\0"),
    ] {
        assert!(matches!(proved(change), Err(ScramError::Malformed(_))));
    }
}

#[test]
fn an_unknown_user_looks_like_any_other_and_fails() {
    let secret = [9; 32];
    let mock = Verifier::mock("nobody", &secret);
    assert!(mock == Verifier::mock("nobody", &secret));
    assert!(mock.salt != Verifier::mock("somebody", &secret).salt);
    assert!(mock.salt != Verifier::mock("nobody", &[8; 32]).salt);
    let real = Verifier::from_password(b"x", DEFAULT_ITERATIONS);
    assert_eq!((mock.salt.len(), mock.iterations), (real.salt.len(), real.iterations));
    assert_eq!(mock.to_string().len(), real.to_string().len());
    let mut client = ClientScram::new(password("x"), None);
    assert_eq!(exchange(&mock, ChannelBinding::None, &mut client), Err(ScramError::WrongProof));
}

#[test]
fn challenges_that_are_refused() {
    let challenged = |change: &dyn Fn(&str) -> String| {
        let mut client = ClientScram::new(password("x"), None);
        client.set_nonce("abc");
        let answer = client.challenge(change("r=abcdef,s=AQID,i=1").as_bytes());
        if answer.is_err() {
            assert_eq!(client.verify(b"v="), Err(ScramError::State));
        }
        answer.map(|_| ())
    };
    assert_eq!(challenged(&str::to_owned), Ok(()));
    assert_eq!(challenged(&|m| format!("{m},x=1")), Ok(()));
    assert_eq!(challenged(&|m| m.replace("i=1", "i=0")), Err(ScramError::Iterations(0)));
    assert_eq!(challenged(&|m| m.replace("i=1", "i=100001")), Err(ScramError::Iterations(100_001)));
    assert_eq!(challenged(&|m| m.replace("i=1", "i=4294967297")), Err(ScramError::Iterations(u32::MAX)));
    assert_eq!(challenged(&|m| format!("m=1,{m}")), Err(ScramError::MandatoryExtension));
    let long = "A".repeat(2000);
    for (from, to) in [
        ("i=1", "i=-1"),
        ("i=1", "i=+1"),
        ("i=1", "i="),
        ("i=1", "i=00000000001"),
        ("AQID", ""),
        ("AQID", "AQI"),
        ("AQID", "****"),
        ("AQID", &long),
        ("abcdef", "abc"),
        ("abcdef", "xbcdef"),
        ("abcdef", "ab"),
        ("abcdef", "abcd\x7f"),
        ("abcdef", &format!("abc{long}")),
        ("s=AQID,", ""),
    ] {
        assert!(matches!(challenged(&|m| m.replace(from, to)), Err(ScramError::Malformed(_))), "{from} {to}");
    }
}

#[test]
fn a_server_without_the_verifier_is_noticed() {
    let run = |answer: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let mut client = ClientScram::new(password("x"), None);
        let mut server = ServerScram::new(&verifier("x"), ChannelBinding::None);
        let challenge = server.first(SCRAM_SHA_256, &client.first()).unwrap();
        let proof = client.challenge(&challenge).unwrap();
        client.verify(&answer(server.last(&proof).unwrap().0))
    };
    assert_eq!(run(&|m| m), Ok(()));
    assert_eq!(run(&|_| b"e=invalid-proof".to_vec()), Err(ScramError::Refused));
    let forged = format!("v={}", keys::base64(&[0; 32]));
    assert_eq!(run(&|_| forged.clone().into_bytes()), Err(ScramError::WrongServerSignature));
    for bad in [&b""[..], b"v=", b"v=AAAA", b"x=1", b"v"] {
        assert!(matches!(run(&|_| bad.to_vec()), Err(ScramError::Malformed(_))), "{bad:?}");
    }
    let mut early = ClientScram::new(password("x"), None);
    assert_eq!(early.verify(b"v=AAAA"), Err(ScramError::State));
}

#[test]
fn keys_from_a_proof_log_in_elsewhere() {
    let stored = verifier("x");
    let mut client = ClientScram::new(password("x"), None);
    let client_key = exchange(&stored, ChannelBinding::None, &mut client).unwrap();
    let secret = ClientSecret::Keys { client_key, server_key: stored.server_key };
    let mut passed_on = ClientScram::new(secret, Some(vec![1; 32]));
    exchange(&stored, ChannelBinding::TlsServerEndPoint(vec![1; 32]), &mut passed_on).unwrap();
    assert!(passed_on.derived().is_none());
}

#[test]
fn derived_keys_are_reused_while_salt_and_count_stay() {
    let stored = verifier("x");
    let mut client = ClientScram::new(password("x"), None);
    assert!(client.derived().is_none());
    exchange(&stored, ChannelBinding::None, &mut client).unwrap();
    let derived = client.derived().unwrap();
    assert_eq!((&derived.salt, derived.iterations), (&stored.salt, 2));

    // With a password that cannot work, only the cache can.
    let mut cached = ClientScram::new(password("wrong"), None).with_cache(Some(derived.clone()));
    exchange(&stored, ChannelBinding::None, &mut cached).unwrap();
    let changed = Verifier::with_salt(b"x", stored.salt.clone(), 3);
    let mut stale = ClientScram::new(password("x"), None).with_cache(Some(derived.clone()));
    exchange(&changed, ChannelBinding::None, &mut stale).unwrap();
    assert_eq!(stale.derived().unwrap().iterations, 3);
    let changed = verifier("y");
    let mut stale = ClientScram::new(password("y"), None).with_cache(Some(derived));
    exchange(&changed, ChannelBinding::None, &mut stale).unwrap();
}

#[test]
fn nonces_differ() {
    assert_ne!(ClientScram::new(password("x"), None).first(), ClientScram::new(password("x"), None).first());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_to_the_server(first in prop::collection::vec(any::<u8>(), 0..40), last in ".{0,80}") {
        let mut server = ServerScram::new(&Verifier::mock_with("u", &[0; 32], 1, 16), ChannelBinding::None);
        let _ = server.first(SCRAM_SHA_256, &first);
        let mut server = ServerScram::new(&Verifier::mock_with("u", &[0; 32], 1, 16), ChannelBinding::None);
        server.first(SCRAM_SHA_256, b"n,,n=,r=abc").unwrap();
        prop_assert!(server.last(last.as_bytes()).is_err());
    }

    #[test]
    fn any_bytes_to_the_client(challenge in "[rsi]=[a-z0-9=,]{0,40}", last in ".{0,80}") {
        let mut client = ClientScram::new(password("x"), None);
        client.set_nonce("a");
        let _ = client.challenge(challenge.as_bytes());
        let mut client = ClientScram::new(password("x"), None);
        client.set_nonce("a");
        client.challenge(b"r=ab,s=AQID,i=1").unwrap();
        prop_assert!(client.verify(last.as_bytes()).is_err());
    }

    #[test]
    fn any_password_works_on_both_sides(secret in ".{0,20}") {
        let verifier = Verifier::from_password(secret.as_bytes(), 1);
        prop_assert!(exchange(&verifier, ChannelBinding::None, &mut ClientScram::new(password(&secret), None)).is_ok());
        prop_assert!(Verifier::parse(&verifier.to_string()).unwrap() == verifier);
    }

    #[test]
    fn any_text_as_a_verifier(text in "(SCRAM-SHA-256\\$)?[0-9:$A-Za-z+/=]{0,120}") {
        let _ = Verifier::parse(&text);
    }
}
