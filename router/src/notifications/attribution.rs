//! Whose the notifications of each server process are, without IO.
//!
//! Tags come in the order in which their transactions were committed, as notifications do: what a
//! process sends behind a tag is the tagged tenant's, up to the next tag.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::tag::{Speaker, Tag};

/// Most processes that are remembered. Beyond, the hub begins anew.
const PROCESSES: usize = 65_536;

/// See the module.
#[derive(Default)]
pub(crate) struct Attribution {
    said: HashMap<u32, Said>,
}

#[derive(Clone)]
struct Said {
    speaker: Speaker,
    /// The router that said so.
    router: u64,
    /// 0 where nobody listens for the speaker.
    generation: u64,
    /// Number of the last tag that had been made when the speaker was known by other means.
    as_of: u64,
    /// Highest number of a tag of each router that was heard from the process. There is more than one only where
    /// another process has got its id.
    numbers: SmallVec<[(u64, u64); 1]>,
}

impl Said {
    fn number(&self, router: u64) -> u64 {
        self.numbers.iter().find(|(by, _)| *by == router).map_or(0, |(_, number)| *number)
    }

    fn note(&mut self, router: u64, number: u64) {
        match self.numbers.iter_mut().find(|(by, _)| *by == router) {
            Some((_, highest)) => *highest = number,
            None => self.numbers.push((router, number)),
        }
    }
}

impl Attribution {
    /// A tag came. False if it is an old one, sent again: then nobody is believed until the next.
    pub(crate) fn tagged(&mut self, pid: u32, tag: &Tag) -> bool {
        let said = self.said.entry(pid).or_insert_with(|| Said {
            speaker: tag.speaker,
            router: tag.router,
            generation: 0,
            as_of: 0,
            numbers: SmallVec::new(),
        });
        if tag.number <= said.number(tag.router) {
            said.generation = 0;
            return false;
        }
        // Made before the speaker was known, and heard after: it says the same, and may not know
        // that somebody listens.
        let late = tag.speaker == said.speaker && tag.router == said.router && tag.number <= said.as_of;
        said.generation = if late { said.generation.max(tag.generation) } else { tag.generation };
        said.speaker = tag.speaker;
        said.router = tag.router;
        said.note(tag.router, tag.number);
        true
    }

    /// The process served `speaker` when tag number `as_of` of its router had been made, and announces every
    /// change since then. Must come in order with the notifications, behind all that the process
    /// had sent by then.
    pub(crate) fn known(&mut self, pid: u32, router: u64, speaker: Speaker, generation: u64, as_of: u64) {
        let numbers = match self.said.get(&pid) {
            // It has said something itself since.
            Some(said) if said.number(router) > as_of => return,
            Some(said) => said.numbers.clone(),
            None => SmallVec::new(),
        };
        self.said.insert(pid, Said { speaker, router, generation, as_of, numbers });
    }

    /// Who sent what the process sends now, by which router, and since which generation it says so.
    pub(crate) fn speaker(&self, pid: u32) -> Option<(Speaker, u64, u64)> {
        let said = self.said.get(&pid).filter(|said| said.generation != 0)?;
        Some((said.speaker, said.router, said.generation))
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
    const R: u64 = 77;
    const OTHER: u64 = 78;

    fn tag(speaker: Speaker, generation: u64, number: u64) -> Tag {
        Tag { speaker, router: R, generation, number }
    }

    #[test]
    fn the_last_tag_counts() {
        let mut attribution = Attribution::default();
        assert_eq!(attribution.speaker(7), None);
        assert!(attribution.tagged(7, &tag(A, 1, 1)));
        assert!(attribution.tagged(8, &tag(B, 1, 2)));
        assert_eq!(attribution.speaker(7), Some((A, R, 1)));
        assert!(attribution.tagged(7, &tag(B, 0, 3)));
        assert_eq!(attribution.speaker(7), None);
        assert!(attribution.is_known(7));
        assert_eq!(attribution.speaker(8), Some((B, R, 1)));
    }

    #[test]
    fn a_tag_sent_again_makes_nobody_of_the_process() {
        let mut attribution = Attribution::default();
        attribution.tagged(7, &tag(A, 1, 1));
        attribution.tagged(7, &tag(B, 1, 5));
        assert!(!attribution.tagged(7, &tag(A, 1, 1)), "B has heard A's tag and repeats it");
        assert_eq!(attribution.speaker(7), None);
        assert!(attribution.tagged(7, &tag(A, 1, 6)));
        assert_eq!(attribution.speaker(7), Some((A, R, 1)));
    }

    #[test]
    fn what_was_known_gives_way_to_what_was_said_since() {
        let mut attribution = Attribution::default();
        attribution.tagged(7, &tag(B, 0, 3));
        attribution.known(7, R, A, 9, 4);
        assert_eq!(attribution.speaker(7), Some((A, R, 9)), "the tag was made before that was known");
        attribution.tagged(8, &tag(B, 0, 5));
        attribution.known(8, R, A, 9, 4);
        assert_eq!(attribution.speaker(8), None, "it has served somebody else since");
        attribution.known(9, R, B, 9, 4);
        assert_eq!(attribution.speaker(9), Some((B, R, 9)));
        assert!(attribution.tagged(9, &tag(B, 0, 4)), "made before, heard after");
        assert_eq!(attribution.speaker(9), Some((B, R, 9)));
        assert!(attribution.tagged(9, &tag(B, 0, 5)));
        assert_eq!(attribution.speaker(9), None);
    }

    #[test]
    fn each_router_counts_for_itself() {
        let by_other =
            |speaker, generation, number| Tag { router: OTHER, ..tag(speaker, generation, number) };
        let mut attribution = Attribution::default();
        attribution.tagged(7, &tag(A, 1, 900));
        assert!(attribution.tagged(7, &by_other(B, 1, 5)), "a process of another router has got the id");
        assert_eq!(attribution.speaker(7), Some((B, OTHER, 1)));
        assert!(!attribution.tagged(7, &tag(A, 1, 900)), "B has heard A's tag and repeats it");
        assert_eq!(attribution.speaker(7), None);
        attribution.known(7, OTHER, B, 2, 4);
        assert_eq!(attribution.speaker(7), None, "it has spoken itself since");
        attribution.known(7, OTHER, B, 2, 5);
        assert_eq!(attribution.speaker(7), Some((B, OTHER, 2)));
    }
}
