-- What moves needed next.

-- An epoch never falls: a tenant whose own placement is taken away goes on at the next one where its bucket is,
-- and begins from there if it is placed again.
CREATE OR REPLACE FUNCTION bury() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = switchyard, pg_temp AS $$
DECLARE
    gone jsonb := to_jsonb(OLD);
BEGIN
    INSERT INTO deleted (kind, id, version, epoch)
    SELECT TG_ARGV[0], gone ->> TG_ARGV[1], version, (gone ->> 'epoch')::bigint + 1 FROM topology_version
    ON CONFLICT (kind, id) DO UPDATE SET version = excluded.version, epoch = excluded.epoch;
    RETURN NULL;
END $$;

-- The mover's password need not be in the catalog: an environment variable of the control plane, or a file in
-- its directory of secrets.
ALTER TABLE shard_admins
    ADD COLUMN password_env  text CHECK (password_env <> ''),
    ADD COLUMN password_file text CHECK (password_file <> ''),
    ADD CHECK (num_nonnulls(login_password, password_env, password_file) <= 1);
