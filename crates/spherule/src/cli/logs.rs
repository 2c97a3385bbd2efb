//! `spherule logs`, and the printer that `run` shares.

use super::client::{Daemon, refused};
use pod_api::v1::{LogsRequest, LogsResponse, logs_response::Stream};
use std::collections::BTreeMap;
use std::io::{self, Write};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on until all containers have ended
    #[arg(long, short)]
    follow: bool,
    /// Only this container; may be given several times
    #[arg(long, short)]
    container: Vec<String>,
    /// Id, unique prefix of it, name, or namespace/name
    pod: String,
}

/// Prints the output of a pod's containers; with their names in front where
/// there are several.
pub(crate) async fn run(mut daemon: Daemon, args: Args) -> anyhow::Result<()> {
    let get = pod_api::v1::GetPodRequest {
        pod: args.pod.clone(),
    };
    let pod = daemon
        .pods
        .get_pod(get)
        .await
        .map_err(refused)?
        .into_inner()
        .pod
        .unwrap_or_default();
    let shown = match args.container.len() {
        0 => pod.init_containers.len() + pod.containers.len(),
        n => n,
    };
    let request = LogsRequest {
        pod: args.pod,
        containers: args.container,
        follow: args.follow,
    };
    let mut lines = daemon
        .pods
        .logs(request)
        .await
        .map_err(refused)?
        .into_inner();
    let mut printer = Printer::new(shown > 1);
    while let Some(line) = lines.message().await.map_err(refused)? {
        printer.print(&line)?;
    }
    Ok(())
}

/// Puts containers' bytes on our stdout and stderr, each line with its
/// container's name in front if asked.
pub(crate) struct Printer {
    named: bool,
    /// The streams whose last piece did not end its line.
    open: BTreeMap<(String, i32), ()>,
}

impl Printer {
    pub(crate) fn new(named: bool) -> Self {
        Self {
            named,
            open: BTreeMap::new(),
        }
    }

    /// Prints one piece. Containers may write anything; the bytes pass as they are.
    pub(crate) fn print(&mut self, line: &LogsResponse) -> io::Result<()> {
        match line.stream() {
            Stream::Stderr => self.write(line, &mut io::stderr().lock()),
            _ => self.write(line, &mut io::stdout().lock()),
        }
    }

    fn write(&mut self, line: &LogsResponse, to: &mut impl Write) -> io::Result<()> {
        let key = (line.container.clone(), line.stream);
        let goes_on = self.open.remove(&key).is_some();
        if self.named && !goes_on {
            write!(to, "[{}] ", line.container)?;
        }
        to.write_all(&line.data)?;
        if line.data.last() != Some(&b'\n') {
            self.open.insert(key, ());
        }
        to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(container: &str, data: &str) -> LogsResponse {
        LogsResponse {
            container: container.into(),
            stream: Stream::Stdout.into(),
            time_ns: 1,
            data: data.into(),
        }
    }

    #[test]
    fn every_line_has_its_name_once() {
        let mut printer = Printer::new(true);
        let mut out = Vec::new();
        for p in [
            piece("a", "one "),
            piece("a", "line\n"),
            piece("b", "two\n"),
        ] {
            printer.write(&p, &mut out).unwrap();
        }
        assert_eq!(String::from_utf8(out).unwrap(), "[a] one line\n[b] two\n");
    }
}
