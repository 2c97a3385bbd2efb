//! Against Debian's `docker-registry`.

use test_images::{REGISTRY, Registry};

use crate::{Fixture, image::TestImage, is_installed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_is_pulled_from_a_real_registry() {
    if !is_installed(REGISTRY) {
        eprintln!("skipped: {REGISTRY} is not installed");
        return;
    }
    let registry = Registry::start().unwrap();
    let image = TestImage::new(4, 3_000_000);
    registry.push("team/app", "v1", &image.blobs()).unwrap();
    let fixture = Fixture::new(&format!("server = \"http://{}\"", registry.address()));
    let pulled = fixture.pull("reg.test/team/app:v1").await.unwrap();
    assert_eq!(pulled.id, image.config_digest());
    assert_eq!(
        pulled.digests,
        [format!("reg.test/team/app@{}", image.manifest_digest())]
    );
    let text = fixture.pull("reg.test/team/app:v2").await.unwrap_err();
    assert!(crate::chain(&text).contains("not found there"), "{text:?}");
}
