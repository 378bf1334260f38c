//! The filters of a route: what they change in a request, what they leave for its response, and what they answer
//! themselves.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use karst_routing::{
    filter::{CorsOutcome, Filter, HeaderChanges, Mirror, Redirect, cors::put_into},
    request::{Request, strip_hop_by_hop},
    table::Picked,
};
use rand::Rng as _;

use super::{refusal::Refusal, upgrade::Asked};

/// What the filters leave for later.
#[derive(Default)]
pub(super) struct Filtered<'a> {
    response: Vec<&'a HeaderChanges>,
    pub(super) mirrors: Vec<&'a Mirror>,
    cors: Option<HeaderMap>,
    /// A wait that a fault asks for, before anything else happens; the fault's or a later filter's answer comes after it.
    pub(super) delay: Option<Duration>,
}

impl<'a> Filtered<'a> {
    /// Applies filters in their order; one that answers ends the request.
    pub(super) fn apply(
        &mut self,
        filters: &'a [Filter],
        request: &mut Request,
        picked: Picked<'a>,
    ) -> Result<(), Refusal> {
        for filter in filters {
            let unwritable = |error: karst_routing::request::Unwritable| {
                Refusal::bad_request(format!("the route cannot be applied: {error}"))
            };
            match filter {
                Filter::RequestHeaders(changes) => changes.apply_to_request(request),
                Filter::ResponseHeaders(changes) => self.response.push(changes),
                Filter::Rewrite(rewrite) => {
                    rewrite.apply(request, picked.matched).map_err(unwritable)?;
                }
                Filter::Mirror(mirror) => {
                    if mirror.takes(rand::rng().next_u64()) {
                        self.mirrors.push(mirror);
                    }
                }
                Filter::Cors(cors) => match cors.handle(request) {
                    CorsOutcome::NotCors => {}
                    CorsOutcome::Actual(headers) => self.cors = Some(headers),
                    CorsOutcome::Preflight(status, headers) => {
                        return Err(self.answer(status, headers, ""));
                    }
                },
                Filter::Redirect(redirect) => {
                    let (status, location) = redirect
                        .answer(request, picked.matched)
                        .map_err(unwritable)?;
                    let leads_back = Redirect::leads_back(&location, request);
                    let headers = HeaderMap::from_iter([(header::LOCATION, location)]);
                    let answer = self.answer(status, headers, "");
                    return Err(match leads_back {
                        // As the route has it, and as the Gateway API's suite asks for: the log says why nobody arrives.
                        true => Refusal {
                            cause: "the route redirects the request to itself".into(),
                            ..answer
                        },
                        false => answer,
                    });
                }
                Filter::Fault(fault) => {
                    self.delay = fault.delay(rand::rng().next_u64()).or(self.delay);
                    if let Some(abort) = fault.abort(rand::rng().next_u64()) {
                        return Err(Refusal::aborted(abort));
                    }
                }
                Filter::Direct(direct) => {
                    let status = StatusCode::from_u16(direct.status)
                        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                    let answer = self.answer(status, HeaderMap::new(), &direct.body);
                    return Err(Refusal {
                        cause: direct.reason.to_string().into(),
                        ..answer
                    });
                }
            }
        }
        Ok(())
    }

    fn answer(&self, status: StatusCode, mut headers: HeaderMap, body: &str) -> Refusal {
        for changes in &self.response {
            changes.apply(&mut headers);
        }
        Refusal::wanted(status, headers, body.to_owned().into())
    }

    /// Changes the head of an endpoint's response.
    pub(super) fn finish(&mut self, headers: &mut HeaderMap, asked: &Asked) {
        strip_hop_by_hop(headers, asked.keep());
        if let Some(cors) = self.cors.take() {
            put_into(headers, &cors);
        }
        for changes in &self.response {
            changes.apply(headers);
        }
    }
}
