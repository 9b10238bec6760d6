-- Passwords of the roles that administer shards, sealed by the control plane's keys (vault.rs). What stands in clear is
-- sealed when a control plane that has keys starts.

ALTER TABLE shard_admins
    ADD COLUMN kid    text,
    ADD COLUMN sealed bytea,
    ADD CHECK ((kid IS NULL) = (sealed IS NULL)),
    ADD CHECK (num_nonnulls(login_password, sealed, password_env, password_file) <= 1);

-- No router may read these.
ALTER TABLE shards
    ADD COLUMN admin_kid    text,
    ADD COLUMN admin_sealed bytea,
    ADD CHECK ((admin_kid IS NULL) = (admin_sealed IS NULL)),
    ADD CHECK (num_nonnulls(admin_password, admin_sealed) <= 1);
