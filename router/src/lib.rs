//! The data plane of Switchyard: listener, login, session, forwarding, pool, observation.
