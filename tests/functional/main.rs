//! Black-box tests: the real daemon, the real command line, real VMs.
//!
//! A test that this machine cannot run is listed as ignored, with the reason in
//! its name. Each file holds the tests of one thing.

use libtest_mimic::{Arguments, Trial};
use spherule_tests::{lacking, machine, short};
use std::process::ExitCode;

mod block_volumes;
mod command_line;
mod containers;
mod copy;
mod crash;
mod cri;
mod cri_cgroups;
mod cri_events;
mod cri_faults;
mod cri_images;
mod cri_refusals;
mod cri_resources;
mod empty_dirs;
mod engines;
mod ephemeral;
mod escapes;
mod every_kind;
mod full_disk;
mod guest_faults;
mod host_paths;
mod image_gc;
mod images;
mod inside;
mod kvm;
mod lifecycle;
mod logs;
mod network;
mod objects;
mod pods;
mod refusals;
mod registry;
mod service;
mod sessions;
mod shared;
mod shares;
mod storage;
mod streaming;
mod streaming_faults;
mod streaming_long;
mod streaming_tls;
mod terminals;
mod volumes;

/// A test: its name, and what it does.
type Test = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> ExitCode {
    let mut given = std::env::args().skip(1);
    if given.next().as_deref() == Some(inside::INSIDE) {
        return match inside::run(given) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    // Each test boots VMs: as many at once as there are cores, not more.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    arguments.test_threads.get_or_insert(cores);
    let machine = machine();
    let no_engine = match machine.engine {
        "kvm" => &machine.no_kvm,
        _ => &machine.no_qemu,
    };
    let no_registry = no_engine.clone().or(lacking(test_images::REGISTRY));
    let no_disk = no_engine.clone().or(machine.no_mounts.clone());
    let no_pull = no_registry.clone().or(machine.no_mounts.clone());
    let no_network = no_engine
        .clone()
        .or(machine.no_network.clone())
        .or(lacking("iptables"));
    let no_long = no_engine.clone().or(spherule_tests::short());
    let no_terminal = no_engine.clone().or(lacking("script"));
    let no_rules = no_network.clone().or(lacking("nft"));
    let no_long_network = no_network.clone().or(short());
    let no_names = no_network.clone().or(lacking("dnsmasq"));
    // Minutes where the guest's kernel is emulated; vmm's own tests have the queues.
    let no_kvm_network = no_network.clone().or(machine.no_kvm.clone());
    let no_kvm_network = no_kvm_network.or_else(|| short().filter(|_| !machine.kvm_is_fast));
    let not_both = machine.no_kvm.clone().or(machine.no_qemu.clone());
    let too_long = no_engine.clone().or(short());
    let no_cgroups = no_engine.clone().or(machine.no_cgroups.clone());
    let no_unified = no_cgroups.clone().or(machine.no_mounts.clone());
    let no_unified = no_unified.or_else(cri_cgroups::no_unified);
    let no_package = no_engine.clone().or(lacking("dpkg-deb"));
    let no_hiding = machine.no_mounts.clone();
    let no_kvm_to_show = no_hiding.clone().or(machine.no_kvm.clone());
    let no_qemu_to_show = no_hiding.clone().or(machine.no_qemu.clone());
    let groups = [
        trials("pods", pods::TESTS, no_engine),
        trials("containers", containers::TESTS, no_engine),
        trials("volumes", volumes::TESTS, no_engine),
        trials("block_volumes", block_volumes::TESTS, no_engine),
        trials("objects", objects::TESTS, no_engine),
        trials("host_paths", host_paths::TESTS, no_engine),
        trials("lifecycle", lifecycle::TESTS, no_engine),
        trials("refusals", refusals::TESTS, no_engine),
        trials("guest_faults", guest_faults::TESTS, no_engine),
        trials("command_line", command_line::TESTS, no_engine),
        trials("sessions", sessions::TESTS, no_engine),
        trials("terminals", terminals::TESTS, &no_terminal),
        trials("ephemeral", ephemeral::TESTS, no_engine),
        trials("ephemeral", ephemeral::TERMINALS, &no_terminal),
        trials("logs", logs::TESTS, no_engine),
        trials("copy", copy::TESTS, no_engine),
        trials("command_line", command_line::BASH, &lacking("bash")),
        trials("command_line", command_line::ZSH, &lacking("zsh")),
        trials("command_line", command_line::FISH, &lacking("fish")),
        trials("cri", cri::TESTS, no_engine),
        trials("cri_cgroups", cri_cgroups::TESTS, &no_cgroups),
        trials("cri_cgroups", cri_cgroups::UNIFIED, &no_unified),
        trials("cri_events", cri_events::TESTS, no_engine),
        trials("cri_faults", cri_faults::TESTS, no_engine),
        trials("cri_resources", cri_resources::TESTS, no_engine),
        trials("cri_refusals", cri_refusals::TESTS, no_engine),
        trials("streaming", streaming::TESTS, no_engine),
        trials("streaming_long", streaming_long::TESTS, &no_long),
        trials("streaming_faults", streaming_faults::TESTS, no_engine),
        trials("streaming_tls", streaming_tls::TESTS, no_engine),
        trials("network", network::TESTS, &no_network),
        trials("network", network::RULES, &no_rules),
        trials("network", network::NAMES, &no_names),
        trials("network", network::LONG, &no_long_network),
        trials("shares", shares::TESTS, no_engine),
        trials("shares", shares::MOUNTS, &no_disk),
        trials("escapes", escapes::TESTS, no_engine),
        trials("empty_dirs", empty_dirs::TESTS, no_engine),
        trials("empty_dirs", empty_dirs::MOUNTS, &no_disk),
        trials("image_gc", image_gc::TESTS, &no_disk),
        trials("storage", storage::TESTS, no_engine),
        trials("storage", storage::LONG, &too_long),
        trials("cri_images", cri_images::TESTS, &no_registry),
        trials("registry", registry::TESTS, &no_registry),
        trials("full_disk", full_disk::TESTS, &no_disk),
        trials("full_disk", full_disk::PULLS, &no_pull),
        trials("engines", engines::NONE, &no_hiding),
        trials("engines", engines::ONLY_KVM, &no_kvm_to_show),
        trials("engines", engines::ONLY_QEMU, &no_qemu_to_show),
        trials("images", images::TESTS, no_engine),
        trials("service", service::TESTS, no_engine),
        trials("service", service::PACKAGE, &no_package),
        trials("crash", crash::TESTS, no_engine),
        trials("kvm", kvm::TESTS, &machine.no_kvm),
        trials("kvm", kvm::NETWORK, &no_kvm_network),
        trials("kvm", kvm::WITH_QEMU, &not_both),
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
