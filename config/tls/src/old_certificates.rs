//! Certificates of X.509 version 1, which webpki does not read.
//!
//! They have no extensions, and are what `openssl x509 -req` makes up to OpenSSL 3.1 by the recipe in PostgreSQL's
//! own documentation (ssl-tcp.html, "Creating Certificates"), so servers do have them. They are accepted as the
//! last of a chain of two: signed by an authority in our file, which is of any version.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved};
use x509_parser::asn1_rs::ToDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AlgorithmIdentifier, X509Version};

pub(super) fn is_version_1(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|parsed| parsed.version() == X509Version::V1)
}

/// The certificate's public key, as TLS 1.3 knows bare ones.
pub(super) fn public_key(
    certificate: &CertificateDer<'_>,
) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    Ok(SubjectPublicKeyInfoDer::from(parse(certificate)?.public_key().raw.to_vec()))
}

/// The authority among `trusted` that signed `certificate`. Times are not looked at.
pub(super) fn issuer_among<'a>(
    trusted: &'a [CertificateDer<'static>],
    certificate: &CertificateDer<'_>,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> Result<&'a CertificateDer<'static>, Error> {
    let parsed = parse(certificate)?;
    if parsed.signature_algorithm != parsed.tbs_certificate.signature {
        return Err(CertificateError::BadEncoding.into());
    }
    let signed = |authority: &&CertificateDer<'static>| {
        parse(authority).is_ok_and(|authority| {
            is_authority(&authority)
                && authority.subject().as_raw() == parsed.issuer().as_raw()
                && is_signed_by(&parsed, &authority, algorithms)
        })
    };
    trusted.iter().find(signed).ok_or_else(|| CertificateError::UnknownIssuer.into())
}

/// As OpenSSL has it: an old certificate, which cannot say so, is an authority if it is its own issuer
/// (`check_ca`, crypto/x509/v3_purp.c).
fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let own = certificate.subject().as_raw() == certificate.issuer().as_raw();
    certificate.is_ca() || (certificate.version() == X509Version::V1 && own)
}

fn is_signed_by(
    certificate: &X509Certificate<'_>,
    authority: &X509Certificate<'_>,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> bool {
    let (Some(signature_id), Some(key_id)) =
        (encoded(&certificate.signature_algorithm), encoded(&authority.public_key().algorithm))
    else {
        return false;
    };
    let key = &authority.public_key().subject_public_key.data;
    let (message, signature) = (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data);
    algorithms
        .iter()
        .filter(|a| *a.signature_alg_id() == *signature_id && *a.public_key_alg_id() == *key_id)
        .any(|a| a.verify_signature(key, message, signature).is_ok())
}

/// What `rustls::crypto::verify_tls12_signature` does, for a key that comes without a readable certificate.
pub(super) fn verify_tls12_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let candidates = algorithms.mapping.iter().find(|(scheme, _)| *scheme == dss.scheme).map(|(_, a)| *a);
    let candidates = candidates.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    let parsed = parse(certificate)?;
    let key = parsed.public_key();
    let key_id = encoded(&key.algorithm).ok_or(CertificateError::BadEncoding)?;
    let valid = candidates
        .iter()
        .filter(|a| *a.public_key_alg_id() == *key_id)
        .any(|a| a.verify_signature(&key.subject_public_key.data, message, dss.signature()).is_ok());
    if valid { Ok(HandshakeSignatureValid::assertion()) } else { Err(CertificateError::BadSignature.into()) }
}

/// The inside of an `AlgorithmIdentifier`, by which webpki knows algorithms.
fn encoded(algorithm: &AlgorithmIdentifier<'_>) -> Option<Vec<u8>> {
    let mut encoded = algorithm.algorithm.to_der_vec().ok()?;
    if let Some(parameters) = &algorithm.parameters {
        encoded.extend(parameters.to_der_vec().ok()?);
    }
    Some(encoded)
}

fn parse<'c>(certificate: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>, Error> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}
