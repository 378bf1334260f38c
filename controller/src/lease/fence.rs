//! The client of everything that only the leader writes: its writes are refused once this replica leads no more.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use kube::{Client, client::Body};
use tower_service::Service;

use super::Leadership;

/// A client over `client` whose writes go out while this replica leads, and whose reads always do.
///
/// The clock is asked at each write, after whatever has held the writer up: a task that was told that it leads may have been
/// stopped since (a frozen cgroup, a machine without time), and nothing tells it so before it goes on. A refused write is a
/// [`kube::Error::Service`].
pub fn fenced(client: Client, leadership: Leadership) -> Client {
    let namespace = client.default_namespace().to_owned();
    Client::new(Fence { client, leadership }, namespace)
}

struct Fence {
    client: Client,
    leadership: Leadership,
}

impl Service<Request<Body>> for Fence {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, kube::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.client.clone();
        let leadership = self.leadership.clone();
        Box::pin(async move {
            if request.method() != Method::GET && !leadership.is_held() {
                return Err(kube::Error::Service("this replica leads no more".into()));
            }
            client.send(request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::{Ready, ready},
        time::{Duration, Instant},
    };

    use tokio::sync::{mpsc, watch};

    use super::*;

    /// An API server that takes everything and says what it was asked.
    struct Server(mpsc::UnboundedSender<Method>);

    impl Service<Request<Body>> for Server {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            self.0.send(request.method().clone()).unwrap();
            ready(Ok(Response::new(Body::empty())))
        }
    }

    fn asks(method: Method) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method;
        request
    }

    #[tokio::test]
    async fn writes_end_with_the_lease_by_the_clock_alone_and_reads_go_on() {
        let (asked, mut heard) = mpsc::unbounded_channel();
        let server = Client::new(Server(asked), "karst-system");
        let (lead, leadership) = watch::channel(None);
        let client = fenced(server, Leadership(leadership));
        let writes = [Method::PATCH, Method::POST, Method::PUT, Method::DELETE];
        for (until, goes) in [
            (None, false),
            (Some(Instant::now() + Duration::from_secs(60)), true),
            (Some(Instant::now()), false),
        ] {
            lead.send_replace(until);
            for method in writes.clone() {
                let answer = client.send(asks(method.clone())).await;
                assert_eq!(answer.is_ok(), goes, "{method} until {until:?}");
                assert_eq!(heard.try_recv().ok(), goes.then_some(method));
            }
            assert!(client.send(asks(Method::GET)).await.is_ok());
            assert_eq!(heard.try_recv(), Ok(Method::GET));
        }
        assert_eq!(client.default_namespace(), "karst-system");
    }
}
