//! Files as a whole: making, looking at and removing many small ones. By this program
//! itself, on the host and in a pod: fio takes longer for its own lists than for the
//! files.

use anyhow::{Context, ensure};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

const FILES: u32 = 10_000;
/// What is done to each, in this order.
const WORK: [&str; 3] = ["create", "stat", "unlink"];

/// The command that works in a directory.
pub(crate) fn command(program: &str, directory: &Path) -> Vec<String> {
    [program, "--many-files", &directory.display().to_string()]
        .map(str::to_owned)
        .to_vec()
}

/// Works in a directory; prints the seconds of each kind of work.
pub(crate) fn work(directory: &Path) -> anyhow::Result<()> {
    let directory = directory.join("many");
    fs::create_dir(&directory)?;
    let paths: Vec<PathBuf> = (0..FILES)
        .map(|number| directory.join(number.to_string()))
        .collect();
    for work in [create, stat, unlink] {
        let start = Instant::now();
        paths.iter().try_for_each(work)?;
        println!("{}", start.elapsed().as_secs_f64());
    }
    fs::remove_dir(&directory)?;
    Ok(())
}

fn create(path: &PathBuf) -> io::Result<()> {
    File::create_new(path)?.write_all(b"some words")
}

fn stat(path: &PathBuf) -> io::Result<()> {
    fs::metadata(path).map(drop)
}

fn unlink(path: &PathBuf) -> io::Result<()> {
    fs::remove_file(path)
}

/// Files a second of each kind of work, by the name of its row, from what [`work`]
/// printed.
pub(crate) fn rates(printed: &str) -> anyhow::Result<Vec<(String, f64)>> {
    let seconds: Vec<f64> = printed
        .lines()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| printed.to_owned())?;
    ensure!(seconds.len() == WORK.len(), "it printed {printed:?}");
    let row = |(work, seconds): (&&str, &f64)| {
        (
            format!("{work} of {FILES} files"),
            f64::from(FILES) / seconds,
        )
    };
    Ok(WORK.iter().zip(&seconds).map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_files_a_second() {
        let rates = rates("2\n0.5\n4\n").unwrap();
        assert_eq!(rates[0], ("create of 10000 files".to_owned(), 5000.0));
        assert_eq!((rates[1].1, rates[2].1), (20_000.0, 2500.0));
        assert!(super::rates("1\n2\n").is_err() && super::rates("x\n").is_err());
    }
}
