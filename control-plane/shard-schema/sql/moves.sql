-- The fence as transactions meet it, and the steps of a move that must be one statement each.

-- The key of a tenant's advisory lock: shared by each transaction that runs for the tenant,
-- exclusive for the one that freezes it.
CREATE OR REPLACE FUNCTION switchyard.move_key(tenant text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.hashtextextended(tenant, 6432);

-- For restrictive policies, as (SELECT switchyard.admit(...)), and for triggers: whether the tenant may run
-- here. VOLATILE, so that the fence is read after the lock was taken, by a snapshot of its own.
--
-- Under REPEATABLE READ and SERIALIZABLE the row that is read may be older than the fence. While a
-- move is under way the row is locked, which fails with 40001 if it has changed since.
CREATE OR REPLACE FUNCTION switchyard.admit(tenant text) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL RESTRICTED SECURITY DEFINER AS $$
DECLARE
    f switchyard.fence;
BEGIN
    -- Nobody can be told from a tenant that is fenced. What is set in a transaction is empty after it, not unset.
    IF tenant IS NULL OR tenant OPERATOR(pg_catalog.=) '' THEN
        RAISE EXCEPTION 'no tenant is set' USING ERRCODE = 'TN001';
    END IF;
    PERFORM pg_catalog.pg_advisory_xact_lock_shared(switchyard.move_key(tenant));
    SELECT * INTO f FROM switchyard.fence x WHERE x.tenant_id OPERATOR(pg_catalog.=) tenant;
    IF NOT FOUND THEN
        RETURN true;
    END IF;
    IF f.move_id IS NOT NULL
       AND pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed'
       AND pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'off' THEN
        SELECT * INTO f FROM switchyard.fence x WHERE x.tenant_id OPERATOR(pg_catalog.=) tenant FOR SHARE;
    END IF;
    IF f.state OPERATOR(pg_catalog.<>) 'active' THEN
        RAISE EXCEPTION 'the tenant is not served on this shard' USING
            ERRCODE = 'TN002',
            DETAIL = pg_catalog.format('state=%s epoch=%s moved_to=%s', f.state, f.epoch,
                                       coalesce(f.moved_to, ''));
    END IF;
    RETURN true;
END $$;

-- For tables that are one tenant's own: the trigger's argument is the tenant.
CREATE OR REPLACE FUNCTION switchyard.admit_trigger() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM switchyard.admit(TG_ARGV[0]);
    RETURN NULL;
END $$;

-- Takes the right to read the tables and views of a tenant's own from everybody, and writes down whose it was; in the
-- transaction that freezes, or behind it. Triggers keep late writers out, and late readers nothing but this. It waits for
-- nobody, and who has read a relation in a transaction that is open may go on until that ends.
CREATE OR REPLACE FUNCTION switchyard.close_relations(tenant text, schemas text[]) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    relations text;
    roles     text;
BEGIN
    DELETE FROM switchyard.closed c WHERE c.tenant_id = tenant;
    INSERT INTO switchyard.closed
    SELECT tenant, r.oid, NULL, a.grantee, a.is_grantable
      FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace,
           aclexplode(coalesce(r.relacl, acldefault('r', r.relowner))) a
     WHERE n.nspname = ANY (schemas) AND r.relkind IN ('r', 'p', 'v', 'm') AND a.privilege_type = 'SELECT'
     UNION
    SELECT tenant, r.oid, t.attname, a.grantee, a.is_grantable
      FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
      JOIN pg_attribute t ON t.attrelid = r.oid AND t.attacl IS NOT NULL AND NOT t.attisdropped,
           aclexplode(t.attacl) a
     WHERE n.nspname = ANY (schemas) AND r.relkind IN ('r', 'p', 'v', 'm') AND a.privilege_type = 'SELECT';
    SELECT string_agg(DISTINCT c.relation::regclass::text, ', '),
           string_agg(DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC'), ', ')
      INTO relations, roles
      FROM switchyard.closed c LEFT JOIN pg_roles r ON r.oid = c.grantee
     WHERE c.tenant_id = tenant AND (c.grantee = 0 OR r.oid IS NOT NULL);
    IF relations IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('REVOKE SELECT ON %s FROM %s CASCADE', relations, roles);
    -- The mover reads, whatever its rights came from.
    IF NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
        EXECUTE format('GRANT SELECT ON %s TO CURRENT_USER', relations);
    END IF;
END $$;

-- Takes the right to use the schemas of a tenant's own from everybody, in the transaction that freezes: that takes no longer
-- with thousands of tables than with one. Names are looked for in the next schema of the search path from then on, so it
-- is for a moment, and for tenants for which there is nothing to be found: see close_behind.
CREATE OR REPLACE FUNCTION switchyard.close_schemas(tenant text, schemas text[]) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    s record;
BEGIN
    DELETE FROM switchyard.closed_schemas c WHERE c.tenant_id = tenant;
    INSERT INTO switchyard.closed_schemas
    SELECT tenant, n.oid, a.grantee, a.is_grantable
      FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
     WHERE n.nspname = ANY (schemas) AND a.privilege_type = 'USAGE';
    FOR s IN
        SELECT c.schema::regnamespace AS name,
               string_agg(DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC'), ', ') AS roles
          FROM switchyard.closed_schemas c LEFT JOIN pg_roles r ON r.oid = c.grantee
         WHERE c.tenant_id = tenant AND (c.grantee = 0 OR r.oid IS NOT NULL)
         GROUP BY 1
    LOOP
        EXECUTE format('REVOKE USAGE ON SCHEMA %s FROM %s CASCADE', s.name, s.roles);
        -- The mover reads, whatever its rights came from.
        IF NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
            EXECUTE format('GRANT USAGE ON SCHEMA %s TO CURRENT_USER', s.name);
        END IF;
    END LOOP;
END $$;

-- Gives back the right to use the schemas.
CREATE OR REPLACE FUNCTION switchyard.open_schemas(tenant text) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    s record;
BEGIN
    FOR s IN
        SELECT n.oid::regnamespace AS name, c.grantable,
               string_agg(coalesce(quote_ident(r.rolname), 'PUBLIC'), ', ') AS roles
          FROM switchyard.closed_schemas c JOIN pg_namespace n ON n.oid = c.schema LEFT JOIN pg_roles r ON r.oid = c.grantee
         WHERE c.tenant_id = tenant AND (c.grantee = 0 OR r.oid IS NOT NULL)
         GROUP BY 1, 2
    LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %s TO %s %s', s.name, s.roles,
                       CASE WHEN s.grantable THEN 'WITH GRANT OPTION' END);
    END LOOP;
    DELETE FROM switchyard.closed_schemas c WHERE c.tenant_id = tenant;
END $$;

-- Closes one by one, where the tenant does not live any more, the tables of which only the schemas were closed: nobody waits
-- for this.
CREATE OR REPLACE FUNCTION switchyard.close_behind(tenant text, schemas text[]) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM FROM switchyard.fence f WHERE f.tenant_id = tenant AND f.state = 'moved' FOR UPDATE;
    IF FOUND AND EXISTS (SELECT FROM switchyard.closed_schemas c WHERE c.tenant_id = tenant) THEN
        PERFORM switchyard.close_relations(tenant, schemas);
        PERFORM switchyard.open_schemas(tenant);
    END IF;
END $$;

-- Gives back what was taken: in the transaction in which the tenant is served here again.
CREATE OR REPLACE FUNCTION switchyard.open_relations(tenant text) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    g record;
BEGIN
    PERFORM switchyard.open_schemas(tenant);
    FOR g IN
        SELECT c.attribute, c.grantable, coalesce(quote_ident(r.rolname), 'PUBLIC') AS role,
               string_agg(p.oid::regclass::text, ', ') AS relations
          FROM switchyard.closed c JOIN pg_class p ON p.oid = c.relation LEFT JOIN pg_roles r ON r.oid = c.grantee
         WHERE c.tenant_id = tenant AND (c.grantee = 0 OR r.oid IS NOT NULL)
           AND (c.attribute IS NULL OR EXISTS (SELECT FROM pg_attribute t WHERE t.attrelid = p.oid
                                               AND t.attname = c.attribute AND NOT t.attisdropped))
         GROUP BY 1, 2, 3
    LOOP
        EXECUTE format('GRANT SELECT %s ON %s TO %s %s', '(' || quote_ident(g.attribute) || ')', g.relations,
                       g.role, CASE WHEN g.grantable THEN 'WITH GRANT OPTION' END);
    END LOOP;
    DELETE FROM switchyard.closed c WHERE c.tenant_id = tenant;
END $$;

-- Freezes a tenant for a cutover. Waits for its open transactions, no longer than lock_timeout. The commit
-- of this is the end of what the target must apply. Conditions of the mover's turn are checked here, so
-- that it is one statement.
CREATE OR REPLACE FUNCTION switchyard.freeze(move text, my_side text, my_term bigint, tenant text, target text)
RETURNS pg_lsn LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    -- Tells this freezing from those of attempts before.
    mark pg_lsn;
BEGIN
    PERFORM FROM switchyard.moves m WHERE m.move_id = move AND m.side = my_side AND m.term = my_term FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another mover has taken over' USING ERRCODE = 'TN010';
    END IF;
    PERFORM pg_advisory_xact_lock(switchyard.move_key(tenant));
    mark := pg_current_wal_insert_lsn();
    UPDATE switchyard.fence f SET state = 'frozen', moved_to = target, fence_lsn = mark,
           changed_at = clock_timestamp()
     WHERE f.tenant_id = tenant AND f.move_id = move AND f.state = 'active';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the fence is not in the state that a cutover begins from' USING ERRCODE = 'TN011';
    END IF;
    RETURN mark;
END $$;

-- Activates a tenant where it has arrived: the commit of this is the commit of the move. Refuses an attempt
-- that was given up, and a mover whose turn is over.
CREATE OR REPLACE FUNCTION switchyard.activate(
    move text, my_side text, my_term bigint, my_attempt integer, tenant text, new_epoch bigint)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE switchyard.moves m SET activated = pg_current_wal_insert_lsn()
     WHERE m.move_id = move AND m.side = my_side AND m.term = my_term AND m.attempt = my_attempt;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the attempt was given up, or another mover has taken over' USING ERRCODE = 'TN010';
    END IF;
    UPDATE switchyard.fence f SET state = 'active', epoch = new_epoch, moved_to = NULL,
           fence_lsn = pg_current_wal_insert_lsn(), changed_at = clock_timestamp()
     WHERE f.tenant_id = tenant AND f.move_id = move AND f.state IN ('importing', 'moved') AND f.epoch < new_epoch;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the fence is not in the state that an arrival ends from' USING ERRCODE = 'TN011';
    END IF;
    PERFORM switchyard.open_relations(tenant);
END $$;

-- Gives an attempt up where the tenant was to arrive, and tells the state of the fence there: `active` if it was
-- too late for that. Waits for an activation that is under way, by the row that both write.
CREATE OR REPLACE FUNCTION switchyard.give_up(move text, my_side text, my_term bigint, tenant text)
RETURNS text LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE switchyard.moves m SET attempt = m.attempt + 1
     WHERE m.move_id = move AND m.side = my_side AND m.term = my_term;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another mover has taken over' USING ERRCODE = 'TN010';
    END IF;
    RETURN (SELECT f.state FROM switchyard.fence f WHERE f.tenant_id = tenant AND f.move_id = move);
END $$;

-- Lets a tenant go on where it was frozen. Only after the attempt was given up at the other side.
CREATE OR REPLACE FUNCTION switchyard.unfreeze(move text, my_side text, my_term bigint, tenant text)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM FROM switchyard.moves m WHERE m.move_id = move AND m.side = my_side AND m.term = my_term FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another mover has taken over' USING ERRCODE = 'TN010';
    END IF;
    UPDATE switchyard.fence f SET state = 'active', moved_to = NULL, changed_at = clock_timestamp()
     WHERE f.tenant_id = tenant AND f.move_id = move AND f.state = 'frozen';
    IF FOUND THEN
        PERFORM switchyard.open_relations(tenant);
    END IF;
END $$;

-- Takes a move over: from here on, who had it before changes nothing.
CREATE OR REPLACE FUNCTION switchyard.take_over(move text, my_side text, my_term bigint, tenant text)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    INSERT INTO switchyard.moves AS m (move_id, side, tenant_id, term) VALUES (move, my_side, tenant, my_term)
    ON CONFLICT (move_id, side) DO UPDATE SET term = my_term WHERE m.term <= my_term;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another mover has taken over' USING ERRCODE = 'TN010';
    END IF;
END $$;
