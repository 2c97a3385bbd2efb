//! PullImage: progress while it lasts, then the image.

use crate::{convert, status};
use image_store::{Credentials, ImageStore, Progress, Status as Stage};
use pod_api::v1::pull_image_response::Event;
use pod_api::v1::{PullImageRequest, PullImageResponse, PullProgress};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

type Events = Pin<Box<dyn Stream<Item = Result<PullImageResponse, Status>> + Send>>;

/// The events of one pull. A caller that reads slowly misses progress, never the
/// outcome; one that goes away leaves the pull to those who also asked for it, or
/// ends it.
pub(crate) fn pull(store: ImageStore, request: PullImageRequest) -> Events {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let credentials = (!request.username.is_empty()).then_some(Credentials::Basic {
            username: request.username,
            password: request.password,
        });
        let progress = sender.clone();
        let pulled = store.pull(&request.reference, credentials, move |p| {
            let event = Event::Progress(message(p));
            let _ = progress.try_send(Ok(PullImageResponse { event: Some(event) }));
        });
        let pulled = tokio::select! {
            pulled = pulled => pulled,
            () = sender.closed() => return,
        };
        let outcome = match pulled {
            Ok(image) => Ok(PullImageResponse {
                event: Some(Event::Done(convert::image(&image))),
            }),
            Err(error) => Err(status::of_image(&error)),
        };
        let _ = sender.send(outcome).await;
    });
    Box::pin(ReceiverStream::new(receiver))
}

fn message(progress: &Progress) -> PullProgress {
    let word = match progress.status {
        Stage::Resolving => "resolving",
        Stage::Present => "present",
        Stage::Downloading => "downloading",
        Stage::Downloaded => "downloaded",
        Stage::Unpacking => "unpacking",
    };
    PullProgress {
        digest: progress
            .digest
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        status: word.into(),
        current: progress.current,
        total: progress.total,
    }
}
