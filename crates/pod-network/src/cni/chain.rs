//! Commands to all plugins of a list, in the specification's order.

use super::answer::{self, ResultError};
use super::list::{NetworkList, PluginConf};
use super::plugin::{self, Command, PluginError, PluginFailure};
use super::version::SpecVersion;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A list of plugins and how to run them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain<'a> {
    pub(crate) list: &'a NetworkList,
    /// Where the programs are.
    pub(crate) directories: &'a [PathBuf],
    /// For each run of a plugin.
    pub(crate) timeout: Duration,
}

/// The attachment that a command is about.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    /// CNI_CONTAINERID
    pub(crate) container_id: &'a str,
    /// CNI_NETNS; empty when the namespace is gone.
    pub(crate) netns: String,
    /// CNI_IFNAME
    pub(crate) interface: &'a str,
    /// CNI_ARGS
    pub(crate) arguments: String,
    /// Runtime configuration by capability.
    pub(crate) capabilities: BTreeMap<&'a str, Value>,
}

impl Chain<'_> {
    /// ADD to the plugin at that place of the list; its result, to be given to
    /// the next one.
    pub(crate) fn add(
        &self,
        place: usize,
        target: &Target<'_>,
        previous: Option<&Value>,
    ) -> Result<Option<Value>, PluginError> {
        let Some(conf) = self.list.plugins.get(place) else {
            return Ok(None);
        };
        let fail = |failure| self.error(conf, Command::Add, failure);
        let answer = self.run(conf, Command::Add, Some(target), previous, &[])?;
        answer::read_result(&answer, self.list.version)
            .map(Some)
            .map_err(|e| fail(PluginFailure::Result(e)))
    }

    /// CHECK to all plugins, where version and configuration have it.
    pub(crate) fn check(&self, target: &Target<'_>, result: &Value) -> Result<(), PluginError> {
        if self.list.disable_check || self.list.version < SpecVersion::V0_4_0 {
            return Ok(());
        }
        for conf in &self.list.plugins {
            self.run(conf, Command::Check, Some(target), Some(result), &[])?;
        }
        Ok(())
    }

    /// DEL to all plugins, last first; stops at the first that fails, so that
    /// the ones before it still find what they need when it is tried again.
    pub(crate) fn del(
        &self,
        target: &Target<'_>,
        result: Option<&Value>,
    ) -> Result<(), PluginError> {
        let result = result.filter(|_| self.list.version >= SpecVersion::V0_4_0);
        for conf in self.list.plugins.iter().rev() {
            self.run(conf, Command::Del, Some(target), result, &[])?;
        }
        Ok(())
    }

    /// GC to all plugins: all attachments but these are no more. Tries all, up to
    /// one that hangs, and reports what failed.
    pub(crate) fn gc(&self, valid: &[(&str, &str)]) -> Vec<PluginError> {
        if self.list.disable_gc || self.list.version < SpecVersion::V1_1_0 {
            return Vec::new();
        }
        let valid: Vec<Value> = valid
            .iter()
            .map(|(id, interface)| json!({"containerID": id, "ifname": interface}))
            .collect();
        let extra = [("cni.dev/valid-attachments", Value::Array(valid))];
        let mut failed = Vec::new();
        for conf in &self.list.plugins {
            if let Err(error) = self.run(conf, Command::Gc, None, None, &extra) {
                let hung = matches!(error.failure, PluginFailure::TimedOut { .. });
                failed.push(error);
                if hung {
                    break;
                }
            }
        }
        failed
    }

    /// STATUS to all plugins, where the version has it.
    pub(crate) fn status(&self) -> Result<(), PluginError> {
        if self.list.version < SpecVersion::V1_1_0 {
            return Ok(());
        }
        for conf in &self.list.plugins {
            self.run(conf, Command::Status, None, None, &[])?;
        }
        Ok(())
    }

    /// The program of every plugin; fails where one is missing, or that of the
    /// address plugin it names.
    pub(crate) fn programs(&self) -> Result<Vec<(&PluginConf, PathBuf)>, PluginError> {
        self.list
            .plugins
            .iter()
            .map(|conf| {
                let find = |kind| {
                    plugin::find(kind, self.directories)
                        .map_err(|failure| self.error(conf, Command::Status, failure))
                };
                conf.ipam().map(find).transpose()?;
                Ok((conf, find(conf.kind())?))
            })
            .collect()
    }

    pub(crate) fn error(
        &self,
        conf: &PluginConf,
        command: Command,
        failure: PluginFailure,
    ) -> PluginError {
        PluginError {
            plugin: conf.kind().to_owned(),
            network: self.list.name.clone(),
            command,
            failure,
        }
    }

    fn run(
        &self,
        conf: &PluginConf,
        command: Command,
        target: Option<&Target<'_>>,
        previous: Option<&Value>,
        extra: &[(&str, Value)],
    ) -> Result<Vec<u8>, PluginError> {
        let fail = |failure| self.error(conf, command, failure);
        let program = plugin::find(conf.kind(), self.directories).map_err(fail)?;
        let input = self.input(conf, target, previous, extra);
        let input = serde_json::to_vec(&input).map_err(|source| {
            fail(PluginFailure::Result(ResultError::Malformed {
                start: String::new(),
                source,
            }))
        })?;
        let path = std::env::join_paths(self.directories)
            .map(|p| p.to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut env = vec![("CNI_PATH", path)];
        if let Some(target) = target {
            env.extend([
                ("CNI_CONTAINERID", target.container_id.to_owned()),
                ("CNI_NETNS", target.netns.clone()),
                ("CNI_IFNAME", target.interface.to_owned()),
                ("CNI_ARGS", target.arguments.clone()),
            ]);
        }
        tracing::debug!(plugin = conf.kind(), %command, "run CNI plugin");
        plugin::run(&program, command, &env, &input, self.timeout).map_err(fail)
    }

    /// The configuration that a plugin gets on its standard input.
    fn input(
        &self,
        conf: &PluginConf,
        target: Option<&Target<'_>>,
        previous: Option<&Value>,
        extra: &[(&str, Value)],
    ) -> Map<String, Value> {
        let mut input = conf.conf.clone();
        input.insert("name".into(), self.list.name.clone().into());
        input.insert("cniVersion".into(), self.list.version.as_str().into());
        // What the runtime fills in is never the file's.
        input.remove("runtimeConfig");
        input.remove("prevResult");
        if let Some(target) = target {
            let declared = conf.capabilities();
            let runtime: Map<String, Value> = target
                .capabilities
                .iter()
                .filter(|(name, _)| declared.contains(*name))
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect();
            if !runtime.is_empty() {
                input.insert("runtimeConfig".into(), Value::Object(runtime));
            }
        }
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        for (name, value) in extra {
            input.insert((*name).to_owned(), value.clone());
        }
        input
    }
}

#[cfg(test)]
mod tests;
