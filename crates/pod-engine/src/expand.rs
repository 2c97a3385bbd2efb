//! `$(NAME)` in command, args and environment, as Kubernetes expands it.

/// Replaces each `$(NAME)` that `lookup` knows; `$$` stands for `$`; what is
/// unknown or has no end stays as it is written.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[at..rest.len() - tail.len()]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_a(text: &str) -> String {
        expand(text, |name| (name == "A").then(|| "value".to_owned()))
    }

    #[test]
    fn kubernetes_examples_hold() {
        for (text, want) in [
            ("$(A)", "value"),
            ("x-$(A)-$(A)", "x-value-value"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$value"),
            ("$$$$(A)", "$$(A)"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A $ $)", "$A $ $)"),
            ("100$", "100$"),
            ("", ""),
            ("$()", "$()"),
            ("$(A)$(B)ä$(A)", "value$(B)ävalue"),
        ] {
            assert_eq!(with_a(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_dollars_stays(text in "[^$]{0,40}") {
            prop_assert_eq!(with_a(&text), text);
        }

        #[test]
        fn no_text_panics(text in "[$()AB\u{e4}]{0,40}") {
            with_a(&text);
        }
    }
}
