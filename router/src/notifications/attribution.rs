//! Whose the notifications of each server process are, without IO.
//!
//! Tags come in the order in which their transactions were committed, as notifications do: what a
//! process sends behind a tag is the tagged tenant's, up to the next tag.

use std::collections::HashMap;

use super::tag::{Speaker, Tag};

/// Most processes that are remembered. Beyond, the hub begins anew.
const PROCESSES: usize = 65_536;

/// See the module.
#[derive(Default)]
pub(crate) struct Attribution {
    said: HashMap<u32, Said>,
}

#[derive(Clone, Copy)]
struct Said {
    speaker: Speaker,
    /// 0 where nobody listens for the speaker.
    generation: u64,
    /// Highest number of a tag that was heard from the process.
    number: u64,
    /// Number of the last tag that had been made when the speaker was known by other means.
    as_of: u64,
}

impl Attribution {
    /// A tag came. False if it is an old one, sent again: then nobody is believed until the next.
    pub(crate) fn tagged(&mut self, pid: u32, tag: &Tag) -> bool {
        let Some(said) = self.said.get_mut(&pid) else {
            let said =
                Said { speaker: tag.speaker, generation: tag.generation, number: tag.number, as_of: 0 };
            self.said.insert(pid, said);
            return true;
        };
        if tag.number <= said.number {
            said.generation = 0;
            return false;
        }
        // Made before the speaker was known, and heard after: it says the same, and may not know
        // that somebody listens.
        let late = tag.speaker == said.speaker && tag.number <= said.as_of;
        said.generation = if late { said.generation.max(tag.generation) } else { tag.generation };
        said.speaker = tag.speaker;
        said.number = tag.number;
        true
    }

    /// The process served `speaker` when tag number `as_of` had been made, and announces every
    /// change since then. Must come in order with the notifications, behind all that the process
    /// had sent by then.
    pub(crate) fn known(&mut self, pid: u32, speaker: Speaker, generation: u64, as_of: u64) {
        let number = match self.said.get(&pid) {
            // It has said something itself since.
            Some(said) if said.number > as_of => return,
            Some(said) => said.number,
            None => 0,
        };
        self.said.insert(pid, Said { speaker, generation, number, as_of });
    }

    /// Who sent what the process sends now, and since which generation it says so.
    pub(crate) fn speaker(&self, pid: u32) -> Option<(Speaker, u64)> {
        self.said.get(&pid).filter(|said| said.generation != 0).map(|said| (said.speaker, said.generation))
    }

    /// Whether the process has ever said who it serves.
    pub(crate) fn is_known(&self, pid: u32) -> bool {
        self.said.contains_key(&pid)
    }

    /// Whether it is time to begin anew.
    pub(crate) fn is_full(&self) -> bool {
        self.said.len() >= PROCESSES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Speaker = [1; 16];
    const B: Speaker = [2; 16];

    fn tag(speaker: Speaker, generation: u64, number: u64) -> Tag {
        Tag { speaker, generation, number }
    }

    #[test]
    fn the_last_tag_counts() {
        let mut attribution = Attribution::default();
        assert_eq!(attribution.speaker(7), None);
        assert!(attribution.tagged(7, &tag(A, 1, 1)));
        assert!(attribution.tagged(8, &tag(B, 1, 2)));
        assert_eq!(attribution.speaker(7), Some((A, 1)));
        assert!(attribution.tagged(7, &tag(B, 0, 3)));
        assert_eq!(attribution.speaker(7), None);
        assert!(attribution.is_known(7));
        assert_eq!(attribution.speaker(8), Some((B, 1)));
    }

    #[test]
    fn a_tag_sent_again_makes_nobody_of_the_process() {
        let mut attribution = Attribution::default();
        attribution.tagged(7, &tag(A, 1, 1));
        attribution.tagged(7, &tag(B, 1, 5));
        assert!(!attribution.tagged(7, &tag(A, 1, 1)), "B has heard A's tag and repeats it");
        assert_eq!(attribution.speaker(7), None);
        assert!(attribution.tagged(7, &tag(A, 1, 6)));
        assert_eq!(attribution.speaker(7), Some((A, 1)));
    }

    #[test]
    fn what_was_known_gives_way_to_what_was_said_since() {
        let mut attribution = Attribution::default();
        attribution.tagged(7, &tag(B, 0, 3));
        attribution.known(7, A, 9, 4);
        assert_eq!(attribution.speaker(7), Some((A, 9)), "the tag was made before that was known");
        attribution.tagged(8, &tag(B, 0, 5));
        attribution.known(8, A, 9, 4);
        assert_eq!(attribution.speaker(8), None, "it has served somebody else since");
        attribution.known(9, B, 9, 4);
        assert_eq!(attribution.speaker(9), Some((B, 9)));
        assert!(attribution.tagged(9, &tag(B, 0, 4)), "made before, heard after");
        assert_eq!(attribution.speaker(9), Some((B, 9)));
        assert!(attribution.tagged(9, &tag(B, 0, 5)));
        assert_eq!(attribution.speaker(9), None);
    }
}
