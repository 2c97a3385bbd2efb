//! Seccomp profiles as programs: a profile names system calls and says what
//! becomes of each; the kernel wants a classic BPF program. This crate makes the
//! one of the other: our own default profile ([`runtime_default`]) and profiles
//! written by users after the OCI runtime specification ([`from_json`]).
//!
//! ```text
//! JSON --oci--> Policy: rules by name --policy--> Table a ABI: by number
//!     default_profile --^                           --compile--> bpf: program
//! ```
//!
//! Programs are for x86-64 processes and the 32-bit programs they may run.
//! System calls of the x32 ABI fail with ENOSYS, as in a kernel without it.

mod abi;
mod bpf;
mod compile;
mod default_profile;
mod oci;
mod policy;

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The text is no profile, or says what cannot be done.
    #[error("seccomp profile, at {path}: {problem}")]
    Invalid {
        /// Where in the text, "syscalls[2].args[0].op"; "." is all of it.
        path: String,
        /// What is wrong there.
        problem: String,
    },
    /// The kernel takes no program of this size.
    #[error(
        "the seccomp profile needs {instructions} BPF instructions, the kernel takes {MAX_INSTRUCTIONS}; \
         name fewer argument comparisons"
    )]
    TooLarge {
        /// How many it would be.
        instructions: usize,
    },
}

/// Most instructions of a program (the kernel's BPF_MAXINSNS).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// The program of the default profile for a process whose bounding set is
/// `capabilities` ("CAP_CHOWN"; unknown names give nothing). Instructions are
/// struct sock_filter, 8 bytes each, little endian.
#[must_use]
pub fn runtime_default<S: AsRef<str>>(capabilities: &[S]) -> Vec<u8> {
    let names: Vec<&str> = capabilities.iter().map(AsRef::as_ref).collect();
    let policy = default_profile::policy(&names);
    // The list is ours and far from the limit (a test holds it).
    compile::compile(&policy)
        .map(|program| bpf::to_bytes(&program))
        .unwrap_or_default()
}

/// The program of the profile in `text`: the OCI runtime specification's
/// LinuxSeccomp in JSON, with `archMap`, `includes` and `excludes` as Docker's
/// profiles have them. `capabilities` and the result as of [`runtime_default`].
///
/// Names of system calls that neither ABI has are passed over; everything else
/// that is unknown is an error, as is SCMP_ACT_NOTIFY. Where rules of one system
/// call compete, the result is what libseccomp as used by runc makes of them: a
/// rule without arguments beats those with, rules with the default action say
/// nothing, a rule that compares one argument twice is as many rules.
pub fn from_json<S: AsRef<str>>(text: &[u8], capabilities: &[S]) -> Result<Vec<u8>, ProfileError> {
    let names: Vec<&str> = capabilities.iter().map(AsRef::as_ref).collect();
    let policy = oci::parse(text, &names)?;
    let program = compile::compile(&policy)?;
    Ok(bpf::to_bytes(&program))
}

#[cfg(test)]
mod tests;
