//! The PostgreSQL wire protocol without IO: frames, startup, errors, keys, SCRAM.
