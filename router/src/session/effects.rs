//! What a client's statements leave behind in its session, and how it is kept for it.
//!
//! Three ways, the cheapest first:
//!
//! * A plain `SET`, `RESET`, `PREPARE` or `DEALLOCATE` by itself counts once it has succeeded
//!   ([`Pending`]).
//! * Where it cannot be told from the text what stays (a `SET` in a transaction that may be rolled
//!   back, `set_config`, a `DO` block, a function), the connection itself is asked when the
//!   transaction is over ([`super::probe`]): what a session has set is whatever PostgreSQL says.
//! * What cannot be set again on another connection keeps the session on this one ([`Pin`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use switchyard_wire::build;

use super::Core;
use super::pending::Pending;
use super::relay::Relay;
use crate::classify::{Effect, Pin, asks_for_last_values, classify, custom_names};
use crate::context::Wish;
use crate::exchange::Owed;
use crate::quiet::QuietTexts;

/// Settings that are lists, which `SET` takes apart and a string is not.
const LISTS: [&str; 3] = ["search_path", "datestyle", "temp_tablespaces"];

/// What the transaction may have changed for longer than itself.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Settings by name.
    pub(super) names: BTreeSet<String>,
    /// Any setting.
    pub(super) all: bool,
    /// Any state at all.
    pub(super) state: bool,
    /// By what runs behind the texts of statements: see [`super::behind`].
    pub(super) behind: bool,
    /// Only in that nothing is known yet of what runs behind them.
    pub(super) unknown: bool,
    /// The texts that may have left anything. // see crate::quiet
    pub(super) texts: Vec<u64>,
}

impl Relay {
    /// `text` is that of the whole message, if it is there and can be read.
    pub(super) fn note_effect(&mut self, core: &mut Core, effect: Effect, text: Option<String>) {
        if core.pin.is_some() && text.as_deref().is_some_and(may_release) {
            self.touch(|touched| (touched.all, touched.state) = (true, true));
        }
        self.note_channels(core, effect == Effect::Channels, text.as_deref());
        let Some(server) = &mut self.server else { return };
        let alone = self.exchange.is_untouched();
        match effect {
            Effect::Nothing | Effect::Channels => {}
            Effect::ParsedOtherwise => self.parses_otherwise = true,
            Effect::Unknown => self.note_unknown(core, 0, text.as_deref()),
            Effect::AnySetting => {
                server.carried.dirty = true;
                let names = custom_names(text.unwrap_or_default().as_bytes());
                self.touch(|touched| {
                    touched.all = true;
                    touched.names.extend(names);
                });
            }
            // The tenant's own variables are the router's: they are as they were before the next
            // transaction begins, whatever this one does with them.
            Effect::Set(name) | Effect::Reset(name) if core.seat.context.owns(&name) => {
                server.carried.lost = true;
                self.stall = true;
            }
            // It would end the connection in the pool, under whoever has it then.
            Effect::Set(name) if name == "idle_session_timeout" => {
                server.short_lived = true;
                self.pin(core, Pin::Setting);
            }
            Effect::Settings(names) if names.iter().any(|name| name == "idle_session_timeout") => {
                server.short_lived = true;
                self.pin(core, Pin::Setting);
            }
            Effect::Settings(names) => {
                let context = &core.seat.context;
                server.carried.lost |= names.iter().any(|name| context.owns(name));
                self.stall |= server.carried.lost;
                let names: Vec<_> = names.into_iter().filter(|name| !context.owns(name)).collect();
                if !names.is_empty() {
                    self.touch(|touched| touched.names.extend(names));
                }
            }
            Effect::Set(name) => match text {
                Some(text) if alone => {
                    self.expect(Pending::Wish(name, text));
                }
                _ => self.touch(|touched| touched.names.extend([name])),
            },
            Effect::Reset(name) => {
                // To what the session began with, which on this connection is not the default.
                if let Some(Wish::Value(value)) = core.startup_wishes.values.get(&name) {
                    self.after_sync.push((name.clone(), value.clone()));
                }
                if alone {
                    self.expect(Pending::Unwish(name));
                } else {
                    self.touch(|touched| touched.names.extend([name]));
                }
            }
            Effect::AnyReset(but) => {
                server.carried.dirty = true;
                self.stall = true;
                self.set_back_all(core, &but);
                self.touch(|touched| (touched.all, touched.state) = (true, true));
            }
            Effect::ResetAll => {
                // The tenant's variables go with the rest; they are set again before anything else.
                server.carried.lost = true;
                self.stall = true;
                self.set_back_all(core, &[]);
                if alone {
                    self.expect(Pending::ResetAll);
                } else {
                    self.touch(|touched| touched.all = true);
                }
            }
            Effect::DiscardAll => {
                server.carried.lost = true;
                self.set_back_all(core, &[]);
                self.expect(Pending::DiscardAll);
            }
            Effect::Prepare(name) => match text {
                Some(text) => {
                    if asks_for_last_values(text.as_bytes()) {
                        core.seat.hidden.has_used_last_values();
                    }
                    // Whoever gets the connection next must not find it.
                    server.carried.dirty = true;
                    self.expect(Pending::Prepared(name, text));
                }
                None => self.pin(core, Pin::Prepare),
            },
            Effect::Execute(name) => {
                let sql = core.statements().by_sql(&name).or(self.pending.by_sql(&name));
                let effect = sql.map(|sql| classify(after_as(sql)));
                let effect = effect.or_else(|| Some(core.statements().get(name.as_bytes())?.effect.clone()));
                match effect {
                    Some(effect) => self.note_effect(core, effect, None),
                    None => server.carried.dirty = true,
                }
            }
            Effect::Deallocate(None) => self.expect(Pending::DeallocateAll),
            Effect::Deallocate(Some(_)) => {}
            Effect::Pin(pin) => self.pin(core, pin),
        }
    }

    /// This has happened once the command has completed.
    pub(super) fn expect(&mut self, pending: Pending) {
        self.stall = true;
        if self.exchange.may_reach() {
            let number = self.pending.push(pending);
            self.exchange.comes_to(number);
        }
    }

    /// A statement may leave anything, by its text or by what it reaches. `text` is that, if it can be read.
    pub(super) fn note_unknown(&mut self, core: &Core, reach: u8, text: Option<&str>) {
        self.note_last_values(core, text);
        let Some(server) = &mut self.server else { return };
        server.carried.dirty = true;
        // Of what surely sets something now and then, no number of times says that it will not.
        let key = text
            .filter(|text| !core.seat.hidden.is_sure(reach, text))
            .map(|text| QuietTexts::key(&core.seat.context.route.database, text));
        if key.is_some_and(|key| core.shared.quiet_texts.is_quiet(key)) {
            server.carried.lost = true;
            // Whose the session is must be known all the same.
            if let Some(own) = core.roams_by() {
                self.touch(|touched| touched.names.extend([own]));
            }
            return;
        }
        let names = custom_names(text.unwrap_or_default().as_bytes());
        self.touch(|touched| {
            (touched.all, touched.state) = (true, true);
            touched.names.extend(names);
            touched.texts.extend(key);
        });
    }

    /// The connection is asked about it when the transaction is over.
    pub(super) fn touch(&mut self, change: impl FnOnce(&mut Touched)) {
        change(self.touched.get_or_insert_default());
    }

    pub(super) fn pin(&mut self, core: &mut Core, pin: Pin) {
        if let Some(server) = &mut self.server {
            server.carried.dirty = true;
            // Whatever was set may have been the tenant's own variable.
            server.carried.lost |= pin == Pin::Setting;
        }
        if core.pin.is_none() {
            // What a rollback takes away.
            self.fresh_pin = matches!(pin, Pin::Temporary | Pin::HoldCursor | Pin::Setting);
            core.pin = Some(pin);
            core.handle.pinned(pin);
            core.shared.stats.pins.add(pin);
            tracing::debug!(session = core.id, tenant = %core.who.tenant, reason = pin.label(), "session pinned");
        }
    }

    /// Everything but `but` was reset: to what the session began with, which on this connection is
    /// not the default.
    fn set_back_all(&mut self, core: &Core, but: &[String]) {
        let startup = core.startup_wishes.values.iter().filter_map(|(name, wish)| match wish {
            Wish::Value(value) if !but.contains(name) => Some((name.clone(), value.clone())),
            Wish::Value(_) | Wish::Statement(_) => None,
        });
        self.after_sync.extend(startup);
        self.after_sync.extend(core.seat.context.variables().iter().cloned());
    }

    /// Sets again what the client's last statement has set back too far. To be called when that
    /// statement and what ends its group are on their way. The client is told that it is ready when that is
    /// done: by then it has heard what is reported.
    #[inline]
    pub(super) fn send_after(&mut self) {
        if !self.after_sync.is_empty() {
            self.set_back();
        }
    }

    #[cold]
    fn set_back(&mut self) {
        if let Some(server) = &mut self.server {
            server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
        }
        for (name, value) in std::mem::take(&mut self.after_sync) {
            let out = self.c.own();
            let made = if LISTS.contains(&name.as_str()) {
                crate::context::set_config(out, &name, Some(&value))
            } else {
                // Unlike a function it takes no snapshot, so that SET TRANSACTION may still follow.
                let parts: Vec<_> = name.split('.').map(crate::context::quote_identifier).collect();
                let sql = format!("SET {} TO '{}'", parts.join("."), value.replace('\'', "''"));
                let sql = if value.contains('\\') { None } else { Some(sql) };
                match sql {
                    Some(sql) => build::query(out, sql.as_bytes()),
                    None => crate::context::set_config(out, &name, Some(&value)),
                }
            };
            if made.is_ok() {
                self.exchange.sent_own(Owed::OwnQuery(None));
                self.sets_back = true;
            }
        }
    }

    /// What the statements of the group that has ended have changed for good.
    pub(super) fn settle(&mut self, core: &mut Core) {
        self.pending.reached(self.exchange.take_reached());
        let expected = self.pending.len();
        let done = self.pending.ended(self.exchange.in_transaction(), self.exchange.is_quiet());
        // What was not reset must not be set back.
        if self.sets_back && (self.failed || done.len() + self.pending.len() < expected) {
            self.distrust_settings(core);
        }
        if !self.failed {
            done.into_iter().for_each(|pending| self.settle_one(core, pending));
        }
    }

    /// A statement has changed this, and nothing takes it back.
    pub(super) fn settle_one(&mut self, core: &mut Core, pending: Pending) {
        let mut values = core.wishes.values.clone();
        match pending {
            Pending::Wish(name, sql) => {
                values.insert(name, Wish::Statement(sql));
                if super::probe::are_too_many(&values) {
                    // Set on this connection, where it stays.
                    self.pin(core, Pin::Setting);
                    return;
                }
                core.wishes = core.shared.contexts.wishes(values);
                self.carry_wishes(core);
            }
            Pending::Unwish(name) => {
                values.remove(&name);
                if let Some(wish) = core.startup_wishes.values.get(&name) {
                    // It is being set again.
                    values.insert(name, wish.clone());
                }
                core.wishes = core.shared.contexts.wishes(values);
                self.carry_wishes(core);
            }
            Pending::ResetAll => {
                core.wishes = core.startup_wishes.clone();
                self.carry_wishes(core);
            }
            Pending::DiscardAll => {
                core.wishes = core.startup_wishes.clone();
                core.parses_unknown = false;
                core.pin = None;
                self.touched = None;
                core.unlisten_all();
                core.handle.unpinned();
                core.statements().clear_named();
                core.statements().clear_by_sql();
                core.statements().forget_unnamed();
                if let Some(server) = &mut self.server {
                    server.was_cleaned();
                    server.sequences_of = core.id;
                }
                self.carry_wishes(core);
            }
            Pending::Prepared(name, sql) => {
                if let Some(server) = &mut self.server {
                    server.sql_names.insert(name.clone());
                }
                let limit = core.shared.settings().limits.statements_per_client;
                if core.statements().len() < limit {
                    core.statements().insert_by_sql(name, sql);
                } else {
                    self.pin(core, Pin::Prepare);
                }
            }
            Pending::Deallocate(name) => {
                let by_sql = std::str::from_utf8(&name).ok();
                let on_server = by_sql
                    .zip(self.server.as_mut())
                    .is_some_and(|(name, server)| server.sql_names.remove(name));
                if !by_sql.is_some_and(|name| core.statements().remove_by_sql(name))
                    && let Some(statement) = core.statements().remove(&name)
                    && let Some(server) = self.server.as_mut().filter(|_| !on_server)
                {
                    server.statements.remove(statement.id);
                }
            }
            Pending::DeallocateAll => {
                core.statements().clear_named();
                core.statements().clear_by_sql();
                if let Some(server) = &mut self.server {
                    server.statements.clear();
                    server.sql_names.clear();
                }
            }
        }
    }

    /// What is set on the connection is not what it was to be.
    pub(super) fn distrust_settings(&mut self, core: &Core) {
        let Some(server) = &mut self.server else { return };
        if core.is_pooled() {
            // It is cleaned before anybody uses it.
            (server.carried.dirty, server.carried.session) = (true, 0);
        } else {
            server.carried.wishes = Arc::default();
        }
    }

    fn carry_wishes(&mut self, core: &Core) {
        if let Some(server) = &mut self.server {
            server.carried.wishes = core.wishes.clone();
        }
    }
}

/// Whether a statement may take away what a session is pinned for.
fn may_release(text: &str) -> bool {
    const WORDS: [&str; 5] = ["unlisten", "unlock", "close", "drop", "discard"];
    let lower = text.to_ascii_lowercase();
    WORDS.iter().any(|word| lower.contains(word))
}

/// The statement that `PREPARE name (types) AS statement` prepares.
fn after_as(sql: &str) -> &[u8] {
    let lower = sql.to_ascii_lowercase();
    let at = lower.match_indices("as").find(|(at, _)| {
        let apart =
            |i: usize| lower.as_bytes().get(i).is_none_or(|b| !b.is_ascii_alphanumeric() && *b != b'_');
        apart(at.wrapping_sub(1)) && apart(at + 2)
    });
    at.map_or(&[][..], |(at, _)| &sql.as_bytes()[at + 2..])
}
