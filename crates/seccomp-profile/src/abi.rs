//! The two system call tables of an x86-64 kernel.

use std::str::FromStr;

/// A table of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Abi {
    /// 64-bit programs.
    X86_64,
    /// 32-bit programs.
    X86,
}

/// Both.
pub(crate) const ALL: [Abi; 2] = [Abi::X86_64, Abi::X86];

/// Numbers from here on are of the x32 ABI (asm/unistd.h: __X32_SYSCALL_BIT).
pub(crate) const X32_BIT: u32 = 0x4000_0000;

impl Abi {
    /// AUDIT_ARCH_X86_64, AUDIT_ARCH_I386 (linux/audit.h): seccomp_data.arch.
    pub(crate) fn audit_arch(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
        }
    }

    /// The number of a system call; `None` if the table has none of the name.
    pub(crate) fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok()?.id(),
            Self::X86 => syscalls::x86::Sysno::from_str(name).ok()?.id(),
        };
        u32::try_from(number).ok()
    }

    /// Whether arguments are 32 bits wide; seccomp_data has zeroes above them.
    pub(crate) fn is_narrow(self) -> bool {
        self == Self::X86
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_each_tables_numbers() {
        assert_eq!(Abi::X86_64.number("read"), Some(0));
        assert_eq!(Abi::X86.number("read"), Some(3));
        assert_eq!(Abi::X86.number("socketcall"), Some(102));
        assert_eq!(Abi::X86_64.number("socketcall"), None);
        assert_eq!(Abi::X86_64.number("clone3"), Some(435));
        assert_eq!(Abi::X86_64.number("no_such_call"), None);
    }
}
