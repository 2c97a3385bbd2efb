//! `spherule images`, `pull`, `import` and `rmi`.

use super::client::{Daemon, refused};
use super::{Output, output};
use anyhow::{Context, bail};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use pod_api::v1::{
    Image, ImportImageRequest, ListImagesRequest, PullImageRequest, PullProgress,
    RemoveImageRequest, pull_image_response::Event,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Prints a line an image.
pub(crate) async fn list(mut daemon: Daemon, how: Output) -> anyhow::Result<()> {
    let request = ListImagesRequest {};
    let images = daemon
        .images
        .list_images(request)
        .await
        .map_err(refused)?
        .into_inner()
        .images;
    print(&images, how)?;
    Ok(())
}

fn print(images: &[Image], how: Output) -> io::Result<()> {
    if how == Output::Json {
        let images = images
            .iter()
            .map(|i| pod_api::to_json("Image", i))
            .collect();
        return output::print_json(&serde_json::Value::Array(images));
    }
    let mut rows = Vec::new();
    for image in images {
        let id: String = image
            .id
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect();
        let none = vec!["<none>".to_owned()];
        for name in if image.tags.is_empty() {
            &none
        } else {
            &image.tags
        } {
            let size = HumanBytes(image.size).to_string();
            rows.push(vec![
                name.clone(),
                id.clone(),
                size,
                output::age(image.created_at_ns),
            ]);
        }
    }
    output::print_table(&["IMAGE", "ID", "SIZE", "CREATED"], rows)
}

#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    /// User for the registry; the password is read from SPHERULE_PASSWORD
    #[arg(long, short)]
    username: Option<String>,
    /// Reference, as registry/name:tag
    image: String,
}

/// Pulls an image and shows its layers come in.
pub(crate) async fn pull(mut daemon: Daemon, args: PullArgs, how: Output) -> anyhow::Result<()> {
    let password = std::env::var("SPHERULE_PASSWORD").unwrap_or_default();
    if args.username.is_some() && password.is_empty() {
        bail!("--username needs a password in the environment variable SPHERULE_PASSWORD");
    }
    let request = PullImageRequest {
        reference: args.image,
        username: args.username.unwrap_or_default(),
        password,
    };
    let mut events = daemon
        .images
        .pull_image(request)
        .await
        .map_err(refused)?
        .into_inner();
    let mut bars = Bars::default();
    while let Some(message) = events.message().await.map_err(refused)? {
        match message.event {
            Some(Event::Progress(progress)) => bars.show(progress)?,
            Some(Event::Done(image)) => {
                bars.clear()?;
                print(&[image], how)?;
            }
            None => {}
        }
    }
    Ok(())
}

/// A bar a layer.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    one: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn show(&mut self, progress: PullProgress) -> anyhow::Result<()> {
        let style = ProgressStyle::with_template(
            "{prefix:12} {msg:12} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}",
        )?;
        let bar = self.one.entry(progress.digest.clone()).or_insert_with(|| {
            let bar = self
                .all
                .add(ProgressBar::new(progress.total))
                .with_style(style);
            let short = progress
                .digest
                .trim_start_matches("sha256:")
                .chars()
                .take(12);
            bar.with_prefix(short.collect::<String>())
        });
        bar.set_length(progress.total);
        bar.set_position(progress.current);
        bar.set_message(progress.status);
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.all.clear()
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct ImportArgs {
    /// Name for an archive that names none
    #[arg(long, short)]
    tag: Option<String>,
    /// An archive, a directory with an OCI image layout, or `-` for standard input
    source: PathBuf,
}

/// Sends an archive to the daemon.
pub(crate) async fn import(
    mut daemon: Daemon,
    args: ImportArgs,
    how: Output,
) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(4);
    let first = ImportImageRequest {
        reference: args.tag.unwrap_or_default(),
        data: Vec::new(),
    };
    sender.send(first).await?;
    let source = args.source;
    let reader = tokio::task::spawn_blocking(move || read_source(&source, Chunks::new(sender)));
    let answer = daemon
        .images
        .import_image(ReceiverStream::new(receiver))
        .await;
    // A daemon that refuses stops reading; its words matter more than the broken pipe.
    let images = answer.map_err(refused)?.into_inner().images;
    reader.await??;
    print(&images, how)?;
    Ok(())
}

/// Writes an archive, or the archive of a directory, into `to`.
fn read_source(source: &Path, mut to: Chunks) -> anyhow::Result<()> {
    if source.is_dir() {
        let mut tar = tar::Builder::new(&mut to);
        tar.append_dir_all("", source)
            .with_context(|| format!("cannot read the directory {}", source.display()))?;
        tar.finish()?;
        drop(tar);
        return Ok(to.flush()?);
    }
    let mut from: Box<dyn Read> = if source == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let file = File::open(source)
            .with_context(|| format!("cannot open the archive {}", source.display()))?;
        Box::new(file)
    };
    io::copy(&mut from, &mut to).with_context(|| format!("cannot read {}", source.display()))?;
    Ok(to.flush()?)
}

/// A writer whose bytes go to the daemon in messages.
struct Chunks {
    sender: mpsc::Sender<ImportImageRequest>,
    buffer: Vec<u8>,
}

impl Chunks {
    fn new(sender: mpsc::Sender<ImportImageRequest>) -> Self {
        Self {
            sender,
            buffer: Vec::with_capacity(pod_api::IMPORT_CHUNK),
        }
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = pod_api::IMPORT_CHUNK - self.buffer.len();
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == pod_api::IMPORT_CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.buffer);
        let message = ImportImageRequest {
            reference: String::new(),
            data,
        };
        let sent = self.sender.blocking_send(message);
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the daemon stopped reading"))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct RmiArgs {
    /// Reference, digest, id or unique prefix of it
    #[arg(required = true)]
    images: Vec<String>,
}

/// Removes images one after the other.
pub(crate) async fn remove(mut daemon: Daemon, args: RmiArgs) -> anyhow::Result<()> {
    for image in args.images {
        let request = RemoveImageRequest {
            image: image.clone(),
        };
        let answer = daemon
            .images
            .remove_image(request)
            .await
            .map_err(refused)?
            .into_inner();
        for name in answer.untagged {
            output::print(format_args!("untagged: {name}"))?;
        }
        if answer.deleted {
            output::print(format_args!("deleted: {image}"))?;
        }
    }
    Ok(())
}
