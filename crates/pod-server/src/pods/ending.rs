//! The daemon's end, as those see it who hear a stream of answers (sessions, logs,
//! watchers): told, not just cut off.

use super::Answers;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, Shared};
use tokio_stream::Stream;
use tonic::Status;

/// Resolves when the daemon is about to end.
pub type End = Shared<BoxFuture<'static, ()>>;

/// What they are told then.
pub const ENDING: &str =
    "the node agent is being restarted: this session ends, what runs in the pod goes on";

/// The answers; at the daemon's end a failure that says so, and no more.
pub(super) fn until<T: Send + 'static>(
    end: End,
    answers: impl Stream<Item = Result<T, Status>> + Send + Unpin + 'static,
) -> Answers<T> {
    let both = Some((answers, end));
    futures_util::stream::unfold(both, async |both| {
        let (mut answers, end) = both?;
        tokio::select! {
            answer = answers.next() => Some((answer?, Some((answers, end)))),
            () = end.clone() => Some((Err(Status::unavailable(ENDING)), None)),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use futures_util::stream::{iter, pending, repeat_with};
    use std::future::ready;
    use tonic::Code;

    fn now() -> End {
        ready(()).boxed().shared()
    }

    fn never() -> End {
        std::future::pending().boxed().shared()
    }

    #[tokio::test]
    async fn answers_are_the_callers_as_long_as_the_daemon_serves() {
        let answers: Vec<_> = until(never(), iter([Ok(1), Ok(2)])).collect().await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [1, 2]);
    }

    #[tokio::test]
    async fn end_is_the_last_answer_of_silent_and_of_busy_streams() {
        let silent: Vec<_> = until::<u8>(now(), pending()).collect().await;
        assert_eq!(silent.len(), 1);
        let busy: Vec<_> = until(now(), repeat_with(|| Ok(7))).collect().await;
        for answers in [silent, busy] {
            let last = answers.last().unwrap().as_ref().unwrap_err();
            assert_eq!(last.code(), Code::Unavailable);
            assert_eq!(last.message(), ENDING);
        }
    }
}
