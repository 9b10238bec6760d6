-- The right to use the schemas of a tenant's own, as it was before it was taken from everybody: what closes all tables in
-- them at once while clients are held, until each has been closed by itself behind that.
CREATE TABLE switchyard.closed_schemas (
    tenant_id text COLLATE "C" NOT NULL,
    schema    oid NOT NULL,
    -- 0 is PUBLIC.
    grantee   oid NOT NULL,
    grantable boolean NOT NULL
);
CREATE INDEX closed_schemas_tenant ON switchyard.closed_schemas (tenant_id);
