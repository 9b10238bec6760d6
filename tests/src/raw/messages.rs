//! Messages as bytes: what a script sends, and what it got.

/// A message from a server: its type and body.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The type byte.
    pub tag: u8,
    /// All after the length.
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.tag {
            b'E' | b'N' => write!(f, "{}({} {})", self.tag as char, self.sqlstate(), self.field(b'M')),
            b'Z' | b'C' | b'S' => {
                write!(f, "{}({})", self.tag as char, self.text().replace('\0', " ").trim())
            }
            _ => write!(f, "{}[{}]", self.tag as char, self.body.len()),
        }
    }
}

impl Message {
    /// A field of an error or notice, or nothing.
    pub fn field(&self, code: u8) -> String {
        let mut rest = &self.body[..];
        while let [found, tail @ ..] = rest {
            let end = tail.iter().position(|b| *b == 0).unwrap_or(tail.len());
            if *found == code {
                return String::from_utf8_lossy(&tail[..end]).into_owned();
            }
            rest = tail.get(end + 1..).unwrap_or_default();
        }
        String::new()
    }

    /// The SQLSTATE of an error or notice.
    pub fn sqlstate(&self) -> String {
        self.field(b'C')
    }

    /// The body as text, without the NUL at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.body.strip_suffix(&[0]).unwrap_or(&self.body)).into_owned()
    }

    /// The transaction status of a ReadyForQuery: `I`, `T` or `E`.
    pub fn status(&self) -> char {
        self.body.first().map_or('?', |b| char::from(*b))
    }

    /// Channel and payload of a NotificationResponse.
    pub fn note(&self) -> (String, String) {
        let text = String::from_utf8_lossy(self.body.get(4..).unwrap_or_default()).into_owned();
        let (channel, payload) = text.trim_end_matches('\0').split_once('\0').unwrap_or((&text, ""));
        (channel.trim_end_matches('\0').to_owned(), payload.to_owned())
    }

    /// The values of a DataRow, as text.
    pub fn values(&self) -> Vec<Option<String>> {
        let mut rest = self.body.get(2..).unwrap_or_default();
        let mut values = Vec::new();
        while let [a, b, c, d, tail @ ..] = rest {
            let len = i32::from_be_bytes([*a, *b, *c, *d]);
            let Ok(len) = usize::try_from(len) else {
                values.push(None);
                rest = tail;
                continue;
            };
            values.push(Some(String::from_utf8_lossy(&tail[..len]).into_owned()));
            rest = &tail[len..];
        }
        values
    }
}

/// A message with its length.
pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend((body.len() as u32 + 4).to_be_bytes());
    message.extend(body);
    message
}

/// Strings, each with its NUL.
pub fn strings(parts: &[&str]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.bytes().chain([0])).collect()
}

/// A startup packet of protocol 3.0.
pub fn startup(params: &[(&str, &str)]) -> Vec<u8> {
    let mut body = 0x0003_0000_u32.to_be_bytes().to_vec();
    for (name, value) in params {
        body.extend(strings(&[name, value]));
    }
    body.push(0);
    packet(&body)
}

/// A packet without a type: startup, and what may stand in its place.
pub fn packet(body: &[u8]) -> Vec<u8> {
    let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
    packet.extend(body);
    packet
}

/// `SSLRequest`.
pub fn ssl_request() -> Vec<u8> {
    packet(&80_877_103_u32.to_be_bytes())
}

/// `GSSENCRequest`.
pub fn gss_request() -> Vec<u8> {
    packet(&80_877_104_u32.to_be_bytes())
}

/// `CancelRequest` with the body of a BackendKeyData.
pub fn cancel_request(key: &[u8]) -> Vec<u8> {
    packet(&[&80_877_102_u32.to_be_bytes(), key].concat())
}

/// `Query`.
pub fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &strings(&[sql]))
}

/// `Parse` without parameter types.
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', &[&strings(&[name, sql])[..], &[0, 0]].concat())
}

/// `Bind` of text parameters, asking for text.
pub fn bind(portal: &str, statement: &str, params: &[Option<&[u8]>]) -> Vec<u8> {
    let mut body = strings(&[portal, statement]);
    body.extend([0, 0]);
    body.extend((params.len() as u16).to_be_bytes());
    for param in params {
        match param {
            None => body.extend((-1_i32).to_be_bytes()),
            Some(value) => {
                body.extend((value.len() as u32).to_be_bytes());
                body.extend(*value);
            }
        }
    }
    body.extend([0, 0]);
    frame(b'B', &body)
}

/// `Describe` of a statement (`S`) or portal (`P`).
pub fn describe(kind: u8, name: &str) -> Vec<u8> {
    frame(b'D', &[&[kind], &strings(&[name])[..]].concat())
}

/// `Execute` of at most `rows` rows; 0 is all.
pub fn execute(portal: &str, rows: u32) -> Vec<u8> {
    frame(b'E', &[&strings(&[portal])[..], &rows.to_be_bytes()].concat())
}

/// `Close` of a statement (`S`) or portal (`P`).
pub fn close(kind: u8, name: &str) -> Vec<u8> {
    frame(b'C', &[&[kind], &strings(&[name])[..]].concat())
}

/// `Sync`.
pub fn sync() -> Vec<u8> {
    frame(b'S', &[])
}

/// `Flush`.
pub fn flush() -> Vec<u8> {
    frame(b'H', &[])
}

/// `CopyData`.
pub fn copy_data(data: &[u8]) -> Vec<u8> {
    frame(b'd', data)
}

/// `CopyDone`.
pub fn copy_done() -> Vec<u8> {
    frame(b'c', &[])
}

/// `CopyFail`.
pub fn copy_fail(why: &str) -> Vec<u8> {
    frame(b'f', &strings(&[why]))
}

/// `Parse`, `Bind`, `Execute`, `Sync` of the unnamed statement.
pub fn extended(sql: &str, params: &[Option<&[u8]>]) -> Vec<u8> {
    [parse("", sql), bind("", "", params), execute("", 0), sync()].concat()
}
