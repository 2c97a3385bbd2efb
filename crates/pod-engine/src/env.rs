//! A container's own variables: literal, or taken from objects and from the pod.

use crate::expand::expand;
use crate::facts::Facts;
use crate::manifest::{Container, EnvSource, EnvVar, Field, KeyRef, Place};
use crate::objects::Objects;

/// Variables in the order they were named, each name once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Vars(pub(crate) Vec<(String, String)>);

/// What a container's variables refer to and is not there, or is no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvError {
    #[error("{kind} {namespace}/{name} is not there; give it by `spherule apply`")]
    ObjectMissing {
        kind: &'static str,
        namespace: String,
        name: String,
    },
    #[error("{kind} {namespace}/{name} has no key {key:?}")]
    KeyMissing {
        kind: &'static str,
        namespace: String,
        name: String,
        key: String,
    },
    #[error(
        "{kind} {namespace}/{name}: the value of {key:?} is no text: a variable cannot hold it"
    )]
    NotText {
        kind: &'static str,
        namespace: String,
        name: String,
        key: String,
    },
}

impl Vars {
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.clone())
    }

    pub(crate) fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some(var) => var.1 = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }
}

/// Where the values of a container's variables come from.
pub(crate) struct Sources<'a> {
    pub(crate) facts: Facts<'a>,
    pub(crate) objects: &'a Objects,
}

impl Sources<'_> {
    /// The variables of `container`: envFrom, then env, each expanded by those
    /// before it.
    pub(crate) fn vars(&self, container: &Container) -> Result<Vars, EnvError> {
        let mut vars = Vars::default();
        for from in &container.env_from {
            let (kind, object) = match (&from.config_map_ref, &from.secret_ref) {
                (Some(object), _) => ("ConfigMap", object),
                (None, Some(object)) => ("Secret", object),
                (None, None) => continue,
            };
            for (key, value) in self.all(kind, &object.name, object.optional)? {
                vars.set(&format!("{}{key}", from.prefix), value);
            }
        }
        for var in &container.env {
            if let Some(value) = self.value(var, container, &vars)? {
                vars.set(&var.name, value);
            }
        }
        Ok(vars)
    }

    /// The value of a variable; `None` where what it names is optional and missing.
    fn value(
        &self,
        var: &EnvVar,
        container: &Container,
        before: &Vars,
    ) -> Result<Option<String>, EnvError> {
        match &var.value_from {
            None => Ok(Some(expand(&var.value, |name| before.get(name)))),
            Some(source) => self.referred(source, container),
        }
    }

    fn referred(
        &self,
        source: &EnvSource,
        container: &Container,
    ) -> Result<Option<String>, EnvError> {
        if let Some(key) = &source.config_map_key_ref {
            return self.key("ConfigMap", key);
        }
        if let Some(key) = &source.secret_key_ref {
            return self.key("Secret", key);
        }
        if let Some(resource) = &source.resource_field_ref {
            return Ok(Some(self.facts.resource(resource, container)));
        }
        let field = source.field_ref.as_ref();
        // Checked with the manifest.
        let field = field.and_then(|f| Field::parse(&f.field_path, Place::Env).ok());
        Ok(field.map(|field| self.facts.field(&field)))
    }

    fn key(&self, kind: &'static str, key: &KeyRef) -> Result<Option<String>, EnvError> {
        let all = self.texts(kind, &key.name);
        let Some(all) = all else {
            return self.missing(kind, &key.name, key.optional).map(|()| None);
        };
        let namespace = self.facts.pod.namespace.clone();
        let (name, wanted) = (key.name.clone(), key.key.clone());
        match all.into_iter().find(|(k, _)| *k == key.key) {
            Some((_, Some(text))) => Ok(Some(text)),
            None if key.optional => Ok(None),
            None => Err(EnvError::KeyMissing {
                kind,
                namespace,
                name,
                key: wanted,
            }),
            Some((_, None)) => Err(EnvError::NotText {
                kind,
                namespace,
                name,
                key: wanted,
            }),
        }
    }

    fn all(
        &self,
        kind: &'static str,
        name: &str,
        optional: bool,
    ) -> Result<Vec<(String, String)>, EnvError> {
        let Some(texts) = self.texts(kind, name) else {
            return self.missing(kind, name, optional).map(|()| Vec::new());
        };
        let text = |(key, text): (String, Option<String>)| match text {
            Some(text) => Ok((key, text)),
            None => Err(EnvError::NotText {
                kind,
                namespace: self.facts.pod.namespace.clone(),
                name: name.to_owned(),
                key,
            }),
        };
        texts.into_iter().map(text).collect()
    }

    fn missing(&self, kind: &'static str, name: &str, optional: bool) -> Result<(), EnvError> {
        if optional {
            return Ok(());
        }
        Err(EnvError::ObjectMissing {
            kind,
            namespace: self.facts.pod.namespace.clone(),
            name: name.to_owned(),
        })
    }

    /// The keys of an object; the value of each where it is text that a variable
    /// can hold. Of a ConfigMap: those of `data`, as the kubelet has it.
    fn texts(&self, kind: &str, name: &str) -> Option<Vec<(String, Option<String>)>> {
        let namespace = &self.facts.pod.namespace;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok().filter(|t| !t.contains('\0'));
        if kind == "Secret" {
            let data = self.objects.secret(namespace, name)?.data;
            return Some(data.into_iter().map(|(k, v)| (k, text(v.0))).collect());
        }
        let data = self.objects.config_map(namespace, name)?.data;
        Some(
            data.into_iter()
                .map(|(k, v)| (k, text(v.into_bytes())))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::pod_of;
    use crate::objects::Objects;
    use state_store::StateStore;

    const OBJECTS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {A: '1', B: '2'}\nbinaryData: {X: AA==}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {P: hidden}\ndata: {RAW: /w==}\n";

    fn vars(container: &str) -> Result<Vec<(String, String)>, EnvError> {
        let dir = tempfile::tempdir().unwrap();
        let state = StateStore::open(&dir.path().join("state.redb")).unwrap();
        let objects = Objects::open(&state).unwrap();
        let limits = crate::manifest::NodeLimits {
            memory_mib: 1024,
            network: true,
        };
        let stream = crate::manifest::Stream::parse(OBJECTS, &limits).unwrap();
        objects.apply(stream.objects).unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{l: v}}}}\nspec: {{containers: [{{name: c, image: i, {container}}}]}}"
        );
        let (pod, manifest, size) = pod_of(&text);
        let sources = Sources {
            facts: Facts {
                pod: &pod,
                manifest: &manifest,
                size,
                scratch_mib: 1024,
            },
            objects: &objects,
        };
        sources
            .vars(&manifest.spec.containers[0])
            .map(|vars| vars.0)
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        expected.iter().map(owned).collect()
    }

    #[test]
    fn all_of_an_object_comes_first_and_is_overridden() {
        let got = vars(
            "envFrom: [{configMapRef: {name: m}, prefix: M_}, {configMapRef: {name: none, optional: true}}], env: [{name: M_A, value: own}, {name: C, value: '$(M_B)-$(M_A)'}]",
        );
        let want = [("M_A", "own"), ("M_B", "2"), ("C", "2-own")];
        assert_eq!(got.unwrap(), pairs(&want));
    }

    #[test]
    fn values_come_from_keys_and_from_the_pod() {
        let got = vars(
            "env: [{name: K, valueFrom: {configMapKeyRef: {name: m, key: A}}}, {name: S, valueFrom: {secretKeyRef: {name: s, key: P}}}, {name: O, valueFrom: {secretKeyRef: {name: s, key: none, optional: true}}}, {name: N, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: L, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['l']\"}}}, {name: R, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}]",
        );
        let want = [
            ("K", "1"),
            ("S", "hidden"),
            ("N", "p"),
            ("L", "v"),
            ("R", "512"),
        ];
        assert_eq!(got.unwrap(), pairs(&want));
    }

    #[test]
    fn values_expand_by_those_before_them() {
        let got = vars(
            "env: [{name: A, value: '1'}, {name: B, value: '$(A)$(C)'}, {name: C, value: x}, {name: A, value: '$(A)2'}]",
        );
        let want = [("A", "12"), ("B", "1$(C)"), ("C", "x")];
        assert_eq!(got.unwrap(), pairs(&want));
    }

    #[test]
    fn what_is_missing_or_no_text_is_named() {
        let error = |source: &str| vars(source).unwrap_err().to_string();
        let none = error("envFrom: [{secretRef: {name: none}}]");
        assert!(none.contains("Secret default/none is not there"), "{none}");
        let key = error("env: [{name: A, valueFrom: {configMapKeyRef: {name: m, key: X}}}]");
        assert!(key.contains("has no key \"X\""), "{key}");
        let text = error("env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: RAW}}}]");
        assert!(text.contains("no text"), "{text}");
    }
}
