//! A policy as a program: by architecture, then a binary search for the number,
//! then the conditions on arguments.

use crate::abi::{Abi, X32_BIT};
use crate::bpf::{AND, Assembler, Instruction, LOAD, Label, RETURN, Test};
use crate::policy::{Action, Comparison, Decision, ENOSYS, Operator, Policy};
use crate::{MAX_INSTRUCTIONS, ProfileError};
use std::collections::HashMap;

/// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The program of `policy`.
pub(crate) fn compile(policy: &Policy) -> Result<Vec<Instruction>, ProfileError> {
    let mut compiler = Compiler::default();
    let sections: Vec<(Abi, Label)> = policy
        .abis
        .iter()
        .map(|abi| (*abi, compiler.section(policy, *abi)))
        .collect();
    let mut next = compiler.end(Action::KILL_PROCESS);
    for (abi, section) in sections {
        next = compiler
            .code
            .branch(Test::Equal, abi.audit_arch(), section, next);
    }
    compiler.code.go_to(next);
    compiler.code.before(LOAD, ARCH);
    let instructions = compiler.code.len();
    if instructions > MAX_INSTRUCTIONS {
        return Err(ProfileError::TooLarge { instructions });
    }
    Ok(compiler.code.finish())
}

#[derive(Default)]
struct Compiler {
    code: Assembler,
    /// The nearest return of each action.
    ends: HashMap<Action, Label>,
}

impl Compiler {
    /// All system calls of one ABI.
    fn section(&mut self, policy: &Policy, abi: Abi) -> Label {
        let ranges = ranges(policy, abi);
        let mut start = self.search(&ranges);
        if abi == Abi::X86_64 {
            let x32 = self.end(Action::errno(ENOSYS));
            start = self.code.branch(Test::GreaterOrEqual, X32_BIT, x32, start);
        }
        self.code.go_to(start);
        self.code.before(LOAD, NUMBER)
    }

    /// Each range begins at its number and ends before the next one's.
    fn search(&mut self, ranges: &[(u32, Decision)]) -> Label {
        match ranges {
            [] => self.end(Action::KILL_PROCESS),
            [(_, decision)] => self.decide(decision),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let above = self.search(high);
                let below = self.search(low);
                self.code
                    .branch(Test::GreaterOrEqual, high[0].0, above, below)
            }
        }
    }

    fn decide(&mut self, decision: &Decision) -> Label {
        let mut next = self.end(decision.otherwise);
        for (conditions, action) in decision.conditional.iter().rev() {
            let mut yes = self.end(*action);
            for comparison in conditions.iter().rev() {
                yes = self.compare(*comparison, yes, next);
            }
            next = yes;
        }
        next
    }

    /// A return; one that is near enough is used again.
    fn end(&mut self, action: Action) -> Label {
        if let Some(label) = self.ends.get(&action).filter(|l| self.code.is_near(**l)) {
            return *label;
        }
        let label = self.code.before(RETURN, action.0);
        self.ends.insert(action, label);
        label
    }

    fn compare(&mut self, comparison: Comparison, yes: Label, no: Label) -> Label {
        let Comparison {
            argument, value, ..
        } = comparison;
        let (low, high) = halves(value);
        match comparison.operator {
            Operator::Equal => self.equal(argument, u64::MAX, value, yes, no),
            Operator::NotEqual => self.equal(argument, u64::MAX, value, no, yes),
            Operator::MaskedEqual(mask) => self.equal(argument, mask, value, yes, no),
            Operator::Greater => self.greater(argument, Test::Greater, (low, high), yes, no),
            Operator::LessOrEqual => self.greater(argument, Test::Greater, (low, high), no, yes),
            Operator::GreaterOrEqual => {
                self.greater(argument, Test::GreaterOrEqual, (low, high), yes, no)
            }
            Operator::Less => self.greater(argument, Test::GreaterOrEqual, (low, high), no, yes),
        }
    }

    fn equal(&mut self, argument: u8, mask: u64, value: u64, yes: Label, no: Label) -> Label {
        if value & !mask != 0 {
            return no;
        }
        let ((low, high), (low_mask, high_mask)) = (halves(value), halves(mask));
        let mut next = yes;
        for (offset, mask, value) in [(0, low_mask, low), (4, high_mask, high)] {
            if mask == 0 {
                continue;
            }
            self.code.branch(Test::Equal, value, next, no);
            if mask != u32::MAX {
                self.code.before(AND, mask);
            }
            next = self.load(argument, offset);
        }
        next
    }

    /// `low` decides where the upper halves are the same.
    fn greater(
        &mut self,
        argument: u8,
        low: Test,
        value: (u32, u32),
        yes: Label,
        no: Label,
    ) -> Label {
        self.code.branch(low, value.0, yes, no);
        let same = self.load(argument, 0);
        let not_greater = self.code.branch(Test::Equal, value.1, same, no);
        self.code.branch(Test::Greater, value.1, yes, not_greater);
        self.load(argument, 4)
    }

    fn load(&mut self, argument: u8, offset: u32) -> Label {
        let at = ARGUMENTS + 8 * u32::from(argument) + offset;
        self.code.before(LOAD, at)
    }
}

/// Lower and upper half.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves are what is wanted"
)]
fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// All numbers, each range of the same decision as one.
fn ranges(policy: &Policy, abi: Abi) -> Vec<(u32, Decision)> {
    let table = policy.table(abi);
    let default = Decision::always(policy.default);
    let mut ranges = vec![(0, default.clone())];
    for (number, decision) in table {
        put(&mut ranges, number, decision);
        put(&mut ranges, number + 1, default.clone());
    }
    ranges
}

/// From `number` on it is `decision`.
fn put(ranges: &mut Vec<(u32, Decision)>, number: u32, decision: Decision) {
    if ranges.last().is_some_and(|(start, _)| *start == number) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|(_, last)| *last != decision) {
        ranges.push((number, decision));
    }
}
