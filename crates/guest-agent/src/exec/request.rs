//! An exec request, checked.

use super::copy::{self, Copy};
use crate::error::AgentError;
use guest_api::proto::{ExecRequest, TerminalSize};
use rustix::termios::Winsize;
use std::ffi::CString;

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) container_id: String,
    pub(crate) work: Work,
    /// Besides the container's.
    pub(crate) env: Vec<String>,
    /// `None`: the container's.
    pub(crate) cwd: Option<String>,
    pub(crate) terminal: bool,
    /// Of the terminal; `None`: the kernel's default.
    pub(crate) size: Option<Winsize>,
    pub(crate) stdin: bool,
}

/// What the process does.
#[derive(Debug)]
pub(crate) enum Work {
    /// Becomes a program. At least one argument, the first not empty.
    Program(Vec<CString>),
    /// Copies files.
    Copy(Copy),
}

/// Checks all fields of `request`.
pub(crate) fn check(request: ExecRequest) -> Result<Plan, AgentError> {
    let work = match request.copy {
        None => Work::Program(arguments(&request.args)?),
        Some(_) if !request.args.is_empty() || request.terminal => {
            return Err(AgentError::invalid(
                "copy",
                "goes with neither arguments nor a terminal",
            ));
        }
        Some(files) => Work::Copy(copy::check(files)?),
    };
    for (i, entry) in request.env.iter().enumerate() {
        let named = entry
            .split_once('=')
            .is_some_and(|(name, _)| !name.is_empty());
        if !named || entry.contains('\0') {
            return Err(AgentError::invalid(
                format!("env[{i}]"),
                "an environment entry is NAME=VALUE without NUL bytes",
            ));
        }
    }
    let cwd = (!request.cwd.is_empty()).then_some(request.cwd);
    if let Some(cwd) = &cwd
        && (!cwd.starts_with('/') || cwd.contains('\0'))
    {
        return Err(AgentError::invalid(
            "cwd",
            "the working directory must be an absolute path",
        ));
    }
    Ok(Plan {
        container_id: request.container_id,
        work,
        env: request.env,
        cwd,
        terminal: request.terminal,
        size: request.size.as_ref().and_then(winsize),
        stdin: request.stdin,
    })
}

fn arguments(args: &[String]) -> Result<Vec<CString>, AgentError> {
    match args.first() {
        None => return Err(AgentError::invalid("args", "no command")),
        Some(program) if program.is_empty() => {
            return Err(AgentError::invalid("args[0]", "no command"));
        }
        Some(_) => {}
    }
    let convert = |(i, arg): (usize, &String)| {
        CString::new(arg.as_str())
            .map_err(|_| AgentError::invalid(format!("args[{i}]"), "contains a NUL byte"))
    };
    args.iter().enumerate().map(convert).collect()
}

/// A terminal's size as the kernel has it; larger than it can have is its
/// largest. `None` of zeroes.
pub(crate) fn winsize(size: &TerminalSize) -> Option<Winsize> {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    (size.columns != 0 || size.rows != 0).then(|| Winsize {
        ws_row: clamp(size.rows),
        ws_col: clamp(size.columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> ExecRequest {
        ExecRequest {
            container_id: "c".to_owned(),
            args: vec!["sh".to_owned()],
            ..ExecRequest::default()
        }
    }

    #[test]
    fn the_least_request_passes() {
        let plan = check(good()).unwrap();
        assert!(plan.cwd.is_none() && plan.size.is_none() && !plan.stdin);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let with = |change: &dyn Fn(&mut ExecRequest)| {
            let mut request = good();
            change(&mut request);
            check(request).unwrap_err().into_wire().field
        };
        assert_eq!(with(&|r| r.args.clear()), "args");
        assert_eq!(with(&|r| r.args[0].clear()), "args[0]");
        assert_eq!(with(&|r| r.args.push("a\0".into())), "args[1]");
        assert_eq!(with(&|r| r.env.push("=x".into())), "env[0]");
        assert_eq!(with(&|r| r.env.push("A=\0".into())), "env[0]");
        assert_eq!(with(&|r| r.copy = Some(Default::default())), "copy");
        assert_eq!(with(&|r| r.cwd = "tmp".into()), "cwd");
        assert_eq!(with(&|r| r.cwd = "/\0".into()), "cwd");
    }

    #[test]
    fn sizes_past_the_kernels_are_its_largest() {
        let size = |columns, rows| winsize(&TerminalSize { columns, rows });
        assert!(size(0, 0).is_none());
        let huge = size(70_000, 24).unwrap();
        assert_eq!((huge.ws_col, huge.ws_row), (u16::MAX, 24));
    }
}
