//! Against Debian's `docker-registry`: plain, with TLS, with passwords, with tokens.

use image_store::{Credentials, ImageError};
use test_images::{
    Guard, GuardedRegistry, IDENTITY_TOKEN, PASSWORD, PUBLIC, REGISTRY, Registry, TokenServer, USER,
};

use crate::{Fixture, chain, image::TestImage, is_installed};

/// A registry with one image, `team/app:v1`.
fn registry() -> Option<(Registry, TestImage)> {
    if !is_installed(REGISTRY) {
        eprintln!("skipped: {REGISTRY} is not installed");
        return None;
    }
    let registry = Registry::start().unwrap();
    let image = TestImage::new(4, 1_000_000);
    registry.push("team/app", "v1", &image.blobs()).unwrap();
    Some((registry, image))
}

const NAME: &str = "reg.test/team/app:v1";

fn basic(password: &str) -> Option<Credentials> {
    Some(Credentials::Basic {
        username: USER.into(),
        password: password.into(),
    })
}

/// What `hosts.toml` says leads to the image, or is refused in these words.
async fn expect(hosts: &str, words: Option<&[&str]>) {
    let fixture = Fixture::new(hosts);
    match words {
        None => drop(fixture.pull(NAME).await.unwrap()),
        Some(words) => {
            let text = fixture.refusal(NAME).await;
            for word in words {
                assert!(text.contains(word), "{word:?} not in {text}");
            }
        }
    }
}

fn server(guarded: &GuardedRegistry, keys: &str) -> String {
    format!("server = \"https://{}\"\n{keys}\n", guarded.address())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_is_pulled_from_a_real_registry() {
    let Some((registry, image)) = registry() else {
        return;
    };
    let fixture = Fixture::new(&format!("server = \"http://{}\"", registry.address()));
    let pulled = fixture.pull(NAME).await.unwrap();
    assert_eq!(pulled.id, image.config_digest());
    assert_eq!(
        pulled.digests,
        [format!("reg.test/team/app@{}", image.manifest_digest())]
    );
    let text = fixture.pull("reg.test/team/app:v2").await.unwrap_err();
    assert!(chain(&text).contains("not found there"), "{text:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_is_believed_by_the_ca_of_the_file_or_not_looked_at() {
    let Some((registry, _)) = registry() else {
        return;
    };
    let guard = Guard {
        tls: true,
        ..Guard::default()
    };
    let guarded = registry.guarded(guard).unwrap();
    let other = registry.guarded(guard).unwrap();
    let ca = format!("ca = {:?}", guarded.ca());
    expect(&server(&guarded, &ca), None).await;
    // Several, relative to the file's directory, of which one is right.
    let both = format!("ca = [{:?}, {:?}]", other.ca(), guarded.ca());
    expect(&server(&guarded, &both), None).await;
    expect(&server(&guarded, "skip_verify = true"), None).await;
    let unknown: &[&str] = &["certificate", guarded.address()];
    expect(&server(&guarded, ""), Some(unknown)).await;
    let wrong = format!("ca = {:?}", other.ca());
    expect(&server(&guarded, &wrong), Some(unknown)).await;
    // HTTP only where it is written.
    let plain = format!("server = \"http://{}\"", guarded.address());
    expect(&plain, Some(&["answered 400"])).await;
    let plain = format!("server = \"{}\"", registry.address());
    expect(&plain, Some(&["the request failed"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificate_is_shown_in_every_form_of_the_key() {
    let Some((registry, _)) = registry() else {
        return;
    };
    let guard = Guard {
        tls: true,
        client_certificate: true,
        ..Guard::default()
    };
    let guarded = registry.guarded(guard).unwrap();
    let other = registry.guarded(guard).unwrap();
    let (certificate, key) = (guarded.client_certificate(), guarded.client_key());
    let scratch = tempfile::tempdir().unwrap();
    let both = scratch.path().join("both.pem");
    let texts = [&certificate, &key].map(|file| std::fs::read_to_string(file).unwrap());
    std::fs::write(&both, texts.concat()).unwrap();
    let with = |client: &str| server(&guarded, &format!("ca = {:?}\n{client}", guarded.ca()));
    for client in [
        format!("client = [[{certificate:?}, {key:?}]]"),
        format!("client = {both:?}"),
        format!("client = [{both:?}]"),
        format!("client = [[{both:?}]]"),
    ] {
        expect(&with(&client), None).await;
    }
    expect(&with(""), Some(&["the request failed"])).await;
    let wrong = format!(
        "client = [[{:?}, {:?}]]",
        other.client_certificate(),
        other.client_key()
    );
    expect(&with(&wrong), Some(&["the request failed"])).await;
    let keyless = format!("client = {certificate:?}");
    let words: &[&str] = &["client.pem", "CERTIFICATE", "KEY"];
    expect(&with(&keyless), Some(words)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn password_opens_and_is_told_from_none_and_a_wrong_one() {
    let Some((registry, image)) = registry() else {
        return;
    };
    let guarded = registry
        .guarded(Guard {
            tls: true,
            password: true,
            ..Guard::default()
        })
        .unwrap();
    let hosts = server(&guarded, &format!("ca = {:?}", guarded.ca()));
    let fixture = Fixture::new(&hosts);
    for (credentials, words) in [
        (None, "denies access without credentials"),
        (basic("wrong"), "denies access with the credentials given"),
        // No token is of use to a registry that wants a password.
        (
            Some(Credentials::IdentityToken("t".into())),
            "denies access with the credentials given",
        ),
        (
            Some(Credentials::RegistryToken("t".into())),
            "denies access with the credentials given",
        ),
    ] {
        let refused: Result<_, ImageError> = fixture.store.pull(NAME, credentials, |_| {}).await;
        let text = chain(&refused.unwrap_err());
        assert!(text.contains(words), "{text}");
    }
    assert!(fixture.files().is_empty());
    let pulled = fixture.store.pull(NAME, basic(PASSWORD), |_| {}).await;
    assert_eq!(pulled.unwrap().id, image.config_digest());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_that_fail_are_passed_over_and_named() {
    let Some((registry, _)) = registry() else {
        return;
    };
    let guarded = registry
        .guarded(Guard {
            tls: true,
            password: true,
            ..Guard::default()
        })
        .unwrap();
    // A closed one, one that is not believed, one that wants a password.
    let mirrors = format!(
        "[host.\"https://127.0.0.1:1\"]\n[host.\"https://{0}/v2\"]\n\
         [host.\"https://{0}\"]\nca = {1:?}\n",
        guarded.address(),
        guarded.ca()
    );
    let good = format!("server = \"http://{}\"\n{mirrors}", registry.address());
    expect(&good, None).await;
    let bad = format!("server = \"http://127.0.0.1:2\"\n{mirrors}");
    let words: &[&str] = &["127.0.0.1:1", "without credentials", "127.0.0.1:2"];
    expect(&bad, Some(words)).await;
}

/// The registry verifies each token: its signature, for whom and for what it is,
/// and its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_is_fetched_for_who_asks_and_verified_by_the_registry() {
    let Some((registry, image)) = registry() else {
        return;
    };
    let public = format!("{PUBLIC}app");
    registry.push(&public, "v1", &image.blobs()).unwrap();
    let tokens = TokenServer::start().unwrap();
    let guarded = registry.with_tokens(&tokens).unwrap();
    let hosts = format!("server = \"http://{}\"", guarded.address());
    let fixture = Fixture::new(&hosts);
    let identity = |token: &str| Some(Credentials::IdentityToken(token.into()));

    let refused = "denies access with the credentials given";
    for (credentials, words) in [
        (None, "denies access without credentials"),
        (basic("wrong"), refused),
        (identity("wrong"), refused),
        // Signed by nobody.
        (Some(Credentials::RegistryToken("a.b.c".into())), refused),
    ] {
        let result = fixture.store.pull(NAME, credentials, |_| {}).await;
        let text = chain(&result.unwrap_err());
        assert!(text.contains(words), "{text}");
    }
    // Tokens that are good no more, and not yet: each is tried, no other is asked for.
    for clock in [-3600, 3600] {
        tokens.set_clock(clock);
        let before = tokens.requests().len();
        let result = fixture.store.pull(NAME, basic(PASSWORD), |_| {}).await;
        let text = chain(&result.unwrap_err());
        assert!(text.contains(refused), "{text}");
        assert_eq!(tokens.requests().len(), before + 1);
    }
    tokens.set_clock(0);
    assert!(fixture.files().is_empty());

    let name = format!("reg.test/{public}:v1");
    for (name, credentials) in [
        (name.as_str(), None),
        (NAME, basic(PASSWORD)),
        (NAME, identity(IDENTITY_TOKEN)),
    ] {
        let before = tokens.requests().len();
        let fixture = Fixture::new(&hosts);
        let pulled = fixture.store.pull(name, credentials, |_| {}).await.unwrap();
        assert_eq!(pulled.id, image.config_digest());
        // One for all of the pull's requests.
        assert_eq!(tokens.requests().len(), before + 1);
    }
    let asked = tokens.requests();
    assert!(
        asked.last().unwrap().starts_with("POST /token") && asked[0].starts_with("GET /token?"),
        "{asked:?}"
    );
}
