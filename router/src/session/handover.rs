//! How a server connection takes on a session's context: the replies to what the router has put in front of the client's
//! first message.

use switchyard_wire::error::{ErrorResponse, Severity, SqlState, sqlstate};
use switchyard_wire::frame::{self, backend};
use switchyard_wire::message;

use super::expiry::statement_timeout;
use super::relay::Relay;
use super::server_half::{WHOLE_BYTES, canceled_by_user, text_of};
use super::{Core, End};
use crate::exchange::Desync;
use crate::holds;

impl Relay {
    /// A reply to what the router has put in front. The client never sees it.
    pub(super) fn prefix_frame(
        &mut self,
        core: &mut Core,
        header: &frame::Header,
    ) -> Result<Result<bool, Desync>, End> {
        if header.len > WHOLE_BYTES {
            return Ok(Err(Desync));
        }
        let fresh = self.s.buffer.fresh();
        if fresh.len() < header.len {
            return Ok(Ok(false));
        }
        let body = &fresh[frame::HEADER..header.len];
        match header.tag {
            backend::ERROR => {
                let fields = message::ErrorFields::parse(body).ok();
                let code = fields.as_ref().and_then(|f| f.code());
                // Wrong by configuration: another connection would say the same.
                let hopeless = code.is_some_and(|c| c.starts_with(b"22") || c.starts_with(b"42"));
                let fenced = code == Some(&holds::FENCED[..]);
                if fenced && let Some(detail) = fields.as_ref().and_then(|f| f.detail()) {
                    core.shared.holds.learn_from(&core.shared, &core.who.tenant, detail);
                }
                let cause = text_of(fields.as_ref()).map(|m| String::from_utf8_lossy(m).into_owned());
                let code = code.and_then(|code| <[u8; 5]>::try_from(code).ok());
                self.handover_failed(core, fenced, code.filter(|_| hopeless), cause)?;
                return Ok(Ok(false));
            }
            tag if self.exchange.prefix.got(tag, body) => {}
            _ => return Ok(Err(Desync)),
        }
        let settled = !self.exchange.prefix.is_pending();
        self.s.discard(header.len);
        if settled {
            self.is_settled();
        }
        Ok(Ok(true))
    }

    /// The context could not be set. The client's statement was skipped: it is tried on another
    /// connection, or fails. This one is closed.
    fn handover_failed(
        &mut self,
        core: &mut Core,
        fenced: bool,
        hopeless: Option<[u8; 5]>,
        cause: Option<String>,
    ) -> Result<(), End> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        // A cancel request came early: what it was for must not run elsewhere instead.
        let canceled = core.handle.was_canceled();
        if !canceled {
            tracing::warn!(session = core.id, tenant = %core.who.tenant, shard = %server.identity.shard.name,
                pid = server.identity.pid, cause, "cannot set the tenant's context");
            core.shared.stats.handover_failures.add(1);
        }
        core.handle.detached();
        server.broken = true;
        let bound = core.is_bound_to(&server.identity);
        self.return_server(server);
        let unread = self.s.buffer.fresh().len();
        self.s.buffer.swallow(unread);
        self.exchange.prefix = crate::context::Prefix::default();
        let expired = self.has_expired();
        let canceled_by = || if expired { statement_timeout() } else { canceled_by_user() };
        let error = if fenced {
            holds::late()
        } else if let Some(code) = hopeless
            && core.wishes.id != core.startup_wishes.id
        {
            // What the session has set may have become wrong since, as when a role was dropped: its statements would
            // fail for good, and each would end a connection that others could have used.
            core.wishes = core.startup_wishes.clone();
            let text = "what this session has set cannot be set on another server connection";
            ErrorResponse::error(SqlState(code), text)
                .hint("All its settings are those that it began with. Set again what is needed.")
        } else {
            let text = "the context of this tenant could not be set on its shard";
            ErrorResponse::error(sqlstate::SYSTEM_ERROR, text).hint("The router's log has the cause.")
        };
        if bound {
            let error = if canceled { canceled_by() } else { error };
            return Err(End::Fatal(ErrorResponse { severity: Severity::Fatal, ..error }));
        }
        if canceled {
            self.fail_statements(core, &canceled_by());
        } else if hopeless.is_some() || !self.begin_anew(core)? {
            self.fail_statements(core, &error);
        }
        Ok(())
    }
}
