-- What the roles of applications may do with it: ask for their tenant, and enter with a token.
GRANT USAGE ON SCHEMA switchyard TO PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA switchyard FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA switchyard FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA switchyard FROM PUBLIC;
GRANT EXECUTE ON FUNCTION switchyard.hello(), switchyard.enter(text), switchyard.tenant_id() TO PUBLIC;
-- Policies and triggers of the fence run as whoever writes.
GRANT EXECUTE ON FUNCTION switchyard.admit(text), switchyard.admit_trigger() TO PUBLIC;
