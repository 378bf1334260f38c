//! What an authenticated peer can send on port 15008: CONNECT requests, and raw HTTP/2 frames.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use karst_hbone::{Authority, ServerConfig, request, server};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Target;

/// A request: the first line is the authority, the rest are `name: value` lines.
pub const REQUEST: Target = Target {
    name: "hbone_request",
    run: run_request,
    seeds: request_seeds,
};

/// Bytes that follow the client's connection preface.
pub const FRAMES: Target = Target {
    name: "hbone_frames",
    run: run_frames,
    seeds: frame_seeds,
};

/// What an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn run_request(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    if let Ok(text) = std::str::from_utf8(first)
        && let Ok(authority) = text.parse::<Authority>()
    {
        let again: Authority = authority
            .to_string()
            .parse()
            .expect("an authority that was written can be read");
        assert_eq!(authority, again);
    }
    let Ok(uri) = Uri::try_from(first) else {
        return;
    };
    let mut asked = http::Request::new(());
    *asked.method_mut() = Method::CONNECT;
    *asked.uri_mut() = uri;
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            asked.headers_mut().append(name, value);
        }
    }
    let (parts, ()) = asked.into_parts();
    let _ = request::parse(&parts);
}

fn request_seeds() -> Vec<Vec<u8>> {
    [
        "10.0.0.5:8080\nbaggage: k8s.cluster.name=c,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web\n\
         forwarded: for=10.0.0.1;host=web.shop.svc.cluster.local;proto=https\n\
         traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n",
        "[fd00::5]:8080\nx-forwarded-network: west\n",
        "web.shop.svc.cluster.local:80\n",
        "[::ffff:10.0.0.5]:65535\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn run_frames(bytes: &[u8]) {
    served(bytes);
}

/// Serves one connection and counts the requests that reach the handler.
fn served(bytes: &[u8]) -> usize {
    let mut requests = 0;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime without I/O needs nothing");
    let (_drain, watch) = karst_runtime::drain::channel();
    let input = [PREFACE, bytes].concat();
    let serve = async {
        let io = Scripted {
            input,
            sent: 0,
            paused: false,
        };
        let cfg = ServerConfig::default();
        let served = server::serve(io, &cfg, watch, |incoming| {
            requests += 1;
            incoming.reject(StatusCode::FORBIDDEN);
        });
        // A peer that says nothing more is at its end, so this never waits for long.
        let _ = tokio::time::timeout(Duration::from_secs(5), served).await;
    };
    tokio::task::LocalSet::new().block_on(&runtime, serve);
    requests
}

fn frame_seeds() -> Vec<Vec<u8>> {
    let settings = frame(4, 0, 0, b"");
    // HPACK: :method CONNECT as a literal, :authority 10.0.0.5:80 as a literal.
    let headers = [&[0x42, 7][..], b"CONNECT", &[0x41, 11], b"10.0.0.5:80"].concat();
    let opened = frame(1, 4, 1, &headers);
    let data = frame(0, 1, 1, b"hello");
    let reset = frame(3, 0, 1, &[0, 0, 0, 8]);
    let ping = frame(6, 0, 0, &[0; 8]);
    let split = [frame(1, 0, 3, &headers[..4]), frame(9, 4, 3, &headers[4..])].concat();
    vec![
        settings.clone(),
        [settings.clone(), opened.clone(), data].concat(),
        [settings.clone(), opened, reset, ping].concat(),
        [
            settings,
            split,
            frame(8, 0, 0, &[0, 1, 0, 0]),
            frame(7, 0, 0, &[0; 8]),
        ]
        .concat(),
    ]
}

/// An HTTP/2 frame: length, kind, flags, stream, payload.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("seeds are short");
    [&[0, 0, length, kind, flags, 0, 0, 0, stream][..], payload].concat()
}

/// A peer that sends its input, then ends, and swallows what it is answered.
struct Scripted {
    input: Vec<u8>,
    sent: usize,
    /// Whether the server had a turn of its own between the last byte and the end: without one it would see the end first.
    paused: bool,
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.sent == self.input.len() && !self.paused {
            self.paused = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let rest = &self.input[self.sent..];
        let taken = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..taken]);
        self.sent += taken;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_seed_reaches_the_handler_and_garbage_does_not() {
        assert_eq!(served(&frame_seeds()[1]), 1);
        assert_eq!(served(b"garbage"), 0);
    }
}
