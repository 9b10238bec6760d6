-- A move whose target does not come back is given up without it.
ALTER TABLE moves DROP CONSTRAINT moves_wish_check;
ALTER TABLE moves ADD CONSTRAINT moves_wish_check
    CHECK (wish IN ('run', 'pause', 'abort', 'abort_without_target', 'rollback', 'complete', 'complete_without_source'));
-- Where the tenant's data is on the target, for as long as what the move has brought there is to be cleared.
ALTER TABLE moves ADD COLUMN left_at_target jsonb;
CREATE INDEX moves_left ON moves (target) WHERE left_at_target IS NOT NULL;
