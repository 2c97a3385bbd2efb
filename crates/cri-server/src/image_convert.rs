//! The store's images as the CRI's messages.

use cri_api::v1::{self, Int64Value};

/// An image as lists and its status have it.
pub(crate) fn image(image: image_store::Image) -> v1::Image {
    let (uid, username) = user(&image.config.user);
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.tags,
        repo_digests: image.digests,
        size: image.size,
        uid: uid.map(|value| Int64Value { value }),
        username,
        // An image is the same for every handler.
        spec: None,
        pinned: image.pinned,
    }
}

/// The user of `USER[:GROUP]` as a number, or else as a name. Who names none is
/// root.
fn user(text: &str) -> (Option<i64>, String) {
    let user = text.split(':').next().unwrap_or_default();
    if user.is_empty() {
        return (Some(0), String::new());
    }
    match user.parse::<u32>() {
        Ok(uid) => (Some(uid.into()), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_a_number_or_a_name() {
        for (text, uid, name) in [
            ("", Some(0), ""),
            (":group", Some(0), ""),
            ("1002", Some(1002), ""),
            ("1003:100", Some(1003), ""),
            ("www-data", None, "www-data"),
            ("www-data:100", None, "www-data"),
            ("-1", None, "-1"),
        ] {
            assert_eq!(user(text), (uid, name.to_owned()), "{text}");
        }
    }
}
