-- A small CRM, as many applications have one: every table has the tenant first in its key, every
-- reference carries it along, and row-level security shows a tenant its own rows and no others.
--
-- The application names no tenant: not in WHERE, and not in INSERT either.

CREATE TABLE clients (
    tenant_id  text NOT NULL DEFAULT current_setting('app.tenant_id', true) CHECK (tenant_id <> ''),
    id         uuid NOT NULL DEFAULT gen_random_uuid(),
    name       text NOT NULL,
    email      text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE campaigns (
    tenant_id  text NOT NULL DEFAULT current_setting('app.tenant_id', true) CHECK (tenant_id <> ''),
    id         uuid NOT NULL DEFAULT gen_random_uuid(),
    name       text NOT NULL,
    budget     numeric(12, 2) NOT NULL DEFAULT 0,
    starts_on  date NOT NULL DEFAULT current_date,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE leads (
    tenant_id   text NOT NULL DEFAULT current_setting('app.tenant_id', true) CHECK (tenant_id <> ''),
    id          uuid NOT NULL DEFAULT gen_random_uuid(),
    first_name  text NOT NULL,
    last_name   text NOT NULL,
    email       text,
    status      text NOT NULL DEFAULT 'new',
    campaign_id uuid,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, campaign_id) REFERENCES campaigns (tenant_id, id)
);
CREATE INDEX leads_by_name ON leads (tenant_id, last_name, first_name);

CREATE TABLE conversations (
    tenant_id  text NOT NULL DEFAULT current_setting('app.tenant_id', true) CHECK (tenant_id <> ''),
    id         uuid NOT NULL DEFAULT gen_random_uuid(),
    client_id  uuid,
    lead_id    uuid,
    channel    text NOT NULL DEFAULT 'email',
    body       text NOT NULL DEFAULT '',
    at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, client_id) REFERENCES clients (tenant_id, id),
    FOREIGN KEY (tenant_id, lead_id) REFERENCES leads (tenant_id, id)
);
CREATE INDEX conversations_by_lead ON conversations (tenant_id, lead_id);

-- FORCE: the owner is bound by the policies too.
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['clients', 'campaigns', 'leads', 'conversations'] LOOP
        EXECUTE format('ALTER TABLE %I OWNER TO crm_owner', t);
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t);
        EXECUTE format(
            'CREATE POLICY tenant ON %I USING (tenant_id = current_setting(''app.tenant_id'', true))', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO crm_app', t);
    END LOOP;
END $$;
