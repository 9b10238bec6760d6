//! Names in certificates.

use std::net::IpAddr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// A subject alternative name (RFC 5280 section 4.2.1.6) of a kind that can name a user or a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlternativeName {
    /// `dNSName`.
    Dns(String),
    /// `rfc822Name`.
    Email(String),
    /// `uniformResourceIdentifier`.
    Uri(String),
    /// `iPAddress`.
    Ip(IpAddr),
}

/// The only common name of the subject. Several would let different readers of a certificate see
/// different names, as would a NUL in it (CVE-2009-2408, CVE-2009-4034).
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().ok().and_then(clean),
        _ => None,
    }
}

/// All alternative names that can be used.
pub fn alternative_names(certificate: &[u8]) -> Vec<AlternativeName> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let usable = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => clean(name).map(AlternativeName::Dns),
        GeneralName::RFC822Name(name) => clean(name).map(AlternativeName::Email),
        GeneralName::URI(name) => clean(name).map(AlternativeName::Uri),
        GeneralName::IPAddress(bytes) => ip(bytes).map(AlternativeName::Ip),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(usable).collect()
}

/// Whether the certificate, which has no alternative name of a host, names `host` by its common name.
///
/// libpq falls back to it in this case only (`pq_verify_peer_name_matches_certificate`,
/// src/interfaces/libpq/fe-secure-common.c), with a wildcard for the whole first label at most.
pub(super) fn common_name_is_host(certificate: &[u8], host: &str) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let named = match parsed.subject_alternative_name() {
        Ok(None) => false,
        Ok(Some(extension)) => extension
            .value
            .general_names
            .iter()
            .any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_))),
        Err(_) => true,
    };
    !named && common_name(certificate).is_some_and(|name| matches_host(&name, host))
}

fn matches_host(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    match (name.strip_prefix("*."), host.split_once('.')) {
        (Some(domain), Some((first, rest))) => {
            let address = host.parse::<IpAddr>().is_ok();
            !address && !first.is_empty() && domain.contains('.') && domain.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

fn clean(name: &str) -> Option<String> {
    (!name.is_empty() && !name.chars().any(char::is_control)).then(|| name.to_owned())
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::matches_host;

    #[test]
    fn wildcards_stand_for_one_label() {
        for (name, host, expected) in [
            ("db.example.com", "DB.example.com", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.com", "example.com", false),
            ("d*.example.com", "db.example.com", false),
            ("*.0.0.1", "127.0.0.1", false),
            ("127.0.0.1", "127.0.0.1", true),
        ] {
            assert_eq!(matches_host(name, host), expected, "{name} {host}");
        }
    }
}
