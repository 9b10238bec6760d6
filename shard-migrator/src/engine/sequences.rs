//! Values that sequences give out: none twice, on whichever side a tenant is.

use super::{Place, Work};
use crate::MoveError;
use crate::inventory::Inventory;

/// Values that are left out, for what the side that the tenant leaves gives out until the cutover.
const GAP: i64 = 100_000;

impl Work<'_> {
    /// No value that `to` will give out may be one that `from` has given out, or will until the cutover.
    pub(super) async fn raise_sequences(
        &self,
        inventory: &Inventory,
        from: &Place,
        to: &Place,
    ) -> Result<(), MoveError> {
        if inventory.sequences.is_empty() {
            return Ok(());
        }
        let last = "SELECT n, s.seqincrement, pg_sequence_last_value(s.seqrelid)
                    FROM unnest($1::text[]) n JOIN pg_sequence s ON s.seqrelid = n::regclass";
        let rows = from.client.query(last, &[&inventory.sequences]).await.map_err(from.at.failed())?;
        for row in &rows {
            let sequence: &str = row.get(0);
            let (step, Some(at)) = (row.get::<_, i64>(1), row.get::<_, Option<i64>>(2)) else { continue };
            // Shared sequences go on giving to neighbours: only forward, and not if they are far enough already.
            let sql = "SELECT setval(s.seqrelid::regclass, CASE WHEN s.seqincrement > 0
                              THEN least($2, s.seqmax) ELSE greatest($2, s.seqmin) END)
                       FROM pg_sequence s WHERE s.seqrelid = $1::text::regclass
                         AND CASE WHEN s.seqincrement > 0
                             THEN coalesce(pg_sequence_last_value(s.seqrelid), s.seqstart) < $3
                             ELSE coalesce(pg_sequence_last_value(s.seqrelid), s.seqstart) > $3 END";
            let ahead = |values: i64| at.saturating_add(step.saturating_mul(values));
            let values = (&sequence, &ahead(GAP), &ahead(GAP / 2));
            let set = to.client.execute(sql, &[values.0, values.1, values.2]).await;
            set.map_err(to.at.failed())?;
        }
        Ok(())
    }
}
