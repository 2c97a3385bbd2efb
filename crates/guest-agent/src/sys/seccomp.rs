//! Loading a seccomp filter.
#![expect(
    unsafe_code,
    reason = "seccomp(2) with a pointer to our own instructions"
)]
// UNSAFETY: neither rustix nor nix has seccomp.

use rustix::io::Errno;

/// linux/seccomp.h
const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
/// linux/bpf_common.h: most instructions of a program.
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;

/// A program of struct sock_filter, not looked at: the kernel does that.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Filter(Vec<libc::sock_filter>);

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filter({} instructions)", self.0.len())
    }
}

impl Filter {
    /// From instructions of 8 bytes each, little endian. `None` if these are no
    /// whole instructions, none at all, or too many.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (instructions, rest) = bytes.as_chunks::<8>();
        let allowed = 1..=MAX_INSTRUCTIONS;
        if !rest.is_empty() || !allowed.contains(&instructions.len()) {
            return None;
        }
        let instruction = |b: &[u8; 8]| libc::sock_filter {
            code: u16::from_le_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        };
        Some(Self(instructions.iter().map(instruction).collect()))
    }

    /// From now on every system call of this thread, and of what it becomes and
    /// makes, goes through the filter. Needs no_new_privs or CAP_SYS_ADMIN.
    /// EINVAL: the kernel does not take the program.
    pub(crate) fn load(&self) -> Result<(), Errno> {
        let len = u16::try_from(self.0.len()).map_err(|_| Errno::INVAL)?;
        let program = libc::sock_fprog {
            len,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: `program` names exactly the instructions held here, which live
        // until the call returns; the kernel copies them and writes nothing.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                SECCOMP_SET_MODE_FILTER,
                0u32,
                &raw const program,
            )
        };
        super::check(result).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_instructions_within_the_kernels_limit_pass() {
        for (bytes, good) in [
            (0, false),
            (7, false),
            (8, true),
            (12, false),
            (8 * MAX_INSTRUCTIONS, true),
            (8 * MAX_INSTRUCTIONS + 8, false),
        ] {
            assert_eq!(
                Filter::from_bytes(&vec![0; bytes]).is_some(),
                good,
                "{bytes}"
            );
        }
    }

    #[test]
    fn a_program_without_an_end_is_the_kernels_to_refuse() {
        // A single load: the kernel wants a return behind it.
        let filter = Filter::from_bytes(&[0x20, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        // In a thread of its own, as the setting stays.
        let result = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            filter.load()
        });
        assert_eq!(result.join().unwrap(), Err(Errno::INVAL));
    }

    #[test]
    fn a_loaded_filter_decides() {
        // if nr == getppid: errno 77, else allow.
        let nr = u32::try_from(libc::SYS_getppid).unwrap();
        let program = [
            (0x20u16, 0u8, 0u8, 0u32),
            (0x15, 0, 1, nr),
            (0x06, 0, 0, 0x0005_0000 | 77),
            (0x06, 0, 0, 0x7fff_0000),
        ];
        let bytes: Vec<u8> = program
            .iter()
            .flat_map(|(code, jt, jf, k)| {
                let mut b = code.to_le_bytes().to_vec();
                b.extend([*jt, *jf]);
                b.extend(k.to_le_bytes());
                b
            })
            .collect();
        let filter = Filter::from_bytes(&bytes).unwrap();
        let result = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            filter.load().unwrap();
            // SAFETY: getppid takes nothing and cannot fail but by the filter.
            unsafe { libc::syscall(libc::SYS_getppid) };
            super::super::last_errno().raw_os_error()
        });
        assert_eq!(result.join().unwrap(), 77);
    }
}
