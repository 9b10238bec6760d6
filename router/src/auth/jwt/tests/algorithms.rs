//! All four algorithms, keys in every form, and how one of several is chosen.

use super::*;

#[tokio::test]
async fn all_four_by_configured_keys() {
    for signer in [Signer::hs(), Signer::rs(), Signer::es(), Signer::ed()] {
        let token = signer.token(None, &good(json!({})));
        let claims = verify(&token, &of_keys(&[signer.key(None)])).await.unwrap();
        assert_eq!(claims.issuer_name, "idp");
        assert_eq!(claims.tenant.unwrap().as_str(), "acme");
        assert!(!claims.from_tenant_issuer);
        for other in [Signer::rs(), Signer::es(), Signer::ed(), Signer::Hs("x".repeat(32))] {
            let expected =
                if other.algorithm() == signer.algorithm() { "signature" } else { "other_algorithm" };
            assert_eq!(label(&token, &of_keys(&[other.key(None)])).await, expected);
        }
    }
}

#[tokio::test]
async fn what_was_signed_may_not_change() {
    for signer in [Signer::hs(), Signer::rs(), Signer::es(), Signer::ed()] {
        let trusted = of_keys(&[signer.key(None)]);
        let token = signer.token(None, &good(json!({})));
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = signed.split_once('.').unwrap();
        let other = b64(good(json!({ "tenant_id": "globex" })).to_string());
        assert_eq!(label(&format!("{header}.{other}.{signature}"), &trusted).await, "signature");
        for changed in [
            "",
            "AAAA",
            &signature[..signature.len() - 4],
            &format!("{signature}AAAA"),
            "!",
            &format!("{signature}="),
        ] {
            assert_eq!(label(&format!("{signed}.{changed}"), &trusted).await, "signature", "{changed}");
        }
        let zeros = b64(vec![0; BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap().len()]);
        assert_eq!(label(&format!("{signed}.{zeros}"), &trusted).await, "signature");
    }
}

#[tokio::test]
async fn other_forms_of_public_keys() {
    let rs = Signer::rs();
    let token = rs.token(None, &good(json!({})));
    let spki = rs.spki();
    let (_, parsed) = SubjectPublicKeyInfo::from_der(&spki).unwrap();
    let pkcs1 = pem("RSA PUBLIC KEY", &parsed.subject_public_key.data);
    let key = JwtKey { material: pkcs1.into(), ..rs.key(None) };
    assert_eq!(label(&token, &of_keys(&[key])).await, "good");

    let pair = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&pair).unwrap().pem();
    let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let signer = Signer::Es(EcdsaKeyPair::from_pkcs8(algorithm, &pair.serialize_der()).unwrap());
    let key = JwtKey { material: certificate.into(), ..signer.key(None) };
    assert_eq!(label(&signer.token(None, &good(json!({}))), &of_keys(&[key])).await, "good");
}

#[test]
fn configured_keys_that_are_no_good() {
    let rs = Signer::rs();
    let es = Signer::es();
    let check = |algorithm, material: &str| {
        check_keys(&of_keys(&[JwtKey { kid: None, algorithm, material: material.to_owned().into() }]))
    };
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for (algorithm, material, expected) in [
        (JwtAlgorithm::HS256, "", KeyError::Secret),
        (JwtAlgorithm::HS256, &rs.material(), KeyError::Secret),
        (JwtAlgorithm::RS256, SECRET, KeyError::Pem),
        (JwtAlgorithm::RS256, &es.material(), KeyError::Kind),
        (JwtAlgorithm::ES256, &rs.material(), KeyError::Kind),
        (JwtAlgorithm::ES256, &p384.public_key_pem(), KeyError::Kind),
        (JwtAlgorithm::EdDSA, &es.material(), KeyError::Kind),
        (JwtAlgorithm::ES256, &p384.serialize_pem(), KeyError::Private),
        (JwtAlgorithm::RS256, &pem("PUBLIC KEY", b"junk"), KeyError::Pem),
        (JwtAlgorithm::RS256, SMALL_RSA, KeyError::RsaSize),
    ] {
        assert_eq!(check(algorithm, material), [(0, expected)], "{algorithm:?}");
    }
    for signer in [Signer::hs(), rs, es, Signer::ed()] {
        assert_eq!(check(signer.algorithm(), &signer.material()), []);
    }
}

/// A public key of 1024 bits.
const SMALL_RSA: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCuw5kRfMCp8sEfw2+Xlwj6MHAj
UX9Dxgv1PfOh6RV1f6I30gn/iDyRKhhpoH822z3Ub3e/zD28GoCwDzdy5X4RqIbP
39lIY2ktxriLaKgfKwfD05Ytyq2XwRf8IfhszjdQPvIFynuoron1nLjnEwxXnG5d
PsqxsRp9sNHaZri/CwIDAQAB
-----END PUBLIC KEY-----
";

#[tokio::test]
async fn a_key_is_chosen_by_its_id() {
    let (a, b, any) = (Signer::es(), Signer::es(), Signer::es());
    let two = of_keys(&[a.key(Some("a")), b.key(Some("b"))]);
    let token = |signer: &Signer, kid| signer.token(kid, &good(json!({})));
    assert_eq!(label(&token(&a, Some("a")), &two).await, "good");
    assert_eq!(label(&token(&b, Some("b")), &two).await, "good");
    assert_eq!(label(&token(&b, Some("a")), &two).await, "signature");
    assert_eq!(label(&token(&b, Some("c")), &two).await, "unknown_key");
    // Without an id all are tried; a key without one answers to all.
    assert_eq!(label(&token(&b, None), &two).await, "good");
    let three = of_keys(&[a.key(Some("a")), any.key(None)]);
    assert_eq!(label(&token(&any, Some("whatever")), &three).await, "good");
    assert_eq!(label(&token(&any, Some("a")), &three).await, "good");
    assert_eq!(label(&token(&b, None), &three).await, "signature");
}

#[tokio::test]
async fn no_more_keys_are_tried_than_stated() {
    let signer = Signer::es();
    let strangers: Vec<JwtKey> = (0..MAX_TRIES).map(|_| Signer::es().key(None)).collect();
    let token = signer.token(None, &good(json!({})));
    let last = |strangers: &[JwtKey]| of_keys(&[strangers, &[signer.key(None)]].concat());
    assert_eq!(label(&token, &last(&strangers[1..])).await, "good");
    assert_eq!(label(&token, &last(&strangers)).await, "signature");
}

#[tokio::test]
async fn issuers_of_one_tenant_and_of_all() {
    let (ours, theirs) = (Signer::es(), Signer::es());
    let global = [Arc::new(of_keys(&[ours.key(None)]))];
    let own = [Arc::new(JwtIssuer { name: "own".to_owned(), ..of_keys(&[theirs.key(None)]) })];
    let verifier = JwtVerifier::new();
    let claims = verifier.verify(&theirs.token(None, &good(json!({}))), &global, &own).await.unwrap();
    assert_eq!((claims.issuer_name.as_str(), claims.from_tenant_issuer), ("own", true));
    let claims = verifier.verify(&ours.token(None, &good(json!({}))), &global, &own).await.unwrap();
    assert_eq!((claims.issuer_name.as_str(), claims.from_tenant_issuer), ("idp", false));
    // The tenant's own issuer is trusted for nobody else: it is not given there.
    let error = verifier.verify(&theirs.token(None, &good(json!({}))), &global, &[]).await.unwrap_err();
    assert_eq!(error.label(), "signature");
    let error = verifier.verify(&theirs.token(None, &good(json!({}))), &[], &[]).await.unwrap_err();
    assert_eq!(error.label(), "unknown_issuer");
}
