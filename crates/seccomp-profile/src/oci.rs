//! Profiles as users write them: JSON after the OCI runtime specification's
//! `linux.seccomp`, or after Docker's profiles, which add conditions on
//! capabilities, architectures and kernels.

use crate::ProfileError;
use crate::abi::Abi;
use crate::policy::{Action, Comparison, EPERM, Operator, Policy, Rule};
use serde::Deserialize;

/// Kernels named by `minKernel` up to this one are there: the guest's own.
const GUEST_KERNEL: (u32, u32) = (6, 12);
/// Largest errno the kernel hands out (linux/err.h: MAX_ERRNO).
const MAX_ERRNO: u32 = 4095;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    architectures: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    arch_map: Vec<Architecture>,
    #[serde(default, deserialize_with = "or_default")]
    flags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    listener_path: String,
    #[serde(default, deserialize_with = "or_default")]
    listener_metadata: String,
    #[serde(default, deserialize_with = "or_default")]
    syscalls: Vec<Syscall>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Architecture {
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    sub_architectures: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Syscall {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    args: Vec<Argument>,
    #[serde(default, deserialize_with = "or_default", rename = "comment")]
    _comment: String,
    #[serde(default, deserialize_with = "or_default")]
    includes: Circumstances,
    #[serde(default, deserialize_with = "or_default")]
    excludes: Circumstances,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default, deserialize_with = "or_default")]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Circumstances {
    #[serde(default, deserialize_with = "or_default")]
    caps: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    arches: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    min_kernel: String,
}

/// null, which Go writes for what is empty, is as absent.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn invalid<T>(path: impl Into<String>, problem: impl Into<String>) -> Result<T, ProfileError> {
    Err(ProfileError::Invalid {
        path: path.into(),
        problem: problem.into(),
    })
}

/// What `text` says for a process with `capabilities`.
pub(crate) fn parse(text: &[u8], capabilities: &[&str]) -> Result<Policy, ProfileError> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let parsed = serde_path_to_error::deserialize(&mut deserializer);
    let profile: Profile = parsed.map_err(|e| ProfileError::Invalid {
        path: e.path().to_string(),
        problem: e.inner().to_string(),
    })?;
    if let Err(e) = deserializer.end() {
        return invalid(".", e.to_string());
    }
    if !profile.listener_path.is_empty() || !profile.listener_metadata.is_empty() {
        let problem = "a listener is for SCMP_ACT_NOTIFY, which is not supported";
        return invalid("listenerPath", problem);
    }
    check_flags(&profile.flags)?;
    let default =
        action(&profile.default_action, profile.default_errno_ret).or_else(|(part, problem)| {
            match part {
                Part::Action => invalid("defaultAction", problem),
                Part::Errno => invalid("defaultErrnoRet", problem),
            }
        })?;
    let abis = abis(&profile)?;
    let mut rules = Vec::new();
    for (i, syscall) in profile.syscalls.iter().enumerate() {
        convert(syscall, &format!("syscalls[{i}]"), capabilities, &mut rules)?;
    }
    // As runc does: a rule that says what holds anyhow says nothing.
    rules.retain(|rule| rule.action != default);
    let rules = settle(rules);
    Ok(Policy {
        default,
        abis,
        rules,
    })
}

/// What flags change is speed and the audit log, not what is allowed; so those
/// of the specification are fine, but for the one that is about listeners.
fn check_flags(flags: &[String]) -> Result<(), ProfileError> {
    for (i, flag) in flags.iter().enumerate() {
        match flag.as_str() {
            "SECCOMP_FILTER_FLAG_TSYNC"
            | "SECCOMP_FILTER_FLAG_LOG"
            | "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => {}
            other => return invalid(format!("flags[{i}]"), format!("unknown flag \"{other}\"")),
        }
    }
    Ok(())
}

/// A member that an error is about.
enum Part {
    Action,
    Errno,
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, (Part, String)> {
    let data = match errno {
        None => EPERM,
        Some(errno) => match u16::try_from(errno) {
            Ok(data) if errno <= MAX_ERRNO => data,
            _ => return Err((Part::Errno, format!("at most {MAX_ERRNO} is allowed"))),
        },
    };
    let plain = match name {
        "SCMP_ACT_ERRNO" => return Ok(Action::errno(data)),
        "SCMP_ACT_TRACE" => return Ok(Action::trace(data)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => Action::KILL_PROCESS,
        "SCMP_ACT_TRAP" => Action::TRAP,
        "SCMP_ACT_LOG" => Action::LOG,
        "SCMP_ACT_ALLOW" => Action::ALLOW,
        "SCMP_ACT_NOTIFY" => {
            let problem = "SCMP_ACT_NOTIFY is not supported: there is nobody to ask in a guest";
            return Err((Part::Action, problem.to_owned()));
        }
        other => return Err((Part::Action, format!("unknown action \"{other}\""))),
    };
    match errno {
        None => Ok(plain),
        Some(_) => Err((Part::Errno, format!("{name} takes no errno"))),
    }
}

/// The ABIs that the profile is for. The 64-bit one always is: it is the native
/// one.
fn abis(profile: &Profile) -> Result<Vec<Abi>, ProfileError> {
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return invalid("archMap", "use either architectures or archMap");
    }
    let mut wide = false;
    let mut narrow = false;
    let mut note = |name: &str, path: String, counts: bool| {
        match name {
            "SCMP_ARCH_X86_64" => wide |= counts,
            "SCMP_ARCH_X86" => narrow |= counts,
            // The guest's kernel has no x32 ABI.
            "SCMP_ARCH_X32" => {}
            other if OTHER_ARCHITECTURES.contains(&other) => {}
            other => return invalid(path, format!("unknown architecture \"{other}\"")),
        }
        Ok(())
    };
    for (i, name) in profile.architectures.iter().enumerate() {
        note(name, format!("architectures[{i}]"), true)?;
    }
    for (i, map) in profile.arch_map.iter().enumerate() {
        let ours = map.architecture == "SCMP_ARCH_X86_64";
        note(
            &map.architecture,
            format!("archMap[{i}].architecture"),
            ours,
        )?;
        for (j, name) in map.sub_architectures.iter().enumerate() {
            note(name, format!("archMap[{i}].subArchitectures[{j}]"), ours)?;
        }
    }
    let mut abis = vec![Abi::X86_64];
    if narrow {
        abis.push(Abi::X86);
    }
    Ok(abis)
}

/// Known to the runtime specification, of no meaning here.
const OTHER_ARCHITECTURES: [&str; 21] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_NATIVE",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
];

fn convert(
    syscall: &Syscall,
    path: &str,
    capabilities: &[&str],
    rules: &mut Vec<Rule>,
) -> Result<(), ProfileError> {
    let names = match (syscall.name.as_str(), syscall.names.is_empty()) {
        ("", false) => syscall.names.clone(),
        ("", true) => return invalid(format!("{path}.names"), "no system call is named"),
        (name, true) => vec![name.to_owned()],
        (_, false) => return invalid(format!("{path}.name"), "use either name or names"),
    };
    let action =
        action(&syscall.action, syscall.errno_ret).or_else(|(part, problem)| match part {
            Part::Action => invalid(format!("{path}.action"), problem),
            Part::Errno => invalid(format!("{path}.errnoRet"), problem),
        })?;
    let compare = |(j, argument)| comparison(argument, &format!("{path}.args[{j}]"));
    let arguments = syscall.args.iter().enumerate();
    let conditions = arguments.map(compare).collect::<Result<Vec<_>, _>>()?;
    let included = meets(&syscall.includes, &format!("{path}.includes"), capabilities)?;
    let excluded = meets(&syscall.excludes, &format!("{path}.excludes"), capabilities)?;
    if !included.all || excluded.any {
        return Ok(());
    }
    let twice = (0..6).any(|n| conditions.iter().filter(|c| c.argument == n).count() > 1);
    let mut add = |conditions| {
        rules.push(Rule {
            names: names.clone(),
            conditions,
            action,
        });
    };
    if twice {
        // What runc does, and so what profiles are written for.
        conditions.into_iter().for_each(|c| add(vec![c]));
    } else {
        add(conditions);
    }
    Ok(())
}

fn comparison(argument: &Argument, path: &str) -> Result<Comparison, ProfileError> {
    if argument.index > 5 {
        return invalid(
            format!("{path}.index"),
            "a system call has the arguments 0 to 5",
        );
    }
    let mut value = argument.value;
    let operator = match argument.op.as_str() {
        "SCMP_CMP_NE" => Operator::NotEqual,
        "SCMP_CMP_LT" => Operator::Less,
        "SCMP_CMP_LE" => Operator::LessOrEqual,
        "SCMP_CMP_EQ" => Operator::Equal,
        "SCMP_CMP_GE" => Operator::GreaterOrEqual,
        "SCMP_CMP_GT" => Operator::Greater,
        "SCMP_CMP_MASKED_EQ" => {
            value = argument.value_two;
            Operator::MaskedEqual(argument.value)
        }
        other => {
            return invalid(
                format!("{path}.op"),
                format!("unknown operator \"{other}\""),
            );
        }
    };
    Ok(Comparison {
        argument: argument.index,
        operator,
        value,
    })
}

/// How circumstances are met.
struct Met {
    all: bool,
    any: bool,
}

fn meets(
    circumstances: &Circumstances,
    path: &str,
    capabilities: &[&str],
) -> Result<Met, ProfileError> {
    let has = |name: &String| capabilities.contains(&name.as_str());
    let mut met = Met {
        all: circumstances.caps.iter().all(has),
        any: circumstances.caps.iter().any(has),
    };
    if !circumstances.arches.is_empty() {
        let ours = circumstances.arches.iter().any(|arch| arch == "amd64");
        met.all &= ours;
        met.any |= ours;
    }
    if !circumstances.min_kernel.is_empty() {
        let mut parts = circumstances.min_kernel.split('.').map(str::parse);
        let (Some(Ok(major)), Some(Ok(minor)), None) = (parts.next(), parts.next(), parts.next())
        else {
            let problem = "a kernel is named by two numbers, \"4.8\"";
            return invalid(format!("{path}.minKernel"), problem);
        };
        let there = (major, minor) <= GUEST_KERNEL;
        met.all &= there;
        met.any |= there;
    }
    Ok(met)
}

/// Where a system call has a rule without arguments, libseccomp drops those with.
fn settle(rules: Vec<Rule>) -> Vec<Rule> {
    let always: std::collections::BTreeSet<String> = rules
        .iter()
        .filter(|rule| rule.conditions.is_empty())
        .flat_map(|rule| rule.names.clone())
        .collect();
    rules
        .into_iter()
        .map(|mut rule| {
            if !rule.conditions.is_empty() {
                rule.names.retain(|name| !always.contains(name));
            }
            rule
        })
        .filter(|rule| !rule.names.is_empty())
        .collect()
}
