//! Pulls that nobody waits for any more.

use std::path::PathBuf;

use crate::{
    Fixture,
    image::TestImage,
    scripted::{Reply, Server},
};

/// Lets the runtime's other tasks go on until it is so.
async fn until(is: impl Fn() -> bool) {
    while !is() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_that_all_gave_up_leaves_nothing_and_can_be_begun_again() {
    let image = TestImage::new(2, 500_000);
    let layer = format!("/v2/app/blobs/{}", image.layer_digest(1));
    let server = Server::start(image.content("app", "1"));
    server.next(&layer, Reply::Held(100));
    let fixture = Fixture::for_server(&server);
    let store = fixture.store.clone();
    let pull = tokio::spawn(async move { store.pull("reg.test/app:1", None, |_| {}).await });
    until(|| !server.requests(&layer).is_empty() && !fixture.files().is_empty()).await;
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    until(|| fixture.files() == Vec::<PathBuf>::new()).await;
    assert!(fixture.store.list().unwrap().is_empty());
    // The answer is still held: this one is another pull.
    fixture.pull("reg.test/app:1").await.unwrap();
    server.release();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_goes_on_while_one_still_waits() {
    let image = TestImage::new(1, 500_000);
    let layer = format!("/v2/app/blobs/{}", image.layer_digest(0));
    let server = Server::start(image.content("app", "1"));
    server.next(&layer, Reply::Held(100));
    let fixture = Fixture::for_server(&server);
    let begin = || {
        let store = fixture.store.clone();
        tokio::spawn(async move { store.pull("reg.test/app:1", None, |_| {}).await })
    };
    let first = begin();
    until(|| !server.requests(&layer).is_empty()).await;
    let second = begin();
    // It has joined once it was polled.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    first.abort();
    assert!(first.await.is_err());
    server.release();
    assert_eq!(second.await.unwrap().unwrap().id, image.config_digest());
    assert_eq!(server.requests(&layer).len(), 1);
}
