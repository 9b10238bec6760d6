-- A database as it should be, in which the tests plant their mistakes.
CREATE ROLE shop_owner NOLOGIN;
CREATE SCHEMA shop AUTHORIZATION shop_owner;
GRANT USAGE ON SCHEMA shop TO app;
SET ROLE shop_owner;
CREATE TABLE shop.countries (code text PRIMARY KEY);
CREATE TABLE shop.orders (
    tenant_id text NOT NULL,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    country text REFERENCES shop.countries,
    PRIMARY KEY (tenant_id, id)
);
CREATE TABLE shop.lines (
    tenant_id text NOT NULL,
    order_id uuid NOT NULL,
    n int NOT NULL,
    PRIMARY KEY (tenant_id, order_id, n),
    FOREIGN KEY (tenant_id, order_id) REFERENCES shop.orders
);
CREATE TABLE shop.events (tenant_id text NOT NULL, at date NOT NULL, PRIMARY KEY (tenant_id, at)) PARTITION BY RANGE (at);
CREATE TABLE shop.events_2026 PARTITION OF shop.events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE VIEW shop.open_orders WITH (security_invoker = true) AS SELECT * FROM shop.orders;
CREATE FUNCTION shop.add(a int, b int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT a + b';
GRANT SELECT, INSERT, UPDATE, DELETE ON shop.orders, shop.lines, shop.events TO app;
GRANT SELECT ON shop.countries, shop.open_orders TO app;
RESET ROLE;
-- The tables that every test cluster has are another application's.
DROP TABLE public.conversations, public.leads, public.campaigns, public.clients, scratch.imports;
