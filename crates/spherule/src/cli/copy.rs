//! `spherule cp`: files between the host and a container. The guest's agent does the
//! container's end, as the container's user, so an image needs no `tar`; what comes
//! from a container is written beneath the destination only, and no links are made.

use super::client::{Daemon, refused};
use super::session::Streams;
use anyhow::{Context, bail};
use file_copy::{Links, Receiver};
use guest_api::proto::CopyItem;
use pod_api::v1::file_copy::Way;
use pod_api::v1::session_input::Kind as In;
use pod_api::v1::session_output::Kind as Out;
use pod_api::v1::{ExecStart, FileCopy, SessionInput};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use tokio::sync::mpsc;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pod's container [default: its first]
    #[arg(long, short, default_value_t)]
    container: String,
    /// What is copied: a file or directory, or POD:PATH
    source: Place,
    /// Where to: a directory that there is, or a new name; POD:PATH in a container
    destination: Place,
}

/// An end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Host(PathBuf),
    Container { pod: String, path: String },
}

impl FromStr for Place {
    type Err = String;

    /// As kubectl and scp have it: a colon before any slash belongs to a pod's name,
    /// but a namespace may stand before it.
    fn from_str(text: &str) -> Result<Self, String> {
        let host = text.starts_with(['/', '.']);
        match text.split_once(':') {
            Some((pod, path)) if !host && pod.split('/').count() <= 2 => {
                if pod.is_empty() || path.is_empty() {
                    return Err("must be POD:PATH".to_owned());
                }
                let (pod, path) = (pod.to_owned(), path.to_owned());
                Ok(Self::Container { pod, path })
            }
            _ if text.is_empty() => Err("is no path".to_owned()),
            _ => Ok(Self::Host(text.into())),
        }
    }
}

/// Copies one way; 1 where something was left out.
pub(crate) async fn run(daemon: Daemon, args: Args) -> anyhow::Result<ExitCode> {
    let container = args.container;
    match (args.source, args.destination) {
        (Place::Host(from), Place::Container { pod, path }) => {
            send(daemon, from, pod, container, path).await
        }
        (Place::Container { pod, path }, Place::Host(to)) => {
            receive(daemon, pod, container, path, to).await
        }
        (Place::Host(_), Place::Host(_)) => {
            bail!("one of both must be POD:PATH; a path of the host with a colon starts with ./")
        }
        (Place::Container { .. }, Place::Container { .. }) => {
            bail!("both are in containers; copy to the host first")
        }
    }
}

/// The last name of a path; `None` of one that names a directory by another way.
fn last_name(path: &Path) -> Option<&OsStr> {
    let bytes = path.as_os_str().as_bytes();
    // `Path` sees "a" in "a/.".
    if bytes.ends_with(b"/.") {
        return None;
    }
    path.file_name()
}

fn start(pod: String, container: String, way: Way, path: &[u8], name: &[u8]) -> ExecStart {
    ExecStart {
        pod,
        container,
        stdin: way == Way::ToContainer,
        copy: Some(FileCopy {
            way: way.into(),
            path: path.to_vec(),
            name: name.to_vec(),
        }),
        ..ExecStart::default()
    }
}

async fn send(
    mut daemon: Daemon,
    from: PathBuf,
    pod: String,
    container: String,
    to: String,
) -> anyhow::Result<ExitCode> {
    // Before anything is made in the container.
    from.metadata()
        .with_context(|| format!("cannot read {}", from.display()))?;
    let name = last_name(&from).unwrap_or_default().as_bytes();
    let start = start(pod, container, Way::ToContainer, to.as_bytes(), name);
    let Streams { input, output } = Streams::exec(&mut daemon, start).await?;
    let reader = tokio::task::spawn_blocking(move || {
        file_copy::send(&from, &mut |item| {
            let frame = wire::encode(&item).map_err(io::Error::other)?;
            say(&input, In::Stdin(frame))
        })?;
        // Where it has ended already, it says why.
        let _ = say(&input, In::StdinClosed(true));
        Ok(())
    });
    let mut code = None;
    let shown = each(output, |said| match said {
        Out::Exited(exit) => {
            code = Some(exit.code);
            Ok(())
        }
        Out::Stderr(bytes) => Ok(io::stderr().write_all(&bytes)?),
        _ => Ok(()),
    })
    .await;
    // One that ends early is nobody's to read any more: its own words count.
    let read = reader.await.context("reading the files")?;
    shown?;
    match (read, code) {
        (Err(error @ file_copy::CopyError::File { .. }), _) => Err(error.into()),
        (_, Some(code)) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        (_, None) => bail!("the daemon ended the copy without a result"),
    }
}

fn say(input: &mpsc::Sender<SessionInput>, kind: In) -> io::Result<()> {
    let sent = input.blocking_send(SessionInput { kind: Some(kind) });
    sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

async fn receive(
    mut daemon: Daemon,
    pod: String,
    container: String,
    from: String,
    to: PathBuf,
) -> anyhow::Result<ExitCode> {
    let name = last_name(Path::new(&from));
    // Before anything is read in the container.
    let mut receiver = Receiver::new(&to, name, Links::LeaveOut)?;
    let start = start(pod, container, Way::FromContainer, from.as_bytes(), b"");
    let Streams { output, .. } = Streams::exec(&mut daemon, start).await?;
    let mut decoder = wire::FrameDecoder::default();
    let mut code = None;
    let mut left_out = false;
    each(output, |said| {
        match said {
            Out::Stdout(bytes) => {
                decoder.push(&bytes);
                while let Some(item) = decoder.next_message::<CopyItem>()? {
                    if let Some(what) = receiver.take(item)? {
                        left_out = true;
                        // A container chose the names in it.
                        eprintln!("left out: {}", what.escape_debug());
                    }
                }
            }
            Out::Stderr(bytes) => {
                for line in String::from_utf8_lossy(&bytes).lines() {
                    eprintln!("{}", line.escape_debug());
                }
            }
            Out::Exited(exit) => code = Some(exit.code),
            Out::Lost(_) => {}
        }
        Ok(())
    })
    .await?;
    match code {
        None => bail!("the daemon ended the copy without a result"),
        Some(0) => receiver.finish()?,
        Some(_) => {}
    }
    Ok(ExitCode::from(u8::from(left_out || code != Some(0))))
}

/// Does `what` with all output.
async fn each(
    mut output: tonic::Streaming<pod_api::v1::SessionOutput>,
    mut what: impl FnMut(Out) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    while let Some(said) = output.message().await.map_err(refused)? {
        if let Some(kind) = said.kind {
            what(kind)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colon_names_a_pod_unless_a_path_of_the_host_is_plain() {
        let place = |text: &str| text.parse::<Place>();
        let of = |pod: &str, path: &str| {
            let (pod, path) = (pod.to_owned(), path.to_owned());
            Ok(Place::Container { pod, path })
        };
        assert_eq!(place("web:/etc/hosts"), of("web", "/etc/hosts"));
        assert_eq!(place("ns/web:a:b"), of("ns/web", "a:b"));
        for host in ["file", "/a:b", "./a:b", "../x", "a/b/c:d"] {
            assert_eq!(place(host), Ok(Place::Host(host.into())));
        }
        for wrong in ["", ":", "web:", ":/x"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn directory_named_by_another_way_has_no_name() {
        let name = |path: &'static str| last_name(Path::new(path)).and_then(OsStr::to_str);
        assert_eq!(name("/a/b"), Some("b"));
        assert_eq!(name("/a/b/"), Some("b"));
        for path in ["/", ".", "..", "a/.", "a/.."] {
            assert_eq!(name(path), None, "{path}");
        }
    }
}
