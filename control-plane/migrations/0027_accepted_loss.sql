-- A move whose target is lost for good is given up although the tenant may have been served there.
ALTER TABLE moves DROP CONSTRAINT moves_wish_check;
ALTER TABLE moves ADD CONSTRAINT moves_wish_check
    CHECK (wish IN ('run', 'pause', 'abort', 'abort_without_target', 'abort_accepting_loss', 'rollback', 'complete',
                    'complete_without_source'));
-- The highest epoch that the target may have been activated with.
ALTER TABLE moves ADD COLUMN epoch_after bigint;
-- Whether what is left at the target was written by the tenant after it had arrived: only people delete that.
ALTER TABLE moves ADD COLUMN kept_at_target boolean NOT NULL DEFAULT false;
