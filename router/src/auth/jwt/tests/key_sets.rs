//! Which keys of a document are used, and for what.

use super::super::jwks::{self, JwksError};
use super::*;

/// What is left of a key after `change`.
fn kept(signer: &Signer, change: impl FnOnce(&mut Value)) -> Option<JwtAlgorithm> {
    let mut jwk = signer.jwk("k");
    change(&mut jwk);
    let set = jwks::parse(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap();
    assert_eq!(set.keys.len() + set.ignored, 1);
    set.keys.first().map(|key| key.algorithm)
}

#[test]
fn kinds() {
    for signer in [Signer::hs(), Signer::rs(), Signer::es(), Signer::ed()] {
        let own = Some(signer.algorithm());
        let name = format!("{:?}", signer.algorithm());
        assert_eq!(kept(&signer, |_| ()), own);
        assert_eq!(kept(&signer, |k| k["alg"] = name.clone().into()), own);
        assert_eq!(kept(&signer, |k| k["use"] = "sig".into()), own);
        assert_eq!(kept(&signer, |k| k["key_ops"] = json!(["verify"])), own);
        assert_eq!(kept(&signer, |k| k["key_ops"] = json!(["sign", "verify"])), own);
        for alg in ["none", "RS512", "PS256", "ES384", "HS512", "RSA-OAEP"] {
            assert_eq!(kept(&signer, |k| k["alg"] = alg.into()), None, "{alg}");
        }
        for (name, value) in [
            ("alg", json!(1)),
            ("use", json!("enc")),
            ("use", json!(null)),
            ("key_ops", json!(["sign"])),
            ("key_ops", json!("verify")),
            ("key_ops", json!([])),
            ("kid", json!(7)),
            ("kty", json!("EC2")),
            ("kty", json!(null)),
        ] {
            assert_eq!(kept(&signer, |k| k[name] = value.clone()), None, "{name} {value}");
        }
    }
    assert_eq!(kept(&Signer::ed(), |k| k["alg"] = "Ed25519".into()), Some(JwtAlgorithm::EdDSA));
    // One kind's algorithm on another kind's key.
    assert_eq!(kept(&Signer::rs(), |k| k["alg"] = "HS256".into()), None);
    assert_eq!(kept(&Signer::hs(), |k| k["alg"] = "RS256".into()), None);
}

#[test]
fn sizes_and_curves() {
    let (hs, rs, es, ed) = (Signer::hs(), Signer::rs(), Signer::es(), Signer::ed());
    assert_eq!(kept(&hs, |k| k["k"] = b64([7; 31]).into()), None);
    assert_eq!(kept(&hs, |k| k["k"] = "not base64!".into()), None);
    assert_eq!(kept(&rs, |k| k["n"] = b64([0xff; 128]).into()), None);
    assert_eq!(kept(&rs, |k| k["n"] = b64([&[0x7f][..], &[0xff; 255]].concat()).into()), None);
    assert_eq!(kept(&rs, |k| k["n"] = b64([&[0; 128][..], &[0xff; 128]].concat()).into()), None);
    assert_eq!(kept(&rs, |k| k["n"] = b64([0xff; 1025]).into()), None);
    assert_eq!(kept(&rs, |k| k["e"] = Value::Null), None);
    assert_eq!(kept(&es, |k| k["crv"] = "P-384".into()), None);
    assert_eq!(kept(&es, |k| k["crv"] = "secp256k1".into()), None);
    assert_eq!(kept(&es, |k| k["x"] = b64([1; 31]).into()), None);
    assert_eq!(kept(&ed, |k| k["crv"] = "X25519".into()), None);
    assert_eq!(kept(&ed, |k| k["crv"] = "Ed448".into()), None);
    assert_eq!(kept(&ed, |k| k["x"] = b64([1; 33]).into()), None);
}

#[test]
fn documents_that_are_none() {
    for (document, expected) in [
        ("", JwksError::Json),
        ("not json", JwksError::Json),
        (r#"{"keys":[],"keys":[]}"#, JwksError::Json),
        ("{}", JwksError::NoKeys),
        ("[]", JwksError::NoKeys),
        (r#"{"keys":{}}"#, JwksError::NoKeys),
    ] {
        assert_eq!(jwks::parse(document.as_bytes()).unwrap_err(), expected, "{document}");
    }
    assert_eq!(jwks::parse(&vec![b' '; jwks::MAX_BYTES + 1]).unwrap_err(), JwksError::TooLarge);
    let odd = jwks::parse(br#"{"keys":[1,null,"x",[],{}]}"#).unwrap();
    assert_eq!((odd.keys.len(), odd.ignored), (0, 5));
    let secret = Signer::hs().jwk("k");
    let many = json!({ "keys": vec![secret; 1000] }).to_string();
    let many = jwks::parse(many.as_bytes()).unwrap();
    assert_eq!((many.keys.len(), many.ignored), (256, 744));
}

#[test]
fn secrets_are_not_shown() {
    let document = json!({ "keys": [Signer::hs().jwk("k")] }).to_string();
    let shown = format!("{:?}", jwks::parse(document.as_bytes()).unwrap());
    assert!(shown.contains("kid") && !shown.contains("0123456789"), "{shown}");
    assert!(!shown.contains("48, 49, 50"), "{shown}");
}
