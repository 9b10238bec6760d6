//! A session of the console: messages in, messages out.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use switchyard_wire::error::{ErrorResponse, Severity, sqlstate};
use switchyard_wire::frame::{self, frontend};
use switchyard_wire::{build, message};

use super::act;
use super::command::{Act, Command};
use super::protocol::Extended;
use super::table::{self, Formats, Table};
use super::{ConsoleHandle, ConsolePlace, Control, lexer, show};
use crate::shared::Shared;
use crate::stream::ClientStream;

/// Longest message of a client, in bytes. There is no command that comes near it.
const MESSAGE_BYTES: usize = 64 * 1024;

/// How long a client may take to read what it asked for. Its place is wanted by others.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes read at once.
const CHUNK: usize = 4096;

/// Why a session ends.
pub(super) enum End {
    /// The client is gone, or said goodbye.
    Gone,
    /// The client is told why.
    Fatal(ErrorResponse),
}

impl From<build::BuildError> for End {
    fn from(error: build::BuildError) -> Self {
        Self::Fatal(ErrorResponse::fatal(sqlstate::INTERNAL, error.to_string()))
    }
}

impl From<message::Malformed> for End {
    fn from(malformed: message::Malformed) -> Self {
        let error = ErrorResponse::from(malformed);
        Self::Fatal(ErrorResponse { severity: Severity::Fatal, ..error })
    }
}

/// What a command has led to.
pub(super) struct Answer {
    pub(super) table: Option<Arc<Table>>,
    pub(super) tag: Cow<'static, str>,
    pub(super) notices: Vec<ErrorResponse>,
}

/// How a command failed.
pub(super) enum Failed {
    /// The client is told, and the session goes on.
    Error(ErrorResponse),
    /// The client left while it was waited for.
    Gone,
}

impl From<ErrorResponse> for Failed {
    fn from(error: ErrorResponse) -> Self {
        Self::Error(error)
    }
}

/// See the module.
pub(crate) struct ConsoleSession {
    pub(super) place: ConsolePlace,
    stream: ClientStream,
    /// Read and not looked at.
    held: Vec<u8>,
    /// To be written.
    pub(super) out: Vec<u8>,
    /// `I`, `T` or `E`, as in ReadyForQuery. Nothing is undone by a ROLLBACK: it is for drivers that must have one.
    status: u8,
    pub(super) extended: Extended,
    /// To be done once the answer is written.
    afterwards: Option<Control>,
}

impl ConsoleSession {
    /// `early` is what the client sent behind its login.
    pub(crate) fn new(place: ConsolePlace, stream: ClientStream, early: Vec<u8>) -> Self {
        let (out, extended) = (Vec::new(), Extended::default());
        Self { place, stream, held: early, out, status: b'I', extended, afterwards: None }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.place.shared
    }

    fn handle(&self) -> &Arc<ConsoleHandle> {
        &self.place.handle
    }

    /// Serves until the client leaves.
    pub(crate) async fn run(mut self) {
        let end = loop {
            match self.message().await {
                Ok((tag, body)) => {
                    if let Err(end) = self.obey(tag, &body).await {
                        break end;
                    }
                }
                Err(end) => break end,
            }
        };
        if let End::Fatal(error) = end {
            error.encode(&mut self.out);
            let _ = self.flush().await;
        }
        tracing::debug!(user = self.handle().user, "console session ended");
    }

    /// The next message. What was said before is written first, if that is not here already.
    async fn message(&mut self) -> Result<(u8, Vec<u8>), End> {
        loop {
            let violation = |text: &str| End::Fatal(ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, text));
            if let Some(header) =
                frame::header(&self.held).map_err(|_| violation("invalid message length"))?
            {
                if header.len > MESSAGE_BYTES {
                    return Err(violation("message too large for the console"));
                }
                if self.held.len() >= header.len {
                    let body = self.held[frame::HEADER..header.len].to_vec();
                    self.held.drain(..header.len);
                    return Ok((header.tag, body));
                }
            }
            self.flush().await?;
            let mut chunk = [0; CHUNK];
            match self.stream.read(&mut chunk).await {
                Ok(n) if n > 0 => self.take_in(&chunk[..n]),
                _ => return Err(End::Gone),
            }
        }
    }

    fn take_in(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        self.shared().console.counts.bytes_in.add(bytes.len() as u64);
    }

    async fn flush(&mut self) -> Result<(), End> {
        if !self.out.is_empty() {
            let out = std::mem::take(&mut self.out);
            let written = tokio::time::timeout(WRITE_TIMEOUT, self.stream.write_all(&out)).await;
            if !matches!(written, Ok(Ok(()))) {
                return Err(End::Gone);
            }
            self.shared().console.counts.bytes_out.add(out.len() as u64);
        }
        if let Some(control) = self.afterwards.take() {
            // It was asked before whether anybody would listen.
            let _ = self.shared().console.ask(control);
        }
        Ok(())
    }

    async fn obey(&mut self, tag: u8, body: &[u8]) -> Result<(), End> {
        if self.extended.skipping && !matches!(tag, frontend::SYNC | frontend::TERMINATE) {
            return Ok(());
        }
        match tag {
            frontend::QUERY => self.query(message::query(body)?).await?,
            frontend::SYNC => {
                self.extended.skipping = false;
                self.extended.end_transaction(self.status);
                build::ready_for_query(&mut self.out, self.status);
            }
            frontend::FLUSH => self.flush().await?,
            frontend::TERMINATE => return Err(End::Gone),
            // As PostgreSQL outside a COPY: the client may not know yet that it failed.
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => {}
            frontend::PARSE | frontend::BIND | frontend::DESCRIBE | frontend::EXECUTE | frontend::CLOSE => {
                match self.extended_message(tag, body).await {
                    Ok(()) => {}
                    Err(Failed::Gone) => return Err(End::Gone),
                    Err(Failed::Error(error)) => {
                        self.fail(&error);
                        self.extended.skipping = true;
                    }
                }
            }
            frontend::FUNCTION_CALL => {
                let text = "the console has no functions";
                self.fail(&ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, text));
                build::ready_for_query(&mut self.out, self.status);
            }
            tag => {
                let text = format!("invalid frontend message type {tag}");
                return Err(End::Fatal(ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, text)));
            }
        }
        Ok(())
    }

    async fn query(&mut self, text: &[u8]) -> Result<(), End> {
        match self.run_statements(text).await {
            Ok(()) => {}
            Err(Failed::Gone) => return Err(End::Gone),
            Err(Failed::Error(error)) => self.fail(&error),
        }
        self.extended.end_transaction(self.status);
        build::ready_for_query(&mut self.out, self.status);
        Ok(())
    }

    async fn run_statements(&mut self, text: &[u8]) -> Result<(), Failed> {
        let statements = lexer::statements(utf8(text)?)?;
        if statements.is_empty() {
            build::empty_query(&mut self.out);
        }
        for tokens in statements {
            if let Some(number) =
                tokens.iter().find_map(|t| if let lexer::Token::Param(n) = t { Some(*n) } else { None })
            {
                return Err(lexer::syntax(&format!("there is no parameter ${number}")).into());
            }
            let command = super::command::parse(&tokens)?;
            let answer = self.execute(&command).await?;
            answer.notices.iter().for_each(|notice| notice.encode(&mut self.out));
            if let Some(table) = &answer.table {
                table::describe(&mut self.out, &table.columns, &Formats::default()).map_err(unbuilt)?;
                for at in 0..table.rows.len() {
                    table.encode_row(&mut self.out, at, &Formats::default()).map_err(unbuilt)?;
                }
            }
            build::command_complete(&mut self.out, answer.tag.as_bytes()).map_err(unbuilt)?;
        }
        Ok(())
    }

    fn fail(&mut self, error: &ErrorResponse) {
        error.encode(&mut self.out);
        if self.status == b'T' {
            self.status = b'E';
        }
    }

    /// Carries a command out, if the user may have it so.
    pub(super) async fn execute(&mut self, command: &Command) -> Result<Answer, Failed> {
        let began = Instant::now();
        self.handle().last.store(crate::clock::seconds(), Ordering::Relaxed);
        let answer = self.execute_now(command).await;
        let counts = &self.shared().console.counts;
        counts.commands.add(1);
        counts.command_us.add(began.elapsed().as_micros() as u64);
        answer
    }

    async fn execute_now(&mut self, command: &Command) -> Result<Answer, Failed> {
        let needs = command.needs();
        if self.place.role().is_none_or(|role| role < needs) {
            let user = &self.handle().user;
            tracing::warn!(user, command = %command.tag(), "console command refused");
            let text = format!("permission denied for {}", command.tag());
            return Err(ErrorResponse::error(sqlstate::INSUFFICIENT_PRIVILEGE, text)
                .hint(format!("It needs the role {} in the console.", needs.as_str()))
                .into());
        }
        if self.status == b'E' && !matches!(command, Command::Commit | Command::Rollback) {
            let text = "current transaction is aborted, commands ignored until end of transaction block";
            return Err(ErrorResponse::error(sqlstate::IN_FAILED_SQL_TRANSACTION, text).into());
        }
        let mut answer = Answer { table: None, tag: command.tag(), notices: Vec::new() };
        match command {
            Command::Show(subject, page) => {
                let (shared, subject, page) = (self.shared().clone(), subject.clone(), page.clone());
                // It may be long, and this thread serves others too.
                let made = tokio::task::spawn_blocking(move || show::table(&shared, &subject, &page)).await;
                let internal = |_| ErrorResponse::error(sqlstate::INTERNAL, "internal error");
                let table = made.map_err(internal)??;
                if table.is_cut {
                    answer.notices.push(
                        ErrorResponse::notice(
                            sqlstate::SUCCESSFUL_COMPLETION,
                            "there are more rows than these",
                        )
                        .hint("Narrow it down by LIKE, or go on with AFTER and LIMIT."),
                    );
                }
                answer.table = Some(Arc::new(table));
            }
            Command::Help => answer.notices.push(show::help()),
            Command::Constant(constant) => answer.table = Some(Arc::new(constant.table())),
            Command::Accepted(_) => {}
            Command::Begin => self.status = b'T',
            Command::Commit if self.status == b'E' => {
                answer.tag = "ROLLBACK".into();
                self.status = b'I';
            }
            Command::Commit | Command::Rollback => self.status = b'I',
            Command::Act(act) => answer.notices = self.act(act).await?,
        }
        Ok(answer)
    }

    async fn act(&mut self, act: &Act) -> Result<Vec<ErrorResponse>, Failed> {
        let handle = self.handle().clone();
        let shared = self.shared().clone();
        let address = handle.facts.socket.peer.map(tracing::field::display);
        tracing::info!(user = handle.user, address, command = ?act, "console command");
        if let Act::Shutdown(how) = act {
            if shared.console.control.get().is_none() {
                let text = "this process cannot be told so";
                return Err(ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, text).into());
            }
            self.afterwards = Some(Control::Shutdown(*how));
            return Ok(Vec::new());
        }
        let canceled = handle.cancel.notified();
        let acting = act::run(&shared, act);
        tokio::pin!(canceled, acting);
        // A cancel request that comes before the first wait counts as well.
        canceled.as_mut().enable();
        loop {
            let mut chunk = [0; CHUNK];
            tokio::select! {
                done = &mut acting => return Ok(done?),
                () = &mut canceled => {
                    let text = "canceling statement due to user request";
                    return Err(ErrorResponse::error(sqlstate::QUERY_CANCELED, text).into());
                }
                read = self.stream.read(&mut chunk), if self.held.len() < MESSAGE_BYTES => match read {
                    Ok(n) if n > 0 => self.take_in(&chunk[..n]),
                    _ => return Err(Failed::Gone),
                },
            }
        }
    }
}

/// What cannot be built is a name or text that is too long for the protocol: the session goes on.
pub(super) fn unbuilt(error: build::BuildError) -> Failed {
    Failed::Error(ErrorResponse::error(sqlstate::INTERNAL, error.to_string()))
}

/// The console's encoding is UTF-8.
pub(super) fn utf8(text: &[u8]) -> Result<&str, ErrorResponse> {
    let invalid = |_| {
        let text = "invalid byte sequence for encoding \"UTF8\"";
        ErrorResponse::error(sqlstate::CHARACTER_NOT_IN_REPERTOIRE, text)
    };
    std::str::from_utf8(text).map_err(invalid)
}
