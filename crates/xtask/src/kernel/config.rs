//! The kernel configuration that we ask for, and what the kernel made of it.
//!
//! `guest-kernel/config/*.config` holds groups of options; a group is a run of
//! lines without an empty one between them, and starts with a comment that
//! gives the reason. Options that are not named are off (`allnoconfig`).

use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Options by name, with their values; `n` where an option is off.
pub(super) type Options = BTreeMap<String, String>;

/// The options of all fragments.
pub(super) struct Wanted {
    /// The fragments one after the other, as the kernel's own tools read them.
    pub(super) text: String,
    options: Options,
}

impl Wanted {
    /// Reads the fragments of a folder, by name.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .with_context(|| format!("cannot read {}", folder.display()))?
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "config"))
            .collect();
        files.sort();
        if files.is_empty() {
            bail!(
                "{} holds no kernel configuration (*.config)",
                folder.display()
            );
        }
        let (mut text, mut options) = (String::new(), Options::new());
        for file in files {
            let fragment = fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            for (name, value) in
                parse_fragment(&fragment).with_context(|| file.display().to_string())?
            {
                if options.insert(name.clone(), value).is_some() {
                    bail!(
                        "{}: {name} is set by an earlier fragment already",
                        file.display()
                    );
                }
            }
            text.push_str(&fragment);
        }
        Ok(Self { text, options })
    }

    /// Names each wanted option that the kernel's final configuration does not have.
    pub(super) fn check(&self, final_config: &str) -> anyhow::Result<()> {
        let got = parse_options(final_config)?;
        let wrong: Vec<String> = self
            .options
            .iter()
            .filter_map(|(name, wanted)| {
                let found = got.get(name).map_or("n", String::as_str);
                (found != wanted)
                    .then(|| format!("    {name}: wanted {wanted}, the kernel made it {found}"))
            })
            .collect();
        if !wrong.is_empty() {
            bail!(
                "this kernel source does not take {} of the options in guest-kernel/config (a \
                 dependency is off, the option was renamed, or another option selects it):\n{}",
                wrong.len(),
                wrong.join("\n")
            );
        }
        Ok(())
    }
}

/// The options of one fragment; an error for a group that gives no reason.
fn parse_fragment(text: &str) -> anyhow::Result<Options> {
    let mut all = Options::new();
    for group in text.split("\n\n") {
        let options = parse_options(group)?;
        let first = group
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default();
        if !options.is_empty() && parse_line(first)?.is_some() {
            bail!("the group that starts with {first:?} gives no reason (a comment above it)");
        }
        for (name, value) in options {
            if all.insert(name.clone(), value).is_some() {
                bail!("{name} is set twice");
            }
        }
    }
    Ok(all)
}

fn parse_options(text: &str) -> anyhow::Result<Options> {
    text.lines()
        .filter_map(|line| parse_line(line).transpose())
        .collect()
}

/// `CONFIG_X=value` or `# CONFIG_X is not set`; nothing for comments and empty lines.
fn parse_line(line: &str) -> anyhow::Result<Option<(String, String)>> {
    let line = line.trim();
    if let Some(name) = line
        .strip_prefix("# ")
        .and_then(|l| l.strip_suffix(" is not set"))
        && is_option(name)
    {
        return Ok(Some((name.to_owned(), "n".to_owned())));
    }
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    match line.split_once('=') {
        Some((name, value)) if is_option(name) && !value.is_empty() => {
            Ok(Some((name.to_owned(), value.to_owned())))
        }
        _ => bail!("{line:?} is neither an option nor a comment"),
    }
}

fn is_option(name: &str) -> bool {
    name.strip_prefix("CONFIG_").is_some_and(|rest| {
        !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        Wanted::read(&root.join("guest-kernel/config")).unwrap()
    }

    #[test]
    fn our_fragments_parse_and_each_group_gives_a_reason() {
        // What a pod cannot do without, a few of each kind.
        let options = wanted().options;
        for name in [
            "CONFIG_PVH",
            "CONFIG_USER_NS",
            "CONFIG_EROFS_FS",
            "CONFIG_NF_TABLES",
        ] {
            assert_eq!(options.get(name).map(String::as_str), Some("y"), "{name}");
        }
        assert_eq!(options["CONFIG_MODULES"], "n");
    }

    #[test]
    fn group_without_reason_is_refused() {
        let error = parse_fragment("# why\nCONFIG_A=y\n\nCONFIG_B=y\n").unwrap_err();
        assert!(error.to_string().contains("CONFIG_B"), "{error}");
        let error = parse_fragment("# CONFIG_A is not set\nCONFIG_B=y\n").unwrap_err();
        assert!(error.to_string().contains("CONFIG_A"), "{error}");
    }

    #[test]
    fn option_set_twice_is_refused() {
        assert!(parse_fragment("# why\nCONFIG_A=y\n\n# again\n# CONFIG_A is not set\n").is_err());
    }

    #[test]
    fn line_that_is_no_option_is_refused() {
        for line in ["CONFIG_A", "CONFIG_=y", "A=y", "CONFIG_A=", "CONFIG_A B=y"] {
            assert!(parse_options(line).is_err(), "{line}");
        }
    }

    #[test]
    fn check_names_what_did_not_take() {
        let text = "# why\nCONFIG_A=y\nCONFIG_B=\"x\"\n# CONFIG_C is not set\nCONFIG_D=y\n";
        let wanted = Wanted {
            text: text.to_owned(),
            options: parse_fragment(text).unwrap(),
        };
        wanted
            .check("CONFIG_A=y\nCONFIG_B=\"x\"\nCONFIG_D=y\nCONFIG_E=y\n")
            .unwrap();
        let error = wanted
            .check("CONFIG_A=y\nCONFIG_C=y\n")
            .unwrap_err()
            .to_string();
        assert!(!error.contains("CONFIG_A"), "{error}");
        for name in ["CONFIG_B", "CONFIG_C", "CONFIG_D"] {
            assert!(error.contains(name), "{name} in {error}");
        }
    }
}
