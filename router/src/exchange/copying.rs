//! COPY, while which a server does not look at Syncs.

use std::collections::VecDeque;

use super::{Exchange, Owed};

impl Exchange {
    /// CopyDone or CopyFail was sent.
    pub(crate) fn sent_copy_end(&mut self) {
        if self.copy_in {
            self.copy_in = false;
        } else if !self.owed.is_empty() || self.open {
            // The server may not have said yet that it wants the data.
            match self.owed.back_mut() {
                Some(Owed::CopyEnd(ends)) => *ends += 1,
                _ => self.owed.push_back(Owed::CopyEnd(1)),
            }
        }
        self.copy_both = false;
    }

    /// CopyInResponse arrived: Syncs that the client has sent in front of its end are not read.
    pub(crate) fn got_copy_in(&mut self) {
        while matches!(self.owed.front(), Some(Owed::Replaced(_) | Owed::Effect(_))) {
            if let Some(Owed::Effect(number)) = self.pop() {
                self.reached.push(number);
            }
        }
        let mut rest = self.owed.split_off(1.min(self.owed.len()));
        let (ended, swallowed) = drop_to_copy_end(&mut rest);
        self.copy_in = !ended;
        self.swallowed = self.swallowed.saturating_add(swallowed);
        let by_query = matches!(self.owed.front(), Some(Owed::Query));
        if !by_query && !rest.iter().any(|owed| matches!(owed, Owed::Sync)) {
            // The Sync that counts is still to come.
            self.open = true;
        }
        self.owed.append(&mut rest);
    }

    /// CopyBothResponse arrived: replication; the connection is the client's from here on.
    pub(crate) fn got_copy_both(&mut self) {
        self.copy_both = true;
    }
}

/// Drops Syncs up to the end of the COPY. Whether that end has been sent, and how many there were.
fn drop_to_copy_end(owed: &mut VecDeque<Owed>) -> (bool, u32) {
    let mut swallowed = 0;
    while let Some(front) = owed.front_mut() {
        match front {
            Owed::CopyEnd(ends) => {
                *ends -= 1;
                if *ends == 0 {
                    owed.pop_front();
                }
                return (true, swallowed);
            }
            Owed::Sync => {
                owed.pop_front();
                swallowed += 1;
            }
            // Anything else makes the server end the session.
            _ => return (true, swallowed),
        }
    }
    (false, swallowed)
}
