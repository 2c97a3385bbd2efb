//! A record's bytes: header and JSON (the table of bytes is in the crate's docs).

use serde::{Serialize, de::DeserializeOwned};

use crate::{StateError, Upgrade};

const MAGIC: [u8; 4] = *b"SPR1";
const HEADER_LEN: usize = 8;

/// Which record is meant and what this build expects of it.
pub(crate) struct Slot<'a> {
    pub(crate) table: &'static str,
    pub(crate) version: u32,
    pub(crate) upgrade: Option<Upgrade>,
    pub(crate) key: &'a str,
}

impl Slot<'_> {
    pub(crate) fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, StateError> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        serde_json::to_writer(&mut bytes, value).map_err(|source| StateError::Encode {
            table: self.table,
            key: self.key.to_owned(),
            source,
        })?;
        Ok(bytes)
    }

    pub(crate) fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, StateError> {
        let (found, json) = split(bytes).ok_or_else(|| StateError::Header {
            table: self.table,
            key: self.key.to_owned(),
        })?;
        if found == self.version {
            return serde_json::from_slice(json).map_err(|source| self.unreadable(source));
        }
        if found > self.version {
            return Err(StateError::TooNew {
                table: self.table,
                key: self.key.to_owned(),
                found,
                known: self.version,
            });
        }
        let too_old = || StateError::TooOld {
            table: self.table,
            key: self.key.to_owned(),
            found,
            known: self.version,
        };
        let upgrade = self.upgrade.ok_or_else(too_old)?;
        let old = serde_json::from_slice(json).map_err(|source| self.unreadable(source))?;
        let new = upgrade(found, old).ok_or_else(too_old)?;
        serde_json::from_value(new).map_err(|source| self.unreadable(source))
    }

    fn unreadable(&self, source: serde_json::Error) -> StateError {
        StateError::Decode {
            table: self.table,
            key: self.key.to_owned(),
            source,
        }
    }
}

/// Splits a record into its version and its JSON.
fn split(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (header, json) = bytes.split_at_checked(HEADER_LEN)?;
    let (magic, version) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return None;
    }
    Some((u32::from_le_bytes(version.try_into().ok()?), json))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn slot(version: u32, upgrade: Option<Upgrade>) -> Slot<'static> {
        Slot {
            table: "pods",
            version,
            upgrade,
            key: "a",
        }
    }

    #[test]
    fn decode_refuses_a_record_from_a_later_release() {
        let bytes = slot(3, None).encode(&1).expect("encodes");
        let error = slot(2, None).decode::<u32>(&bytes).expect_err("too new");
        assert!(
            matches!(
                error,
                StateError::TooNew {
                    found: 3,
                    known: 2,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn decode_refuses_an_old_record_without_upgrade() {
        let bytes = slot(1, None).encode(&1).expect("encodes");
        let error = slot(2, None).decode::<u32>(&bytes).expect_err("too old");
        assert!(
            matches!(
                error,
                StateError::TooOld {
                    found: 1,
                    known: 2,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn decode_upgrades_an_old_record() {
        fn add_name(found: u32, mut old: Value) -> Option<Value> {
            if found != 1 {
                return None;
            }
            old.as_object_mut()?.insert("name".into(), "unnamed".into());
            Some(old)
        }
        let bytes = slot(1, None).encode(&json!({"id": 7})).expect("encodes");
        let new: Value = slot(2, Some(add_name)).decode(&bytes).expect("upgrades");
        assert_eq!(new, json!({"id": 7, "name": "unnamed"}));

        let ancient = slot(0, None).encode(&json!({"id": 7})).expect("encodes");
        let error = slot(2, Some(add_name))
            .decode::<Value>(&ancient)
            .expect_err("unknown");
        assert!(
            matches!(error, StateError::TooOld { found: 0, .. }),
            "{error}"
        );
    }

    #[test]
    fn decode_names_a_record_that_does_not_fit() {
        let bytes = slot(1, None).encode(&"text").expect("encodes");
        let error = slot(1, None).decode::<u32>(&bytes).expect_err("wrong type");
        assert_eq!(
            error.to_string(),
            "record \"a\" of table pods cannot be read"
        );
    }

    proptest! {
        #[test]
        fn decode_survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _: Result<Value, StateError> = slot(1, None).decode(&bytes);
        }

        #[test]
        fn decode_returns_what_was_encoded(text in ".*", version: u32) {
            let slot = slot(version, None);
            let bytes = slot.encode(&text).expect("encodes");
            prop_assert_eq!(slot.decode::<String>(&bytes).expect("decodes"), text);
        }
    }
}
