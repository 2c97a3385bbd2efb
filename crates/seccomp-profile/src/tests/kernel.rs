//! Programs loaded into this host's kernel, each in a thread of its own, which
//! ends with it.
#![expect(unsafe_code, reason = "loading filters and making system calls")]
// UNSAFETY: seccomp and calls with deliberately wrong arguments have no wrapper.

use super::NONE;
use crate::{from_json, runtime_default};

/// Runs `calls` in a thread behind the filter.
fn behind<T: Send + 'static>(program: Vec<u8>, calls: impl FnOnce() -> T + Send + 'static) -> T {
    let run = move || {
        let filter: Vec<libc::sock_filter> = super::program(&program)
            .iter()
            .map(|i| libc::sock_filter {
                code: i.code,
                jt: i.jt,
                jf: i.jf,
                k: i.k,
            })
            .collect();
        let descriptor = libc::sock_fprog {
            len: u16::try_from(filter.len()).unwrap(),
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: prctl takes integers; seccomp reads a program that lives until
        // the call returns.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let loaded = libc::syscall(libc::SYS_seccomp, 1, 0, &raw const descriptor);
            assert_eq!(loaded, 0, "{}", std::io::Error::last_os_error());
        }
        calls()
    };
    std::thread::spawn(run).join().unwrap()
}

/// The errno of a call with these arguments, 0 if it works.
fn errno(number: libc::c_long, arguments: [libc::c_long; 3]) -> i32 {
    let [a, b, c] = arguments;
    // SAFETY: callers pass integers only, or null where the kernel wants memory.
    let result = unsafe { libc::syscall(number, a, b, c) };
    if result == -1 {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)
    } else {
        0
    }
}

#[test]
fn the_kernel_takes_the_default_profile_and_does_what_it_says() {
    let got = behind(runtime_default(&NONE), || {
        // What a thread does goes on working.
        let heap: usize = vec![1_usize; 1 << 20].iter().sum();
        let text = std::fs::read_to_string("/proc/self/comm").unwrap();
        [
            i32::try_from(heap).unwrap() - (1 << 20),
            i32::from(text.is_empty()),
            errno(
                libc::SYS_unshare,
                [libc::c_long::from(libc::CLONE_NEWUTS), 0, 0],
            ),
            errno(libc::SYS_clone3, [0, 0, 0]),
            errno(libc::SYS_socket, [40, 1, 0]),
            errno(libc::SYS_socket, [40 | 1 << 32, 1, 0]),
            errno(libc::SYS_personality, [0x0004_0000, 0, 0]),
            errno(libc::SYS_personality, [0xffff_ffff, 0, 0]),
            errno(libc::SYS_io_uring_setup, [1, 0, 0]),
            errno(libc::SYS_mount, [0, 0, 0]),
        ]
    });
    let (refused, missing) = (libc::EPERM, libc::ENOSYS);
    assert_eq!(
        got,
        [
            0, 0, refused, missing, refused, refused, refused, 0, refused, refused
        ]
    );
}

#[test]
fn the_kernel_does_what_a_written_profile_says() {
    let text = br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77,
         "args": [{"index": 0, "value": 4294967296, "op": "SCMP_CMP_GE"}]},
        {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 78}]}"#;
    let program = from_json(text, &NONE).unwrap();
    let got = behind(program, || {
        [
            errno(libc::SYS_getpgid, [0, 0, 0]),
            errno(libc::SYS_getpgid, [1 << 32, 0, 0]),
            errno(libc::SYS_umask, [0o22, 0, 0]),
        ]
    });
    assert_eq!(got, [0, 77, 78]);
}
