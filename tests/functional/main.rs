//! Black-box tests: the real daemon, the real command line, real VMs.
//!
//! A test that this machine cannot run is listed as ignored, with the reason in
//! its name. Each file holds the tests of one thing.

use libtest_mimic::{Arguments, Trial};
use spherule_tests::machine;
use std::process::ExitCode;

mod containers;
mod crash;
mod images;
mod kvm;
mod lifecycle;
mod pods;
mod refusals;
mod shared;
mod volumes;

/// A test: its name, and what it does.
type Test = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each test boots VMs: as many at once as there are cores, not more.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    arguments.test_threads.get_or_insert(cores);
    let machine = machine();
    let no_engine = match machine.engine {
        "kvm" => &machine.no_kvm,
        _ => &machine.no_qemu,
    };
    let groups = [
        trials("pods", pods::TESTS, no_engine),
        trials("containers", containers::TESTS, no_engine),
        trials("volumes", volumes::TESTS, no_engine),
        trials("lifecycle", lifecycle::TESTS, no_engine),
        trials("refusals", refusals::TESTS, no_engine),
        trials("images", images::TESTS, no_engine),
        trials("crash", crash::TESTS, no_engine),
        trials("kvm", kvm::TESTS, &machine.no_kvm),
    ];
    let conclusion = libtest_mimic::run(&arguments, groups.into_iter().flatten().collect());
    shared::end();
    conclusion.exit_code()
}

/// A group's tests; all ignored where the group lacks something.
fn trials(group: &str, tests: &[Test], lacking: &Option<String>) -> Vec<Trial> {
    let trial = |(name, test): &Test| {
        let test = *test;
        let run = move || test().map_err(|e| format!("{e:#}").into());
        match lacking {
            None => Trial::test(format!("{group}::{name}"), run),
            Some(why) => Trial::test(format!("{group}::{name} (skipped: {why})"), run)
                .with_ignored_flag(true),
        }
    };
    tests.iter().map(trial).collect()
}
