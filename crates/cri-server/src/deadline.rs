//! The deadlines that callers set (`grpc-timeout` of gRPC over HTTP/2).
//!
//! tonic keeps them, but answers Cancelled; the code of a deadline that is over is
//! DeadlineExceeded, and a client hears of it from whoever notices first.

use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tower::Layer;

/// Ends calls whose deadline is over, with the code that says so.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines;

impl<S> Layer<S> for Deadlines {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner }
    }
}

/// A service within [`Deadlines`].
#[derive(Debug, Clone)]
pub struct Bounded<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Bounded<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Response<Body>, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(limit) = limit(request.headers()) else {
            return Box::pin(self.inner.call(request));
        };
        // Counted from here on, so that it is over before tonic's own.
        let over = tokio::time::sleep(limit);
        let work = self.inner.call(request);
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = work => answer,
                () = over => {
                    let text = format!("not done within the {limit:?} that the caller gave it");
                    Ok(Status::deadline_exceeded(text).into_http())
                }
            }
        })
    }
}

/// The time that a caller gives its call: up to eight digits and a unit ("Requests" in
/// gRPC over HTTP/2). What is not of that form is no deadline, as for tonic.
fn limit(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::future::{self, Ready};
    use tonic::Code;

    /// The code of what `work` answers within a limit.
    async fn code<F>(limit: &'static str, work: fn() -> F) -> Code
    where
        F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    {
        let mut service = Deadlines.layer(tower::service_fn(move |_: Request<()>| work()));
        let mut request = Request::new(());
        let headers = request.headers_mut();
        headers.insert("grpc-timeout", limit.parse().unwrap());
        let Ok(answer) = service.call(request).await;
        Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code())
    }

    fn done() -> Ready<Result<Response<Body>, Infallible>> {
        future::ready(Ok(Response::default()))
    }

    #[tokio::test]
    async fn call_that_is_not_done_in_time_is_deadline_exceeded() {
        assert_eq!(code("1m", future::pending).await, Code::DeadlineExceeded);
        assert_eq!(code("0n", future::pending).await, Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn answer_that_is_there_is_given_however_late() {
        assert_eq!(code("1H", done).await, Code::Ok);
        assert_eq!(code("0n", done).await, Code::Ok);
    }

    #[test]
    fn limits_are_read_in_all_units_and_nothing_else_is() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", value.parse().unwrap());
            limit(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("4S"), Some(Duration::from_secs(4)));
        assert_eq!(read("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(read("6u"), Some(Duration::from_micros(6)));
        assert_eq!(read("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "5", "-1S", "+1S", "1s", "100000000n", "1 S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(limit(&HeaderMap::new()), None);
    }
}
