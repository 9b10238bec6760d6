//! Buckets: where tenants live that have no placement of their own.

use deadpool_postgres::{GenericClient, Transaction};
use serde::{Deserialize, Serialize};
use switchyard_config::topology::Topology;
use switchyard_config::{BUCKETS, TenantId};
use utoipa::ToSchema;

use super::audit::{Deed, record};
use super::{Caller, Store, StoreError, lock_version};

/// Buckets that follow each other and have the same shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketRun {
    /// The first.
    pub from: u16,
    /// The last.
    pub to: u16,
    /// Their shard.
    pub shard: String,
}

impl Store {
    /// The buckets as runs, in order.
    ///
    /// # Errors
    /// If the catalog fails.
    pub async fn buckets(&self) -> Result<Vec<BucketRun>, StoreError> {
        Ok(runs(&bucket_shards(&self.client().await?).await?))
    }

    /// Deals all buckets anew: by `runs`, which must cover every bucket once, or evenly over the
    /// shards in order of their names. Tenants that live by their bucket would be sent to a shard
    /// that does not have their rows, so it is refused if there are any, unless `force`.
    ///
    /// # Errors
    /// If the runs do not fit, a tenant stands in the way, or the catalog fails.
    pub async fn set_buckets(
        &self,
        caller: &Caller,
        wanted: Option<Vec<BucketRun>>,
        force: bool,
    ) -> Result<Vec<BucketRun>, StoreError> {
        let mut client = self.client().await?;
        let t = client.transaction().await?;
        lock_version(&t).await?;
        let names = t.query("SELECT name FROM shards ORDER BY name", &[]).await?;
        let names: Vec<String> = names.iter().map(|r| r.get(0)).collect();
        if names.is_empty() {
            return Err(StoreError::Conflict("there is no shard yet".to_owned()));
        }
        let next = match wanted {
            Some(runs) => dealt(&runs, &names)?,
            None => {
                let even = Topology::even_buckets(names.len());
                even.into_iter().map(|i| names[usize::from(i)].clone()).collect()
            }
        };
        let before = bucket_shards(&t).await?;
        caller.expects(&runs(&before))?;
        if !force {
            refuse_if_stranding(&t, &before, &next).await?;
        }
        let sql = "INSERT INTO buckets AS b (bucket, shard)
                   SELECT n - 1, s FROM unnest($1::text[]) WITH ORDINALITY AS dealt(s, n)
                   ON CONFLICT (bucket) DO UPDATE SET shard = excluded.shard WHERE b.shard <> excluded.shard";
        t.execute(sql, &[&next]).await?;
        let after = runs(&next);
        record(&t, caller, Deed::new("update", "buckets", "all"), Some(&runs(&before)), Some(&after)).await?;
        t.commit().await?;
        Ok(after)
    }
}

/// The shard of each bucket, or none at all.
pub(super) async fn bucket_shards(client: &impl GenericClient) -> Result<Vec<String>, StoreError> {
    let row = client.query_one("SELECT array_agg(shard ORDER BY bucket) FROM buckets", &[]).await?;
    Ok(row.get::<_, Option<Vec<String>>>(0).unwrap_or_default())
}

fn runs(buckets: &[String]) -> Vec<BucketRun> {
    let mut runs: Vec<BucketRun> = Vec::new();
    for (bucket, shard) in (0..).zip(buckets) {
        match runs.last_mut() {
            Some(run) if run.shard == *shard => run.to = bucket,
            _ => runs.push(BucketRun { from: bucket, to: bucket, shard: shard.clone() }),
        }
    }
    runs
}

fn dealt(runs: &[BucketRun], shards: &[String]) -> Result<Vec<String>, StoreError> {
    let mut dealt: Vec<Option<&str>> = vec![None; usize::from(BUCKETS)];
    for run in runs {
        if run.from > run.to || run.to >= BUCKETS {
            return Err(StoreError::invalid("runs", format!("must be within 0 to {}", BUCKETS - 1)));
        }
        if !shards.contains(&run.shard) {
            return Err(StoreError::not_found("shard", &run.shard));
        }
        for bucket in run.from..=run.to {
            if dealt[usize::from(bucket)].replace(&run.shard).is_some() {
                return Err(StoreError::invalid("runs", format!("name bucket {bucket} twice")));
            }
        }
    }
    match dealt.iter().position(Option::is_none) {
        Some(bucket) => Err(StoreError::invalid("runs", format!("leave out bucket {bucket}"))),
        None => Ok(dealt.into_iter().flatten().map(str::to_owned).collect()),
    }
}

async fn refuse_if_stranding(
    t: &Transaction<'_>,
    before: &[String],
    next: &[String],
) -> Result<(), StoreError> {
    let sql = "SELECT id FROM tenants t WHERE NOT EXISTS (SELECT 1 FROM placements p WHERE p.tenant = t.id)";
    let moved = |id: &str| {
        let bucket = usize::from(TenantId::new(id).ok()?.bucket().0);
        Some(before.get(bucket) != next.get(bucket))
    };
    let stranded = t.query(sql, &[]).await?.iter().filter(|r| moved(r.get(0)) == Some(true)).count();
    if stranded == 0 {
        return Ok(());
    }
    Err(StoreError::Conflict(format!(
        "{stranded} tenants live by a bucket that would change its shard, and their rows would not go with them"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(from: u16, to: u16, shard: &str) -> BucketRun {
        BucketRun { from, to, shard: shard.into() }
    }

    #[test]
    fn runs_cover_every_bucket_once() {
        let shards = ["a".to_owned(), "b".to_owned()];
        let whole = [run(0, 99, "b"), run(100, 4095, "a")];
        let dealt_whole = dealt(&whole, &shards).unwrap();
        assert_eq!((dealt_whole[99].as_str(), dealt_whole[100].as_str()), ("b", "a"));
        assert_eq!(runs(&dealt_whole), whole);
        for wrong in [
            vec![run(0, 4094, "a")],
            vec![run(0, 4095, "a"), run(7, 7, "b")],
            vec![run(0, 4096, "a")],
            vec![run(5, 4, "a")],
            vec![run(0, 4095, "c")],
            vec![],
        ] {
            assert!(dealt(&wrong, &shards).is_err(), "{wrong:?}");
        }
    }
}
