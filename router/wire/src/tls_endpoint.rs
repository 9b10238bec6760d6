//! Channel binding by certificate: `tls-server-end-point` of RFC 5929 section 4.

use aws_lc_rs::digest::{self, Algorithm};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;
use x509_parser::x509::AlgorithmIdentifier;

/// The hash of a certificate (DER) that binds SCRAM to the TLS connection it arrived on.
///
/// The hash function is the one of the certificate's own signature, with MD5 and SHA-1 replaced by SHA-256.
/// `None` for a certificate that cannot be read or whose signature names no hash: Ed25519 and Ed448 hash
/// inside the signature, RFC 5929 leaves them undefined, and PostgreSQL with OpenSSL fails there ("could not
/// find digest for NID UNDEF", `be_tls_get_certificate_hash`). The caller then offers SCRAM-SHA-256 alone,
/// which libpq accepts unless `channel_binding=require`.
#[must_use]
pub fn server_end_point(cert_der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(cert_der).ok()?;
    let algorithm = hash_of(&certificate.signature_algorithm)?;
    Some(digest::digest(algorithm, cert_der).as_ref().to_vec())
}

fn hash_of(signature: &AlgorithmIdentifier<'_>) -> Option<&'static Algorithm> {
    let oid = signature.algorithm.to_id_string();
    match oid.as_str() {
        // RSA PKCS #1 (RFC 8017): md5, sha1, sha256, sha384, sha512, sha224.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => Some(&digest::SHA256),
        "1.2.840.113549.1.1.12" => Some(&digest::SHA384),
        "1.2.840.113549.1.1.13" => Some(&digest::SHA512),
        "1.2.840.113549.1.1.14" => Some(&digest::SHA224),
        // ECDSA (RFC 5758): sha1, sha224, sha256, sha384, sha512.
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => Some(&digest::SHA256),
        "1.2.840.10045.4.3.1" => Some(&digest::SHA224),
        "1.2.840.10045.4.3.3" => Some(&digest::SHA384),
        "1.2.840.10045.4.3.4" => Some(&digest::SHA512),
        // DSA (RFC 5758): sha1, sha224, sha256.
        "1.2.840.10040.4.3" | "2.16.840.1.101.3.4.3.2" => Some(&digest::SHA256),
        "2.16.840.1.101.3.4.3.1" => Some(&digest::SHA224),
        // RSA-PSS names its hash in the parameters (RFC 4055).
        "1.2.840.113549.1.1.10" => match SignatureAlgorithm::try_from(signature).ok()? {
            SignatureAlgorithm::RSASSA_PSS(params) => plain_hash(&params.hash_algorithm_oid().to_id_string()),
            _ => None,
        },
        _ => None,
    }
}

fn plain_hash(oid: &str) -> Option<&'static Algorithm> {
    match oid {
        // md5, sha1, sha256
        "1.2.840.113549.2.5" | "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(&digest::SHA256),
        "2.16.840.1.101.3.4.2.2" => Some(&digest::SHA384),
        "2.16.840.1.101.3.4.2.3" => Some(&digest::SHA512),
        "2.16.840.1.101.3.4.2.4" => Some(&digest::SHA224),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
        SignatureAlgorithm,
    };

    use super::*;

    fn certificate(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_hash_is_the_signature_s() {
        let p256 = certificate(&PKCS_ECDSA_P256_SHA256);
        let p384 = certificate(&PKCS_ECDSA_P384_SHA384);
        // What rcgen does not make is from `openssl req -x509`.
        let made: [(&[u8], &'static Algorithm); 9] = [
            (&p256, &digest::SHA256),
            (&p384, &digest::SHA384),
            (include_bytes!("tls_endpoint/rsa_md5.der"), &digest::SHA256),
            (include_bytes!("tls_endpoint/rsa_sha1.der"), &digest::SHA256),
            (include_bytes!("tls_endpoint/rsa_sha224.der"), &digest::SHA224),
            (include_bytes!("tls_endpoint/rsa_sha512.der"), &digest::SHA512),
            (include_bytes!("tls_endpoint/pss_sha256.der"), &digest::SHA256),
            (include_bytes!("tls_endpoint/pss_sha384.der"), &digest::SHA384),
            (include_bytes!("tls_endpoint/ec_sha1.der"), &digest::SHA256),
        ];
        for (number, (der, algorithm)) in made.into_iter().enumerate() {
            assert_eq!(server_end_point(der).unwrap(), digest::digest(algorithm, der).as_ref(), "{number}");
        }
    }

    #[test]
    fn none_without_a_hash_or_a_certificate() {
        assert_eq!(server_end_point(&certificate(&PKCS_ED25519)), None);
        assert_eq!(server_end_point(b""), None);
        assert_eq!(server_end_point(b"no certificate"), None);
    }
}
