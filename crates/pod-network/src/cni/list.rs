//! One network configuration list, parsed and checked.

use super::version::SpecVersion;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Why a file is no valid network configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// Not JSON, or not an object.
    #[error("not a JSON object")]
    Json(#[source] serde_json::Error),
    /// A field is missing or of a wrong kind.
    #[error("{field} {problem}")]
    Field {
        /// Which.
        field: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A list's content in a file for a single plugin.
    #[error("it holds a list of plugins, and so must be named *.conflist")]
    ListInConf,
    /// A version that we do not speak.
    #[error("cniVersion {0:?} is not supported; supported are 0.3.1, 0.4.0, 1.0.0, 1.1.0")]
    Version(String),
}

fn field(field: impl Into<String>, problem: &'static str) -> ListError {
    ListError::Field {
        field: field.into(),
        problem,
    }
}

/// A network: plugins that run one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The version that the plugins are spoken to in.
    pub version: SpecVersion,
    /// CHECK is not for this network.
    #[serde(default)]
    pub disable_check: bool,
    /// GC is not for this network.
    #[serde(default)]
    pub disable_gc: bool,
    /// The plugins in the order of ADD; never empty.
    pub plugins: Vec<PluginConf>,
}

/// The configuration of one plugin, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PluginConf {
    pub(crate) conf: Map<String, Value>,
}

impl PluginConf {
    fn parse(value: &Value, place: &str) -> Result<Self, ListError> {
        let conf = value
            .as_object()
            .ok_or_else(|| field(place, "is not an object"))?;
        match conf.get("type").and_then(Value::as_str) {
            None | Some("") => Err(field(format!("{place}.type"), "is missing")),
            // The name becomes a path below the plugin directories.
            Some(kind) if kind.contains('/') || kind == "." || kind == ".." => Err(field(
                format!("{place}.type"),
                "is not the name of a plugin",
            )),
            Some(_) => Ok(Self { conf: conf.clone() }),
        }
    }

    /// The plugin's name, which is its program's too.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.conf
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The address plugin that this one will run, where it names one.
    #[must_use]
    pub fn ipam(&self) -> Option<&str> {
        let kind = self.conf.get("ipam")?.get("type")?.as_str()?;
        (!kind.is_empty()).then_some(kind)
    }

    /// Kernel parameters that the plugin is told to set in the namespace (`tuning`).
    pub(crate) fn sysctls(&self) -> Vec<String> {
        let told = self.conf.get("sysctl").and_then(Value::as_object);
        told.into_iter()
            .flat_map(|map| map.keys().cloned())
            .collect()
    }

    /// The capabilities that the plugin's configuration switches on.
    #[must_use]
    pub fn capabilities(&self) -> BTreeSet<&str> {
        self.conf
            .get("capabilities")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter(|(_, enabled)| enabled.as_bool() == Some(true))
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

impl NetworkList {
    /// Parses the content of a `*.conflist` file.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn from_conflist(bytes: &[u8]) -> Result<Self, ListError> {
        let object: Map<String, Value> = serde_json::from_slice(bytes).map_err(ListError::Json)?;
        let plugins = object
            .get("plugins")
            .ok_or_else(|| field("plugins", "is missing"))?
            .as_array()
            .ok_or_else(|| field("plugins", "is not a list"))?;
        if plugins.is_empty() {
            return Err(field("plugins", "is empty"));
        }
        Ok(Self {
            name: name(&object)?,
            version: version(&object)?,
            disable_check: switch(&object, "disableCheck")?,
            disable_gc: switch(&object, "disableGC")?,
            plugins: plugins
                .iter()
                .enumerate()
                .map(|(i, plugin)| PluginConf::parse(plugin, &format!("plugins[{i}]")))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Parses the content of a `*.conf` or `*.json` file: one plugin, which
    /// becomes a list of one.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn from_conf(bytes: &[u8]) -> Result<Self, ListError> {
        let object: Map<String, Value> = serde_json::from_slice(bytes).map_err(ListError::Json)?;
        if object.contains_key("plugins") && !object.contains_key("type") {
            return Err(ListError::ListInConf);
        }
        Ok(Self {
            name: name(&object)?,
            version: version(&object)?,
            disable_check: false,
            disable_gc: false,
            plugins: vec![PluginConf::parse(&Value::Object(object), "the plugin")?],
        })
    }
}

fn name(object: &Map<String, Value>) -> Result<String, ListError> {
    let name = object
        .get("name")
        .and_then(Value::as_str)
        .ok_or_else(|| field("name", "is missing"))?;
    if !is_identifier(name) {
        return Err(field(
            "name",
            "must begin with a letter or digit, and hold letters, digits, '_', '.', '-' only",
        ));
    }
    Ok(name.to_owned())
}

/// What the specification allows for names of networks and containers.
pub(crate) fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// The highest version that both we and the configuration know: of
/// `cniVersions` where there is one (1.1.0), or `cniVersion`.
fn version(object: &Map<String, Value>) -> Result<SpecVersion, ListError> {
    let given = match object.get("cniVersion") {
        None => None,
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) => return Err(field("cniVersion", "is not a string")),
    };
    let several = match object.get("cniVersions") {
        None => &[][..],
        Some(Value::Array(list)) => list,
        Some(_) => return Err(field("cniVersions", "is not a list")),
    };
    several
        .iter()
        .filter_map(Value::as_str)
        .chain(given)
        .filter_map(SpecVersion::parse)
        .max()
        .ok_or_else(|| match given {
            None if several.is_empty() => field("cniVersion", "is missing"),
            None => ListError::Version(Value::from(several.to_vec()).to_string()),
            Some(given) => ListError::Version(given.to_owned()),
        })
}

/// A boolean, which some configurations write as a string.
fn switch(object: &Map<String, Value>, name: &str) -> Result<bool, ListError> {
    match object.get(name) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(field(name, "is neither true nor false")),
    }
}

#[cfg(test)]
mod tests;
