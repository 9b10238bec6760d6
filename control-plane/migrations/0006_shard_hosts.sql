-- Further hosts of a shard, as [{"host": ..., "port": ...}]: one of them is the primary if the first is not.
ALTER TABLE shards ADD COLUMN other_hosts jsonb NOT NULL DEFAULT '[]';
