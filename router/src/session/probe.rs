//! Asking a connection what a transaction has left on it, once that is over and before anybody else
//! gets it.
//!
//! Whatever the transaction did (savepoints, rollbacks, functions, `DO` blocks), the answer is
//! PostgreSQL's own. Settings become the session's wishes, to be set again wherever it goes;
//! state that cannot be carried pins the session. If the question fails, it is pinned as well: then
//! nothing is known, and the connection keeps what it has.

use std::collections::BTreeMap;

use switchyard_wire::frame::{self, backend};
use switchyard_wire::{build, message};

use super::effects::Touched;
use super::relay::Relay;
use super::{Core, End};
use crate::classify::Pin;
use crate::context::{Wish, is_parsed_by};
use crate::exchange::{Desync, Owed, OwnReply};

/// Most settings of one session that are carried; one with more keeps its connection.
const WISHES_MAX: usize = 128;

/// Most bytes of them, names and values.
const WISHES_BYTES: usize = 64 * 1024;

/// Whether settings are more than is carried from one connection to another.
pub(super) fn are_too_many(wishes: &BTreeMap<String, Wish>) -> bool {
    let bytes: usize = wishes.iter().map(|(name, wish)| name.len() + wish.len()).sum();
    wishes.len() > WISHES_MAX || bytes > WISHES_BYTES
}

/// What `SET TRANSACTION` sets (`transaction_isolation` and its like) is over with the transaction.
///
/// Rows: what kind (`n` for a name that was asked for, `s` for one that the session has set, `#`
/// for state, `l` for a channel that it listens on), name, value. Functions are called by their schema, as the session's own
/// `search_path` applies; all that it could spoil is what it keeps itself.
const NAMES: &str = "SELECT 'n', n, pg_catalog.current_setting(n, true) \
    FROM pg_catalog.unnest($1::pg_catalog.text[]) n";

const SETTINGS: &str = " UNION ALL SELECT 's', name, setting FROM pg_catalog.pg_settings \
    WHERE source = 'session' AND pg_catalog.left(name, 12) <> 'transaction_'";

const STATE: &str = " UNION ALL SELECT '#', 'temporary', '' WHERE EXISTS (\
    SELECT FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema() \
    UNION ALL SELECT FROM pg_catalog.pg_proc WHERE pronamespace = pg_catalog.pg_my_temp_schema() \
    UNION ALL SELECT FROM pg_catalog.pg_type WHERE typnamespace = pg_catalog.pg_my_temp_schema()) \
    UNION ALL SELECT '#', 'hold_cursor', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable) \
    UNION ALL SELECT 'l', c, '' FROM pg_catalog.pg_listening_channels() c \
    UNION ALL SELECT '#', 'advisory_lock', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_locks \
    WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid())";

/// A question under way.
#[derive(Debug, Default)]
pub(super) struct Probe {
    asked: Touched,
    named: BTreeMap<String, Option<String>>,
    set: BTreeMap<String, String>,
    state: Option<Pin>,
    /// Channels that the connection listens on.
    channels: Vec<Box<[u8]>>,
    failed: bool,
}

impl Relay {
    /// Asks, if there is something to ask. The exchange is over. Whether it was asked.
    #[cold]
    pub(super) fn ask(&mut self, core: &mut Core) -> bool {
        let Some(mut touched) = self.touched.take() else { return false };
        let Some(server) = &mut self.server else { return false };
        if core.seat.mode != switchyard_config::topology::PoolMode::Transaction {
            // The session keeps its connection, and what it has set there; but not the tenant's own.
            server.carried.lost |= touched.all;
            core.parses_unknown |= touched.all || touched.names.iter().any(|name| is_parsed_by(name));
            return false;
        }
        if touched.state {
            touched.names.extend(core.seat.hidden.names().iter().cloned());
        }
        if touched.all {
            touched.names.insert("role".to_owned());
            touched
                .names
                .extend(core.seat.context.variables().iter().map(|(name, _)| name.to_ascii_lowercase()));
            touched.names.extend(core.roams_by());
            touched.names.extend(core.wishes.values.keys().filter(|name| name.contains('.')).cloned());
        }
        let mut sql = NAMES.to_owned();
        if touched.all {
            sql.push_str(SETTINGS);
        }
        if touched.state {
            sql.push_str(STATE);
        }
        let mut names = String::from("{");
        for name in &touched.names {
            let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
            names.push_str(if names.len() > 1 { ",\"" } else { "\"" });
            names.push_str(&quoted);
            names.push('"');
        }
        names.push('}');
        let out = self.c.own();
        let begin = out.len();
        let built = build::parse(out, b"", sql.as_bytes(), &[0, 0])
            .and_then(|()| build::bind_text(out, b"", b"", &[names.as_bytes()]))
            .and_then(|()| build::execute(out, b"", 0));
        if built.is_err() {
            core.parses_unknown = true;
            self.c.own().truncate(begin);
            self.pin(core, Pin::Setting);
            return false;
        }
        build::sync(self.c.own());
        server.unnamed_of = crate::server::UNNAMED_OF_NOBODY;
        for owed in [Owed::OwnParse(None), Owed::OwnBind, Owed::OwnExecute(None), Owed::OwnSync] {
            self.exchange.sent_own(owed);
        }
        core.shared.stats.probes.add(1);
        self.probe = Some(Box::new(Probe { asked: *touched, ..Probe::default() }));
        true
    }

    /// A reply to a message of the router's own. False if more of it is needed.
    #[cold]
    pub(super) fn own_frame(
        &mut self,
        core: &mut Core,
        header: &frame::Header,
    ) -> Result<Result<bool, Desync>, End> {
        match header.tag {
            // As at any time; a setting that has changed back is reported to the client.
            backend::PARAMETER_STATUS => {
                self.s.forward(header.len);
                return Ok(Ok(true));
            }
            backend::NOTICE | backend::NOTIFICATION | backend::ROW_DESCRIPTION => {
                self.s.discard(header.len);
                return Ok(Ok(true));
            }
            _ => {}
        }
        let fresh = self.s.buffer.fresh();
        if header.len > crate::buffer::BUFFER_BYTES {
            return Ok(Err(Desync));
        }
        if fresh.len() < header.len {
            return Ok(Ok(false));
        }
        let body = &fresh[frame::HEADER..header.len];
        let status =
            if header.tag == backend::READY_FOR_QUERY { body.first().copied().unwrap_or(b'?') } else { 0 };
        let Ok(reply) = self.exchange.got_own(header.tag, status) else { return Ok(Err(Desync)) };
        match reply {
            OwnReply::Some => {}
            OwnReply::Row => {
                if let Some(probe) = &mut self.probe {
                    probe.failed |= probe.row(body).is_none();
                } else if let Some(look) = &mut self.look {
                    look.failed |= look.row(body).is_none();
                }
            }
            OwnReply::Failed(ref name) => {
                if let Some(probe) = &mut self.probe {
                    probe.failed = true;
                } else if let Some(look) = &mut self.look {
                    look.failed = true;
                } else if name.is_none() && core.put_off_failed(body) {
                    // The client is told when its own statement fails because of it.
                } else if let (Some(server), Some(name)) = (&mut self.server, name) {
                    server.sql_names.remove(&**name);
                } else if self.sets_back {
                    self.distrust_settings(core);
                }
            }
            OwnReply::FailedTheClients => {
                return self.server_error(core, header);
            }
            OwnReply::Ready => {
                if !matches!(status, b'I' | b'T' | b'E') {
                    return Ok(Err(Desync));
                }
            }
        }
        self.s.discard(header.len);
        if reply == OwnReply::Ready && self.sets_back && !self.exchange.is_own_next() {
            self.sets_back = self.exchange.own_readies_owed() > 0;
            if std::mem::take(&mut self.ready_later) {
                build::ready_for_query(self.s.own(), status);
            }
        }
        if reply == OwnReply::Ready
            && let Some(look) = self.look.take()
        {
            self.has_looked(core, *look);
        } else if reply == OwnReply::Ready
            && let Some(probe) = self.probe.take()
        {
            self.answered(core, *probe);
        }
        Ok(Ok(true))
    }

    /// The connection has said what there is.
    fn answered(&mut self, core: &mut Core, probe: Probe) {
        let (context, wishes) = (core.seat.context.clone(), core.wishes.clone());
        let Some(server) = &mut self.server else { return };
        let was_lost = server.carried.lost;
        let behind = core.seat.hidden.names();
        // A call of a function is asked about until it has left nothing a few times; what runs behind a text may
        // name settings that it sets only in some transactions.
        let is_custom = |name: &String| {
            name != "role" && !context.owns(name) && (probe.asked.behind || !behind.contains(name))
        };
        let custom = probe.named.keys().any(is_custom);
        if probe.failed && core.handle.take_canceled() {
            // A late request for the client's own statement has hit the question: it is put once more.
            self.touched = Some(Box::new(probe.asked));
            return;
        }
        if probe.failed {
            core.parses_unknown = true;
            self.pin(core, Pin::Setting);
            return;
        }
        let mut values = wishes.values.clone();
        if probe.asked.all {
            // A RESET ALL takes it away, wherever it was hidden.
            server.carried.lost |=
                context.sealed.is_some() && !probe.set.contains_key(crate::seal::PARAMETER);
            // What is no longer among what was set has been reset.
            values.retain(|name, _| name.contains('.') || name == "role" || probe.set.contains_key(name));
            for (name, value) in &probe.set {
                let by_context = name == "search_path" && context.search_path() == Some(value);
                if !context.owns(name) && !by_context {
                    values.insert(name.clone(), Wish::Value(value.clone()));
                }
            }
        }
        for (name, value) in probe.named {
            if let Some((_, expected)) =
                context.variables().iter().find(|(own, _)| own.eq_ignore_ascii_case(&name))
            {
                server.carried.lost |= value.as_ref() != Some(expected);
            } else if context.owns(&name) {
                server.carried.lost = true;
            } else if let Some(value) = value {
                // What was set for a transaction is empty after it, which is the same as not set.
                let not_asked_for = core.is_roamed_by(&name) || behind.contains(&name);
                if value.is_empty() && not_asked_for && !values.contains_key(&name) {
                    continue;
                }
                if name != "role" || value != "none" || values.contains_key(&name) {
                    values.insert(name, Wish::Value(value));
                }
            } else {
                values.remove(&name);
            }
        }
        let quiet = values == wishes.values
            && !custom
            && probe.state.is_none()
            && probe.channels.is_empty()
            && was_lost == server.carried.lost;
        for text in &probe.asked.texts {
            core.shared.quiet_texts.note(*text, quiet);
        }
        let too_many = are_too_many(&values);
        core.wishes = core.shared.contexts.wishes(values);
        server.carried.wishes = core.wishes.clone();
        if too_many {
            self.pin(core, Pin::Setting);
        } else if let Some(pin) = probe.state {
            self.pin(core, pin);
            // It is there now, whatever becomes of the next transaction.
            self.fresh_pin = false;
        } else if probe.asked.state
            && !matches!(core.pin, None | Some(Pin::Prepare | Pin::Load | Pin::Setting))
        {
            tracing::debug!(session = core.id, tenant = %core.who.tenant, "nothing pins the session any more");
            core.pin = None;
        }
        if !probe.channels.is_empty() {
            self.found_listening(core, probe.channels);
        }
    }
}

impl Probe {
    /// Whether nothing was known to ask about: it was not known what runs behind the texts of statements.
    pub(super) fn is_of_unknown(&self) -> bool {
        self.asked.unknown
    }

    /// Takes one row. None if it is not as it must be.
    fn row(&mut self, body: &[u8]) -> Option<()> {
        let mut row = message::data_row(body).ok()?;
        let mut next = || match row.next() {
            Some(Ok(Some(value))) => std::str::from_utf8(value).ok().map(|text| Some(text.to_owned())),
            Some(Ok(None)) => Some(None),
            Some(Err(_)) | None => None,
        };
        let (kind, name, value) = (next()??, next()??, next()?);
        match kind.as_str() {
            "n" => drop(self.named.insert(name, value)),
            "l" => self.channels.push(name.into_bytes().into()),
            "s" => drop(self.set.insert(name.to_ascii_lowercase(), value?)),
            _ => self.state = Some(Pin::ALL.into_iter().find(|pin| pin.label() == name)?),
        }
        Some(())
    }
}
