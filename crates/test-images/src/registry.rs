//! A real registry on loopback: Debian's docker-registry, images pushed by the
//! registry API (distribution-spec 1.1, "Push").

use crate::archive::digest;
use crate::guarded::{Guard, GuardedRegistry};
use crate::tokens::TokenServer;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
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
    /// Its certificates cannot be made.
    #[error("certificates cannot be made")]
    Certificates(#[from] rcgen::Error),
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
    server: Server,
    agent: ureq::Agent,
    dir: TempDir,
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

impl Registry {
    /// Starts one and waits until it answers.
    pub fn start() -> Result<Self, RegistryError> {
        let dir = tempfile::tempdir()?;
        let server = Server::start(dir.path(), &data(dir.path()), "")?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        Ok(Self { server, agent, dir })
    }

    /// Opens another door to the same content, for pulls only.
    pub fn guarded(&self, guard: Guard) -> Result<GuardedRegistry, RegistryError> {
        GuardedRegistry::start(&data(self.dir.path()), guard)
    }

    /// Opens a door to the same content for those who have a token.
    pub fn with_tokens(&self, tokens: &TokenServer) -> Result<GuardedRegistry, RegistryError> {
        GuardedRegistry::with_tokens(&data(self.dir.path()), tokens)
    }

    /// `127.0.0.1:<port>`, plain HTTP.
    pub fn address(&self) -> &str {
        &self.server.address
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
        format!("http://{}{path}", self.address())
    }
}

/// The program while it runs.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
}

impl Server {
    /// Starts one with the images of `data` and waits until it answers. `rules`
    /// go on in the `http` section of its configuration, then end it.
    pub(crate) fn start(dir: &Path, data: &Path, rules: &str) -> Result<Self, RegistryError> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let file = dir.join("config.yml");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    \
             rootdirectory: {}\nhttp:\n  addr: {address}\n{rules}",
            data.display()
        );
        fs::write(&file, config)?;
        let child = Command::new(REGISTRY)
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self { child, address };
        for _ in 0..300 {
            if TcpStream::connect(&server.address).is_ok() {
                return Ok(server);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Err(RegistryError::Silent)
    }
}

impl Drop for Server {
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
