//! As much of Redis' protocol (RESP2) as counting needs.

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

/// Longest reply line that is read: an integer or an error message.
const LINE_LIMIT: u64 = 1_024;

/// `INCR key`: the new value. Fails with Redis' own message when it refuses.
pub(crate) async fn increment(addr: &str, key: &str) -> anyhow::Result<i64> {
    let mut stream = TcpStream::connect(addr)
        .await
        .with_context(|| format!("connecting to {addr}"))?;
    stream
        .write_all(format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len()).as_bytes())
        .await?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_LIMIT))
        .read_line(&mut line)
        .await
        .context("reading the reply")?;
    parse(&line)
}

fn parse(line: &str) -> anyhow::Result<i64> {
    match line.trim_end().split_at_checked(1) {
        Some((":", number)) => number
            .parse()
            .with_context(|| format!("integer reply {number:?}")),
        Some(("-", error)) => bail!("refused: {error}"),
        _ => bail!("expected an integer reply, got {line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_or_refused() {
        assert_eq!(parse(":7\r\n").unwrap(), 7);
        assert!(
            parse("-NOAUTH no\r\n")
                .unwrap_err()
                .to_string()
                .contains("NOAUTH")
        );
        assert!(parse("").is_err());
        assert!(parse("+OK\r\n").is_err());
    }
}
