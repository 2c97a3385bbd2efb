//! What a profile says, by name and then, a table for each ABI, by number.

use crate::abi::Abi;
use std::collections::BTreeMap;

/// What becomes of a system call: a value of a seccomp program
/// (linux/seccomp.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Action(pub(crate) u32);

impl Action {
    pub(crate) const KILL_PROCESS: Self = Self(0x8000_0000);
    pub(crate) const KILL_THREAD: Self = Self(0);
    pub(crate) const TRAP: Self = Self(0x0003_0000);
    pub(crate) const LOG: Self = Self(0x7ffc_0000);
    pub(crate) const ALLOW: Self = Self(0x7fff_0000);

    /// The call fails with `errno`.
    pub(crate) const fn errno(errno: u16) -> Self {
        Self(0x0005_0000 | errno as u32)
    }

    /// A tracer is told `data`.
    pub(crate) const fn trace(data: u16) -> Self {
        Self(0x7ff0_0000 | data as u32)
    }
}

/// The operation was refused (EPERM), the call is not there (ENOSYS).
pub(crate) const EPERM: u16 = 1;
pub(crate) const ENOSYS: u16 = 38;

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// Only these bits are looked at.
    MaskedEqual(u64),
}

/// A condition on one argument, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Comparison {
    /// 0 to 5.
    pub(crate) argument: u8,
    pub(crate) operator: Operator,
    pub(crate) value: u64,
}

impl Comparison {
    /// As it is for arguments of 32 bits, which the kernel sees zero-extended.
    fn narrow(self) -> Self {
        let low = |value: u64| value & u64::from(u32::MAX);
        let operator = match self.operator {
            Operator::MaskedEqual(mask) => Operator::MaskedEqual(low(mask)),
            other => other,
        };
        Self {
            operator,
            value: low(self.value),
            ..self
        }
    }

    #[cfg(test)]
    pub(crate) fn holds(self, arguments: &[u64; 6]) -> bool {
        let found = arguments[usize::from(self.argument)];
        match self.operator {
            Operator::NotEqual => found != self.value,
            Operator::Less => found < self.value,
            Operator::LessOrEqual => found <= self.value,
            Operator::Equal => found == self.value,
            Operator::GreaterOrEqual => found >= self.value,
            Operator::Greater => found > self.value,
            Operator::MaskedEqual(mask) => found & mask == self.value,
        }
    }
}

/// A rule for some system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) names: Vec<String>,
    /// All must hold; none: always.
    pub(crate) conditions: Vec<Comparison>,
    pub(crate) action: Action,
}

/// A profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Of calls that no rule is about.
    pub(crate) default: Action,
    /// Calls by any other ABI end the process.
    pub(crate) abis: Vec<Abi>,
    pub(crate) rules: Vec<Rule>,
}

/// Actions and what must hold for them.
type Conditional = Vec<(Vec<Comparison>, Action)>;

/// What becomes of one system call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Decision {
    /// The first whose conditions all hold decides.
    pub(crate) conditional: Conditional,
    pub(crate) otherwise: Action,
}

impl Decision {
    /// Always the same.
    pub(crate) fn always(action: Action) -> Self {
        Self {
            conditional: Vec::new(),
            otherwise: action,
        }
    }
}

impl Policy {
    /// The decisions for the system calls of `abi` that rules are about, by
    /// number. Of several rules without conditions the first counts; those with
    /// conditions come before it.
    pub(crate) fn table(&self, abi: Abi) -> BTreeMap<u32, Decision> {
        let mut found: BTreeMap<u32, (Conditional, Option<Action>)> = BTreeMap::new();
        for rule in &self.rules {
            for number in rule.names.iter().filter_map(|name| abi.number(name)) {
                let (conditional, always) = found.entry(number).or_default();
                if rule.conditions.is_empty() {
                    always.get_or_insert(rule.action);
                } else {
                    let narrow = |c: &Comparison| if abi.is_narrow() { c.narrow() } else { *c };
                    let conditions = rule.conditions.iter().map(narrow).collect();
                    conditional.push((conditions, rule.action));
                }
            }
        }
        let decide = |(number, (conditional, always)): (u32, (Conditional, Option<Action>))| {
            let otherwise = always.unwrap_or(self.default);
            (
                number,
                Decision {
                    conditional,
                    otherwise,
                },
            )
        };
        found.into_iter().map(decide).collect()
    }

    /// What becomes of a system call, by the profile itself: what the compiled
    /// program is tested against.
    #[cfg(test)]
    pub(crate) fn evaluate(&self, arch: u32, number: u32, arguments: &[u64; 6]) -> Action {
        let Some(abi) = self.abis.iter().find(|abi| abi.audit_arch() == arch) else {
            return Action::KILL_PROCESS;
        };
        if *abi == Abi::X86_64 && number >= crate::abi::X32_BIT {
            return Action::errno(ENOSYS);
        }
        let Some(decision) = self.table(*abi).remove(&number) else {
            return self.default;
        };
        let all = |conditions: &[Comparison]| conditions.iter().all(|c| c.holds(arguments));
        let first = decision.conditional.iter().find(|(c, _)| all(c));
        first.map_or(decision.otherwise, |(_, action)| *action)
    }
}
