//! As much of PostgreSQL's protocol 3.0 as simple queries need. No password: in the shop the database trusts its
//! network, and the mesh says who may reach it.

use anyhow::{Context as _, bail};
use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Protocol 3.0, as the startup message carries it.
const PROTOCOL: i32 = 3 << 16;
/// Messages larger than this are not ours.
const MESSAGE_LIMIT: usize = 1 << 20;

/// Whom to connect to and as whom.
pub(crate) struct Login<'a> {
    pub(crate) addr: &'a str,
    pub(crate) user: &'a str,
    pub(crate) database: &'a str,
}

/// A session ready for queries.
pub(crate) struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects and logs in; fails with the server's own message when it refuses.
    pub(crate) async fn open(login: &Login<'_>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(login.addr)
            .await
            .with_context(|| format!("connecting to {}", login.addr))?;
        let mut connection = Self { stream };
        let fields = format!("user\0{}\0database\0{}\0\0", login.user, login.database);
        let length = i32::try_from(fields.len() + 8).context("name too long")?;
        let startup = [
            &length.to_be_bytes()[..],
            &PROTOCOL.to_be_bytes(),
            fields.as_bytes(),
        ]
        .concat();
        connection.stream.write_all(&startup).await?;
        connection.until_ready().await?;
        Ok(connection)
    }

    /// Runs one or several statements; the rows of all of them, each a list of columns as text.
    pub(crate) async fn query(&mut self, sql: &str) -> anyhow::Result<Vec<Vec<String>>> {
        let length = i32::try_from(sql.len() + 5).context("query too long")?;
        let message = [b"Q", &length.to_be_bytes()[..], sql.as_bytes(), b"\0"].concat();
        self.stream.write_all(&message).await?;
        self.until_ready().await
    }

    async fn until_ready(&mut self) -> anyhow::Result<Vec<Vec<String>>> {
        let (mut rows, mut refused) = (Vec::new(), None);
        loop {
            let (kind, body) = self.message().await?;
            match kind {
                b'Z' => return refused.map_or(Ok(rows), Err),
                // A FATAL error is the last message of a session; any other is followed by ReadyForQuery.
                b'E' => {
                    let error = anyhow::anyhow!("refused: {}", error_text(&body));
                    if body.starts_with(b"SFATAL") {
                        return Err(error);
                    }
                    refused = Some(error);
                }
                b'R' if body.as_ref() != 0_i32.to_be_bytes() => {
                    bail!("the server asks for a password: use trust authentication")
                }
                b'D' => rows.push(columns(body).context("a cut row")?),
                _ => {}
            }
        }
    }

    async fn message(&mut self) -> anyhow::Result<(u8, Bytes)> {
        let kind = self
            .stream
            .read_u8()
            .await
            .context("the server closed the connection")?;
        let length = usize::try_from(self.stream.read_i32().await?).context("negative length")?;
        if !(4..=MESSAGE_LIMIT).contains(&length) {
            bail!("message {:?} of {length} bytes", char::from(kind));
        }
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body).await?;
        Ok((kind, body.into()))
    }
}

/// The field `M` (message) of an ErrorResponse.
fn error_text(body: &[u8]) -> String {
    let message = body
        .split(|&byte| byte == 0)
        .find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(message.unwrap_or(b"an error without a message")).into_owned()
}

fn columns(mut row: Bytes) -> Option<Vec<String>> {
    let count = row.try_get_u16().ok()?;
    (0..count)
        .map(|_| {
            let length = row.try_get_i32().ok()?;
            let Ok(length) = usize::try_from(length) else {
                return Some(String::new());
            }; // -1 is NULL
            (row.remaining() >= length)
                .then(|| String::from_utf8_lossy(&row.split_to(length)).into_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_errors_are_read() {
        let row = Bytes::from_static(b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff");
        assert_eq!(columns(row).unwrap(), ["ab", ""]);
        assert_eq!(columns(Bytes::from_static(b"\0\x01\0\0\0\x09ab")), None);
        assert_eq!(error_text(b"SFATAL\0Mno such role\0\0"), "no such role");
    }
}
