-- The right to read relations of a tenant's own, as it was before it was taken from everybody: a tenant that is frozen, or
-- lives elsewhere, is not read here any more. Who may what is written down in the transaction that takes it.
CREATE TABLE switchyard.closed (
    tenant_id text COLLATE "C" NOT NULL,
    relation  oid NOT NULL,
    -- Null where the right is to the whole relation.
    attribute text,
    -- 0 is PUBLIC.
    grantee   oid NOT NULL,
    grantable boolean NOT NULL
);
CREATE INDEX closed_tenant ON switchyard.closed (tenant_id);
