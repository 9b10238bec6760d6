-- Who only works in the console acts for no tenant.
ALTER TABLE users DROP CONSTRAINT users_check;
ALTER TABLE users ADD CONSTRAINT users_check CHECK (
    NOT (any_tenant AND cardinality(tenants) > 0)
    AND (any_tenant OR cardinality(tenants) > 0 OR coalesce(methods->>'console', '') <> '')
);
