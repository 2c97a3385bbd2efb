//! A container's environment, as manifests write it.

use super::downward::{Place, check_field, check_resource};
use super::names::{is_dns_subdomain, is_env_name};
use super::validate::{Faults, SUBDOMAIN_FORM, no_nul};
use super::{Container, FieldRef, PodSpec, ResourceFieldRef};
use crate::objects::is_key;
use serde::Deserialize;

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct EnvVar {
    pub name: String,
    #[serde(default)]
    pub value: String,
    #[serde(default)]
    pub value_from: Option<EnvSource>,
}

/// `valueFrom`: one of these.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct EnvSource {
    pub config_map_key_ref: Option<KeyRef>,
    pub secret_key_ref: Option<KeyRef>,
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceFieldRef>,
}

/// A key of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct KeyRef {
    pub name: String,
    pub key: String,
    pub optional: bool,
}

/// `envFrom`: all keys of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct EnvFrom {
    pub prefix: String,
    pub config_map_ref: Option<ObjectRef>,
    pub secret_ref: Option<ObjectRef>,
}

/// An object of the pod's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "documented by Kubernetes")]
pub struct ObjectRef {
    pub name: String,
    pub optional: bool,
}

const NAME_FORM: &str = "must be printable ASCII without '='";

pub(super) fn check(path: &str, item: &Container, spec: &PodSpec, faults: &mut Faults<'_>) {
    for (i, from) in item.env_from.iter().enumerate() {
        let path = format!("{path}.envFrom[{i}]");
        faults.require(
            from.prefix.is_empty() || is_env_name(&from.prefix),
            &format!("{path}.prefix"),
            NAME_FORM,
        );
        match (&from.config_map_ref, &from.secret_ref) {
            (Some(map), None) => object_name(&map.name, &format!("{path}.configMapRef"), faults),
            (None, Some(secret)) => object_name(&secret.name, &format!("{path}.secretRef"), faults),
            _ => faults.add(&path, "must have one of configMapRef and secretRef"),
        }
    }
    for (i, var) in item.env.iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        faults.require(is_env_name(&var.name), &format!("{path}.name"), NAME_FORM);
        no_nul(&format!("{path}.value"), &var.value, faults);
        if let Some(source) = &var.value_from {
            let path = format!("{path}.valueFrom");
            faults.require(var.value.is_empty(), &path, "must not stand beside value");
            check_source(source, &path, spec, faults);
        }
    }
}

fn check_source(source: &EnvSource, path: &str, spec: &PodSpec, faults: &mut Faults<'_>) {
    let keys = [
        ("configMapKeyRef", &source.config_map_key_ref),
        ("secretKeyRef", &source.secret_key_ref),
    ];
    let mut named = 0;
    for (field, key) in keys {
        let Some(key) = key else { continue };
        named += 1;
        object_name(&key.name, &format!("{path}.{field}"), faults);
        faults.require(
            is_key(&key.key),
            &format!("{path}.{field}.key"),
            "must be a key: letters, digits, '-', '_' and '.'",
        );
    }
    if let Some(field) = &source.field_ref {
        named += 1;
        check_field(field, &format!("{path}.fieldRef"), Place::Env, faults);
    }
    if let Some(resource) = &source.resource_field_ref {
        named += 1;
        let own = resource.container_name.is_empty();
        let all = spec.containers.iter().chain(&spec.init_containers);
        let known: Vec<&Container> = if own { Vec::new() } else { all.collect() };
        check_resource(
            resource,
            &format!("{path}.resourceFieldRef"),
            &known,
            faults,
        );
    }
    faults.require(
        named == 1,
        path,
        "must have one of configMapKeyRef, secretKeyRef, fieldRef and resourceFieldRef",
    );
}

/// The name of a ConfigMap or Secret.
pub(super) fn object_name(name: &str, path: &str, faults: &mut Faults<'_>) {
    faults.require(
        is_dns_subdomain(name),
        &format!("{path}.name"),
        SUBDOMAIN_FORM,
    );
}
