//! The store over real files.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use serde::Deserialize;

use super::*;

#[derive(Serialize, Deserialize, Debug, PartialEq, Clone)]
struct Pod {
    name: String,
}

fn pod(name: &str) -> Pod {
    Pod {
        name: name.to_owned(),
    }
}

fn open_in(dir: &tempfile::TempDir) -> StateStore {
    StateStore::open(&dir.path().join("deep/er/state.redb")).expect("opens")
}

fn is_shared<T: Send + Sync + Clone>(value: T) -> T {
    value
}

#[test]
fn records_survive_a_reopen() {
    let dir = tempfile::tempdir().expect("tempdir");
    {
        let store = is_shared(open_in(&dir));
        let pods = is_shared(store.table::<Pod>("pods", 1));
        assert_eq!(pods.get("a").expect("reads"), None);
        assert!(pods.list().expect("lists").is_empty());
        assert!(!pods.remove("a").expect("removes"));
        pods.put("b", &pod("two")).expect("writes");
        pods.put("a", &pod("one")).expect("writes");
        pods.put("c", &pod("three")).expect("writes");
        assert!(pods.remove("c").expect("removes"));
    }
    let store = open_in(&dir);
    let found = store.table::<Pod>("pods", 1).list().expect("lists");
    assert_eq!(
        found,
        [("a".to_owned(), pod("one")), ("b".to_owned(), pod("two"))]
    );
    let mode = fs::metadata(store.path())
        .expect("stat")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn second_opener_is_told_that_the_root_is_in_use() {
    let dir = tempfile::tempdir().expect("tempdir");
    let first = open_in(&dir);
    let error = StateStore::open(first.path()).expect_err("locked");
    assert!(matches!(error, StateError::InUse { .. }), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("another daemon uses this root"),
        "{error}"
    );
}

#[test]
fn failed_transaction_changes_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open_in(&dir);
    let pods = store.table::<Pod>("pods", 1);
    let names = store.table::<String>("names", 1);
    pods.put("a", &pod("one")).expect("writes");

    let result: Result<(), StateError> = store.transaction(|tx| {
        tx.put(&pods, "b", &pod("two"))?;
        tx.put(&names, "two", &"b".to_owned())?;
        tx.remove(&pods, "a")?;
        assert_eq!(tx.get(&pods, "a")?, None);
        assert_eq!(tx.list(&pods)?.len(), 1);
        Err(StateError::Header {
            table: "pods",
            key: "b".to_owned(),
        })
    });
    assert!(result.is_err());
    assert_eq!(pods.list().expect("lists"), [("a".to_owned(), pod("one"))]);
    assert_eq!(names.list().expect("lists"), []);
}

#[test]
fn transaction_commits_all_tables_together() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open_in(&dir);
    let pods = store.table::<Pod>("pods", 1);
    let names = store.table::<String>("names", 1);
    store
        .transaction::<_, StateError>(|tx| {
            tx.put(&pods, "b", &pod("two"))?;
            tx.put(&names, "two", &"b".to_owned())
        })
        .expect("commits");
    assert_eq!(pods.get("b").expect("reads"), Some(pod("two")));
    assert_eq!(names.get("two").expect("reads").as_deref(), Some("b"));
}

/// A write from another thread waits its turn rather than failing.
#[test]
fn concurrent_writers_take_turns() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open_in(&dir);
    let counter = store.table::<u64>("counter", 1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    store
                        .transaction::<_, StateError>(|tx| {
                            let n = tx.get(&counter, "n")?.unwrap_or(0);
                            tx.put(&counter, "n", &(n + 1))
                        })
                        .expect("commits");
                }
            });
        }
    });
    assert_eq!(counter.get("n").expect("reads"), Some(40));
}

fn expect_corrupt(path: &Path) {
    let error = StateStore::open(path).expect_err("damaged");
    assert!(matches!(error, StateError::Corrupt { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(text.contains("move the file away"), "{text}");
}

#[test]
fn file_of_another_kind_is_called_damaged() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("state.redb");
    fs::write(&path, vec![0x5a; 20_000]).expect("writes");
    expect_corrupt(&path);
}

#[test]
fn overwritten_page_is_called_damaged() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("state.redb");
    {
        let store = StateStore::open(&path).expect("opens");
        let pods = store.table::<Pod>("pods", 1);
        pods.put("a", &pod(&"x".repeat(2000))).expect("writes");
    }
    let mut bytes = fs::read(&path).expect("reads");
    let place = bytes
        .windows(100)
        .position(|w| w.iter().all(|b| *b == b'x'))
        .expect("is there");
    bytes[place + 50] = b'y';
    fs::write(&path, bytes).expect("writes");
    expect_corrupt(&path);
}

#[test]
fn directory_in_the_files_place_is_an_open_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    let error = StateStore::open(dir.path()).expect_err("a directory");
    assert!(matches!(error, StateError::Open { .. }), "{error:?}");
}

#[test]
#[ignore = "the child process of acknowledged_records_survive_kill_9"]
fn kill_9_child() {
    use std::io::Write;
    let Some(path) = std::env::var_os("STATE_STORE_KILL_CHILD") else {
        return;
    };
    let store = StateStore::open(Path::new(&path)).expect("opens");
    let counter = store.table::<u64>("counter", 1);
    let mut out = std::io::stderr();
    for n in 0.. {
        counter.put("n", &n).expect("writes");
        writeln!(out, "n={n}").expect("tells");
    }
}

#[test]
fn acknowledged_records_survive_kill_9() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("state.redb");
    let mut least = 0;
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().expect("own name"))
            .args([
                "--exact",
                "store::tests::kill_9_child",
                "--nocapture",
                "--ignored",
            ])
            .env("STATE_STORE_KILL_CHILD", &path)
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut told = None;
        for line in lines.by_ref().take(round * 7) {
            let line = line.expect("reads");
            told = line
                .strip_prefix("n=")
                .and_then(|n| n.parse::<u64>().ok())
                .or(told);
        }
        child.kill().expect("kills");
        child.wait().expect("reaps");
        least = told.expect("the child wrote");
        let store = StateStore::open(&path).expect("opens after a kill");
        let found = store
            .table::<u64>("counter", 1)
            .get("n")
            .expect("reads")
            .expect("is there");
        assert!(found >= least, "told {least}, found {found}");
    }
    assert!(least > 0);
}

#[test]
fn database_that_failed_is_opened_anew_once_nobody_uses_the_old_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open_in(&dir);
    let pods = store.table::<Pod>("pods", 1);
    pods.put("a", &pod("one")).expect("writes");
    let used = store.database().expect("open");
    let error = store.access("commit a change", redb::Error::PreviousIo);
    assert!(matches!(error, StateError::Access { .. }), "{error}");
    assert!(Arc::ptr_eq(&used, &store.database().expect("the old one")));
    drop(used);
    assert_eq!(pods.get("a").expect("reads"), Some(pod("one")));
    assert!(!store.inner.failed.load(Ordering::Acquire));
    pods.put("b", &pod("two")).expect("writes");
    // As after a failure to open it anew.
    *store.inner.db.lock().expect("lock") = None;
    store.inner.failed.store(true, Ordering::Release);
    assert_eq!(pods.list().expect("lists").len(), 2);
}
