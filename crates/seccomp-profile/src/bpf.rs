//! Classic BPF as seccomp knows it, and an assembler that works from the last
//! instruction to the first: what a jump leads to is then known already.

#[cfg(test)]
pub(crate) mod interpreter;

/// struct sock_filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// BPF_LD | BPF_W | BPF_ABS: a word of struct seccomp_data.
pub(crate) const LOAD: u16 = 0x20;
/// BPF_ALU | BPF_AND | BPF_K
pub(crate) const AND: u16 = 0x54;
/// BPF_JMP | BPF_JA
pub(crate) const JUMP: u16 = 0x05;
/// BPF_RET | BPF_K
pub(crate) const RETURN: u16 = 0x06;

/// Conditional jumps (BPF_JMP | ... | BPF_K): accumulator against constant,
/// unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Test {
    Equal = 0x15,
    Greater = 0x25,
    GreaterOrEqual = 0x35,
}

/// As the kernel takes them.
pub(crate) fn to_bytes(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend_from_slice(&instruction.code.to_le_bytes());
        bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
        bytes.extend_from_slice(&instruction.k.to_le_bytes());
    }
    bytes
}

/// A place in the program: how many instructions there are from it to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// Farthest a conditional jump reaches.
const NEAR: usize = u8::MAX as usize;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    /// Last instruction first.
    reversed: Vec<Instruction>,
}

impl Assembler {
    /// Puts a plain instruction before what there is.
    pub(crate) fn before(&mut self, code: u16, k: u32) -> Label {
        self.push(Instruction {
            code,
            jt: 0,
            jf: 0,
            k,
        })
    }

    /// Makes what is put before this go on at `label`.
    pub(crate) fn go_to(&mut self, label: Label) {
        let distance = self.distance(label);
        if distance > 0 {
            // Programs are far shorter than 4 Gi instructions.
            self.before(JUMP, u32::try_from(distance).unwrap_or(u32::MAX));
        }
    }

    /// Puts a test before what there is.
    pub(crate) fn branch(&mut self, test: Test, k: u32, yes: Label, no: Label) -> Label {
        if yes == no {
            self.go_to(yes);
            return self.here();
        }
        // Too far for a conditional jump: by a jump beside it. The second test
        // leaves room for the first one's jump.
        let (mut yes, mut no) = (yes, no);
        if self.distance(yes) >= NEAR {
            yes = self.stepping_stone(yes);
        }
        if self.distance(no) > NEAR {
            no = self.stepping_stone(no);
        }
        let near = |distance| u8::try_from(distance).unwrap_or(u8::MAX);
        self.push(Instruction {
            code: test as u16,
            jt: near(self.distance(yes)),
            jf: near(self.distance(no)),
            k,
        })
    }

    /// The program, first instruction first.
    pub(crate) fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }

    /// How many instructions there are.
    pub(crate) fn len(&self) -> usize {
        self.reversed.len()
    }

    /// Whether a conditional jump put here reaches `label`, with room to spare.
    pub(crate) fn is_near(&self, label: Label) -> bool {
        self.distance(label) < NEAR / 2
    }

    /// The first instruction there is.
    fn here(&self) -> Label {
        Label(self.reversed.len())
    }

    fn push(&mut self, instruction: Instruction) -> Label {
        self.reversed.push(instruction);
        self.here()
    }

    fn stepping_stone(&mut self, label: Label) -> Label {
        let distance = self.distance(label);
        self.before(JUMP, u32::try_from(distance).unwrap_or(u32::MAX))
    }

    /// What an instruction put here has to skip to get to `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_targets_are_reached_by_stepping_stones() {
        for padding in [0, 1, 252, 253, 254, 255, 256, 257, 1000] {
            let mut assembler = Assembler::default();
            let no = assembler.before(RETURN, 2);
            let yes = assembler.before(RETURN, 1);
            for _ in 0..padding {
                assembler.before(RETURN, 99);
            }
            assembler.branch(Test::Equal, 7, yes, no);
            assembler.before(LOAD, 0);
            let program = assembler.finish();
            let run = |number| interpreter::run(&program, 0, number, &[0; 6]);
            assert_eq!((run(7), run(8)), (Some(1), Some(2)), "{padding}");
        }
    }
}
