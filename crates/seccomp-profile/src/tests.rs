//! Programs against the profiles they come from, and against this host's kernel.

use crate::abi::{self, Abi};
use crate::bpf::{Instruction, interpreter};
use crate::compile::compile;
use crate::policy::{Action, Comparison, EPERM, Operator, Policy, Rule};
use crate::{MAX_INSTRUCTIONS, ProfileError, default_profile, from_json, oci, runtime_default};
use proptest::prelude::*;

mod kernel;

const NONE: [&str; 0] = [];
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

fn program(bytes: &[u8]) -> Vec<Instruction> {
    let instruction = |b: &[u8]| Instruction {
        code: u16::from_le_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    };
    assert_eq!(bytes.len() % 8, 0);
    bytes.chunks(8).map(instruction).collect()
}

/// What a 64-bit process with `capabilities` gets by the default profile.
fn by_default(capabilities: &[&str], name: &str, first: u64) -> Action {
    let program = program(&runtime_default(capabilities));
    let number = Abi::X86_64.number(name).unwrap();
    let arguments = [first, 0, 0, 0, 0, 0];
    Action(interpreter::run(&program, X86_64, number, &arguments).unwrap())
}

fn refusal(text: &str) -> (String, String) {
    match from_json(text.as_bytes(), &NONE) {
        Err(ProfileError::Invalid { path, problem }) => (path, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_default_profile_fits_whatever_the_capabilities() {
    let all = ["CAP_SYS_ADMIN", "CAP_BPF", "CAP_SYS_TIME", "CAP_SYSLOG"];
    for count in 0..=all.len() {
        let program = program(&runtime_default(&all[..count]));
        assert!(program.len() < MAX_INSTRUCTIONS / 4, "{}", program.len());
        assert!(interpreter::is_sound(&program));
    }
}

#[test]
fn every_name_of_the_default_profile_exists() {
    let policy = default_profile::policy(&["CAP_SYS_ADMIN"]);
    // Of the kernel's past, kept for old programs' sake; not in the tables.
    let gone = ["fstatat64", "recv", "send"];
    for name in policy.rules.iter().flat_map(|rule| &rule.names) {
        let known = abi::ALL.iter().any(|abi| abi.number(name).is_some());
        assert!(known || gone.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn what_ordinary_programs_do_is_allowed_by_default() {
    for name in [
        "read",
        "execve",
        "futex",
        "mmap",
        "epoll_wait",
        "openat",
        "rseq",
        "statx",
    ] {
        assert_eq!(by_default(&NONE, name, 0), Action::ALLOW, "{name}");
    }
}

#[test]
fn what_only_administrators_do_needs_its_capability() {
    let refused = Action::errno(EPERM);
    for (name, capability) in [
        ("mount", "CAP_SYS_ADMIN"),
        ("unshare", "CAP_SYS_ADMIN"),
        ("setns", "CAP_SYS_ADMIN"),
        ("bpf", "CAP_BPF"),
        ("bpf", "CAP_SYS_ADMIN"),
        ("perf_event_open", "CAP_PERFMON"),
        ("open_by_handle_at", "CAP_DAC_READ_SEARCH"),
        ("reboot", "CAP_SYS_BOOT"),
        ("chroot", "CAP_SYS_CHROOT"),
        ("init_module", "CAP_SYS_MODULE"),
        ("kcmp", "CAP_SYS_PTRACE"),
        ("iopl", "CAP_SYS_RAWIO"),
        ("settimeofday", "CAP_SYS_TIME"),
        ("vhangup", "CAP_SYS_TTY_CONFIG"),
        ("syslog", "CAP_SYSLOG"),
        ("mbind", "CAP_SYS_NICE"),
        ("acct", "CAP_SYS_PACCT"),
    ] {
        assert_eq!(by_default(&NONE, name, 0), refused, "{name}");
        assert_eq!(by_default(&[capability], name, 0), Action::ALLOW, "{name}");
    }
    let everything = ["CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_MODULE"];
    for name in [
        "io_uring_setup",
        "userfaultfd",
        "keyctl",
        "kexec_load",
        "swapon",
    ] {
        assert_eq!(by_default(&everything, name, 0), refused, "{name}");
    }
}

#[test]
fn namespaces_are_made_by_administrators_only() {
    let (new_user, thread) = (0x1000_0000, 0x0001_0000);
    assert_eq!(by_default(&NONE, "clone", thread), Action::ALLOW);
    assert_eq!(
        by_default(&NONE, "clone", thread | new_user),
        Action::errno(EPERM)
    );
    assert_eq!(by_default(&NONE, "clone3", 0), Action::errno(38));
    let admin = ["CAP_SYS_ADMIN"];
    assert_eq!(by_default(&admin, "clone", new_user), Action::ALLOW);
    assert_eq!(by_default(&admin, "clone3", 0), Action::ALLOW);
}

#[test]
fn vsock_is_the_agents_however_it_is_asked_for() {
    let refused = Action::errno(EPERM);
    for capabilities in [&NONE[..], &["CAP_SYS_ADMIN"]] {
        assert_eq!(by_default(capabilities, "socket", 40), refused);
        // The kernel looks at the lower half only.
        assert_eq!(by_default(capabilities, "socket", 40 | 1 << 32), refused);
        assert_eq!(by_default(capabilities, "socket", 38), refused);
        for family in [1, 2, 10, 16, 39, 41] {
            assert_eq!(by_default(capabilities, "socket", family), Action::ALLOW);
        }
        let program = program(&runtime_default(capabilities));
        let socketcall = Abi::X86.number("socketcall").unwrap();
        let got = interpreter::run(&program, I386, socketcall, &[1; 6]).unwrap();
        assert_eq!(Action(got), Action::errno(38));
    }
}

#[test]
fn personalities_that_weaken_memory_are_refused() {
    for (persona, want) in [
        (0, Action::ALLOW),
        (0xffff_ffff, Action::ALLOW),
        (0xffff_ffff_ffff_ffff, Action::ALLOW),
        (0x0004_0000, Action::errno(EPERM)),
        (1 << 32 | 0x0004_0000, Action::errno(EPERM)),
    ] {
        assert_eq!(
            by_default(&NONE, "personality", persona),
            want,
            "{persona:x}"
        );
    }
}

#[test]
fn other_abis_get_nothing() {
    let program = program(&runtime_default(&NONE));
    let run = |arch, number| Action(interpreter::run(&program, arch, number, &[0; 6]).unwrap());
    assert_eq!(run(X86_64, 0x4000_0000), Action::errno(38));
    assert_eq!(run(X86_64, u32::MAX), Action::errno(38));
    assert_eq!(run(I386, 3), Action::ALLOW);
    assert_eq!(run(0xc000_00b7, 0), Action::KILL_PROCESS);
}

#[test]
fn the_least_profile_is_one_action() {
    let text = br#"{"defaultAction": "SCMP_ACT_ALLOW"}"#;
    let program = program(&from_json(text, &NONE).unwrap());
    let run = |arch| interpreter::run(&program, arch, 7, &[0; 6]).map(Action);
    assert_eq!(run(X86_64), Some(Action::ALLOW));
    // Only named architectures, besides the native one.
    assert_eq!(run(I386), Some(Action::KILL_PROCESS));
}

#[test]
fn dockers_conditions_pick_the_rules() {
    let text = br#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
        "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": null},
            {"name": "mount", "action": "SCMP_ACT_ALLOW", "comment": "c",
             "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38,
             "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["write"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["kcmp"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}}]}"#;
    let with = |capabilities: &[&str], name: &str| {
        let program = program(&from_json(text, capabilities).unwrap());
        let number = Abi::X86_64.number(name).unwrap();
        Action(interpreter::run(&program, X86_64, number, &[0; 6]).unwrap())
    };
    let (refused, admin) = (Action::errno(5), ["CAP_SYS_ADMIN"]);
    assert_eq!(with(&NONE, "read"), Action::ALLOW);
    assert_eq!(with(&NONE, "mount"), refused);
    assert_eq!(with(&admin, "mount"), Action::ALLOW);
    assert_eq!(with(&NONE, "clone3"), Action::errno(38));
    assert_eq!(with(&admin, "clone3"), refused);
    assert_eq!(with(&NONE, "write"), refused);
    assert_eq!(with(&NONE, "ptrace"), Action::ALLOW);
    assert_eq!(with(&NONE, "kcmp"), refused);
}

#[test]
fn competing_rules_are_settled_as_by_libseccomp() {
    let text = |rules: &str| {
        format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rules}]}}"#).into_bytes()
    };
    let first_argument = |bytes: Vec<u8>, first: u64| {
        let program = program(&from_json(&bytes, &NONE).unwrap());
        let number = Abi::X86_64.number("ioctl").unwrap();
        Action(interpreter::run(&program, X86_64, number, &[first, 0, 0, 0, 0, 0]).unwrap())
    };
    let some = r#"{"names": ["ioctl"], "action": "SCMP_ACT_LOG",
        "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}]}"#;
    let all = r#"{"names": ["ioctl"], "action": "SCMP_ACT_ALLOW"}"#;
    let as_default = r#"{"names": ["ioctl"], "action": "SCMP_ACT_ERRNO"}"#;
    let twice = r#"{"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [
        {"index": 0, "value": 7, "op": "SCMP_CMP_EQ"},
        {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]}"#;
    for rules in [format!("{some},{all}"), format!("{all},{some}")] {
        assert_eq!(first_argument(text(&rules), 7), Action::ALLOW);
    }
    let rules = text(&format!("{as_default},{some}"));
    assert_eq!(first_argument(rules, 7), Action::LOG);
    for (value, want) in [
        (7, Action::ALLOW),
        (9, Action::ALLOW),
        (8, Action::errno(EPERM)),
    ] {
        assert_eq!(first_argument(text(twice), value), want);
    }
}

#[test]
fn what_is_unknown_is_refused_with_its_place() {
    let with =
        |rule: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rule}]}}"#);
    let cases = [
        ("{}".to_owned(), "."),
        (
            r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#.to_owned(),
            "defaultAction",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.to_owned(),
            "defaultAction",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}"#.to_owned(),
            "defaultErrnoRet",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "x": 1}"#.to_owned(),
            "x",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_VAX"]}"#.to_owned(),
            "architectures[0]",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}"#
                .to_owned(),
            "flags[0]",
        ),
        (
            with(r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#),
            "syscalls[0].action",
        ),
        (
            with(r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}"#),
            "syscalls[0].errnoRet",
        ),
        (
            with(r#"{"names": [], "action": "SCMP_ACT_ALLOW"}"#),
            "syscalls[0].names",
        ),
        (
            with(r#"{"names": ["read"], "name": "x", "action": "SCMP_ACT_ALLOW"}"#),
            "syscalls[0].name",
        ),
        (
            with(
                r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#,
            ),
            "syscalls[0].args[0].index",
        ),
        (
            with(
                r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "EQ"}]}"#,
            ),
            "syscalls[0].args[0].op",
        ),
        (
            with(
                r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]}"#,
            ),
            "syscalls[0].args[0].value",
        ),
        (
            with(
                r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}"#,
            ),
            "syscalls[0].includes.minKernel",
        ),
    ];
    for (text, path) in cases {
        assert_eq!(refusal(&text).0, path, "{text}");
    }
    assert_eq!(refusal(r#"{"defaultAction": "SCMP_ACT_ALLOW"} x"#).0, ".");
}

#[test]
fn a_profile_past_the_kernels_limit_is_refused() {
    let rule = |n: u32| {
        format!(
            r#"{{"names": ["ioctl"], "action": "SCMP_ACT_ALLOW",
                "args": [{{"index": 1, "value": {n}, "op": "SCMP_CMP_GT"}}]}}"#
        )
    };
    let rules: Vec<_> = (0..1000).map(rule).collect();
    let text = format!(
        r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{}]}}"#,
        rules.join(",")
    );
    let error = from_json(text.as_bytes(), &NONE).unwrap_err();
    assert!(matches!(error, ProfileError::TooLarge { instructions } if instructions > 4096));
}

/// Values near each other, so that comparisons meet their borders.
fn value() -> impl Strategy<Value = u64> {
    let part = prop_oneof![
        Just(0_u64),
        Just(1),
        Just(2),
        Just(0xffff_ffff),
        any::<u32>().prop_map(u64::from)
    ];
    (part.clone(), part).prop_map(|(high, low)| high << 32 | low)
}

fn comparison() -> impl Strategy<Value = Comparison> {
    let operator = prop_oneof![
        Just(Operator::NotEqual),
        Just(Operator::Less),
        Just(Operator::LessOrEqual),
        Just(Operator::Equal),
        Just(Operator::GreaterOrEqual),
        Just(Operator::Greater),
        value().prop_map(Operator::MaskedEqual),
    ];
    (0_u8..6, operator, value()).prop_map(|(argument, operator, value)| Comparison {
        argument,
        operator,
        value,
    })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::ALLOW),
        Just(Action::KILL_PROCESS),
        Just(Action::LOG),
        (0_u16..200).prop_map(Action::errno),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let names: Vec<&'static str> = (0..460)
        .filter_map(|n| syscalls::x86_64::Sysno::new(n).map(|s| s.name()))
        .collect();
    let rule = (
        prop::collection::vec(prop::sample::select(names), 1..40),
        prop::collection::vec(comparison(), 0..4),
        action(),
    )
        .prop_map(|(names, conditions, action)| Rule {
            names: names.into_iter().map(str::to_owned).collect(),
            conditions,
            action,
        });
    let abis = prop_oneof![
        Just(vec![Abi::X86_64]),
        Just(vec![Abi::X86_64, Abi::X86]),
        Just(vec![Abi::X86]),
    ];
    (action(), abis, prop::collection::vec(rule, 0..12)).prop_map(|(default, abis, rules)| Policy {
        default,
        abis,
        rules,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_program_does_what_its_profile_says(
        policy in policy(),
        arguments in prop::collection::vec(prop::array::uniform6(value()), 4),
    ) {
        let program = match compile(&policy) {
            Ok(program) => program,
            Err(ProfileError::TooLarge { instructions }) => {
                prop_assert!(instructions > MAX_INSTRUCTIONS);
                return Ok(());
            }
            Err(other) => panic!("{other}"),
        };
        prop_assert!(interpreter::is_sound(&program));
        for arch in [X86_64, I386, 7] {
            let narrow = arch == I386;
            for number in (0..470).chain([0x3fff_ffff, 0x4000_0000, u32::MAX]) {
                for arguments in &arguments {
                    let arguments = arguments.map(|a| if narrow { a & 0xffff_ffff } else { a });
                    let want = policy.evaluate(arch, number, &arguments);
                    let got = interpreter::run(&program, arch, number, &arguments).map(Action);
                    prop_assert_eq!(got, Some(want), "arch {:x} number {}", arch, number);
                }
            }
        }
    }

    #[test]
    fn any_text_is_survived(text in "\\PC{0,80}", rule in "\\{(\"(names|action|args|includes)\":(null|1|\"x\"|\\[\\]|\\{\\}),?){0,4}\\}") {
        let _ = oci::parse(text.as_bytes(), &[]);
        let wrapped = format!(r#"{{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{rule}]}}"#);
        let _ = oci::parse(wrapped.as_bytes(), &[]);
    }
}
