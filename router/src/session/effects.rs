//! What a client's statements leave behind in its session, and how it is kept for it.

use std::sync::Arc;

use super::Core;
use super::relay::Relay;
use crate::classify::{Effect, Pin};

/// An effect of a statement that counts once the statement has succeeded.
#[derive(Debug)]
pub(super) enum Pending {
    /// The session now wishes this.
    Wish(String, String),
    /// The session wishes what it wished at startup.
    Unwish(String),
    /// The session wishes nothing but what it wished at startup.
    ResetAll,
    /// Everything of the session is gone.
    DiscardAll,
    /// Its prepared statements are gone.
    DeallocateAll,
    /// Its prepared statement of this name is gone.
    Deallocate(Box<[u8]>),
}

impl Relay {
    /// `text` is given where the statement stands alone and can be repeated on another connection.
    pub(super) fn note_effect(&mut self, core: &mut Core, effect: Effect, text: Option<String>) {
        let Some(server) = &mut self.server else { return };
        let alone = self.exchange.is_untouched();
        // Only an error from here on keeps the effect from happening.
        self.failed = false;
        match effect {
            Effect::Nothing => {}
            Effect::Unknown => server.carried.dirty = true,
            // The tenant's own variables are the router's: they are as they were before the next
            // transaction begins, whatever this one does with them.
            Effect::Set(name) | Effect::Reset(name) if core.seat.context.owns(&name) => {
                server.carried.lost = true;
                self.stall = true;
            }
            Effect::Settings(names) if names.iter().all(|name| core.seat.context.owns(name)) => {
                server.carried.lost = true;
                self.stall = true;
            }
            Effect::Settings(names) => {
                server.short_lived |= names.iter().any(|name| name == "idle_session_timeout");
                self.pin(core, Pin::Setting);
            }
            // It would end the connection in the pool, under whoever has it then.
            Effect::Set(name) if name == "idle_session_timeout" => {
                server.short_lived = true;
                self.pin(core, Pin::Setting);
            }
            Effect::Set(name) => match text {
                Some(text) if alone => {
                    self.pending = Some(Pending::Wish(name, text));
                    self.stall = true;
                }
                _ => self.pin(core, Pin::Setting),
            },
            Effect::Reset(name) => {
                if alone {
                    self.pending = Some(Pending::Unwish(name));
                    self.stall = true;
                } else {
                    self.pin(core, Pin::Setting);
                }
            }
            Effect::ResetAll => {
                // The tenant's variables go with the rest; they are set again before anything else.
                server.carried.lost = true;
                self.stall = true;
                self.pending = Some(Pending::ResetAll);
            }
            Effect::DiscardAll => {
                server.carried.lost = true;
                self.stall = true;
                self.pending = Some(Pending::DiscardAll);
            }
            Effect::Deallocate(None) => {
                self.stall = true;
                self.pending = Some(Pending::DeallocateAll);
            }
            Effect::Deallocate(Some(_)) => {}
            Effect::Pin(pin) => self.pin(core, pin),
        }
    }

    fn pin(&mut self, core: &mut Core, pin: Pin) {
        if let Some(server) = &mut self.server {
            server.carried.dirty = true;
            // Whatever was set may have been the tenant's own variable.
            server.carried.lost |= pin == Pin::Setting;
        }
        if core.pin.is_none() {
            self.fresh_pin = true;
            core.pin = Some(pin);
            core.shared.stats.pins.add(pin);
            tracing::debug!(session = core.id, tenant = %core.who.tenant, reason = pin.label(), "session pinned");
        }
    }

    /// What the statements of the group that has ended have changed for good.
    pub(super) fn settle(&mut self, core: &mut Core) {
        let Some(pending) = self.pending.take() else { return };
        if self.failed {
            return;
        }
        let mut values = core.wishes.values.clone();
        match pending {
            Pending::Wish(name, sql) => {
                values.insert(name, crate::context::Wish::Statement(sql));
                core.wishes = core.shared.contexts.wishes(values);
                self.carry_wishes(core);
            }
            Pending::Unwish(name) => {
                values.remove(&name);
                let without = core.shared.contexts.wishes(values.clone());
                if let Some(server) = &mut self.server {
                    server.carried.wishes = without;
                }
                if let Some(wish) = core.startup_wishes.values.get(&name) {
                    values.insert(name, wish.clone());
                }
                core.wishes = core.shared.contexts.wishes(values);
            }
            Pending::ResetAll => {
                core.wishes = core.startup_wishes.clone();
                if let Some(server) = &mut self.server {
                    server.carried.wishes = Arc::default();
                }
            }
            Pending::DiscardAll => {
                core.wishes = core.startup_wishes.clone();
                core.pin = None;
                core.statements().clear_named();
                core.statements().forget_unnamed();
                if let Some(server) = &mut self.server {
                    server.was_cleaned();
                    server.carried.wishes = Arc::default();
                }
            }
            Pending::Deallocate(name) => {
                if let Some(statement) = core.statements().remove(&name)
                    && let Some(server) = &mut self.server
                {
                    server.statements.remove(statement.id);
                }
            }
            Pending::DeallocateAll => {
                core.statements().clear_named();
                if let Some(server) = &mut self.server {
                    server.statements.clear();
                }
            }
        }
    }

    fn carry_wishes(&mut self, core: &Core) {
        if let Some(server) = &mut self.server {
            server.carried.wishes = core.wishes.clone();
        }
    }
}
