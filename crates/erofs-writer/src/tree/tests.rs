//! Layers over layers, without an image.

use super::*;

fn path(text: &str) -> Vec<&[u8]> {
    text.split('/')
        .filter(|name| !name.is_empty())
        .map(str::as_bytes)
        .collect()
}

fn tree() -> Tree {
    Tree::new(1000, 1 << 20)
}

fn file(tree: &mut Tree, at: &str) {
    let data = FileData { block: 1, size: 1 };
    tree.insert(&path(at), Content::File(data), Attributes::default())
        .unwrap();
}

fn link(tree: &mut Tree, at: &str, target: &str) {
    let content = Content::Symlink(target.as_bytes().into());
    tree.insert(&path(at), content, Attributes::default())
        .unwrap();
}

fn dir(tree: &mut Tree, at: &str, permissions: u16) {
    let attributes = Attributes {
        permissions,
        ..Attributes::default()
    };
    tree.insert_dir(&path(at), attributes).unwrap();
}

/// All paths, directories with a slash at their end.
fn listing(tree: &Tree) -> Vec<String> {
    fn visit(tree: &Tree, id: InodeId, prefix: &str, out: &mut Vec<String>) {
        let Content::Directory(children) = &tree.inode(id).content else {
            return;
        };
        for (name, dentry) in children {
            let name = format!("{prefix}{}", name.escape_ascii());
            if tree.inode(dentry.inode).kind() == EntryKind::Directory {
                out.push(format!("{name}/"));
                visit(tree, dentry.inode, &format!("{name}/"), out);
            } else {
                out.push(name);
            }
        }
    }
    let mut out = Vec::new();
    visit(tree, ROOT, "", &mut out);
    out
}

fn permissions(tree: &Tree, at: &str) -> u16 {
    let id = tree.find(&path(at)).unwrap().expect("exists");
    tree.inode(id).attributes.permissions
}

#[test]
fn missing_parents_are_made() {
    let mut tree = tree();
    file(&mut tree, "a/b/c");
    assert_eq!(listing(&tree), ["a/", "a/b/", "a/b/c"]);
    assert_eq!(permissions(&tree, "a/b"), 0o755);
}

#[test]
fn directory_that_exists_keeps_its_members() {
    let mut tree = tree();
    file(&mut tree, "a/b");
    tree.begin_layer();
    dir(&mut tree, "a", 0o700);
    assert_eq!(listing(&tree), ["a/", "a/b"]);
    assert_eq!(permissions(&tree, "a"), 0o700);
}

#[test]
fn implied_parent_keeps_the_attributes_of_the_layer_below() {
    let mut tree = tree();
    dir(&mut tree, "a", 0o700);
    tree.begin_layer();
    file(&mut tree, "a/b");
    assert_eq!(permissions(&tree, "a"), 0o700);
}

#[test]
fn files_and_directories_replace_each_other() {
    let mut tree = tree();
    file(&mut tree, "a/b/c");
    file(&mut tree, "x");
    tree.begin_layer();
    file(&mut tree, "a");
    dir(&mut tree, "x", 0o755);
    assert_eq!(listing(&tree), ["a", "x/"]);
    assert_eq!(tree.take_orphans().len(), 2);
}

#[test]
fn whiteout_removes_lower_files_only() {
    let mut tree = tree();
    file(&mut tree, "d/lower");
    file(&mut tree, "gone/deep/er");
    tree.begin_layer();
    file(&mut tree, "d/upper");
    tree.whiteout(&path("d")).unwrap();
    tree.whiteout(&path("gone")).unwrap();
    tree.whiteout(&path("never")).unwrap();
    assert_eq!(listing(&tree), ["d/", "d/upper"]);
}

#[test]
fn opaque_hides_the_lower_content_at_every_depth() {
    let mut tree = tree();
    file(&mut tree, "d/sub/lower");
    file(&mut tree, "d/lower");
    tree.begin_layer();
    file(&mut tree, "d/sub/upper");
    tree.opaque(&path("d")).unwrap();
    assert_eq!(listing(&tree), ["d/", "d/sub/", "d/sub/upper"]);
    // And whatever comes after it in the same layer stays.
    file(&mut tree, "d/late");
    tree.opaque(&path("d")).unwrap();
    assert_eq!(listing(&tree), ["d/", "d/late", "d/sub/", "d/sub/upper"]);
}

#[test]
fn link_of_the_same_layer_is_followed_inside_the_root() {
    let mut tree = tree();
    link(&mut tree, "up", "../../../..");
    link(&mut tree, "abs", "/usr/lib");
    file(&mut tree, "up/in-root");
    file(&mut tree, "abs/x");
    assert_eq!(
        listing(&tree),
        ["abs", "in-root", "up", "usr/", "usr/lib/", "usr/lib/x"]
    );
}

#[test]
fn link_of_a_lower_layer_is_replaced_and_not_followed() {
    let mut tree = tree();
    link(&mut tree, "lib", "usr/lib");
    tree.begin_layer();
    file(&mut tree, "lib/x");
    assert_eq!(listing(&tree), ["lib/", "lib/x"]);
}

#[test]
fn link_loop_is_refused() {
    let mut tree = tree();
    link(&mut tree, "a", "b");
    link(&mut tree, "b", "a");
    let content = Content::File(FileData { block: 1, size: 1 });
    let error = tree
        .insert(&path("a/x"), content, Attributes::default())
        .unwrap_err();
    assert!(matches!(error, WriteError::LinkLoop { .. }), "{error}");
}

#[test]
fn file_of_the_same_layer_cannot_have_members() {
    let mut tree = tree();
    file(&mut tree, "a");
    let error = tree
        .insert_dir(&path("a/b"), Attributes::default())
        .unwrap_err();
    assert!(matches!(error, WriteError::NotADirectory { .. }), "{error}");
    tree.begin_layer();
    file(&mut tree, "a/b");
    assert_eq!(listing(&tree), ["a/", "a/b"]);
}

#[test]
fn hard_links_keep_the_contents_until_the_last_name_goes() {
    let mut tree = tree();
    file(&mut tree, "a");
    tree.begin_layer();
    tree.insert_hardlink(&path("b"), &path("a")).unwrap();
    tree.whiteout(&path("a")).unwrap();
    assert_eq!(listing(&tree), ["b"]);
    assert!(tree.take_orphans().is_empty());
    tree.begin_layer();
    tree.whiteout(&path("b")).unwrap();
    assert_eq!(tree.take_orphans().len(), 1);
}

#[test]
fn hard_links_to_nothing_to_themselves_and_to_directories_are_refused() {
    let mut tree = tree();
    dir(&mut tree, "d", 0o755);
    file(&mut tree, "self");
    let mut try_link = |from: &str, to: &str| {
        tree.insert_hardlink(&path(from), &path(to))
            .expect_err("refused")
            .to_string()
    };
    assert!(try_link("a", "missing/x").contains("does not exist"));
    assert!(try_link("self", "self").contains("does not exist"));
    assert!(try_link("b", "d").contains("is a directory"));
    assert!(try_link("c", "").contains("is a directory"));
}

#[test]
fn bad_names_are_refused() {
    let mut tree = tree();
    let long = [b'x'; 256];
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &long] {
        for at in [&[name][..], &[name, b"x"]] {
            let error = tree
                .insert_dir(at, Attributes::default())
                .expect_err("refused");
            assert!(matches!(error, WriteError::BadName { .. }), "{error}");
        }
    }
}

#[test]
fn limits_on_files_memory_and_depth_hold() {
    let mut tree = Tree::new(3, 1 << 20);
    file(&mut tree, "a");
    file(&mut tree, "b");
    let error = tree
        .insert_dir(&path("c"), Attributes::default())
        .unwrap_err();
    assert!(
        matches!(error, WriteError::Limit { limit: 3, .. }),
        "{error}"
    );

    let mut tree = Tree::new(1000, 4000);
    let content = Content::Symlink(vec![b'x'; 4000].into());
    let error = tree
        .insert(&path("a"), content, Attributes::default())
        .unwrap_err();
    assert!(
        matches!(error, WriteError::Limit { limit: 4000, .. }),
        "{error}"
    );

    let mut tree = Tree::new(10_000, 1 << 30);
    let deep = vec![&b"d"[..]; MAX_DEPTH + 1];
    let error = tree.insert_dir(&deep, Attributes::default()).unwrap_err();
    assert!(matches!(error, WriteError::TooDeep { .. }), "{error}");
}

#[test]
fn memory_returns_to_its_start_when_all_is_removed() {
    let mut tree = tree();
    let start = tree.memory;
    file(&mut tree, "a/b/c");
    link(&mut tree, "a/l", "target");
    tree.insert_hardlink(&path("h"), &path("a/b/c")).unwrap();
    tree.begin_layer();
    tree.opaque(&[]).unwrap();
    assert_eq!(tree.memory, start);
    assert_eq!(listing(&tree), [""; 0]);
}
