//! Answers in pages: a list of any length in messages of a bounded size.

use std::pin::Pin;
use tokio_stream::Stream;
use tonic::Status;

/// Items of one page: far below the 4 MiB that clients take in one message.
pub(crate) const PAGE: usize = 100;

/// A stream of answers.
pub(crate) type Pages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

/// Splits `items` into pages, at least one.
pub(crate) fn pages<I, T>(items: Vec<I>, page: impl Fn(Vec<I>) -> T) -> Pages<T>
where
    T: Send + 'static,
{
    let mut rest = items.into_iter();
    let mut made = Vec::new();
    loop {
        let part: Vec<I> = rest.by_ref().take(PAGE).collect();
        if part.is_empty() && !made.is_empty() {
            break;
        }
        let last = part.len() < PAGE;
        made.push(Ok(page(part)));
        if last {
            break;
        }
    }
    Box::pin(tokio_stream::iter(made))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    async fn lengths(count: usize) -> Vec<usize> {
        let stream = pages(vec![0u8; count], |part| part.len());
        stream.map(Result::unwrap).collect().await
    }

    #[tokio::test]
    async fn every_item_is_in_one_page_and_none_is_a_page_too() {
        assert_eq!(lengths(0).await, [0]);
        assert_eq!(lengths(1).await, [1]);
        assert_eq!(lengths(PAGE).await, [PAGE]);
        assert_eq!(lengths(2 * PAGE + 1).await, [PAGE, PAGE, 1]);
    }
}
