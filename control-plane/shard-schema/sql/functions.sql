-- Functions of the schema, for either form of the seal. Replaced as a whole by each install and upgrade.
-- All run as switchyard_owner, with a pinned search path, or with every name and operator qualified.

-- Called once by a router on each new connection: its place among the server processes, and the number of
-- the last token that was used there. The counter is never set back, not even for a new nonce: setval is not
-- undone by a rollback, but the nonce is. A caller other than the router only makes tokens under way to
-- its own process void.
CREATE OR REPLACE FUNCTION switchyard.hello(OUT slot integer, OUT nonce bigint, OUT pid integer, OUT used bigint)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
BEGIN
    pid := pg_backend_pid();
    -- 63 random bits.
    nonce := ('x' || replace(gen_random_uuid()::text, '-', ''))::bit(64)::bigint & 9223372036854775807;
    SELECT b.slot, coalesce(pg_sequence_last_value(b.counter), 0) INTO hello.slot, hello.used
      FROM switchyard.backend b
     WHERE b.pid = hello.pid
        OR NOT EXISTS (SELECT FROM pg_stat_get_activity(NULL) a WHERE a.pid = b.pid)
     ORDER BY b.pid <> hello.pid, b.slot LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE switchyard.backend b SET pid = hello.pid, nonce = hello.nonce WHERE b.slot = hello.slot;
        RETURN;
    END IF;
    -- One after the other makes a new place.
    LOCK TABLE switchyard.backend IN SHARE ROW EXCLUSIVE MODE;
    SELECT coalesce(max(b.slot), 0) + 1 INTO hello.slot FROM switchyard.backend b;
    name := format('switchyard.used_%s', hello.slot);
    EXECUTE format('CREATE UNLOGGED SEQUENCE %s', name);
    INSERT INTO switchyard.backend VALUES (hello.slot, hello.pid, hello.nonce, name::regclass);
    used := 0;
END $$;

-- Raises TN002 if the fence keeps the tenant out at this epoch. The detail is for programs.
CREATE OR REPLACE FUNCTION switchyard.check_fence(tenant text, epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f record;
BEGIN
    SELECT * INTO f FROM switchyard.fence x
     WHERE x.tenant_id = tenant AND (x.state <> 'active' OR x.epoch > check_fence.epoch);
    IF FOUND THEN
        RAISE EXCEPTION 'the tenant is not served on this shard at this epoch' USING
            ERRCODE = 'TN002',
            DETAIL = format('state=%s epoch=%s moved_to=%s', f.state, f.epoch, coalesce(f.moved_to, ''));
    END IF;
END $$;

-- Refuses a token that is not good here and now. For `enter` alone.
--
-- A token is HEX.KID.PID.SLOT.NONCE.USE.EPOCH.EXPIRY.TENANT: HEX is HMAC-SHA256 over what follows its
-- dot, EXPIRY is in seconds since 1970, TENANT is the tenant's UTF-8 in hexadecimal.
CREATE OR REPLACE FUNCTION switchyard.spend(token text, OUT tenant text, OUT epoch bigint)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f       text[];
    genuine boolean;
    counter regclass;
BEGIN
    -- Without bounds in the expression, which would make it thirty times as dear.
    IF token ~ '^[0-9a-f]+(\.[0-9]+){7}\.[0-9a-f]+$' AND strpos(token, '.') = 65 THEN
        f := string_to_array(token, '.');
        SELECT sha256(k.k_out || sha256(k.k_in || convert_to(substr(token, 66), 'UTF8'))) = decode(f[1], 'hex')
          INTO genuine FROM switchyard.seal_key k WHERE k.kid = f[2]::integer;
        IF genuine AND f[3]::bigint = pg_backend_pid() AND clock_timestamp() <= to_timestamp(f[8]::float8) THEN
            SELECT b.counter INTO counter FROM switchyard.backend b
             WHERE b.slot = f[4]::bigint AND b.pid = pg_backend_pid() AND b.nonce = f[5]::bigint
               AND f[6]::bigint > coalesce(pg_sequence_last_value(b.counter), 0);
            IF FOUND THEN
                PERFORM setval(counter, f[6]::bigint);
                tenant := convert_from(decode(f[9], 'hex'), 'UTF8');
                epoch := f[7]::bigint;
                PERFORM switchyard.check_fence(tenant, epoch);
                RETURN;
            END IF;
        END IF;
    END IF;
    RAISE EXCEPTION 'invalid tenant token' USING ERRCODE = 'TN001';
END $$;
