//! The CRI: images from Debian's docker-registry, by way of a mirror.

use crate::Test;
use anyhow::{Context, ensure};
use cri_api::v1;
use spherule_tests::cri::{Cri, container_config, image, refused, sandbox_config};
use spherule_tests::{Daemon, DaemonOptions, Registries};
use test_images::{Guard, PASSWORD, Registry, USER, busybox_image};
use tonic::{Code, Status};

pub(crate) const TESTS: &[Test] = &[
    ("image_has_one_id_by_every_name_and_goes_by_any", names),
    ("image_in_use_goes_with_its_container", in_use),
    (
        "registry_with_password_is_opened_by_the_request",
        credentials,
    ),
    ("failed_and_given_up_pulls_leave_nothing", failures),
];

/// No such host is: only the mirror has it.
const IMAGE: &str = "reg.test/team/app";

struct Fixture {
    registry: Registry,
    daemon: Daemon,
    cri: Cri,
    _registries: Registries,
}

impl Fixture {
    fn new() -> anyhow::Result<Self> {
        Self::with(|registry| {
            let address = registry.address();
            Ok(format!(
                "server = \"http://127.0.0.1:1\"\n[host.\"http://{address}\"]\n\
                 capabilities = [\"pull\", \"resolve\"]\n"
            ))
        })
    }

    /// With that text in each `hosts.toml`.
    fn with(hosts: impl FnOnce(&Registry) -> anyhow::Result<String>) -> anyhow::Result<Self> {
        let registry = Registry::start()?;
        let names = ["reg.test", "other.test", "hub.test"];
        let registries = Registries::new(&names, &hosts(&registry)?)?;
        let pinned = format!("{IMAGE}:2");
        let more = [
            ["--pinned-image", &pinned],
            ["--default-registry", "hub.test"],
            ["--default-namespace", "library"],
        ];
        let mut args = registries.args();
        args.extend(more.concat().into_iter().map(str::to_owned));
        let daemon = Daemon::with(DaemonOptions {
            args,
            image: false,
            ..DaemonOptions::default()
        })?;
        let blobs = busybox_image(IMAGE)?.blobs()?;
        for (repository, tag) in [
            ("team/app", "1"),
            ("team/app", "2"),
            ("team/app", "latest"),
            ("library/plain", "latest"),
        ] {
            registry.push(repository, tag, &blobs)?;
        }
        let cri = Cri::connect(&daemon)?;
        Ok(Self {
            registry,
            daemon,
            cri,
            _registries: registries,
        })
    }

    fn pull(&self, name: &str) -> Result<String, Status> {
        self.pull_as(name, None)
    }

    fn pull_as(&self, name: &str, auth: Option<v1::AuthConfig>) -> Result<String, Status> {
        let request = v1::PullImageRequest {
            image: Some(image(name)),
            auth,
            ..v1::PullImageRequest::default()
        };
        let answer = self.cri.wait(self.cri.images.clone().pull_image(request))?;
        Ok(answer.image_ref)
    }

    fn remove(&self, name: &str) -> Result<(), Status> {
        let request = v1::RemoveImageRequest {
            image: Some(image(name)),
        };
        let removed = self.cri.wait(self.cri.images.clone().remove_image(request));
        removed.map(drop)
    }

    fn list(&self) -> Result<Vec<v1::Image>, Status> {
        let request = v1::ListImagesRequest::default();
        Ok(self
            .cri
            .wait(self.cri.images.clone().list_images(request))?
            .images)
    }

    /// Bytes and files of the images' file system.
    fn usage(&self) -> anyhow::Result<(u64, u64)> {
        let request = v1::ImageFsInfoRequest {};
        let answer = self
            .cri
            .wait(self.cri.images.clone().image_fs_info(request))?;
        let fs = answer.image_filesystems.first().context("no file system")?;
        let mountpoint = fs.fs_id.clone().unwrap_or_default().mountpoint;
        ensure!(mountpoint == self.daemon.root().join("images").display().to_string());
        let value = |v: &Option<v1::UInt64Value>| v.as_ref().map_or(0, |v| v.value);
        Ok((value(&fs.used_bytes), value(&fs.inodes_used)))
    }
}

fn names() -> anyhow::Result<()> {
    let f = Fixture::new()?;
    ensure!(f.cri.image(&format!("{IMAGE}:1"))?.is_none());
    ensure!(f.usage()? == (0, 0));
    let id = f.pull(&format!("{IMAGE}:1"))?;
    let one = f.cri.image(&id)?.context("no image")?;
    ensure!(
        one.repo_tags == [format!("{IMAGE}:1")] && !one.pinned,
        "{one:?}"
    );
    let digest = one.repo_digests.first().context("no digest")?.clone();
    ensure!(f.usage()?.0 >= 1 << 20, "{:?}", f.usage()?);

    let request = v1::ImageStatusRequest {
        image: Some(image(&digest)),
        verbose: true,
    };
    let status = f.cri.wait(f.cri.images.clone().image_status(request))?;
    let info: serde_json::Value =
        serde_json::from_str(status.info.get("info").context("no info")?)?;
    ensure!(
        info["imageSpec"]["config"]["Cmd"] == serde_json::json!(["sh"])
            && info["chainID"]
                .as_str()
                .is_some_and(|id| id.starts_with("sha256:")),
        "{info:#}"
    );

    // Every form of name, and other registries, lead to the one image.
    let manifest = digest.split_once('@').context("no digest")?.1;
    for name in [
        digest.clone(),
        format!("{IMAGE}:2"),
        IMAGE.to_owned(),
        format!("{IMAGE}:1@{manifest}"),
        "other.test/team/app:1".to_owned(),
        "plain".to_owned(),
    ] {
        ensure!(f.pull(&name)? == id, "{name}");
    }
    let all = f.list()?;
    ensure!(
        all.len() == 1 && all[0].pinned && all[0].id == id,
        "{all:?}"
    );
    let tags = [
        "hub.test/library/plain:latest".to_owned(),
        "other.test/team/app:1".to_owned(),
        format!("{IMAGE}:1"),
        format!("{IMAGE}:2"),
        format!("{IMAGE}:latest"),
    ];
    ensure!(all[0].repo_tags == tags, "{all:?}");
    for name in all[0].repo_tags.iter().chain(&all[0].repo_digests) {
        ensure!(f.cri.image(name)?.as_ref() == Some(&all[0]), "{name}");
    }
    let filter = Some(v1::ImageFilter {
        image: Some(image("none")),
    });
    let request = v1::ListImagesRequest { filter };
    let none = f.cri.wait(f.cri.images.clone().list_images(request))?;
    ensure!(none.images.is_empty());

    f.remove("plain")?;
    ensure!(f.list()?.is_empty() && f.cri.image(&id)?.is_none());
    ensure!(f.usage()? == (0, 0), "{:?}", f.usage()?);
    for name in ["plain", id.as_str()] {
        f.remove(name)?;
    }
    // By its digest alone: no tag.
    ensure!(f.pull(&digest)? == id);
    let image = f.cri.image(&digest)?.context("no image")?;
    ensure!(
        image.repo_tags.is_empty() && image.repo_digests == [digest],
        "{image:?}"
    );
    Ok(())
}

fn in_use() -> anyhow::Result<()> {
    let f = Fixture::new()?;
    let id = f.pull(&format!("{IMAGE}:1"))?;
    let logs = tempfile::tempdir()?;
    let config = sandbox_config("in-use", logs.path());
    let pod = f.cri.run(&config)?;
    let mut c = container_config("c", "sleep 1000");
    c.image = Some(image(&id));
    let container = f.cri.create(&pod, c, &config)?;
    f.cri.start(&container)?;
    ensure!(f.cri.container(&container)?.image_id == id);
    f.remove(&id)?;
    ensure!(f.list()?.is_empty());
    let ran = f.cri.exec(&container, &["echo", "still here"])?;
    ensure!(ran.stdout == b"still here\n");
    ensure!(f.usage()?.0 > 0);
    f.cri.remove_pod(&pod)?;
    ensure!(f.usage()? == (0, 0), "{:?}", f.usage()?);
    Ok(())
}

fn credentials() -> anyhow::Result<()> {
    let mut guarded = None;
    let f = Fixture::with(|registry| {
        let door = guarded.insert(registry.guarded(Guard {
            tls: true,
            client_certificate: true,
            password: true,
        })?);
        Ok(format!(
            "server = \"https://{}\"\nca = {:?}\nclient = [[{:?}, {:?}]]\n",
            door.address(),
            door.ca(),
            door.client_certificate(),
            door.client_key()
        ))
    })?;
    let name = format!("{IMAGE}:1");
    let right = v1::AuthConfig {
        username: USER.into(),
        password: PASSWORD.into(),
        ..v1::AuthConfig::default()
    };
    let auth = |change: fn(&mut v1::AuthConfig)| {
        let mut auth = right.clone();
        change(&mut auth);
        Some(auth)
    };
    for (auth, words) in [
        (None, "without credentials"),
        (auth(|a| a.password = "wrong".into()), "credentials given"),
        (auth(|a| a.identity_token = "t".into()), "credentials given"),
        (auth(|a| a.registry_token = "t".into()), "credentials given"),
        // Not meant for this registry, so it does not see them.
        (
            auth(|a| a.server_address = "https://other.test".into()),
            "without credentials",
        ),
    ] {
        refused(
            f.pull_as(&name, auth),
            Code::Unauthenticated,
            &[name.as_str(), words],
        )?;
    }
    let broken = v1::AuthConfig {
        auth: "?".into(),
        ..v1::AuthConfig::default()
    };
    let answer = f.pull_as(&name, Some(broken));
    refused(answer, Code::InvalidArgument, &["auth.auth"])?;
    ensure!(f.list()?.is_empty() && f.usage()? == (0, 0));
    for auth in [
        auth(|_| ()),
        auth(|a| a.server_address = "https://reg.test/v2/".into()),
        Some(v1::AuthConfig {
            auth: "dXNlcjpwYXNz".into(),
            ..v1::AuthConfig::default()
        }),
    ] {
        f.pull_as(&name, auth)?;
        f.remove(&name)?;
    }
    Ok(())
}

fn failures() -> anyhow::Result<()> {
    let f = Fixture::new()?;
    let none = format!("{IMAGE}:none");
    let answer = f.pull(&none);
    ensure!(answer.is_err(), "{answer:?}");
    let address = f.registry.address().to_owned();
    let text = answer
        .err()
        .map(|s| s.message().to_owned())
        .unwrap_or_default();
    ensure!(text.contains(&none) || text.contains(&address), "{text}");
    refused(
        f.pull("nobody.invalid/app:1"),
        Code::Unavailable,
        &["nobody.invalid"],
    )?;

    let mut request = tonic::Request::new(v1::PullImageRequest {
        image: Some(image(&format!("{IMAGE}:1"))),
        ..v1::PullImageRequest::default()
    });
    request.set_timeout(std::time::Duration::from_millis(1));
    let late = f.cri.wait(f.cri.images.clone().pull_image(request));
    ensure!(late.is_err(), "{late:?}");
    // Whoever pulls next gets the whole image, whatever became of that one.
    f.pull(&format!("{IMAGE}:1"))?;
    ensure!(f.list()?.len() == 1);
    f.remove(&format!("{IMAGE}:1"))?;
    ensure!(f.usage()? == (0, 0), "{:?}", f.usage()?);
    Ok(())
}
