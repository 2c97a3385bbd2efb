//! A real registry on loopback: Debian's docker-registry, images pushed by the
//! registry API (distribution-spec 1.1, "Push").

use crate::archive::digest;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, io, thread};
use tempfile::TempDir;

/// The registry's program, from the Debian package of this name.
pub const REGISTRY: &str = "docker-registry";

/// Why an image is not in the registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The program is missing, or its files cannot be written.
    #[error("{REGISTRY} cannot be started")]
    Start(#[from] io::Error),
    /// It never answered.
    #[error("{REGISTRY} does not answer")]
    Silent,
    /// It refused or broke a request.
    #[error("{url}: {answer}")]
    Request {
        /// The URL.
        url: String,
        /// What was answered.
        answer: String,
    },
}

/// A registry that ends, and whose content is removed, when it is dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: String,
    agent: ureq::Agent,
    _dir: TempDir,
}

impl Registry {
    /// Starts one and waits until it answers.
    pub fn start() -> Result<Self, RegistryError> {
        let dir = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let file = dir.path().join("config.yml");
        fs::write(
            &file,
            format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    \
                 rootdirectory: {}\nhttp:\n  addr: {address}\n",
                dir.path().join("data").display()
            ),
        )?;
        let child = Command::new(REGISTRY)
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        let registry = Self {
            child,
            address,
            agent,
            _dir: dir,
        };
        for _ in 0..300 {
            if registry.agent.get(registry.url("/v2/")).call().is_ok() {
                return Ok(registry);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Err(RegistryError::Silent)
    }

    /// `127.0.0.1:<port>`, plain HTTP.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Pushes an image: its blobs as (media type, bytes), the manifest last, as
    /// [`crate::ImageBuilder::blobs`] returns them.
    pub fn push(
        &self,
        repository: &str,
        tag: &str,
        blobs: &[(&str, Vec<u8>)],
    ) -> Result<(), RegistryError> {
        let Some(((media_type, manifest), blobs)) = blobs.split_last() else {
            return Ok(());
        };
        for (_, blob) in blobs {
            let url = self.url(&format!("/v2/{repository}/blobs/uploads/"));
            let begun = expect(&url, 202, self.agent.post(&url).send_empty())?;
            let location = begun.headers().get("location");
            let location = location.and_then(|l| l.to_str().ok()).unwrap_or_default();
            let sent = self
                .agent
                .put(location)
                .query("digest", digest(blob))
                .header("content-type", "application/octet-stream")
                .send(&blob[..]);
            expect(location, 201, sent)?;
        }
        let url = self.url(&format!("/v2/{repository}/manifests/{tag}"));
        let put = self.agent.put(&url).header("content-type", *media_type);
        expect(&url, 201, put.send(&manifest[..]))?;
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Gone already, if it failed to start.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Answer = ureq::http::Response<ureq::Body>;

fn expect(
    url: &str,
    status: u16,
    answer: Result<Answer, ureq::Error>,
) -> Result<Answer, RegistryError> {
    let answer = match answer {
        Ok(answer) if answer.status() == status => return Ok(answer),
        Ok(answer) => format!("answered {}, not {status}", answer.status()),
        Err(error) => error.to_string(),
    };
    Err(RegistryError::Request {
        url: url.into(),
        answer,
    })
}
