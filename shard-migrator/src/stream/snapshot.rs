//! Which transactions a snapshot sees.

use crate::MoveError;

/// A snapshot as `pg_current_snapshot()` writes it: `xmin:xmax:xip,...`, of 64-bit transaction ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    xmin: u64,
    xmax: u64,
    running: Vec<u64>,
}

impl std::str::FromStr for Snapshot {
    type Err = MoveError;

    fn from_str(text: &str) -> Result<Self, MoveError> {
        let wrong = || MoveError::Invalid(format!("`{text}` is no snapshot"));
        let mut parts = text.splitn(3, ':');
        let mut number = || parts.next().and_then(|p| p.parse().ok()).ok_or_else(wrong);
        let (xmin, xmax) = (number()?, number()?);
        let running = parts.next().ok_or_else(wrong)?;
        let running = running.split(',').filter(|x| !x.is_empty()).map(|x| x.parse().map_err(|_| wrong()));
        Ok(Self { xmin, xmax, running: running.collect::<Result<_, _>>()? })
    }
}

impl Snapshot {
    /// Whether the transaction, whose id the stream gives without its epoch, is visible, given that it has
    /// committed. Ids are compared within half of their range around the snapshot.
    pub(crate) fn sees(&self, xid: u32) -> bool {
        let xid = self.full(xid);
        xid < self.xmin || (xid < self.xmax && !self.running.contains(&xid))
    }

    /// Whether no transaction with an id below this was running. All others need not be listed: what is newer than all
    /// that has ended is not.
    pub(crate) fn is_beyond(&self, xid: u64) -> bool {
        self.xmin >= xid
    }

    fn full(&self, xid: u32) -> u64 {
        let ahead = xid.wrapping_sub(self.xmax as u32).cast_signed();
        self.xmax.saturating_add_signed(i64::from(ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_snapshot_sees() {
        let s: Snapshot = "10:20:10,14".parse().unwrap();
        for (xid, sees) in
            [(9, true), (10, false), (11, true), (14, false), (19, true), (20, false), (21, false)]
        {
            assert_eq!(s.sees(xid), sees, "{xid}");
        }
        assert!("10:20:".parse::<Snapshot>().unwrap().sees(19));
        assert!(s.is_beyond(10) && !s.is_beyond(11));
        assert!("10:x:".parse::<Snapshot>().is_err());
    }

    #[test]
    fn ids_wrap() {
        let s: Snapshot = "4294967290:4294967300:4294967295".parse().unwrap();
        assert!(s.sees(4_294_967_294) && !s.sees(4_294_967_295) && s.sees(3) && !s.sees(4));
    }
}
