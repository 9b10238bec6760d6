//! Templates with `{tenant}` and `{user}`, read backwards: from a value to the tenant in it.

use switchyard_config::template::render;

/// What a value says under a template.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inverted<'v> {
    /// The template has no `{tenant}`: it says nothing.
    NoTenant,
    /// No tenant gives this value.
    Mismatch,
    /// The template filled in with this text gives the value.
    Tenant(&'v str),
}

/// Stands where the tenant is to be: neither templates nor ids nor startup parameters can hold it.
const GAP: &str = "\0";

/// The text that `{tenant}` stands for in `value`, if `value` is `template` filled in with it and `user`.
pub(super) fn invert<'v>(template: &str, user: &str, value: &'v str) -> Inverted<'v> {
    let filled = render(template, GAP, user);
    let literals: Vec<&str> = filled.split(GAP).collect();
    let gaps = literals.len() - 1;
    if gaps == 0 {
        return Inverted::NoTenant;
    }
    let literal: usize = literals.iter().map(|text| text.len()).sum();
    // All gaps hold the same, so their length is known before what they hold is.
    match value.len().checked_sub(literal) {
        Some(rest) if rest % gaps == 0 => {
            read(&literals, rest / gaps, value).map_or(Inverted::Mismatch, Inverted::Tenant)
        }
        _ => Inverted::Mismatch,
    }
}

/// Walks over `value`, in which each gap between `literals` takes `len` bytes.
fn read<'v>(literals: &[&str], len: usize, value: &'v str) -> Option<&'v str> {
    let (first, others) = literals.split_first()?;
    let mut rest = value.strip_prefix(first)?;
    let mut found: Option<&str> = None;
    for literal in others {
        let (tenant, behind) = rest.split_at_checked(len)?;
        if *found.get_or_insert(tenant) != tenant {
            return None;
        }
        rest = behind.strip_prefix(literal)?;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_back() {
        for (template, value, expected) in [
            ("{tenant}", "acme", Inverted::Tenant("acme")),
            ("tenant_{tenant}", "tenant_acme", Inverted::Tenant("acme")),
            ("tenant_{tenant}", "tenant_", Inverted::Tenant("")),
            ("tenant_{tenant}", "acme", Inverted::Mismatch),
            ("{tenant}_db", "acme_db", Inverted::Tenant("acme")),
            ("{tenant}_db", "_db_db", Inverted::Tenant("_db")),
            ("{tenant}/{tenant}", "a/b/a/b", Inverted::Tenant("a/b")),
            ("{tenant}/{tenant}", "a/b", Inverted::Mismatch),
            ("{tenant}{tenant}", "aab", Inverted::Mismatch),
            ("{tenant}{tenant}", "ü", Inverted::Mismatch),
            ("{user}:{tenant}", "{tenant}:acme", Inverted::Tenant("acme")),
            ("{user}:{tenant}", "other:acme", Inverted::Mismatch),
            ("{{{tenant}}}", "{ü}", Inverted::Tenant("ü")),
            ("{tenant}", "a\0b", Inverted::Tenant("a\0b")),
            ("constant", "constant", Inverted::NoTenant),
            ("{user}", "{tenant}", Inverted::NoTenant),
        ] {
            assert_eq!(invert(template, "{tenant}", value), expected, "{template} {value}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_filled_in_is_read_back(
            template in "([ab{}]|\\{tenant\\}|\\{user\\}){0,6}", user in "[ab{}]{0,3}", tenant in "[abü{}]{1,4}"
        ) {
            let value = render(&template, &tenant, &user);
            let expected = if value == render(&template, "\u{1}", &user) {
                Inverted::NoTenant
            } else {
                Inverted::Tenant(&tenant)
            };
            proptest::prop_assert_eq!(invert(&template, &user, &value), expected);
        }
    }
}
