//! Messages as JSON, by their descriptors: enums by name, fields in camelCase,
//! 64-bit integers as numbers.

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use std::sync::LazyLock;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    DescriptorPool::decode(bytes.as_slice()).unwrap_or_default()
});

/// A message of `spherule.v1`, by its name without the package, as JSON. Fields
/// that are not set are there with their default. Null where there is no such
/// message.
pub fn to_json(name: &str, message: &impl prost::Message) -> serde_json::Value {
    let options = SerializeOptions::new()
        .stringify_64_bit_integers(false)
        .skip_default_fields(false);
    POOL.get_message_by_name(&format!("spherule.v1.{name}"))
        .and_then(|kind| DynamicMessage::decode(kind, message.encode_to_vec().as_slice()).ok())
        .and_then(|message| {
            message
                .serialize_with_options(serde_json::value::Serializer, &options)
                .ok()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Phase, Pod};

    #[test]
    fn enums_have_names_and_numbers_stay_numbers() {
        let pod = Pod {
            name: "web".into(),
            phase: Phase::Running.into(),
            created_at_ns: 1 << 60,
            ..Pod::default()
        };
        let json = to_json("Pod", &pod);
        assert_eq!(json["name"], "web");
        assert_eq!(json["phase"], "PHASE_RUNNING");
        assert_eq!(json["createdAtNs"], 1_i64 << 60);
        assert_eq!(json["containers"], serde_json::json!([]));
    }
}
