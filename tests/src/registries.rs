//! Where the daemon finds registries: the directory behind `--registries`.

use tempfile::TempDir;

/// A directory with a `hosts.toml` for each of some registries.
#[derive(Debug)]
pub struct Registries(TempDir);

impl Registries {
    /// With that text in each `hosts.toml`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(names: &[&str], hosts: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        for name in names {
            let registry = dir.path().join(name);
            std::fs::create_dir(&registry)?;
            std::fs::write(registry.join("hosts.toml"), hosts)?;
        }
        Ok(Self(dir))
    }

    /// A registry that is reached at this address, by plain HTTP.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn plain(name: &str, address: &str) -> anyhow::Result<Self> {
        Self::new(&[name], &format!("server = \"http://{address}\"\n"))
    }

    /// What `spherule serve` is told of it.
    pub fn args(&self) -> Vec<String> {
        let dir = self.0.path().to_string_lossy().into_owned();
        vec!["--registries".into(), dir]
    }
}
