-- A move whose source does not come back is ended without it.
ALTER TABLE moves DROP CONSTRAINT moves_wish_check;
ALTER TABLE moves ADD CONSTRAINT moves_wish_check
    CHECK (wish IN ('run', 'pause', 'abort', 'rollback', 'complete', 'complete_without_source'));
