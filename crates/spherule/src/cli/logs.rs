//! `spherule logs`, and the printer that `run` shares.

use super::client::{Daemon, refused};
use pod_api::v1::{LogsRequest, LogsResponse, logs_response::Stream};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on until all containers have ended
    #[arg(long, short)]
    follow: bool,
    /// Only this container; may be given several times
    #[arg(long, short)]
    container: Vec<String>,
    /// All containers, which is the default
    #[arg(long, conflicts_with = "container")]
    all_containers: bool,
    /// Only what was written in this time: 10s, 5m, 1h30m
    #[arg(long, value_parser = humantime::parse_duration, conflicts_with = "since_time")]
    since: Option<Duration>,
    /// Only what was written from then on: 2026-11-28T18:00:00Z
    #[arg(long, value_parser = since_time)]
    since_time: Option<i64>,
    /// Only so many last lines of each container; -1: all
    #[arg(
        long,
        allow_negative_numbers = true,
        default_value = "-1",
        hide_default_value = true
    )]
    tail: i64,
    /// Each line with the time at which it was written
    #[arg(long)]
    timestamps: bool,
    /// The instance of the container before this one
    #[arg(long, short)]
    previous: bool,
    /// Each line with its container's name [default: where there are several]
    #[arg(long)]
    prefix: bool,
    /// Id, unique prefix of it, name, or namespace/name
    pod: String,
}

/// RFC 3339, in nanoseconds since the epoch.
fn since_time(text: &str) -> Result<i64, String> {
    let time = humantime::parse_rfc3339(text).map_err(|e| e.to_string())?;
    nanoseconds(time).ok_or_else(|| "is no time of a log".to_owned())
}

fn nanoseconds(time: SystemTime) -> Option<i64> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_nanos()).ok()
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
        0 => [
            pod.init_containers,
            pod.containers,
            pod.ephemeral_containers,
        ]
        .concat()
        .len(),
        n => n,
    };
    // The daemon's clock is ours.
    let before = args.since.map(|d| SystemTime::now().checked_sub(d));
    let since_ns = match before {
        Some(time) => time.and_then(nanoseconds),
        None => args.since_time,
    };
    let request = LogsRequest {
        pod: args.pod,
        containers: args.container,
        follow: args.follow,
        since_ns: since_ns.unwrap_or(0),
        tail_lines: u64::try_from(args.tail).ok(),
        previous: args.previous,
    };
    let mut lines = daemon
        .pods
        .logs(request)
        .await
        .map_err(refused)?
        .into_inner();
    let mut printer = Printer::new(shown > 1 || args.prefix, args.timestamps);
    while let Some(line) = lines.message().await.map_err(refused)? {
        printer.print(&line)?;
    }
    Ok(())
}

/// Puts containers' bytes on our stdout and stderr, each line with its
/// container's name and its time in front if asked.
pub(crate) struct Printer {
    named: bool,
    timed: bool,
    /// The streams whose last piece did not end its line.
    open: BTreeMap<(String, i32), ()>,
}

impl Printer {
    pub(crate) fn new(named: bool, timed: bool) -> Self {
        Self {
            named,
            timed,
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
        if self.timed && !goes_on {
            let time = Duration::from_nanos(line.time_ns.max(0).unsigned_abs());
            let time = humantime::format_rfc3339_nanos(UNIX_EPOCH + time);
            write!(to, "{time} ")?;
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
        let mut printer = Printer::new(true, false);
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

    #[test]
    fn time_stands_before_the_line_and_not_before_its_pieces() {
        let mut printer = Printer::new(false, true);
        let mut out = Vec::new();
        for p in [piece("a", "one "), piece("a", "line\n")] {
            printer.write(&p, &mut out).unwrap();
        }
        let expected = "1970-01-01T00:00:00.000000001Z one line\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        assert_eq!(since_time("1970-01-01T00:00:01Z"), Ok(1_000_000_000));
        assert!(since_time("yesterday").is_err());
    }
}
