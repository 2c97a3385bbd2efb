//! ApplyObjects, ListObjects, DeleteObject.

use crate::status;
use pod_api::v1;
use pod_api::v1::applied_object::Outcome as Told;
use pod_engine::{Kind, ObjectKey, ObjectSummary, Outcome, PodEngine};
use tonic::Status;

/// Keeps objects.
pub(super) async fn apply(
    engine: &PodEngine,
    request: v1::ApplyObjectsRequest,
) -> Result<v1::ApplyObjectsResponse, Status> {
    let applied = engine.apply_objects(&request.manifest).await;
    let applied = applied.map_err(|e| status::of_engine(&e))?;
    let objects = applied.into_iter().map(|applied| v1::AppliedObject {
        name: Some(name(&applied.key)),
        outcome: match applied.outcome {
            Outcome::Created => Told::Created,
            Outcome::Configured => Told::Configured,
            Outcome::Unchanged => Told::Unchanged,
        }
        .into(),
    });
    Ok(v1::ApplyObjectsResponse {
        objects: objects.collect(),
    })
}

/// Lists objects, of one kind or all.
pub(super) fn list(
    engine: &PodEngine,
    request: &v1::ListObjectsRequest,
) -> Result<v1::ListObjectsResponse, Status> {
    let wanted = match request.kind.as_str() {
        "" => None,
        kind => Some(find_kind(kind)?),
    };
    let mut objects = engine.objects();
    objects.retain(|object| wanted.is_none_or(|kind| object.key.kind == kind));
    Ok(v1::ListObjectsResponse {
        objects: objects.into_iter().map(summary).collect(),
    })
}

/// Deletes one object.
pub(super) async fn delete(
    engine: &PodEngine,
    request: v1::DeleteObjectRequest,
) -> Result<v1::DeleteObjectResponse, Status> {
    let wanted = request.name.unwrap_or_default();
    let namespace = match wanted.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    };
    let key = ObjectKey::new(find_kind(&wanted.kind)?, namespace, &wanted.name);
    let deleted = engine.delete_object(&key).await;
    let deleted = deleted.map_err(|e| status::of_engine(&e))?;
    Ok(v1::DeleteObjectResponse { deleted })
}

fn find_kind(kind: &str) -> Result<Kind, Status> {
    Kind::find(kind).ok_or_else(|| {
        let known = Kind::ALL.map(Kind::name).join(", ");
        Status::invalid_argument(format!("kind: {kind:?} is unknown; known are {known}"))
    })
}

fn name(key: &ObjectKey) -> v1::ObjectName {
    v1::ObjectName {
        kind: key.kind.name().to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}

fn summary(object: ObjectSummary) -> v1::Object {
    let data = object.data.into_iter();
    v1::Object {
        name: Some(name(&object.key)),
        uid: object.uid,
        version: object.version,
        created_at_ns: object.created_at_ns,
        labels: object.labels.into_iter().collect(),
        immutable: object.immutable,
        data: data
            .map(|(key, size)| v1::ObjectData {
                key,
                size: u64::try_from(size).unwrap_or(u64::MAX),
            })
            .collect(),
        volume: object.volume,
    }
}
