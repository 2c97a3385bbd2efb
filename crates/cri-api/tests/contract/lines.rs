//! A protobuf package as sorted lines, one for each field, enum value and call:
//! what two sides must agree on to understand each other.

use prost_reflect::{
    Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
};

/// The lines of every message, enum and service of `package`.
pub(crate) fn lines(pool: &DescriptorPool, package: &str) -> Vec<String> {
    let mut lines = Vec::new();
    // Map entries are messages too; their fields' types stand in the map's line.
    for message in pool.all_messages() {
        if message.package_name() == package && !message.is_map_entry() {
            lines.extend(message_lines(&message));
        }
    }
    for set in pool.all_enums().filter(|set| set.package_name() == package) {
        lines.extend(enum_lines(&set));
    }
    for service in pool.services().filter(|s| s.package_name() == package) {
        for call in service.methods() {
            lines.push(format!(
                "rpc {} ({}{}) returns ({}{})",
                call.full_name(),
                stream(call.is_client_streaming()),
                call.input().full_name(),
                stream(call.is_server_streaming()),
                call.output().full_name(),
            ));
        }
    }
    lines.sort();
    lines
}

fn stream(is_streaming: bool) -> &'static str {
    if is_streaming { "stream " } else { "" }
}

fn message_lines(message: &MessageDescriptor) -> Vec<String> {
    // A message without fields must not vanish unseen.
    let mut lines = vec![format!("message {}", message.full_name())];
    for field in message.fields() {
        lines.push(format!("field {}", field_line(&field)));
    }
    lines
}

fn field_line(field: &FieldDescriptor) -> String {
    let label = match field.cardinality() {
        _ if field.is_map() => "map ",
        Cardinality::Repeated if field.is_packed() => "repeated packed ",
        Cardinality::Repeated => "repeated ",
        Cardinality::Required => "required ",
        Cardinality::Optional => "",
    };
    let oneof = field
        .containing_oneof()
        .map(|oneof| format!(" oneof {}", oneof.name()));
    format!(
        "{} = {} {label}{}{} json {}",
        field.full_name(),
        field.number(),
        type_name(&field.kind()),
        oneof.unwrap_or_default(),
        field.json_name(),
    )
}

fn type_name(kind: &Kind) -> String {
    match kind {
        Kind::Message(entry) if entry.is_map_entry() => format!(
            "{} to {}",
            type_name(&entry.map_entry_key_field().kind()),
            type_name(&entry.map_entry_value_field().kind()),
        ),
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(set) => set.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn enum_lines(set: &EnumDescriptor) -> Vec<String> {
    set.values()
        .map(|value| {
            format!(
                "enum {}.{} = {}",
                set.full_name(),
                value.name(),
                value.number()
            )
        })
        .collect()
}
