//! Random operations on one file, each compared with what memory says it must be.

use super::mapped::Mapped;
use anyhow::{Context, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Longest that the file gets.
const MAX_LEN: usize = 200_000;
/// Longest piece of one operation.
const MAX_PIECE: usize = 40_000;

/// `ROUNDS SEED DIRECTORY...`: so many operations on a file `fsx` in each directory,
/// which stays there, so that others can compare it by its checksum.
pub(super) fn run(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut number = || {
        let text = arguments.next().context("ROUNDS SEED DIRECTORY...")?;
        text.parse::<u64>().context(text)
    };
    let (rounds, seed) = (number()?, number()?);
    for directory in arguments {
        let mut file = Tried::new(Path::new(&directory), seed)?;
        for round in 0..rounds {
            file.step()
                .with_context(|| format!("{directory}: seed {seed}, operation {round}"))?;
        }
        file.compare()?;
        file.sync()?;
        let sum = checksum(&file.model);
        println!("{directory}: {rounds} operations, {sum:016x}");
    }
    Ok(())
}

/// FNV-1a: two computations of it agree only about the same bytes, but for chance.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// xorshift64*: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or_default() % bound.max(1)
    }
}

/// The file, and what it must hold.
struct Tried {
    path: PathBuf,
    file: File,
    model: Vec<u8>,
    random: Random,
}

impl Tried {
    fn new(directory: &Path, seed: u64) -> anyhow::Result<Self> {
        let path = directory.join("fsx");
        fs::write(&path, "")?;
        Ok(Self {
            file: open(&path)?,
            path,
            model: Vec::new(),
            random: Random(seed | 1),
        })
    }

    /// A piece that may reach behind the end, but not over the longest length.
    fn piece(&mut self) -> (usize, usize) {
        let start = self.random.below(MAX_LEN);
        (start, self.random.below(MAX_PIECE.min(MAX_LEN - start)) + 1)
    }

    /// A piece of what is there; `None` of an empty file.
    fn piece_inside(&mut self) -> Option<(usize, usize)> {
        if self.model.is_empty() {
            return None;
        }
        let start = self.random.below(self.model.len());
        let most = MAX_PIECE.min(self.model.len() - start);
        Some((start, self.random.below(most) + 1))
    }

    fn fill(&mut self, len: usize) -> Vec<u8> {
        let first = self.random.below(255);
        (0..=u8::MAX).cycle().skip(first).take(len).collect()
    }

    fn put(&mut self, start: usize, bytes: &[u8]) {
        let end = start + bytes.len();
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[start..end].copy_from_slice(bytes);
    }

    fn step(&mut self) -> anyhow::Result<()> {
        match self.random.below(14) {
            0..3 => self.write(),
            3..6 => self.read(),
            6 => self.truncate(),
            7 => self.append(),
            8 => self.write_mapped(),
            9 => self.read_mapped(),
            10 => self.punch(),
            11 => self.sync(),
            12 => self.reopen(),
            _ => self.check_length(),
        }
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let (start, len) = self.piece();
        let bytes = self.fill(len);
        self.file.write_all_at(&bytes, start as u64)?;
        self.put(start, &bytes);
        Ok(())
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let (start, len) = self.piece();
        let mut bytes = vec![0; len];
        let mut got = 0;
        while got < len {
            match self.file.read_at(&mut bytes[got..], (start + got) as u64)? {
                0 => break,
                more => got += more,
            }
        }
        let wanted = self.model.get(start..).unwrap_or_default();
        let wanted = &wanted[..wanted.len().min(len)];
        same(&bytes[..got], wanted, start, "read")
    }

    fn truncate(&mut self) -> anyhow::Result<()> {
        let len = self.random.below(MAX_LEN);
        self.file.set_len(len as u64)?;
        self.model.resize(len, 0);
        Ok(())
    }

    fn append(&mut self) -> anyhow::Result<()> {
        let len = self.random.below(5000).min(MAX_LEN - self.model.len());
        let bytes = self.fill(len);
        let mut file = File::options().append(true).open(&self.path)?;
        file.write_all(&bytes)?;
        self.put(self.model.len(), &bytes);
        Ok(())
    }

    fn write_mapped(&mut self) -> anyhow::Result<()> {
        let Some((start, len)) = self.piece_inside() else {
            return Ok(());
        };
        let bytes = self.fill(len);
        let mapped = Mapped::shared(&self.file, start + len)?;
        for (at, byte) in bytes.iter().enumerate() {
            mapped.set(start + at, *byte);
        }
        self.put(start, &bytes);
        Ok(())
    }

    fn read_mapped(&mut self) -> anyhow::Result<()> {
        let Some((start, len)) = self.piece_inside() else {
            return Ok(());
        };
        let mapped = Mapped::shared(&self.file, start + len)?;
        let bytes: Vec<u8> = (start..start + len).map(|at| mapped.get(at)).collect();
        same(&bytes, &self.model[start..start + len], start, "mapping")
    }

    fn punch(&mut self) -> anyhow::Result<()> {
        let Some((start, len)) = self.piece_inside() else {
            return Ok(());
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, start as u64, len as u64)?;
        self.model[start..start + len].fill(0);
        Ok(())
    }

    fn sync(&mut self) -> anyhow::Result<()> {
        Ok(self.file.sync_data()?)
    }

    fn reopen(&mut self) -> anyhow::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    fn check_length(&mut self) -> anyhow::Result<()> {
        let (found, wanted) = (self.file.metadata()?.len(), self.model.len() as u64);
        ensure!(found == wanted, "{found} bytes long instead of {wanted}");
        Ok(())
    }

    fn compare(&mut self) -> anyhow::Result<()> {
        self.check_length()?;
        same(&fs::read(&self.path)?, &self.model, 0, "whole file")
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).open(path)
}

fn same(found: &[u8], wanted: &[u8], start: usize, how: &str) -> anyhow::Result<()> {
    if found == wanted {
        return Ok(());
    }
    let at = found.iter().zip(wanted).position(|(a, b)| a != b);
    let at = at.unwrap_or_else(|| found.len().min(wanted.len()));
    bail!(
        "{how}: byte {} is {:?} instead of {:?} ({} bytes instead of {})",
        start + at,
        found.get(at),
        wanted.get(at),
        found.len(),
        wanted.len()
    );
}
