//! The router's behaviour, as its clients and operators see it. A module for each subject.

mod attacks;
mod cancel;
mod cancel_elsewhere;
mod checklist;
mod context;
mod drivers;
mod failover;
mod identity;
mod isolation;
mod jwt;
mod limits;
mod login;
mod notifications;
mod operation;
mod placement;
mod pool;
mod prepared;
mod protocol;
mod random;
mod sealed;
mod settings;
mod startup;
mod state;
mod takeover;
mod tls;
mod vanish;
