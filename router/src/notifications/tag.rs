//! What a server connection says on the private channel when it changes tenants, so that whoever
//! hears its notifications knows whose they are.
//!
//! The process id in a notification is PostgreSQL's word. What it means is the router's: a tag
//! holds for one process on one shard, says who speaks from there on, and cannot be made without the
//! key, which routers may share. Tenants may see tags and send them again: a tag counts only if its number is
//! higher than all that were heard from the process and made by the same router.

use aws_lc_rs::hmac;

/// Who speaks: the first bytes of a keyed hash of the tenant's id, so that a tag tells strangers
/// nothing.
pub(crate) type Speaker = [u8; 16];

/// Bytes of the signature that are sent.
const MAC_BYTES: usize = 16;

/// What makes tags and tells them from others.
pub(crate) struct TagKey {
    key: hmac::Key,
    channel: String,
}

/// Where a tag holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    /// The shard's name.
    pub(crate) shard: &'a str,
    /// The database.
    pub(crate) database: &'a str,
    /// The process that speaks.
    pub(crate) pid: u32,
}

/// What a tag says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    /// Who speaks from here on.
    pub(crate) speaker: Speaker,
    /// The router whose server connection that is.
    pub(crate) router: u64,
    /// Since which listening of the tenant its connections say so, see [`super::voice`]; 0 where
    /// nobody listens for it.
    pub(crate) generation: u64,
    /// Rises with every tag that the router makes.
    pub(crate) number: u64,
}

/// What is heard on the private channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Who speaks.
    Tag(Tag),
    /// The hub's own mark.
    Mark(u64),
}

impl TagKey {
    /// A key that nobody else has.
    pub(crate) fn new(secret: &[u8]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let name = hmac::sign(&key, b"channel");
        Self { channel: format!("switchyard_{}", hex(&name.as_ref()[..8])), key }
    }

    /// The private channel: letters, digits and underscores.
    pub(crate) fn channel(&self) -> &str {
        &self.channel
    }

    /// Who `tenant` is in tags.
    pub(crate) fn speaker(&self, tenant: &str) -> Speaker {
        let mac = hmac::sign(&self.key, format!("tenant {tenant}").as_bytes());
        std::array::from_fn(|i| mac.as_ref()[i])
    }

    /// The payload that says `tag` at `place`.
    pub(crate) fn tag(&self, place: Place<'_>, tag: &Tag) -> String {
        self.signed(
            place,
            format!("t{}.{:x}.{:x}.{:x}", hex(&tag.speaker), tag.router, tag.generation, tag.number),
        )
    }

    /// The payload of a hub's own mark.
    pub(crate) fn mark(&self, place: Place<'_>, number: u64) -> String {
        self.signed(place, format!("m{number:x}"))
    }

    /// The signature of a word to a peer.
    pub(super) fn of_word(&self, word: &str) -> String {
        hex(hmac::sign(&self.key, &[b"word\0", word.as_bytes()].concat()).as_ref())
    }

    /// Whether that is the signature of this word.
    pub(super) fn signs_word(&self, signature: &str, word: &str) -> bool {
        let expected = self.of_word(word);
        aws_lc_rs::constant_time::verify_slices_are_equal(expected.as_bytes(), signature.as_bytes()).is_ok()
    }

    fn signed(&self, place: Place<'_>, said: String) -> String {
        let mac = hmac::sign(&self.key, &message(place, &said));
        said + "." + &hex(&mac.as_ref()[..MAC_BYTES])
    }

    /// Reads a payload. None if it was not made with this key for this place.
    pub(crate) fn read(&self, place: Place<'_>, payload: &[u8]) -> Option<Heard> {
        let (said, mac) = std::str::from_utf8(payload).ok()?.rsplit_once('.')?;
        let expected = hmac::sign(&self.key, &message(place, said));
        let same = aws_lc_rs::constant_time::verify_slices_are_equal(
            hex(&expected.as_ref()[..MAC_BYTES]).as_bytes(),
            mac.as_bytes(),
        );
        same.ok()?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        if let Some(mark) = said.strip_prefix('m') {
            return number(mark).map(Heard::Mark);
        }
        let mut parts = said.strip_prefix('t')?.split('.');
        let (speaker, router) = (parts.next()?, parts.next()?);
        let (generation, count) = (parts.next()?, parts.next()?);
        Some(Heard::Tag(Tag {
            speaker: u128::from_str_radix(speaker, 16).ok()?.to_be_bytes(),
            router: number(router)?,
            generation: number(generation)?,
            number: number(count)?,
        }))
    }
}

/// What is signed. No part can be taken for another: each is behind its length.
fn message(place: Place<'_>, said: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    for part in [place.shard, place.database, said] {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(&place.pid.to_be_bytes());
    out
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place<'_> = Place { shard: "s0", database: "crm", pid: 77 };

    #[test]
    fn a_tag_says_what_was_put_into_it_where_it_was_made() {
        let key = TagKey::new(&[7; 32]);
        let tag = Tag { speaker: key.speaker("acme"), router: 11, generation: 3, number: 0xabc };
        let payload = key.tag(HERE, &tag);
        assert!(payload.is_ascii() && payload.len() < 160);
        assert_eq!(key.read(HERE, payload.as_bytes()), Some(Heard::Tag(tag)));
        for place in [
            Place { pid: 78, ..HERE },
            Place { shard: "s1", ..HERE },
            Place { database: "other", ..HERE },
            Place { shard: "s0c", database: "rm", ..HERE },
        ] {
            assert_eq!(key.read(place, payload.as_bytes()), None);
        }
        assert_eq!(TagKey::new(&[8; 32]).read(HERE, payload.as_bytes()), None);
        assert_eq!(key.read(HERE, key.mark(HERE, 5).as_bytes()), Some(Heard::Mark(5)));
        assert_ne!(key.speaker("acme"), key.speaker("acme2"));
    }

    #[test]
    fn no_byte_of_a_tag_can_be_changed() {
        let key = TagKey::new(&[7; 32]);
        let payload =
            key.tag(HERE, &Tag { speaker: key.speaker("acme"), router: 11, generation: 3, number: 9 });
        for at in 0..payload.len() {
            let mut bytes = payload.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(key.read(HERE, &bytes), None, "{at}");
        }
        for cut in 0..payload.len() {
            assert_eq!(key.read(HERE, &payload.as_bytes()[..cut]), None, "{cut}");
        }
    }
}
