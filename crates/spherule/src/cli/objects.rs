//! `spherule apply`, `spherule objects` and `spherule delete`.

use super::client::{Daemon, refused};
use super::{Output, output, run};
use anyhow::bail;
use pod_api::v1::{
    ApplyObjectsRequest, DeleteObjectRequest, ListObjectsRequest, Object, ObjectName,
};

#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    /// A file of ConfigMaps, Secrets, PersistentVolumes and PersistentVolumeClaims as
    /// YAML or JSON, or `-` for standard input
    #[arg(long, short)]
    file: String,
}

/// Creates or changes objects; running pods see what has changed.
pub(crate) async fn apply(mut daemon: Daemon, args: ApplyArgs) -> anyhow::Result<()> {
    let manifest = run::read_manifest(&args.file)?;
    let request = ApplyObjectsRequest { manifest };
    let applied = daemon.pods.apply_objects(request).await.map_err(refused)?;
    for object in applied.into_inner().objects {
        let outcome = output::word(object.outcome().as_str_name(), "OUTCOME_").to_lowercase();
        let name = object.name.unwrap_or_default();
        output::print(format_args!("{} {outcome}", shown(&name)))?;
    }
    Ok(())
}

/// As kubectl names objects: `configmap/web`.
fn shown(name: &ObjectName) -> String {
    format!("{}/{}", name.kind.to_lowercase(), name.name)
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Only of this kind: configmap (cm), secret, persistentvolume (pv),
    /// persistentvolumeclaim (pvc)
    kind: Option<String>,
}

/// Prints a line an object; of their data the number of keys.
pub(crate) async fn list(mut daemon: Daemon, args: ListArgs, how: Output) -> anyhow::Result<()> {
    let request = ListObjectsRequest {
        kind: args.kind.unwrap_or_default(),
    };
    let objects = daemon.pods.list_objects(request).await.map_err(refused)?;
    let objects = objects.into_inner().objects;
    if how == Output::Json {
        let objects = objects.iter().map(|o| pod_api::to_json("Object", o));
        output::print_json(&serde_json::Value::Array(objects.collect()))?;
        return Ok(());
    }
    let headings = ["KIND", "NAMESPACE", "NAME", "DATA", "VOLUME", "CREATED"];
    output::print_table(&headings, objects.iter().map(row).collect())?;
    Ok(())
}

fn row(object: &Object) -> Vec<String> {
    let name = object.name.clone().unwrap_or_default();
    let holds_data = ["ConfigMap", "Secret"].contains(&name.kind.as_str());
    vec![
        name.kind,
        name.namespace,
        name.name,
        if holds_data {
            object.data.len().to_string()
        } else {
            String::new()
        },
        object.volume.clone(),
        output::age(object.created_at_ns),
    ]
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// configmap (cm), secret, persistentvolume (pv) or persistentvolumeclaim (pvc)
    kind: String,
    /// Names, or namespace/name
    #[arg(required = true)]
    names: Vec<String>,
}

/// Deletes objects one after the other.
pub(crate) async fn delete(mut daemon: Daemon, args: DeleteArgs) -> anyhow::Result<()> {
    for name in args.names {
        let (namespace, name) = name.split_once('/').unwrap_or(("", &name));
        let object = ObjectName {
            kind: args.kind.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let request = DeleteObjectRequest {
            name: Some(object.clone()),
        };
        let deleted = daemon.pods.delete_object(request).await.map_err(refused)?;
        if !deleted.into_inner().deleted {
            bail!(
                "there is no {}; `spherule objects` lists them",
                shown(&object)
            );
        }
        output::print(format_args!("{} deleted", shown(&object)))?;
    }
    Ok(())
}
