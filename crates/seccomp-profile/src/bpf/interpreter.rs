//! What the kernel does with a program, and what it checks before
//! (net/core/filter.c, kernel/seccomp.c), for tests.

use super::{AND, Instruction, JUMP, LOAD, RETURN, Test};

/// struct seccomp_data has this many bytes.
const DATA: u32 = 64;

/// Whether the kernel would load the program.
pub(crate) fn is_sound(program: &[Instruction]) -> bool {
    let inside = |at: usize, skip: usize| at + 1 + skip < program.len();
    let sound = |(at, i): (usize, &Instruction)| match i.code {
        LOAD => i.k.is_multiple_of(4) && i.k < DATA,
        AND | RETURN => true,
        JUMP => inside(at, i.k as usize),
        _ => test(i.code).is_some() && inside(at, i.jt.into()) && inside(at, i.jf.into()),
    };
    (1..=4096).contains(&program.len())
        && program.iter().enumerate().all(sound)
        && program.last().is_some_and(|i| i.code == RETURN)
}

fn test(code: u16) -> Option<Test> {
    [Test::Equal, Test::Greater, Test::GreaterOrEqual]
        .into_iter()
        .find(|test| *test as u16 == code)
}

/// The value returned; `None` if the program runs out of itself.
pub(crate) fn run(
    program: &[Instruction],
    arch: u32,
    number: u32,
    arguments: &[u64; 6],
) -> Option<u32> {
    let mut data = [0_u8; DATA as usize];
    data[..4].copy_from_slice(&number.to_le_bytes());
    data[4..8].copy_from_slice(&arch.to_le_bytes());
    for (i, argument) in arguments.iter().enumerate() {
        data[16 + 8 * i..24 + 8 * i].copy_from_slice(&argument.to_le_bytes());
    }
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let i = program.get(at)?;
        at += 1;
        match i.code {
            LOAD => {
                let from = i.k as usize;
                accumulator = u32::from_le_bytes(data.get(from..from + 4)?.try_into().ok()?);
            }
            AND => accumulator &= i.k,
            JUMP => at += i.k as usize,
            RETURN => return Some(i.k),
            code => {
                let holds = match test(code)? {
                    Test::Equal => accumulator == i.k,
                    Test::Greater => accumulator > i.k,
                    Test::GreaterOrEqual => accumulator >= i.k,
                };
                at += usize::from(if holds { i.jt } else { i.jf });
            }
        }
    }
}
